"""RAFT dataset -> batches for encoder and reranker: questions, their oracles, and chunks that do not answer them.

A question's negatives are the chunks of its contexts over all draws, less its oracles; the dataset keeps chunks that
also answer out of its contexts. One row of a batch::

    Row(question="What is the first dose in adults?", positive="corvalexin#2", negatives=("corvalexin#4", "ferrol#1"))

In a batch, every other row's chunks are negatives too. So two rows never share one when a chunk that one brings answers
the other: an oracle of it, or a twin of an oracle (nearly the same words: contracts and rulebooks repeat clauses).
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raft.errors import InputError
from raft.training.tokenize import read_groups

_SHINGLE = 5  # words
_TWIN = 0.8  # containment from which two chunks count as saying the same


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its oracles and the chunks known not to answer it."""

    id: str
    question: str
    oracles: tuple[str, ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One question, one of its oracles, and as many negatives as every row of the training has (chunk ids)."""

    question: str
    positive: str
    negatives: tuple[str, ...]
    oracles: tuple[str, ...]

    @property
    def chunks(self) -> tuple[str, ...]:
        return (self.positive, *self.negatives)


Twins = Mapping[str, frozenset[str]]
"""Oracle -> the chunks that say the same, itself among them."""


def read_asked(dataset: Path, split: str) -> tuple[list[Asked], int]:
    """The split's questions in file order, and how many have no oracle and were left out."""
    texts: dict[str, str] = {}
    oracles: dict[str, tuple[str, ...]] = {}
    context: dict[str, dict[str, None]] = defaultdict(dict)
    for groups in read_groups(dataset, split).values():
        for example in (example for group in groups for example in group):
            texts[example.question_id] = example.question
            oracles[example.question_id] = example.oracle_ids
            context[example.question_id] |= dict.fromkeys(example.context)
    asked = [
        Asked(name, texts[name], given, tuple(chunk for chunk in context[name] if chunk not in given))
        for name, given in oracles.items()
        if given
    ]
    return asked, len(oracles) - len(asked)


def find_twins(oracles: Sequence[str], texts: Mapping[str, str]) -> Twins:
    """For each oracle the chunks of which one holds at least 0.8 of the other's five-word shingles (containment,
    Broder 1997, "On the resemblance and containment of documents", section 2)."""
    shingles = {oracle: _shingles(texts[oracle]) for oracle in oracles}
    holders: dict[str, list[str]] = defaultdict(list)
    for oracle, parts in shingles.items():
        for part in parts:
            holders[part].append(oracle)
    twins = {oracle: {oracle} for oracle in shingles}
    for name, text in texts.items():
        parts = _shingles(text)
        shared = Counter(oracle for part in parts for oracle in holders.get(part, ()))
        for oracle, count in shared.items():
            if count >= _TWIN * min(len(parts), len(shingles[oracle])):
                twins[oracle].add(name)
    return {oracle: frozenset(same) for oracle, same in twins.items()}


def _shingles(text: str) -> frozenset[str]:
    words = text.lower().split()
    last = max(1, len(words) - _SHINGLE + 1)
    return frozenset(" ".join(words[at : at + _SHINGLE]) for at in range(last))


def make_batches(
    asked: Sequence[Asked],
    pool: Sequence[str],
    twins: Twins,
    *,
    negatives: int,
    batch_size: int,
    epochs: float,
    seed: int,
) -> list[list[Row]]:
    """All batches of the training in order: in each epoch every question once with each of its oracles, shuffled by
    seed and epoch, with negatives drawn anew. A resumed run so sees the batches an uninterrupted one would have seen.

    ``pool`` fills up where a question has fewer than ``negatives`` of its own.
    """
    batches: list[list[Row]] = []
    for epoch in range(math.ceil(epochs)):
        rng = random.Random(f"{seed}:{epoch}")
        rows = [_row(item, oracle, pool, twins, negatives, rng) for item in asked for oracle in item.oracles]
        rng.shuffle(rows)
        rows = rows[: math.ceil(len(rows) * min(1.0, epochs - epoch))]
        batches += _without_false_negatives(rows, twins, batch_size)
    return batches


def _row(item: Asked, oracle: str, pool: Sequence[str], twins: Twins, count: int, rng: random.Random) -> Row:
    answering = _answering(item.oracles, twins)
    own = [chunk for chunk in item.negatives if chunk not in answering]
    chosen = dict.fromkeys(rng.sample(own, min(count, len(own))))
    for chunk in rng.sample(pool, len(pool)) if len(chosen) < count else ():
        if len(chosen) == count:
            break
        if chunk not in answering:
            chosen[chunk] = None
    if len(chosen) < count:
        raise InputError(
            f"question {item.id}: {len(chosen)} chunks of the dataset do not answer it, retrieval.negatives is {count}",
            "Lower retrieval.negatives, or generate over more documents"
        )  # fmt: skip
    return Row(item.question, oracle, tuple(chosen), item.oracles)


def _answering(oracles: Sequence[str], twins: Twins) -> frozenset[str]:
    return frozenset().union(*(twins[oracle] for oracle in oracles))


def _without_false_negatives(rows: Sequence[Row], twins: Twins, batch_size: int) -> Iterator[list[Row]]:
    """The rows in batches, in order as far as may be: a row that answers another one of the batch, or is answered by
    it, waits for the next."""
    waiting = list(rows)
    while waiting:
        batch: list[Row] = []
        brought: set[str] = set()  # chunks of the batch
        answers: set[str] = set()  # chunks that answer a question of the batch
        later: list[Row] = []
        for at, row in enumerate(waiting):
            if len(batch) == batch_size:
                later += waiting[at:]
                break
            answering = _answering(row.oracles, twins)
            if answers.isdisjoint(row.chunks) and brought.isdisjoint(answering):
                batch.append(row)
                brought.update(row.chunks)
                answers |= answering
            else:
                later.append(row)
        yield batch
        waiting = later
