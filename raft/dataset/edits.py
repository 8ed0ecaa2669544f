"""Counterfactual distractors: near-miss edits of the oracles (counterfactual.py makes each), kept on disk.

    {"owner": "teacher-3f0a...", "chunk": {"id": "formulary/corvalexin.md#0~teacher-3f0a...~edit0", "text": ...}}

An edit stands only beside its own question, and speaks only of what training may see: the names and answers in it come
from train, and none that comes near a chunk of another document is kept, lest it be that document with a false fact.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raft.corpus.duplicates import near_duplicates
from raft.dataset.counterfactual import edits_of, speaks_of, vocabulary_of
from raft.dataset.gate import Gate
from raft.dataset.near import SearchableIndex
from raft.records import Chunk, Split, chunk_from_row, to_row
from raft.rows import Spool

SPOOL = "edits.spool"
_PER_QUESTION = 2


class Edits:
    """Edits by question (``of``) and by id."""

    def __init__(self, folder: Path) -> None:
        self.of: dict[str, tuple[str, ...]] = {}
        self._spool = Spool(folder / SPOOL)
        self._rows: dict[str, int] = {}

    def add(self, owner: str, chunks: Sequence[Chunk]) -> None:
        self.of[owner] = tuple(chunk.id for chunk in chunks)
        for chunk in chunks:
            self._rows[chunk.id] = self._spool.append({"owner": owner, "chunk": to_row(chunk)})

    def __contains__(self, chunk_id: object) -> bool:
        return chunk_id in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def chunk(self, chunk_id: str) -> Chunk:
        return chunk_from_row(self._spool[self._rows[chunk_id]]["chunk"])

    def owner(self, chunk_id: str) -> str:
        return str(self._spool[self._rows[chunk_id]]["owner"])

    def drop(self, chunk_ids: Sequence[str]) -> None:
        for name in chunk_ids:
            owner = self.owner(name)
            self.of[owner] = tuple(other for other in self.of[owner] if other != name)
            del self._rows[name]

    def close(self) -> None:
        self._spool.close()


def make_edits(
    edits: Edits, gate: Gate, splits: Mapping[str, Split], index: SearchableIndex, train: Sequence[str], seed: int
) -> None:
    """Add the edits of every question's first oracle, where sound ones exist. ``train`` are the chunks that training
    may see."""
    seen = frozenset(train)
    vocabulary = vocabulary_of(
        (chunk for chunk in index.chunks if chunk.id in seen), [item for item in gate if splits[item.id] == "train"]
    )
    for item in gate:
        for oracle in item.oracle_ids[:1]:
            made = edits_of(index.chunk(oracle), item, vocabulary, seed=seed, most=_PER_QUESTION)
            edits.add(item.id, [replace(edit, id=f"{oracle}~{item.id}~edit{n}") for n, edit in enumerate(made)])
    edits.drop(_like_others(edits, index))


def _like_others(edits: Edits, index: SearchableIndex) -> list[str]:
    """The edits that say nearly the same as a chunk of another document than their own."""
    names = list(edits)
    groups = near_duplicates(_Texts(index.chunks, names, edits)) if names else []
    documents: dict[int, set[str]] = {}
    for chunk, group in zip(index.chunks, groups, strict=False):
        documents.setdefault(group, set()).add(chunk.document_id)
    of_edits = zip(names, groups[len(index.chunks) :], strict=True)
    return [name for name, group in of_edits if documents.get(group, set()) - {edits.chunk(name).document_id}]


class _Texts(Sequence[str]):
    """The texts of chunks and then of edits, each read when it is wanted."""

    def __init__(self, chunks: Sequence[Chunk], names: Sequence[str], edits: Edits) -> None:
        self._chunks, self._names, self._edits = chunks, names, edits

    def __len__(self) -> int:
        return len(self._chunks) + len(self._names)

    def __getitem__(self, at: Any) -> Any:
        beyond = at - len(self._chunks)
        return self._chunks[at].text if beyond < 0 else self._edits.chunk(self._names[beyond]).text

    def __iter__(self) -> Iterator[str]:
        edited = (self._edits.chunk(name).text for name in self._names)
        return itertools.chain((chunk.text for chunk in self._chunks), edited)


def beside_edits(answers: Callable[[str, str], bool], gate: Gate, edits: Edits) -> Callable[[str, str], bool]:
    """``answers`` that also keeps an edit away from another question about what the edit now speaks of: it would
    contradict that question's oracle."""

    def either(question_id: str, chunk_id: str) -> bool:
        if chunk_id in edits and edits.owner(chunk_id) != question_id:
            return speaks_of(gate.item(question_id).question, edits.chunk(chunk_id)) or answers(question_id, chunk_id)
        return answers(question_id, chunk_id)

    return either
