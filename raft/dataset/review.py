"""A dataset under review: its questions with what people decided on them, and the rules that an edit must keep.

The unit of review is a question, a row of ``questions.jsonl`` (grounding.py): a reviewer accepts it, rejects it with a
reason, or edits its words. A quote that a reviewer writes down is stored in its chunk's own spelling::

    edited(item, Words(..., quotes=(Passage("protocols/sepsis-adult.md#3", "running  WITHIN 50 minutes"),)), oracles)
        -> quotes (Passage("protocols/sepsis-adult.md#3", "running within 50 minutes"),)

Nothing is changed in the dataset before the decisions are applied (review_apply.py); until then they lie in the
trail beside it (trail.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raft.artifacts import Manifest, open_artifact
from raft.corpus.spans import find_span
from raft.dataset.answers import answer_type_of
from raft.dataset.grounding import MOST_QUOTE_WORDS, GroundedQuestion, Passage, question_from_row
from raft.dataset.quality import answer_faults, form_faults, question_faults
from raft.dataset.trail import (
    Decision,
    Status,
    TrailRow,
    Words,
    applied_rows,
    by_question,
    check_not_applied,
    check_trail,
    locked,
    standing,
    status_of,
    sync,
    trail_path,
    words_after,
    words_of,
)
from raft.errors import ArtifactError, InputError
from raft.records import Chunk, RaftExample, chunk_from_row, example_from_row, question_key
from raft.rows import Journal, read_rows


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of the quality gate that a dataset was made with; the shipped ones where its recipe has none."""

    min_question_words: int = 4
    max_question_words: int = 60
    max_answer_words: int = 60
    min_answer_overlap: float = 0.5


# --- edits ---------------------------------------------------------------------------------------------------------


def edited(item: GroundedQuestion, words: Words, oracles: Mapping[str, str]) -> GroundedQuestion:
    """The question with a reviewer's words; quotes take the spelling of their chunk.

    ``oracles`` holds the texts of the question's oracle chunks by id. Raises InputError naming every fault: an empty
    question or answer, or a quote that does not stand in an oracle chunk. What kind of answer it is is told anew
    where its form alone had told it, and aliases of an answer go with it.
    """
    faults, quotes = _quoted(words.quotes, oracles)
    question, answer, reasoning = (" ".join(text.split()) for text in (words.question, words.answer, words.reasoning))
    if not question:
        faults.append("the question is empty")
    if item.answer_type == "unanswerable":
        if answer or quotes:
            faults.append("an unanswerable question has neither answer nor quotes")
    elif not answer or not words.quotes:
        faults += ["the answer is empty"] * (not answer) + ["there is no quote"] * (not words.quotes)
    if faults:
        raise InputError("; ".join(faults), "Change the words, or reject the question")
    told = item.answer_type == answer_type_of(item.answer)
    same = answer == item.answer
    return replace(
        item, question=question, answer=answer, quotes=quotes, reasoning=reasoning,
        answer_type=answer_type_of(answer) if told and not same else item.answer_type,
        aliases=item.aliases if same else (),
        reasoning_source=item.reasoning_source if reasoning == item.reasoning else "reviewer" if reasoning else "none",
    )  # fmt: skip


def _quoted(quotes: Iterable[Passage], oracles: Mapping[str, str]) -> tuple[list[str], tuple[Passage, ...]]:
    """What is wrong with the quotes, and those that stand in their chunk, without repeats."""
    faults, found = [], dict[Passage, None]()
    for quote in quotes:
        text = oracles.get(quote.chunk_id)
        span = find_span(text, quote.text) if text is not None else None
        if text is None:
            faults.append(f"{quote.chunk_id!r} is no oracle chunk of the question")
        elif span is None:
            faults.append(f"the quote {quote.text!r} does not stand in {quote.chunk_id!r}")
        else:
            found[Passage(quote.chunk_id, text[slice(*span)])] = None
    return faults, tuple(found)


def warnings_of(item: GroundedQuestion, oracles: Mapping[str, str], bounds: Bounds) -> list[str]:
    """What the quality gate would say of a question, by the names of its rules (quality.py)."""
    found = question_faults(item.question, bounds.min_question_words, bounds.max_question_words)
    found += answer_faults(item, oracles, bounds.max_answer_words, bounds.min_answer_overlap)
    found += form_faults(item) if item.source == "teacher" else []
    if any(len(quote.text.split()) > MOST_QUOTE_WORDS for quote in item.quotes):
        found.append("quote_too_long")
    return found


def bounds_of(manifest: Manifest) -> Bounds:
    quality = manifest.recipe.get("quality") or {}
    return Bounds(**{name: quality[name] for name in Bounds.__dataclass_fields__ if name in quality})


# --- a dataset under review ----------------------------------------------------------------------------------------


class RowsByKey:
    """Rows of a JSON lines file, found again by a key: their places are held in memory, and not the rows."""

    def __init__(self, path: Path, key: str, better: Callable[[Mapping[str, Any]], bool] = lambda row: False) -> None:
        """Of rows with one key the first counts, or the first that is ``better``."""
        self._at: dict[str, tuple[int, bool]] = {}
        self._stream = path.open("rb")
        at = 0
        for line in self._stream:
            row = json.loads(line)
            is_better = better(row)
            if row[key] not in self._at or is_better > self._at[row[key]][1]:
                self._at[row[key]] = (at, is_better)
            at += len(line)

    def row(self, key: str) -> dict[str, Any] | None:
        if key not in self._at:
            return None
        self._stream.seek(self._at[key][0])
        return json.loads(self._stream.readline())  # type: ignore[no-any-return]

    def close(self) -> None:
        self._stream.close()


class Review:
    """A dataset with the decisions on its questions, those applied earlier (its own ``review.jsonl``) included."""

    def __init__(self, folder: Path, reviewer: str, manifest: Manifest, trail: Journal) -> None:
        self.folder, self.reviewer, self.manifest = folder, reviewer, manifest
        self.bounds = bounds_of(manifest)
        self.items = {item.id: item for item in map(question_from_row, read_rows(folder / "questions.jsonl"))}
        self.applied_rows = applied_rows(folder)
        before = by_question(standing(self.applied_rows))
        self._applied = {name: status_of(rows) for name, rows in before.items() if name in self.items}
        check_trail(trail.rows, manifest.fingerprint, self.items, trail.path)
        self._trail = trail
        self._standing = standing(trail.rows)
        self._decisions = by_question(self._standing)
        self._chunks = RowsByKey(folder / "chunks.jsonl", "id")
        self._examples: dict[str, RowsByKey] = {}
        self._now = {name: self._with_edits(name) for name in self.items}
        self._asked = defaultdict[str, set[str]](set)
        for name, item in self._now.items():
            self._asked[question_key(item.question)].add(name)

    def _with_edits(self, question_id: str) -> GroundedQuestion:
        item, decisions = self.items[question_id], self._decisions.get(question_id, ())
        if not any(row["decision"] == "edit" for row in decisions):
            return item
        try:
            return edited(item, words_after(item, decisions), self.oracle_texts(question_id))
        except (InputError, TypeError) as error:
            said = f"{self._trail.path} holds an edit of {question_id!r} that cannot be taken ({error})"
            raise ArtifactError(said, "Restore it from a backup, or move it away") from None

    @property
    def trail_rows(self) -> list[TrailRow]:
        """The decisions since the last were applied that stand, oldest first."""
        return self._standing

    def now(self, question_id: str) -> GroundedQuestion:
        """The question as the decisions leave it."""
        return self._now[question_id]

    def status(self, question_id: str) -> Status:
        return status_of(self._decisions.get(question_id, ()), self._applied.get(question_id, "undecided"))

    def decisions(self, question_id: str) -> list[TrailRow]:
        """The decisions on a question that stand and are not applied, oldest first."""
        return self._decisions.get(question_id, [])

    def chunk(self, chunk_id: str) -> Chunk:
        """Raises ArtifactError when the dataset lacks it."""
        row = self._chunks.row(chunk_id)
        if row is None:
            raise ArtifactError(f"{self.folder} has no chunk {chunk_id!r} in chunks.jsonl", "Make it again")
        return chunk_from_row(row)

    def oracle_texts(self, question_id: str) -> dict[str, str]:
        return {name: self.chunk(name).text for name in self.items[question_id].oracle_ids}

    def example(self, question_id: str) -> RaftExample | None:
        """An example of the question as it stands in the dataset, with the oracle in its context where there is one."""
        split = self.items[question_id].split or "train"
        path = self.folder / f"{split}.jsonl"
        if not path.exists():
            return None
        if split not in self._examples:
            self._examples[split] = RowsByKey(path, "question_id", lambda row: bool(row["oracle_present"]))
        row = self._examples[split].row(question_id)
        return example_from_row(row) if row is not None else None

    def warnings(self, item: GroundedQuestion) -> list[str]:
        """What the quality gate would say of a question of this id, with these words."""
        found = warnings_of(item, self.oracle_texts(item.id), self.bounds)
        twins = self._asked.get(question_key(item.question), set()) - {item.id}
        return found + ["duplicate_question"] * bool(twins)

    def decide(
        self, question_id: str, decision: Decision, reason: str = "", words: Words | None = None, override: bool = False
    ) -> list[str]:
        """Record a decision; returns the warnings for which an edit was not taken (empty: it is recorded).

        Raises InputError for a rejection without reason, an edit that breaks the rules or changes nothing, an undo
        with nothing to undo, and when the trail cannot be written.
        """
        was, status = self._now[question_id], self.status(question_id)
        decisions, item, warned = self.decisions(question_id), was, list[str]()
        if decision == "undo":
            if not decisions:
                raise InputError(f"there is no decision on {question_id!r} to undo", "Applied ones cannot be undone")
        elif decision == "reject" and not reason.strip():
            raise InputError("a rejection needs its reason", "Choose one, or write one")
        elif decision == "edit":
            item, warned = self._edit(question_id, words or words_of(was))
            if warned and not override:
                return warned
        self._append(self._row(was, status, decision, reason, item, warned))
        return []

    def _edit(self, question_id: str, words: Words) -> tuple[GroundedQuestion, list[str]]:
        item = edited(self.items[question_id], words, self.oracle_texts(question_id))
        if words_of(item) == words_of(self._now[question_id]):
            raise InputError("nothing was changed", "Accept the question as it is")
        return item, self.warnings(item)

    def _row(
        self, was: GroundedQuestion, status: Status, decision: Decision, reason: str, item: GroundedQuestion,
        warned: Sequence[str],
    ) -> dict[str, Any]:  # fmt: skip
        decisions = self.decisions(was.id)
        then: list[TrailRow] = decisions[:-1] if decision == "undo" else [*decisions, {"decision": decision}]
        new = words_after(self.items[was.id], then) if decision == "undo" else words_of(item)
        before, after = asdict(words_of(was)), asdict(new)
        changed = [name for name in before if before[name] != after[name]]
        return {
            "when": datetime.now(UTC).isoformat(timespec="seconds"), "who": self.reviewer, "question_id": was.id,
            "decision": decision, "reason": " ".join(reason.split()),
            "before": {"status": status, **{name: before[name] for name in changed}},
            "after": {"status": status_of(then, self._applied.get(was.id, "undecided")),
                      **{name: after[name] for name in changed}},
            "overridden": list(warned), "dataset": self.manifest.fingerprint,
        }  # fmt: skip

    def _append(self, row: dict[str, Any]) -> None:
        """Write a row, flush it to the disk, and only then count it. After a failure the trail ends where it did."""
        path, size = self._trail.path, self._trail.path.stat().st_size
        try:
            self._trail.append(row)
            sync(path)
        except (OSError, ValueError) as error:  # ValueError: it was closed here, after an earlier failure
            with contextlib.suppress(OSError):
                self._trail.close()
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            what = f"{path} cannot be written ({getattr(error, 'strerror', None) or error})"
            raise InputError(what, "Free disk space and start raft review again") from None
        self._standing = standing([*self._standing, row])
        name = row["question_id"]
        self._decisions[name] = [kept for kept in self._standing if kept["question_id"] == name]
        self._asked[question_key(self._now[name].question)].discard(name)
        self._now[name] = self._with_edits(name)
        self._asked[question_key(self._now[name].question)].add(name)

    def close(self) -> None:
        for rows in (self._chunks, *self._examples.values()):
            rows.close()


def sample_of(question_ids: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """``count`` ids drawn at random, in their own order. A larger sample of the same seed holds the smaller one."""

    def drawn(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode()).digest()

    kept = set(sorted(question_ids, key=drawn)[:count])
    return [name for name in question_ids if name in kept]


@contextlib.contextmanager
def open_review(dataset: Path, reviewer: str) -> Iterator[Review]:
    """The dataset, its files verified, and the trail of its review, which nobody else writes meanwhile.

    Raises ArtifactError for a damaged dataset, and for a trail of another one; UsageError when another process has
    the trail. An empty trail leaves no file.
    """
    manifest = open_artifact(dataset, "dataset")
    path = trail_path(dataset)
    check_not_applied(dataset, path)
    with locked(path), contextlib.closing(Journal(path)) as trail:
        review = Review(dataset, reviewer, manifest, trail)
        try:
            yield review
        finally:
            review.close()
