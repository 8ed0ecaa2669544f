"""A second look at what a search found: question and text read together by a cross-encoder.

reranker = Reranker.load("cross-encoder/ms-marco-MiniLM-L6-v2")
reranker.scores("first dose of Corvalexin", [search_text(hit.chunk) for hit in hits])  # one number a text, order kept

A cross-encoder sees every word of the question beside every word of the text, which an encoder's cosine cannot, and
pays for it with one forward pass a text: it orders the few candidates of a search, never a corpus (Nogueira and Cho
2019, arXiv 1901.04085).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raft.errors import ModelError
from raft.models import quiet_libraries, resolve_encoder

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


class Reranker:
    """A cross-encoder with one output. Safe to share between threads: the tokenizer is not, so one call at a time
    runs."""

    def __init__(self, name: str, model: CrossEncoder, batch_size: int = 32) -> None:
        self.name = name
        self._model = model
        self._batch_size = batch_size
        self._lock = threading.Lock()

    @classmethod
    def load(cls, model: str, batch_size: int = 32) -> Reranker:
        """The reranker of a hub id, a local folder or an artefact of raft train.

        Raises ModelError when it cannot be loaded or is no reranker, ArtifactError for another artefact's folder.
        """
        folder = resolve_encoder(model, "reranker")
        quiet_libraries()
        from sentence_transformers import CrossEncoder
        from transformers import AutoConfig

        remedy = "Give a cross-encoder with one output: hub id, local folder, or an artefact of raft train"
        try:
            architectures = AutoConfig.from_pretrained(folder, local_files_only=True).architectures or []
            loaded = CrossEncoder(str(folder), local_files_only=True, model_kwargs={"use_safetensors": True})
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"reranker {model} cannot be loaded from {folder} ({first})", remedy) from error
        headless = not any(name.endswith(("ForSequenceClassification", "ForCausalLM")) for name in architectures)
        if headless or loaded.num_labels != 1:  # a missing head would be filled with random weights, without a word
            outputs = "no classification head" if headless else f"{loaded.num_labels} outputs"
            raise ModelError(f"model {model} is no reranker: it has {outputs}", remedy)
        return cls(model, loaded, batch_size)

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the query, in the order of the texts; higher is better.

        Batches hold texts of like length. The scale is the model's own (0 to 1 for those that raft train makes).
        """
        if not texts:
            return []
        with self._lock:
            scores = self._model.predict(
                [(query, text) for text in texts], batch_size=self._batch_size, show_progress_bar=False
            )
        return [float(score) for score in scores]
