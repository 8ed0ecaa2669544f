"""What a run of ``raft generate`` came to: for the screen, for the manifest's facts, and for the dataset card."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raft.dataset.examples import SPLITS, Tally
from raft.dataset.gate import Gate
from raft.dataset.near import SearchableIndex
from raft.dataset.teacher import Teacher
from raft.errors import InputError
from raft.records import Split, to_row


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What ``raft generate`` made: questions and examples by split, how often each rule refused, and one example.

    ``oracle_share`` is the share of examples with their oracle among those of answerable questions;
    ``reasoning`` counts questions by where their reasoning comes from, ``question_types`` and ``flags`` by these.
    ``cost`` is in the money of the teacher's prices.
    """

    out: Path
    questions: Mapping[str, int]
    examples: Mapping[str, int]
    groups: int
    refused: int
    refused_by_rule: Mapping[str, int]
    question_types: Mapping[str, int]
    flags: Mapping[str, int]
    reasoning: Mapping[str, int]
    oracle_share: float
    sample: Mapping[str, Any]
    teacher_calls: int
    failed_calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float


def facts_of(summary: DatasetSummary) -> dict[str, Any]:
    """What of the summary goes into the manifest."""
    return {key: value for key, value in asdict(summary).items() if key not in ("out", "sample")}


def labels_of(index: SearchableIndex, documents: Iterable[str]) -> list[str]:
    """The access labels of these documents: who lacks one must not see the dataset, nor ask what is tuned on it."""
    found = _metadata(index, documents)
    return sorted({label for metadata in found for label in metadata.get("labels", ())})


def licences_of(index: SearchableIndex, documents: Iterable[str]) -> dict[str, int]:
    """How many of these documents bear each licence, "" for those whose metadata names none."""
    found = _metadata(index, documents)
    return dict(Counter(str(each.get("license") or each.get("licence") or "") for each in found))


def _metadata(index: SearchableIndex, documents: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Of those documents that the index has: a row may name others as gold, whose words are nowhere."""
    for name in documents:
        with contextlib.suppress(InputError):
            yield index.document(name).metadata


def summarize(
    out: Path, gate: Gate, splits: Mapping[str, Split], tally: Tally, teachers: Sequence[Teacher]
) -> DatasetSummary:
    spent = [teacher.spending for teacher in teachers]
    types, flags, reasoning = Counter[str](), Counter[str](), Counter[str]()
    for item in gate:
        types[item.question_type] += 1
        flags.update(item.flags)
        reasoning[item.reasoning_source] += 1
    return DatasetSummary(
        out=out,
        questions={split: count for split in SPLITS if (count := sum(s == split for s in splits.values()))},
        examples=tally.examples,
        groups=tally.groups,
        refused=gate.refused,
        refused_by_rule=gate.by_rule(),
        question_types=dict(types.most_common()),
        flags=dict(flags.most_common()),
        reasoning=dict(reasoning),
        oracle_share=round(tally.present / tally.answerable, 4),
        sample={} if tally.sample is None else to_row(tally.sample),
        teacher_calls=sum(each.calls for each in spent),
        failed_calls=sum(each.failed for each in spent),
        prompt_tokens=sum(each.prompt_tokens for each in spent),
        completion_tokens=sum(each.completion_tokens for each in spent),
        cost=round(sum(teacher.cost for teacher in teachers), 4),
    )
