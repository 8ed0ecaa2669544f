"""Continued pretraining: the documents of an index as packed sequences, every token predicted from those before it.

    documents  d1 d1 d1 d1 | d2 d2 | d3 d3 d3 d3 d3
    packed     d1 d1 d1 d1 d2 d2 | d3 d3 d3 d3 d3          each its own branch: none sees another, positions begin anew

(Gururangan et al. 2020, arXiv 2004.10964: domain-adaptive pretraining.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from raft.records import Document
from raft.training.packing import Packed

_SHORTEST = 2  # tokens: one predicts the next


def corpus_sequences(documents: Iterable[Document], tokenizer: Any, max_tokens: int) -> Iterator[Packed]:
    """The documents, title first and the model's end-of-sequence token behind, in sequences of at most ``max_tokens``;
    a longer one is cut into pieces."""
    pending: list[list[int]] = []
    names: list[str] = []
    room = max_tokens
    for document in documents:
        for piece in _pieces(_ids(document, tokenizer), max_tokens):
            if len(piece) - 1 > room:
                yield join(pending, names)
                pending, names, room = [], [], max_tokens
            pending.append(piece)
            names.append(document.id)
            room -= len(piece) - 1
    if pending:
        yield join(pending, names)


def join(pieces: Sequence[Sequence[int]], names: Sequence[str] = ()) -> Packed:
    """Texts that have nothing in common as one sequence, the ids of which are ``names``; the loss counts on every token
    but the first of each."""
    tokens: list[int] = []
    positions: list[int] = []
    branches: list[int] = []
    labels: list[int] = []
    for branch, piece in enumerate(pieces, 1):
        tokens += piece[:-1]
        positions += range(len(piece) - 1)
        branches += [branch] * (len(piece) - 1)
        labels += piece[1:]
    return Packed(tokens, positions, branches, list(range(len(tokens))), labels, ids=tuple(dict.fromkeys(names)))


def is_held_out(document_id: str, share: float, seed: int) -> bool:
    """Whether a document is kept for the dev loss: so whatever other documents there are."""
    drawn = hashlib.sha256(f"{seed}/{document_id}".encode()).digest()[:8]
    return int.from_bytes(drawn, "big") / 2**64 < share


def _ids(document: Document, tokenizer: Any) -> list[int]:
    text = f"{document.title}\n{document.text}" if document.title else document.text
    ids: list[int] = tokenizer(text)["input_ids"]  # with the token that texts of this model begin with, if any
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _pieces(ids: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Pieces that predict at most ``max_tokens`` tokens; each begins with the token that the one before ended with."""
    for start in range(0, len(ids) - 1, max_tokens):
        piece = ids[start : start + max_tokens + 1]
        if len(piece) >= _SHORTEST:
            yield piece
