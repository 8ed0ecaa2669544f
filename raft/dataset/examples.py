"""Accepted questions -> examples: who stands on which side of the split, which chunks stand before which question,
and what the student learns to write. Examples go to disk as they are made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raft.dataset.context import Asked, Context, ContextSettings, draw_contexts
from raft.dataset.counterfactual import edits_of, speaks_of, vocabulary_of
from raft.dataset.gate import Gate
from raft.dataset.grounding import GroundedQuestion
from raft.dataset.near import SearchableIndex
from raft.dataset.split import Likeness, leaks, split_by_document
from raft.dataset.targets import TargetForm, target_of
from raft.errors import InputError
from raft.prompts import REFUSAL
from raft.records import Chunk, RaftExample, Split, to_row
from raft.rows import write_rows

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_EDITS_PER_QUESTION = 2


@dataclass(slots=True)
class Tally:
    """What the examples come to, counted as they are written."""

    examples: dict[str, int] = field(default_factory=dict)
    groups: int = 0
    answerable: int = 0
    present: int = 0
    named: set[str] = field(default_factory=set)  # chunks that an example refers to
    made_up: Mapping[str, Chunk] = field(default_factory=dict)  # counterfactual ones, by id
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
    gate.refuse_where({i.id: "more_oracles_than_places" for i in gate if len(i.oracle_ids) > places})
    splits = split_by_document(gate, *shares, seed, likeness.ties)
    gate.refuse_where(dict.fromkeys(leaks(gate, splits, held_out), "document_of_stricter_split"))
    strict = _groups_of(_strict_documents(gate, splits, held_out), likeness)

    def repeats_strict(item: GroundedQuestion) -> bool:
        return splits[item.id] == "train" and any(likeness.groups.get(name) in strict for name in item.oracle_ids)

    gate.refuse_where({item.id: "near_duplicate_of_stricter_split" for item in gate if repeats_strict(item)})
    if not any(item.oracle_ids for item in gate):
        refused = ", ".join(f"{rule} {count}" for rule, count in gate.by_rule().items())
        raise InputError(
            f"no question is left to make an example of (refused: {refused or 'none, there was no question'})",
            "Change the questions, the teacher or the quality settings",
        )
    return {item.id: splits[item.id] for item in gate}


def _strict_documents(gate: Gate, splits: Mapping[str, Split], held_out: Mapping[str, Split]) -> set[str]:
    """The documents that dev and test questions rest on."""
    return {name for item in gate if splits[item.id] != "train" for name in item.document_ids} | set(held_out)


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


def write_examples(
    folder: Path,
    gate: Gate,
    splits: Mapping[str, Split],
    near: Mapping[str, tuple[str, ...]],
    answers: Callable[[str, str], bool],
    index: SearchableIndex,
    pool: Pool,
    settings: ExampleSettings,
    made_up: Mapping[str, tuple[Chunk, ...]],
) -> Tally:
    """Write ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``; a split without questions has no file.

    ``made_up`` has the counterfactual chunks of questions.
    """
    synthetic = {chunk.id: chunk for chunks in made_up.values() for chunk in chunks}
    tally = Tally(made_up=synthetic)
    edits = {name: tuple(chunk.id for chunk in chunks) for name, chunks in made_up.items()}
    document_of = (pool.document_of | {name: chunk.document_id for name, chunk in synthetic.items()}).__getitem__
    titles = _titles(index, synthetic) if settings.form == "noise" else None
    for split in SPLITS:
        asked = [Asked(i.id, i.oracle_ids, near[i.id]) for i in gate if splits[i.id] == split]
        (folder / f"{split}.jsonl").unlink(missing_ok=True)  # of a run that was stopped in its last step
        if not asked:
            continue

        def rows(split: Split = split, asked: list[Asked] = asked) -> Iterator[Any]:
            names = pool.train if split == "train" else pool.everywhere
            for draw in range(settings.draws if split == "train" else 1):
                for context in draw_contexts(
                    asked, names, answers, settings.drawing, draw, document_of=document_of, edits=edits
                ):
                    made = _of_context(context, gate, settings, titles)
                    tally.add(split, made)
                    yield from map(to_row, made)

        write_rows(folder / f"{split}.jsonl", rows())
    return tally


def _titles(index: SearchableIndex, synthetic: Mapping[str, Chunk]) -> Callable[[str], str]:
    return lambda name: (synthetic[name] if name in synthetic else index.chunk(name)).title


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


def counterfactuals(gate: Gate, index: SearchableIndex, seed: int) -> dict[str, tuple[Chunk, ...]]:
    """Question id -> near-miss edits of its oracle, where sound ones exist; each edit has an id of its own."""
    vocabulary = vocabulary_of(index.chunks, gate)
    found = {}
    for item in gate:
        for oracle in item.oracle_ids[:1]:
            edits = edits_of(index.chunk(oracle), item, vocabulary, seed=seed, most=_EDITS_PER_QUESTION)
            if edits:
                found[item.id] = tuple(replace(e, id=f"{oracle}~{item.id}~edit{n}") for n, e in enumerate(edits))
    return found


def beside_edits(
    answers: Callable[[str, str], bool], gate: Gate, made_up: Mapping[str, tuple[Chunk, ...]]
) -> Callable[[str, str], bool]:
    """``answers`` that also keeps an edit away from another question about what the edit now speaks of: it would
    contradict that question's oracle."""
    if not made_up:
        return answers
    edits = {chunk.id: (owner, chunk) for owner, chunks in made_up.items() for chunk in chunks}

    def either(question_id: str, chunk_id: str) -> bool:
        owner, chunk = edits.get(chunk_id, (question_id, None))
        if chunk is not None and owner != question_id and speaks_of(gate.item(question_id).question, chunk):
            return True
        return answers(question_id, chunk_id)

    return either
