"""Preference pairs that somebody else made, such as people's own choices: a file of JSON lines::

    {"question": "What is the first dose?", "documents": [{"title": "Formulary", "text": "Adults start with 12 mg."}],
     "chosen": "Document [1] says ...\\n<ANSWER>: 12 mg", "rejected": "...\\n<ANSWER>: 5 mg"}

where a document may also be the id of a chunk of the dataset, and ``"split": "dev"`` keeps a pair for the dev loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raft.errors import InputError
from raft.records import Chunk
from raft.rows import read_rows
from raft.training.preferences import PreferencePair


def read_pairs(path: Path, chunks: Mapping[str, Chunk]) -> list[PreferencePair]:
    """The pairs of a JSON lines file; ``chunks`` are those that its rows may name by id.

    Raises InputError naming the row that lacks a field, names an unknown chunk or prefers an answer to itself.
    """
    pairs = [_pair_of(row, f"{path} row {number}", number, chunks) for number, row in enumerate(read_rows(path), 1)]
    if not any(pair.split == "train" for pair in pairs):
        raise InputError(f"{path} holds no pair to train on ({len(pairs)} rows)", 'Rows of "split": "dev" do not count')
    return pairs


def _pair_of(row: Mapping[str, Any], where: str, number: int, chunks: Mapping[str, Chunk]) -> PreferencePair:
    for name in ("question", "chosen", "rejected"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise InputError(f"{where} has no {name!r}", "A pair has question, documents, chosen and rejected")
    if row["chosen"].strip() == row["rejected"].strip():
        raise InputError(f"{where}: chosen and rejected are the same", "Leave the row out")
    if not isinstance(row.get("documents"), list):
        raise InputError(f"{where} has no list 'documents'", "Give titles and texts, or ids of the dataset's chunks")
    split = row.get("split", "train")
    if split not in ("train", "dev"):
        raise InputError(f"{where}: split is {split!r}, expected train or dev")
    documents = tuple(_document(given, where, place, chunks) for place, given in enumerate(row["documents"], 1))
    name = str(row.get("id", f"pair-{number}"))
    return PreferencePair(name, row["question"], documents, row["chosen"], row["rejected"], "given", 0, split)


def _document(given: Any, where: str, place: int, chunks: Mapping[str, Chunk]) -> Chunk:
    if isinstance(given, str):
        if given not in chunks:
            raise InputError(f"{where}: document {place} is {given!r}, which is no chunk of the dataset")
        return chunks[given]
    text, title = (given.get("text"), given.get("title", "")) if isinstance(given, dict) else (None, "")
    if not isinstance(text, str) or not isinstance(title, str):
        raise InputError(f"{where}: document {place} is neither a chunk's id nor {{title, text}}")
    name = title or f"document {place}"
    return Chunk(f"{name}#0", name, text, 0, len(text), title)
