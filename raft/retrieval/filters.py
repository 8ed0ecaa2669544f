"""Which chunks a search may return: access labels, source, tags and date of their documents.

One line of ``facets.jsonl``, one a document::

    {"source": "hr/pay.docx", "date": "2026-03-01", "tags": ["pay"], "labels": ["hr"]}

``chunk_documents.npy`` (int32 [chunks]) says which document each chunk is of. Filters become a mask over the chunks
that the searches themselves obey, so that k hits come back where there are k.
"""

from __future__ import annotations

import datetime
import json
import mmap
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.corpus.store import load_array
from raft.errors import UsageError
from raft.records import Document, Filter
from raft.rows import write_rows

if TYPE_CHECKING:
    import numpy as np

FACETS = "facets.jsonl"
CHUNK_DOCUMENTS = "chunk_documents.npy"
_MASKS_KEPT = 64


def facets_of(document: Document) -> dict[str, Any]:
    """The row of a document; ``labels`` and ``tags`` are sorted, ``date`` is None where the document has none that
    can be compared."""
    metadata = document.metadata
    date = _DATE.match(str(metadata.get("date", "")))
    return {
        "source": document.source, "date": date and date[0],
        "tags": sorted(set(metadata.get("tags", ()))), "labels": sorted(set(metadata.get("labels", ()))),
    }  # fmt: skip


_DATE = re.compile(r"[0-9]{4}(?:-[0-9]{2}(?:-[0-9]{2})?)?(?![0-9])")


def write_facets(folder: Path, rows: Iterable[Mapping[str, Any]], chunk_documents: np.ndarray) -> None:
    """Write both files: a row a document, and the document of each chunk."""
    import numpy as np

    write_rows(folder / FACETS, iter(rows))
    np.save(folder / CHUNK_DOCUMENTS, chunk_documents.astype(np.int32))


class Facets:
    """The facets of an open index, parsed when the first filter or label needs them; its files are held open, because
    an update removes them. ``labels`` are all that its documents carry."""

    def __init__(self, folder: Path, labels: frozenset[str]) -> None:

        with (folder / FACETS).open("rb") as stream:
            self._rows = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._labels = labels
        self.chunk_documents = load_array(folder / CHUNK_DOCUMENTS)
        self._mask = lru_cache(_MASKS_KEPT)(self._find)

    def mask(self, where: Filter) -> np.ndarray | None:
        """The chunks that ``where`` allows, bool [chunks]; None when it allows all. Its labels must be given. Raises
        UsageError when a date is none."""
        _check_date("since", where.since)
        _check_date("until", where.until)
        return self._mask(where)

    def _find(self, where: Filter) -> np.ndarray | None:
        import numpy as np

        held = where.labels or frozenset()
        if self._labels <= held and not (where.sources or where.tags or where.since or where.until):
            return None
        rows = map(json.loads, self._rows[:].splitlines())
        documents = np.fromiter((_allows(where, held, row) for row in rows), dtype=bool)
        mask: np.ndarray = documents[self.chunk_documents]
        mask.setflags(write=False)  # it is shared by all searches with this filter
        return mask


def _check_date(name: str, value: str | None) -> None:
    try:
        if value is None or (_DATE.fullmatch(value) and datetime.date.fromisoformat(f"{value}-01-01"[:10])):
            return
    except ValueError:
        pass
    raise UsageError(f"{name} is {value!r}", "Give a date like 2026-03-01, 2026-03 or 2026")


def _allows(where: Filter, held: frozenset[str], row: Mapping[str, Any]) -> bool:
    date = row["date"] or ""
    return (
        held.issuperset(row["labels"])
        and (not where.sources or row["source"].startswith(where.sources))
        and (not where.tags or not set(where.tags).isdisjoint(row["tags"]))
        and (where.since is None or ("" < where.since[: len(date)] <= date[: len(where.since)]))
        and (where.until is None or ("" < date[: len(where.until)] <= where.until[: len(date)]))
    )  # dates are compared as exactly as both are given: 2026-03 is neither before 2026-03-15 nor after it
