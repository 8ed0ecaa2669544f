"""The audit trail of a review: every decision on a question of a dataset, beside it in ``DATASET.review.jsonl``.

One row::

    {"when": "2026-03-02T10:15:00+00:00", "who": "ada", "question_id": "med-001", "decision": "edit", "reason": "",
     "before": {"status": "undecided", "answer": "50 minutes"},
     "after": {"status": "edited", "answer": "within 50 minutes"}, "overridden": [], "dataset": "9f2c..."}

Rows are only ever appended, each flushed to the disk before the reviewer is told that it stands. The state of the
review is a fold of the trail, so that a server that is stopped at any moment goes on where it was.
``overridden`` lists the warnings in spite of which an edit was taken; ``dataset`` is the manifest's fingerprint.
Decisions that are applied lie inside the dataset, as its ``review.jsonl``.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raft.artifacts import sync_folder
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.errors import ArtifactError, InputError, UsageError
from raft.places import real_folder
from raft.rows import read_rows

Status = Literal["undecided", "accepted", "edited", "rejected"]
Decision = Literal["accept", "edit", "reject", "undo"]
STATUSES: tuple[Status, ...] = ("undecided", "accepted", "edited", "rejected")
APPLIED_TRAIL = "review.jsonl"  # in the dataset: the decisions that made it what it is
_STATUS_OF: Mapping[str, Status] = {"accept": "accepted", "edit": "edited", "reject": "rejected"}

TrailRow = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Words:
    """What a reviewer may change of a question."""

    question: str
    answer: str
    reasoning: str
    quotes: tuple[Passage, ...]


def words_of(item: GroundedQuestion) -> Words:
    return Words(item.question, item.answer, item.reasoning, item.quotes)


def trail_path(dataset: Path) -> Path:
    """Where the decisions on a dataset are kept until they are applied."""
    folder = real_folder(dataset).absolute()
    return folder.with_name(folder.name + ".review.jsonl")


def standing(rows: Iterable[TrailRow]) -> list[TrailRow]:
    """The decisions that stand, oldest first: an undo takes back the last one of its question."""
    kept: list[TrailRow] = []
    for row in rows:
        if row["decision"] != "undo":
            kept.append(row)
            continue
        of_question = (n for n in range(len(kept) - 1, -1, -1) if kept[n]["question_id"] == row["question_id"])
        if (last := next(of_question, None)) is not None:
            del kept[last]
    return kept


def by_question(rows: Iterable[TrailRow]) -> dict[str, list[TrailRow]]:
    found: dict[str, list[TrailRow]] = defaultdict(list)
    for row in rows:
        found[row["question_id"]].append(row)
    return found


def status_of(decisions: Sequence[TrailRow], applied: Status = "undecided") -> Status:
    """What a question's standing decisions make of it. ``applied`` is what earlier, applied ones had made of it.
    A question that is accepted as it was edited counts as edited."""
    if not decisions:
        return applied
    last = _STATUS_OF[decisions[-1]["decision"]]
    was_edited = applied == "edited" or any(row["decision"] == "edit" for row in decisions)
    return "edited" if last == "accepted" and was_edited else last


def words_after(item: GroundedQuestion, decisions: Iterable[TrailRow]) -> Words:
    """The words of a question after the edits among its standing decisions."""
    words = words_of(item)
    for row in decisions:
        if row["decision"] == "edit":
            changed = {name: value for name, value in row["after"].items() if name != "status"}
            if "quotes" in changed:
                changed["quotes"] = tuple(Passage(**quote) for quote in changed["quotes"])
            words = replace(words, **changed)
    return words


def check_trail(rows: Iterable[TrailRow], fingerprint: str, known: Iterable[str], path: Path) -> None:
    """Raise ArtifactError when a row of the trail is none, or belongs to another dataset."""
    ids = frozenset(known)
    for number, row in enumerate(rows, 1):
        if row.get("dataset") != fingerprint:
            raise ArtifactError(
                f"{path} line {number} belongs to another dataset ({row.get('dataset')!r}, not {fingerprint!r})",
                "Move it away, or put back the dataset that it was made for",
            )
        if row.get("decision") not in (*_STATUS_OF, "undo") or str(row.get("question_id")) not in ids or _odd(row):
            said = f"{row.get('decision')!r} of {row.get('question_id')!r}"
            raise ArtifactError(f"{path} line {number} is no decision on a question of the dataset ({said})",
                                "Restore it from a backup, or move it away")  # fmt: skip


def _odd(row: TrailRow) -> bool:
    """Whether a row lacks the words that an edit leaves, or holds something else than words."""
    after = row.get("after")
    words = after if isinstance(after, dict) else {}
    texts = (words.get(name, "") for name in ("question", "answer", "reasoning"))
    named = (row.get("who", ""), row.get("reason") or "", row.get("question_id"))
    return (row.get("decision") == "edit" and not words) or not all(isinstance(each, str) for each in (*texts, *named))


def applied_rows(folder: Path) -> list[dict[str, Any]]:
    """The trail that made a dataset what it is; empty when none was applied."""
    path = folder / APPLIED_TRAIL
    return list(read_rows(path)) if path.exists() else []


def check_not_applied(dataset: Path, path: Path) -> None:
    """Raise ArtifactError when the trail beside the dataset is the end of the one inside: a run that applied it was
    stopped in its last step."""
    inside = dataset / APPLIED_TRAIL
    if path.exists() and inside.exists():
        outer = path.read_bytes()
        if outer.strip() and inside.read_bytes().endswith(outer):
            raise ArtifactError(f"the decisions of {path} are applied to {dataset} already", f"Delete {path}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the trail, made where it is missing; the lock is the system's and dies with its process. An empty trail is
    removed in the end. Raises UsageError when another process has it, InputError when it cannot be written."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        what = f"{path} cannot be written ({error.strerror})"
        raise InputError(what, "Copy the dataset to a place of yours") from None
    try:
        if not _hold(handle, path):
            raise UsageError(f"another raft review has {path}", "Wait until it has ended")
        sync_folder(path.parent)
        try:
            yield
        finally:
            if path.exists() and path.stat().st_size == 0:
                path.unlink()
    finally:
        os.close(handle)


def _hold(handle: int, path: Path) -> bool:
    """Lock the open file; False when another process has it, or has just removed it."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # a file system without locks, NFS among them
        return True


def sync(path: Path) -> None:
    """Flush a file to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
