"""What the version of an index that is being updated already knows.

previous = open_previous(Path("indexes/legal"))
previous.known                       {"acts/leases.md": "9f86d0..."}: files that need not be parsed again
previous.outcomes("acts/leases.md")  the rows of outcomes.jsonl that it made
previous.document_row(id, line)      the row of a document, where nothing about it has changed
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.artifacts import Manifest, open_artifact
from raft.corpus.store import load_array, open_chunks, open_documents
from raft.indexing.embeddings import KEY_BYTES
from raft.retrieval.bm25 import Bm25Index
from raft.retrieval.dense import DenseIndex
from raft.retrieval.filters import CHUNK_DOCUMENTS, FACETS
from raft.rows import read_rows

if TYPE_CHECKING:
    import numpy as np

SOURCES = "sources.jsonl"
OUTCOMES = "outcomes.jsonl"
KEYS = "keys.npy"
CUT = "cut.npy"


class Previous:
    """The open parts of the version that is there, its every byte verified."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.folder = path / manifest.version
        self.documents, self.chunks = open_documents(self.folder), open_chunks(self.folder)

    @cached_property
    def known(self) -> dict[str, str]:
        """Names of files with their digests. A file that lost an id to another one is not among them, because
        whether it still does depends on the other; nor one that was refused or read in part ("pages without text: 2"),
        because what reads it may have come."""
        return {
            row["name"]: row["digest"]
            for row in self._sources
            if row["digest"] and not row["again"] and self._is_read_whole(row["name"])
        }

    def _is_read_whole(self, name: str) -> bool:
        reasons = [outcome["reason"] for outcome in self.outcomes(name) if outcome["status"] == "indexed"]
        return bool(reasons) and not any(reasons)

    @property
    def names(self) -> list[str]:
        """The files of the source, in order."""
        return [row["name"] for row in self._sources]

    @cached_property
    def facets(self) -> list[dict[str, Any]]:
        """The facets of each document."""
        return list(read_rows(self.folder / FACETS))

    @cached_property
    def _sources(self) -> list[dict[str, Any]]:
        return list(read_rows(self.folder / SOURCES))

    @cached_property
    def _outcomes(self) -> dict[str, list[dict[str, Any]]]:
        rows = read_rows(self.folder / OUTCOMES)
        return {source["name"]: list(islice(rows, source["outcomes"])) for source in self._sources}

    def outcomes(self, name: str) -> list[dict[str, Any]]:
        """The rows of outcomes.jsonl that the file made."""
        return self._outcomes[name]

    def document_row(self, identifier: str, line: bytes) -> int | None:
        """The row of the document of this id if its line is still the same."""
        row = self.documents.find(identifier)
        return row if row is not None and self.documents.line(row) == line else None

    @cached_property
    def _first_chunks(self) -> np.ndarray:
        import numpy as np

        owners = load_array(
            self.folder / CHUNK_DOCUMENTS, mapped=False
        )  # ascending: chunks stand in the order of their documents
        return np.searchsorted(owners, np.arange(len(self.documents) + 1))

    def chunk_rows(self, document_row: int) -> range:
        """The rows of the document's chunks."""
        return range(int(self._first_chunks[document_row]), int(self._first_chunks[document_row + 1]))

    @cached_property
    def keys(self) -> np.ndarray:
        """The key of each chunk, uint8 [chunks, 16]."""

        keys: np.ndarray = load_array(self.folder / KEYS)
        return keys

    @cached_property
    def cut(self) -> np.ndarray:
        """The rows of the chunks that are longer than the encoder reads, int64, ascending."""

        cut: np.ndarray = load_array(self.folder / CUT, mapped=False)
        return cut

    @cached_property
    def rows_by_key(self) -> Mapping[bytes, int]:
        data = self.keys.tobytes()
        return {data[at : at + KEY_BYTES]: at // KEY_BYTES for at in range(0, len(data), KEY_BYTES)}

    @cached_property
    def dense(self) -> DenseIndex:
        return DenseIndex.load(self.folder)

    @cached_property
    def bm25(self) -> Bm25Index:
        return Bm25Index.load(self.folder)


def open_previous(path: Path) -> Previous:
    """Raises ArtifactError when the index is damaged."""
    return Previous(path, open_artifact(path, "index"))


def outcome_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def full_name(path: Path) -> str:
    """The same from whatever folder raft is run; bytes that are no UTF-8 are written out."""
    return os.fsencode(path.resolve()).decode("utf-8", "backslashreplace")


_MAY_DIFFER = {
    "reading": {"seconds", "memory_mb", "workers", "passwords"},
    "encoder": {"batch_size", "backend", "precision", "workers", "ray_address"},
}


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of a recipe, that the index depends on, is another."""
    found = []
    for key, new in now.items():
        old = was.get(key)
        if isinstance(new, dict) and isinstance(old, dict):
            names = [name for name in new if name not in _MAY_DIFFER.get(key, ()) and old.get(name) != new[name]]
            found += [f"{key}.{name}: was {old.get(name)!r}, now {new[name]!r}" for name in names]
        elif old != new and not (key == "source" and _is_same_folder(Path(str(old)), new)):
            found.append(f"{key}: was {old!r}, now {new!r}")
    return found


def _is_same_folder(was: Path, now: str) -> bool:
    """A relative path, as older indexes have it, does not say of which folder it was: of another one, perhaps."""
    return was.is_absolute() and full_name(was) == now
