"""The files of a source become the documents of a version; what has not changed is taken from the version before.

One line of ``sources.jsonl``, one a file, and the lines of ``outcomes.jsonl`` that it made, one a document or row::

    {"name": "acts.csv", "digest": "9f86d0...", "outcomes": 2, "again": false}
    {"source": "acts.csv#2", "status": "indexed", "document_id": "acts/leases", "reason": ""}
    {"source": "acts.csv#3", "status": "refused", "document_id": null, "reason": "its text is empty"}
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raft.config import RuleRecipe
from raft.corpus.store import DOCUMENTS, RowWriter, to_line
from raft.indexing.previous import OUTCOMES, SOURCES, Previous, outcome_line
from raft.readers.source import ReadOutcome, SourceFile
from raft.records import Document
from raft.retrieval.filters import facets_of


@dataclass
class Documents:
    """The documents of the version being written, in order. ``old_rows`` says for each which row of the previous
    version it is unchanged from, -1 for none; ``labels`` are all that they carry; ``idle_rules`` the paths of rules
    that met no file and no source."""

    old_rows: list[int] = field(default_factory=list)
    facets: list[dict[str, Any]] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    left_out: list[ReadOutcome] = field(default_factory=list)
    parsed: int = 0
    idle_rules: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        return sorted({label for facet in self.facets for label in facet["labels"]})


class DocumentWriter:
    """Writes documents.jsonl, sources.jsonl and outcomes.jsonl file by file; use it in a ``with`` block."""

    def __init__(self, folder: Path, previous: Previous | None, rules: Sequence[RuleRecipe]) -> None:
        self.written = Documents()
        self._previous = previous
        self._rules = rules
        self.written.idle_rules = [rule.path for rule in rules]
        self._owners: dict[str, str] = {}  # document id -> the outcome's source
        self._has_lost_an_id = False
        self._open = ExitStack()
        self._rows = self._open.enter_context(RowWriter(folder, DOCUMENTS))
        self._sources = self._open.enter_context((folder / SOURCES).open("w", encoding="utf-8"))
        self._outcomes = self._open.enter_context((folder / OUTCOMES).open("w", encoding="utf-8"))

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, *failed: Any) -> None:
        self._open.__exit__(*failed)

    def add(self, file: SourceFile) -> None:
        """Write what became of a file; one whose outcomes are None is as it was in the previous version."""
        self._has_lost_an_id = False
        self._note_rules_for(file.name)
        if file.outcomes is None:
            rows = self._unchanged(file.name)
        else:
            self.written.parsed += 1
            rows = [self._parsed(outcome, file.name) for outcome in file.outcomes]
        self._outcomes.writelines(map(outcome_line, rows))
        row = {"name": file.name, "digest": file.digest, "outcomes": len(rows), "again": self._has_lost_an_id}
        self._sources.write(outcome_line(row))

    def _parsed(self, outcome: ReadOutcome, name: str) -> dict[str, Any]:
        document = outcome.document
        if document is None:
            return self._count(outcome.source, outcome.status, None, outcome.reason)
        document = self._ruled(document, name)
        line = to_line(document)
        old = None if self._previous is None else self._previous.document_row(document.id, line)
        return self._write(outcome.source, document.id, line, facets_of(document), old, outcome.reason)

    def _ruled(self, document: Document, name: str) -> Document:
        """The document with the labels and tags that the rules give to its file, or to what its row says it is of."""
        metadata: dict[str, Any] = dict(document.metadata)
        for rule in self._rules:
            if fnmatch.fnmatchcase(name, rule.path) or fnmatch.fnmatchcase(document.source, rule.path):
                for key, more in (("labels", rule.labels), ("tags", rule.tags)):
                    if more:
                        metadata[key] = sorted({*metadata.get(key, ()), *more})
        return replace(document, metadata=metadata)

    def _note_rules_for(self, name: str) -> None:
        """A rule that meets no document is said at the end: with a slip in its path, its labels protect nothing."""
        self.written.idle_rules = [path for path in self.written.idle_rules if not fnmatch.fnmatchcase(name, path)]

    def _unchanged(self, name: str) -> list[dict[str, Any]]:
        assert self._previous is not None
        rows = []
        for outcome in self._previous.outcomes(name):
            identifier = outcome["document_id"]
            row = None if identifier is None else self._previous.documents.find(identifier)
            if row is None:
                rows.append(self._count(outcome["source"], outcome["status"], None, outcome["reason"]))
            else:
                line, facets = self._previous.documents.line(row), self._previous.facets[row]
                rows.append(self._write(outcome["source"], identifier, line, facets, row, outcome["reason"]))
        return rows

    def _write(
        self, source: str, identifier: str, line: bytes, facets: Mapping[str, Any], old: int | None, reason: str
    ) -> dict[str, Any]:
        if identifier in self._owners:
            self._has_lost_an_id = True
            return self._count(source, "refused", None, f"its id {identifier!r} is taken by {self._owners[identifier]}")
        self._owners[identifier] = source
        self._note_rules_for(facets["source"])
        self._rows.write(identifier, line)
        self.written.old_rows.append(-1 if old is None else old)
        self.written.facets.append(dict(facets))
        return self._count(source, "indexed", identifier, reason)

    def _count(self, source: str, status: Any, identifier: str | None, reason: str) -> dict[str, Any]:
        self.written.statuses[status] += 1
        if status != "indexed":
            self.written.left_out.append(ReadOutcome(source, status, reason=reason))
        return {"source": source, "status": status, "document_id": identifier, "reason": reason}
