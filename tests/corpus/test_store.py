"""The corpus comes back as it was written, and its fingerprint follows its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft.artifacts import hash_file
from raft.corpus.store import (
    CHUNKS,
    DOCUMENTS,
    corpus_fingerprint,
    read_chunks,
    read_documents,
    write_chunks,
    write_documents,
)  # fmt: skip
from raft.errors import ArtifactError
from raft.records import Chunk, Document

documents = [Document("a", "Grüße\u2028\n", "T", "s", {"page_starts": [0], "tags": ["x"]}), Document("b", "y")]
chunks = [Chunk("a#0", "a", "Grüße", 0, 5, "T", ("One", "Two"), 1), Chunk("b#0", "b", "y", 0, 1)]


def fingerprint(folder: Path) -> str:
    return corpus_fingerprint({name: hash_file(folder / name) for name in (DOCUMENTS, CHUNKS)} | {"other": "x"})


def test_documents_and_chunks_come_back_in_order(tmp_path: Path) -> None:
    assert (write_documents(tmp_path, documents), write_chunks(tmp_path, chunks)) == (2, 2)
    assert read_documents(tmp_path) == documents
    assert read_chunks(tmp_path) == chunks


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    write_documents(tmp_path, documents)
    write_chunks(tmp_path, chunks)
    before = fingerprint(tmp_path)
    write_chunks(tmp_path, chunks)
    assert fingerprint(tmp_path) == before
    write_chunks(tmp_path, chunks[::-1])
    assert fingerprint(tmp_path) != before


def test_rows_of_another_shape_are_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / DOCUMENTS).write_text('{"id": "a"}\n', encoding="utf-8")
    (tmp_path / CHUNKS).write_text('{"id": "a", "score": 1}\n', encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not hold documents"):
        read_documents(tmp_path)
    with pytest.raises(ArtifactError, match="does not hold chunks"):
        read_chunks(tmp_path)
