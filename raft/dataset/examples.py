"""Accepted questions -> examples: who stands on which side of the split, which chunks stand before which question,
and what the student learns to write. Examples go to disk as they are made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raft.dataset.context import Asked, Context, ContextSettings, draw_contexts
from raft.dataset.edits import Edits
from raft.dataset.gate import Basis, Gate
from raft.dataset.near import SearchableIndex
from raft.dataset.split import Likeness, leaks, split_by_document
from raft.dataset.targets import TargetForm, target_of
from raft.errors import InputError
from raft.prompts import REFUSAL
from raft.records import Chunk, RaftExample, Split, to_row
from raft.rows import write_rows

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(slots=True)
class Tally:
    """What the examples come to, counted as they are written."""

    examples: dict[str, int] = field(default_factory=dict)
    groups: int = 0
    answerable: int = 0
    present: int = 0
    named: set[str] = field(default_factory=set)  # chunks that an example refers to
    sample: RaftExample | None = None

    def add(self, split: Split, made: Sequence[RaftExample]) -> None:
        """Count the examples of one context."""
        self.examples[split] = self.examples.get(split, 0) + len(made)
        self.groups += 1
        for example in made:
            self.answerable += bool(example.oracle_ids)
            self.present += example.oracle_present
            self.named.update(example.context, example.oracle_ids)
            if self.sample is None or (example.oracle_present and not self.sample.oracle_present):
                self.sample = example


def settle(
    gate: Gate, shares: tuple[float, float], places: int, held_out: Mapping[str, Split], likeness: Likeness, seed: int
) -> dict[str, Split]:
    """The split of each question that examples can be made of; the others are refused. ``shares`` are those of dev
    and test; ``held_out`` has the documents of dev and test rows that were not to be used.

    Raises InputError when none is left.
    """
    gate.refuse_where({i.id: "more_oracles_than_places" for i in gate.bases if len(i.oracle_ids) > places})
    splits = split_by_document(gate.bases, *shares, seed, likeness.ties)
    gate.refuse_where(dict.fromkeys(leaks(gate.bases, splits, held_out), "document_of_stricter_split"))
    strict = _groups_of(_strict_documents(gate, splits, held_out), likeness)

    def repeats_strict(item: Basis) -> bool:
        return splits[item.id] == "train" and any(likeness.groups.get(name) in strict for name in item.oracle_ids)

    if strict:
        gate.refuse_where({item.id: "near_duplicate_of_stricter_split" for item in gate.bases if repeats_strict(item)})
    if not any(item.oracle_ids for item in gate.bases):
        refused = ", ".join(f"{rule} {count}" for rule, count in gate.by_rule().items())
        raise InputError(
            f"no question is left to make an example of (refused: {refused or 'none, there was no question'})",
            "Change the questions, the teacher or the quality settings",
        )
    if not any(splits[item.id] == "train" or item.split for item in gate.bases):
        raise InputError(
            f"none of {len(gate)} questions falls to train: they rest on too few documents to be divided",
            "Lower split.dev and split.test, or change the seed",
        )
    return splits if len(splits) == len(gate) else {item.id: splits[item.id] for item in gate.bases}


def _strict_documents(gate: Gate, splits: Mapping[str, Split], held_out: Mapping[str, Split]) -> set[str]:
    """The documents that dev and test questions rest on."""
    return {name for item in gate.bases if splits[item.id] != "train" for name in item.document_ids} | set(held_out)


def _groups_of(documents: Iterable[str], likeness: Likeness) -> set[int]:
    """The groups of near-duplicates that chunks of these documents stand in."""
    return {group for name in documents for group in likeness.by_document.get(name, ())}


@dataclass(frozen=True, slots=True)
class Pool:
    """The chunks that may be distractors anywhere, and in train; and the document of each."""

    everywhere: Sequence[str]
    train: Sequence[str]
    document_of: dict[str, str]


def pool_of(
    chunks: Iterable[Chunk],
    gate: Gate,
    splits: Mapping[str, Split],
    held_out: Mapping[str, Split],
    likeness: Likeness,
) -> Pool:
    """In train no chunk of a document that a dev or test question rests on (or of a row that was not to be used) is
    even a distractor, nor is a near-duplicate of one."""
    document_of = {chunk.id: sys.intern(chunk.document_id) for chunk in chunks}
    documents = _strict_documents(gate, splits, held_out)
    strict = _groups_of(documents, likeness)
    train = [n for n, d in document_of.items() if d not in documents and likeness.groups.get(n) not in strict]
    return Pool(list(document_of), train, document_of)


@dataclass(frozen=True, slots=True)
class ExampleSettings:
    """How examples are made of questions (config_generate.ContextRecipe)."""

    drawing: ContextSettings
    draws: int
    refuse: bool
    form: TargetForm


@dataclass(frozen=True, slots=True)
class Distractors:
    """What may stand beside an oracle: the retriever's hits by question, whether a chunk answers a question too, the
    pool, and the counterfactual edits."""

    near: Mapping[str, tuple[str, ...]]
    answers: Callable[[str, str], bool]
    pool: Pool
    edits: Edits


def write_examples(
    gate: Gate, splits: Mapping[str, Split], beside: Distractors, index: SearchableIndex, settings: ExampleSettings
) -> Tally:
    """Write ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``; a split without questions has no file."""
    tally = Tally()
    titles = _titles(index, beside.edits) if settings.form == "noise" else None
    by_split: dict[Split, list[Asked]] = {split: [] for split in SPLITS}
    for item in gate.bases:
        by_split[splits[item.id]].append(Asked(item.id, item.oracle_ids, beside.near[item.id]))
    for split, asked in by_split.items():
        path = gate.folder / f"{split}.jsonl"
        path.unlink(missing_ok=True)  # of a run that was stopped in its last step
        if not asked:
            continue

        def rows(split: Split = split, asked: list[Asked] = asked) -> Iterator[Any]:
            for context in _contexts(split, asked, beside, settings):
                made = _of_context(context, gate, settings, titles)
                tally.add(split, made)
                yield from map(to_row, made)

        write_rows(path, rows())
    return tally


def _contexts(
    split: Split, asked: Sequence[Asked], beside: Distractors, settings: ExampleSettings
) -> Iterator[Context]:
    """All drawings of a split, one after the other."""

    def document_of(name: str) -> str:
        return beside.edits.chunk(name).document_id if name in beside.edits else beside.pool.document_of[name]

    pool = beside.pool.train if split == "train" else beside.pool.everywhere
    for draw in range(settings.draws if split == "train" else 1):
        yield from draw_contexts(
            asked, pool, beside.answers, settings.drawing, draw, document_of=document_of, edits=beside.edits.of
        )


def _titles(index: SearchableIndex, edits: Edits) -> Callable[[str], str]:
    return lambda name: (edits if name in edits else index).chunk(name).title


def _of_context(
    context: Context, gate: Gate, settings: ExampleSettings, titles: Callable[[str], str] | None
) -> list[RaftExample]:
    made = []
    shown = None if titles is None else [titles(name) for name in context.chunk_ids]
    for member in context.members:
        item, present = gate.item(member.question_id), member.oracle_present
        refused = not present and (settings.refuse or item.answer_type == "unanswerable")
        made.append(
            RaftExample(
                id=f"{item.id}@{context.draw}",
                question_id=item.id,
                question=item.question,
                answer=REFUSAL if refused else item.answer,
                target=target_of(
                    item, context.chunk_ids, present, refuse=settings.refuse, form=settings.form, titles=shown
                ),
                answer_type=item.answer_type,
                context=context.chunk_ids,
                oracle_ids=item.oracle_ids,
                oracle_present=present,
                group=context.group,
                draw=context.draw,
            )
        )
    return made
