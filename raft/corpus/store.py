"""The corpus on disk: ``documents.jsonl`` and ``chunks.jsonl``, read one row at a time however many there are.

One line of ``documents.jsonl``::

    {"id": "protocols/sepsis.md", "text": "# Sepsis\\n\\nGive ...", "title": "Sepsis",
     "source": "protocols/sepsis.md", "metadata": {"date": "2026-03-01", "labels": ["icu"]}}

and of ``chunks.jsonl``, whose order is the order of the vectors in the index::

    {"id": "protocols/sepsis.md#0", "document_id": "protocols/sepsis.md", "text": "# Sepsis", "start": 0,
     "end": 8, "title": "Sepsis", "headings": [], "page": null}

Beside each lie two arrays: ``NAME.offsets.npy`` (int64 [rows + 1]), the byte at which each line begins and the last
one ends, and ``NAME.ids.npy`` (uint64 [2, rows]), the sorted hashes of the ids over the rows that bear them.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from raft.artifacts import digest
from raft.errors import ArtifactError
from raft.records import Chunk, Document, chunk_from_row, to_row

if TYPE_CHECKING:
    import numpy as np

DOCUMENTS = "documents"
CHUNKS = "chunks"

T = TypeVar("T")


_PARSING = threading.Lock()


def load_array(path: Path, mapped: bool = True) -> np.ndarray:
    """An array of a .npy file, left on the disk unless not ``mapped``. numpy reads its header by Python's own parser,
    which two threads of CPython 3.11 may not enter at once ("AST constructor recursion depth mismatch")."""
    import numpy as np

    with _PARSING:
        found: np.ndarray = np.load(path, mmap_mode="r" if mapped else None)
    return found


class RowWriter:
    """Writes the lines of one file, and the two arrays beside it at the end of the ``with`` block."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._stream = (folder / f"{name}.jsonl").open("wb")
        self._offsets = array("q", [0])
        self._hashes = array("Q")

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        import numpy as np

        self._stream.close()
        if failed is not None:
            return
        hashes = np.frombuffer(self._hashes, dtype=np.uint64) if self._hashes else np.empty(0, np.uint64)
        rows = np.argsort(hashes, kind="stable")
        np.save(self._folder / f"{self._name}.offsets.npy", np.frombuffer(self._offsets, dtype=np.int64))
        np.save(self._folder / f"{self._name}.ids.npy", np.stack([hashes[rows], rows.astype(np.uint64)]))

    def __len__(self) -> int:
        return len(self._hashes)

    def write(self, identifier: str, line: bytes) -> None:
        """Append a line that ends in a line break: the JSON of the row with this id."""
        self._stream.write(line)
        self._offsets.append(self._offsets[-1] + len(line))
        self._hashes.append(_hash(identifier))

    def copy(self, rows: Rows[Any], first: int, last: int) -> None:
        """Append the rows from ``first`` up to ``last``, left out, of another file as they stand there."""
        self._stream.write(rows.lines(first, last))
        shift = self._offsets[-1] - int(rows.offsets[first])
        self._offsets.extend((rows.offsets[first + 1 : last + 1] + shift).tolist())
        self._hashes.extend(rows.hashes[first:last].tolist())


def _hash(identifier: str) -> int:
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "little")


def to_line(record: Document | Chunk) -> bytes:
    """The record as a line of its file."""
    return (json.dumps(to_row(record), ensure_ascii=False, default=str) + "\n").encode()


class Rows(Sequence[T], Generic[T]):
    """The rows of one file: ``rows[i]`` parses one line, ``find(id)`` says where an id stands."""

    def __init__(self, folder: Path, name: str, parse: Callable[[Mapping[str, Any]], T]) -> None:
        """Raises ArtifactError when the file and its arrays do not fit together."""

        self._path = folder / f"{name}.jsonl"
        self._parse = parse
        try:
            self.offsets = load_array(folder / f"{name}.offsets.npy")
            self._ids = load_array(folder / f"{name}.ids.npy")
            with self._path.open("rb") as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self._path} cannot be read ({error})", "Make the index again") from None
        fits = self.offsets.ndim == 1 and self._ids.shape == (2, len(self.offsets) - 1)
        if not fits or self.offsets[-1] != len(self._data):
            raise ArtifactError(f"{self._path} does not fit the arrays beside it", "Make the index again")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        return self._parsed(self.line(range(len(self))[at]))

    def __iter__(self) -> Iterator[T]:
        return (self._parsed(self.line(row)) for row in range(len(self)))

    def line(self, row: int) -> bytes:
        """The row as it stands in the file, its line break included."""
        return self._data[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def lines(self, first: int, last: int) -> bytes:
        """The rows from ``first`` up to ``last``, left out, as they stand in the file."""
        return self._data[int(self.offsets[first]) : int(self.offsets[last])]

    @cached_property
    def hashes(self) -> np.ndarray:
        """The hash of each row's id, uint64 [rows]."""
        import numpy as np

        hashes = np.empty(len(self), dtype=np.uint64)
        hashes[self._ids[1].astype(np.int64)] = self._ids[0]
        return hashes

    def find(self, identifier: str) -> int | None:
        """The row of the record with this id, None when there is none."""
        import numpy as np

        wanted = np.uint64(_hash(identifier))
        begins = f'{{"id": {json.dumps(identifier, ensure_ascii=False)},'.encode("utf-8", "surrogatepass")
        at = int(np.searchsorted(self._ids[0], wanted))
        while at < len(self) and self._ids[0, at] == wanted:
            row = int(self._ids[1, at])
            line = self.line(row)
            if line.startswith(begins) or json.loads(line)["id"] == identifier:
                return row
            at += 1
        return None

    def _parsed(self, line: bytes) -> T:
        try:
            return self._parse(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{self._path} holds a bad row ({error})", "Make the index again") from None


def open_documents(folder: Path) -> Rows[Document]:
    """The documents in the order of the source. Raises ArtifactError when the files do not fit together."""
    return Rows(folder, DOCUMENTS, lambda row: Document(**row))


def open_chunks(folder: Path) -> Rows[Chunk]:
    """The chunks in the order of the vectors. Raises ArtifactError when the files do not fit together."""
    return Rows(folder, CHUNKS, chunk_from_row)


def write_records(folder: Path, name: str, records: Iterable[Document | Chunk]) -> int:
    """Write all rows of one file; returns how many."""
    with RowWriter(folder, name) as writer:
        for record in records:
            writer.write(record.id, to_line(record))
        return len(writer)


def corpus_fingerprint(files: Mapping[str, str]) -> str:
    """Hash of a corpus, from the hashes of its files (a manifest's ``files``): equal ones mean equal documents
    and chunks, whatever index was built over them."""
    return digest({name: files[f"{name}.jsonl"] for name in (DOCUMENTS, CHUNKS)})
