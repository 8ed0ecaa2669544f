"""raft review --apply: a dataset and the decisions on it -> the dataset that the reviewers want.

Rejected questions leave ``questions.jsonl``, their examples the splits; a row of ``rejected.jsonl`` keeps why::

    {"id": "med-007", "question": "What is it?", "answer": "12 mg", "question_type": "factual",
     "document_ids": ["formulary/corvalexin.md"], "reasons": ["reviewer"], "said": "question unclear"}

Edited ones have their words changed, and the targets of their examples written again. All other examples keep their
bytes: contexts stay as they were drawn, and the examples of a group stand together. The trail goes into the dataset
as ``review.jsonl``.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from raft import artifacts
from raft.dataset.card import CARD, write_card
from raft.dataset.grounding import GroundedQuestion
from raft.dataset.review import Review, open_review
from raft.dataset.targets import target_of
from raft.dataset.trail import APPLIED_TRAIL, STATUSES, Status, trail_path
from raft.errors import InputError, UsageError
from raft.places import place_of
from raft.prompts import REFUSAL
from raft.records import RaftExample, Split, example_from_row, to_row
from raft.rows import read_rows, write_rows

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_ROWS = ("questions.jsonl", "chunks.jsonl", "rejected.jsonl", *(f"{split}.jsonl" for split in SPLITS))
_WRITTEN_ANEW = {*_ROWS, APPLIED_TRAIL, CARD}


@dataclass(frozen=True, slots=True)
class Applied:
    """What ``raft review --apply`` made: how many questions had which status, and what is left."""

    out: Path
    accepted: int
    edited: int
    rejected: int
    undecided: int
    questions: int
    examples: int
    reviewers: tuple[str, ...]


@dataclass
class _Counts:
    """What is counted while the examples of the new dataset are written."""

    examples: Counter[str] = field(default_factory=Counter)
    groups: set[str] = field(default_factory=set)
    chunks: set[str] = field(default_factory=set)
    answerable: int = 0
    present: int = 0
    sample: RaftExample | None = None


def apply_review(dataset: Path, out: Path | None = None, *, accepted_only: bool = False) -> Applied:
    """Write the dataset as its reviewers left it: as the new artefact ``out``, or in place of ``dataset`` (None).

    ``accepted_only`` leaves out what nobody has decided on, too. Raises UsageError when nothing is decided, or another
    raft has the dataset or its trail; ArtifactError when the decisions are applied already, or of another dataset, or
    ``out`` is taken; InputError when no question is left.
    """
    path = trail_path(dataset)
    in_place = out is None or place_of(out).resolve() == dataset.resolve()
    target = dataset.resolve() if out is None or in_place else out
    with open_review(dataset, "") as review:
        if not review.trail_rows and not (accepted_only and review.applied_rows):
            raise UsageError(f"nothing is decided on {dataset}", f"Decide first: raft review {dataset}")
        kept = _kept(review, accepted_only)
        applied = _write(review, path, target, kept, in_place)
        if in_place:  # last: a stop before leaves both, which open_review tells of
            path.unlink()
            artifacts.sync_folder(path.parent)
    return applied


def _kept(review: Review, accepted_only: bool) -> dict[str, GroundedQuestion]:
    """The questions that stay, as they are now, in their order."""
    stay: set[Status] = {"accepted", "edited"} if accepted_only else {"accepted", "edited", "undecided"}
    kept = {name: review.now(name) for name in review.items if review.status(name) in stay}
    if not kept:
        what = "no question is left: all are rejected" + " or undecided" * accepted_only
        raise InputError(what, f"Accept some: raft review {review.folder}")
    return kept


def _write(
    review: Review, trail: Path, target: Path, kept: Mapping[str, GroundedQuestion], in_place: bool
) -> Applied:  # fmt: skip
    manifest, source = review.manifest, review.folder
    with artifacts.writing(target, "dataset", manifest.recipe, manifest.inputs, overwrite=in_place) as draft:
        for name in manifest.files.keys() - _WRITTEN_ANEW:
            (draft.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, draft.folder / name)
        counts = _write_examples(review, draft.folder, kept)
        write_rows(draft.folder / "questions.jsonl", map(to_row, kept.values()))
        chunks = (row for row in read_rows(source / "chunks.jsonl") if row["id"] in counts.chunks)
        write_rows(draft.folder / "chunks.jsonl", chunks)
        refused = list(_refused(review, kept))
        write_rows(draft.folder / "rejected.jsonl", (*_rows_if_any(source / "rejected.jsonl"), *refused))
        _write_trail(source / APPLIED_TRAIL, trail, draft.folder / APPLIED_TRAIL)
        draft.inputs["review"] = artifacts.hash_file(draft.folder / APPLIED_TRAIL)
        applied = _applied(review, target, kept, counts)
        draft.facts = _facts(review, kept, counts, refused, applied)
        if CARD in manifest.files:
            facts, licences = draft.facts, [*Counter(manifest.facts.get("licences") or {}).elements()]
            write_card(
                draft.folder, name=target.name, facts=facts, recipe=manifest.recipe, licences=licences,
                sample=counts.sample, language=manifest.facts.get("language"),
            )  # fmt: skip
    return applied


def _rows_if_any(path: Path) -> Iterator[dict[str, Any]]:
    return read_rows(path) if path.exists() else iter(())


def _write_trail(applied: Path, trail: Path, out: Path) -> None:
    """The trail that was applied before, and this one behind it, byte for byte."""
    out.write_bytes((applied.read_bytes() if applied.exists() else b"") + trail.read_bytes())


def _write_examples(review: Review, folder: Path, kept: Mapping[str, GroundedQuestion]) -> _Counts:
    """Write the examples of the questions that stay, those of edited ones with their new words."""
    counts = _Counts(chunks={name for item in kept.values() for name in item.oracle_ids})
    for split in SPLITS:
        path = review.folder / f"{split}.jsonl"
        if not path.exists() or not any(row["question_id"] in kept for row in read_rows(path)):
            continue
        rows = (row for row in read_rows(path) if row["question_id"] in kept)
        examples = (_as_edited(review, example_from_row(row), kept) for row in rows)
        write_rows(folder / f"{split}.jsonl", map(to_row, _counted(examples, split, counts)))
    return counts


def _as_edited(review: Review, example: RaftExample, kept: Mapping[str, GroundedQuestion]) -> RaftExample:
    item = kept[example.question_id]
    return example if item == review.items[item.id] else rendered(review, example, item)


def rendered(review: Review, example: RaftExample, item: GroundedQuestion) -> RaftExample:
    """The example with the words of ``item``, over the same context.

    A quote can name only a chunk that stands in the context; the others are left out of the target.
    """
    context = review.manifest.recipe.get("context") or {}
    refuse = context.get("oracle_absent", "refuse") == "refuse"
    shown = replace(item, quotes=tuple(quote for quote in item.quotes if quote.chunk_id in example.context))
    refused = not example.oracle_present and (refuse or item.answer_type == "unanswerable")
    form, present = context.get("reasoning", "quotes"), example.oracle_present
    titles = [review.chunk(name).title for name in example.context] if form == "noise" else None
    target = target_of(shown, example.context, present, refuse=refuse, form=form, titles=titles)
    return replace(
        example, question=item.question, answer=REFUSAL if refused else item.answer, answer_type=item.answer_type,
        oracle_ids=item.oracle_ids, target=target,
    )  # fmt: skip


def _counted(examples: Iterable[RaftExample], split: Split, counts: _Counts) -> Iterator[RaftExample]:
    for example in examples:
        counts.examples[split] += 1
        counts.groups.add(example.group)
        counts.chunks.update(example.context, example.oracle_ids)
        counts.answerable += bool(example.oracle_ids)
        counts.present += example.oracle_present
        counts.sample = counts.sample or example
        yield example


def _refused(review: Review, kept: Mapping[str, GroundedQuestion]) -> Iterator[dict[str, Any]]:
    """The rows of ``rejected.jsonl`` for what goes: rejected by a reviewer, or not looked at."""
    for name, item in review.items.items():
        if name not in kept:
            by_reviewer = review.status(name) == "rejected"
            said = {"said": review.decisions(name)[-1]["reason"]} if by_reviewer else {}
            yield {
                "id": name, "question": item.question, "answer": item.answer, "question_type": item.question_type,
                "document_ids": list(item.document_ids), "reasons": ["reviewer" if by_reviewer else "not_reviewed"],
            } | said  # fmt: skip


def _applied(review: Review, out: Path, kept: Mapping[str, GroundedQuestion], counts: _Counts) -> Applied:
    """Rejections of earlier, applied reviews count too."""
    found = Counter(review.status(name) for name in review.items)
    earlier = (review.manifest.facts.get("review") or {}).get("rejected", 0)
    who = {row["who"] for row in (*review.applied_rows, *review.trail_rows)}
    numbers = {status: found[status] for status in STATUSES} | {"rejected": found["rejected"] + earlier}
    return Applied(
        out=out, questions=len(kept), examples=counts.examples.total(), reviewers=tuple(sorted(who)), **numbers
    )


def _facts(
    review: Review, kept: Mapping[str, GroundedQuestion], counts: _Counts, refused: list[dict[str, Any]], done: Applied
) -> dict[str, Any]:  # fmt: skip
    """The dataset's facts with its counts brought up to date; what is not counted here stays as it was."""
    old, items = review.manifest.facts, kept.values()
    by_rule = Counter(old.get("refused_by_rule") or {}) + Counter(row["reasons"][0] for row in refused)
    new = {
        "questions": dict(Counter(str(item.split) for item in items)),
        "examples": dict(counts.examples),
        "groups": len(counts.groups),
        "oracle_share": round(counts.present / counts.answerable, 4) if counts.answerable else 0.0,
        "reasoning": dict(Counter(item.reasoning_source for item in items)),
        "sources": dict(Counter(item.source for item in items)),
        "question_types": dict(Counter(item.question_type for item in items)),
        "flags": dict(Counter(flag for item in items for flag in item.flags)),
        "refused": old.get("refused", 0) + len(refused),
        "refused_by_rule": dict(by_rule.most_common()),
    }
    review_facts = {name: value for name, value in asdict(done).items() if name in (*STATUSES, "reviewers")}
    return {name: new.get(name, value) for name, value in old.items()} | {"review": review_facts}
