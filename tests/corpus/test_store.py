"""The corpus comes back as it was written, and its fingerprint follows its content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.artifacts import hash_file
from raft.corpus import store
from raft.corpus.store import (
    CHUNKS,
    DOCUMENTS,
    RowWriter,
    corpus_fingerprint,
    open_chunks,
    open_documents,
    to_line,
    write_records,
)
from raft.errors import ArtifactError
from raft.records import Chunk, Document

documents = [Document("a", "Grüße\u2028\n", "T", "s", {"page_starts": [0], "tags": ["x"]}), Document("b", "y")]
chunks = [Chunk("a#0", "a", "Grüße", 0, 5, "T", ("One", "Two"), 1), Chunk("b#0", "b", "y", 0, 1)]


def fingerprint(folder: Path) -> str:
    names = (f"{DOCUMENTS}.jsonl", f"{CHUNKS}.jsonl")
    return corpus_fingerprint({name: hash_file(folder / name) for name in names} | {"other": "x"})


def test_documents_and_chunks_come_back_in_order(tmp_path: Path) -> None:
    assert (write_records(tmp_path, DOCUMENTS, documents), write_records(tmp_path, CHUNKS, chunks)) == (2, 2)
    read = open_documents(tmp_path)
    assert list(read) == documents == read[:] == [read[-2], read[1]]
    assert list(open_chunks(tmp_path)) == chunks
    assert (len(read), read[::-1]) == (2, documents[::-1])
    with pytest.raises(IndexError):
        read[2]


def test_ids_are_found(tmp_path: Path) -> None:
    write_records(tmp_path, DOCUMENTS, documents)
    read = open_documents(tmp_path)
    assert [read.find(identifier) for identifier in ("a", "b", "c", "")] == [0, 1, None, None]


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_hash", lambda identifier: len(identifier))
    write_records(tmp_path, DOCUMENTS, [Document(name, "x") for name in ("b", "aa", "a", "bb", "c")])
    read = open_documents(tmp_path)
    found = [read.find(identifier) for identifier in ("b", "a", "c", "aa", "bb", "d", "ddd")]
    assert found == [0, 2, 4, 1, 3, None, None]


@given(texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=8), data=st.data())
def test_rows_copied_from_another_file_are_as_if_written(
    texts: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one, two, three = (tmp_path_factory.mktemp("rows") for _ in range(3))
    records = [Document(str(number), text) for number, text in enumerate(texts)]
    write_records(one, DOCUMENTS, records)
    source, taken = open_documents(one), []
    with RowWriter(two, DOCUMENTS) as writer:
        for _ in range(data.draw(st.integers(1, 4))):
            first = data.draw(st.integers(0, len(records)))
            last = data.draw(st.integers(first, len(records)))
            writer.copy(source, first, last)
            writer.write("new", to_line(Document("new", "x")))
            taken += [*records[first:last], Document("new", "x")]
    write_records(three, DOCUMENTS, taken)
    assert list(open_documents(two)) == taken
    assert [path.read_bytes() for path in sorted(two.iterdir())] == [
        path.read_bytes() for path in sorted(three.iterdir())
    ]


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    write_records(tmp_path, DOCUMENTS, documents)
    write_records(tmp_path, CHUNKS, chunks)
    before = fingerprint(tmp_path)
    write_records(tmp_path, CHUNKS, chunks)
    assert fingerprint(tmp_path) == before
    write_records(tmp_path, CHUNKS, chunks[::-1])
    assert fingerprint(tmp_path) != before


def test_rows_of_another_shape_are_an_artifact_error(tmp_path: Path) -> None:
    with RowWriter(tmp_path, CHUNKS) as writer:
        writer.write("a", b'{"id": "a", "score": 1}\n')
        writer.write("b", b"{oops}\n")
    for row in (0, 1):
        with pytest.raises(ArtifactError, match="holds a bad row"):
            open_chunks(tmp_path)[row]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("offsets.npy", np.array([0, 1, 2])),
        ("offsets.npy", np.array([], dtype=np.int64)),
        ("offsets.npy", np.zeros((2, 2), dtype=np.int64)),
        ("ids.npy", np.zeros((2, 3), dtype=np.uint64)),
        ("jsonl", b""),
        ("jsonl", b"{}\n"),
        ("ids.npy", b"nothing of the kind"),
    ],
)
def test_files_that_do_not_fit_together_are_an_artifact_error(tmp_path: Path, name: str, content: object) -> None:
    write_records(tmp_path, DOCUMENTS, documents)
    path = tmp_path / f"{DOCUMENTS}.{name}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(ArtifactError, match=r"cannot be read|does not fit"):
        open_documents(tmp_path)
