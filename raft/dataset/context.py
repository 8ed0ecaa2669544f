"""Which chunks stand before which question. Pure: no model, no file, no clock.

Questions are asked in groups that share one context, chunk for chunk (training packs them behind one copy of
their documents). One context of three chunks, for three questions::

    Context(group="d0-5f1c...", draw=0, chunk_ids=("c7", "c2", "c9"),
            members=(Member("q2", True), Member("q9", True), Member("q4", False)))

``q2`` and ``q9`` find their oracle there; ``q4`` was drawn to go without, so none of its oracles, and no chunk
that would answer it all the same, stands in the context. Whether a question sees its oracle is drawn for each
question by itself (P of RAFT, arXiv 2403.10131, section 3), the number of distractors for each group, and all
draws are seeded by what is drawn for: neither workers nor the order of the input matter.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from raft.errors import InputError

Policy = Literal["random", "hard", "mixed"]
_REMEDY = "Raise context.distractors"
_TRIES = 32  # random companions looked at for each place in a group


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as context assembly sees it: its oracle chunks (none: unanswerable) and the retriever's hits,
    best first."""

    id: str
    oracle_ids: tuple[str, ...]
    near_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    question_id: str
    oracle_present: bool


@dataclass(frozen=True, slots=True)
class Context:
    group: str
    draw: int
    chunk_ids: tuple[str, ...]
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """``oracle_fraction`` is P; a context holds 1 + k chunks, k from ``distractors`` (least, most)."""

    oracle_fraction: float
    distractors: tuple[int, int]
    policy: Policy
    questions_per_context: int
    seed: int


@dataclass
class _Group:
    """A group being formed: what its context must hold, and at most how much."""

    size: int
    members: list[Asked] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)
    needs: dict[str, None] = field(default_factory=dict)


def draw_contexts(
    questions: Iterable[Asked],
    pool: Sequence[str],
    answers: Callable[[str, str], bool],
    settings: ContextSettings,
    draw: int,
) -> list[Context]:
    """One drawing of contexts: every question stands in exactly one, contexts in a seeded order.

    ``pool`` lists the chunks that may be distractors; ``answers(question id, chunk id)`` says that a chunk which
    is not an oracle answers the question too, and so may not stand beside it. Raises InputError when a question
    has more oracles than a context has places, or when the pool cannot fill one.
    """
    return _Drawing(questions, pool, answers, settings, draw).contexts()


class _Drawing:
    def __init__(
        self,
        questions: Iterable[Asked],
        pool: Sequence[str],
        answers: Callable[[str, str], bool],
        settings: ContextSettings,
        draw: int,
    ) -> None:
        self._pool = sorted(set(pool))
        self._allowed = frozenset(self._pool)
        self._answers = answers
        self._settings = settings
        self._draw = draw
        self._order = sorted(questions, key=lambda asked: self._hash("order", asked.id))
        self._by_oracle: dict[str, list[Asked]] = defaultdict(list)
        for asked in self._order:
            for chunk_id in asked.oracle_ids:
                self._by_oracle[chunk_id].append(asked)
        self._grouped: set[str] = set()

    def contexts(self) -> list[Context]:
        drawn = []
        for at, asked in enumerate(self._order):
            if asked.id not in self._grouped:
                drawn.append(self._context(asked, at))
        return drawn

    def _context(self, first: Asked, at: int) -> Context:
        name = self._hash("group", first.id)
        rng = random.Random(name)
        group = _Group(self._size(first, rng))
        self._join(group, first)
        for companion in self._companions(first, at, rng):
            if len(group.members) == self._settings.questions_per_context:
                break
            self._join(group, companion)
        chunk_ids = self._fill(group, rng)
        rng.shuffle(chunk_ids)
        members = tuple(Member(a.id, p) for a, p in zip(group.members, group.present, strict=True))
        return Context(f"d{self._draw}-{name[:16]}", self._draw, tuple(chunk_ids), members)

    def _size(self, first: Asked, rng: random.Random) -> int:
        """1 + k. A question with two oracles needs two places, whether or not its draw lets them in."""
        least, most = self._settings.distractors
        if len(first.oracle_ids) > most + 1:
            raise InputError(
                f"question {first.id} has {len(first.oracle_ids)} oracles; a context has {most + 1} places", _REMEDY
            )
        return 1 + rng.randint(max(least, len(first.oracle_ids) - 1), most)

    def _join(self, group: _Group, asked: Asked) -> None:
        """Add the question when it is free and fits: its oracles find room, and nothing in the group's context
        answers anyone who is to go without."""
        if asked.id in self._grouped:
            return
        present = self._oracle_present(asked)
        needs = group.needs | dict.fromkeys(asked.oracle_ids if present else ())
        members, flags = [*group.members, asked], [*group.present, present]
        if len(needs) > group.size or not all(self._bears(members, flags, chunk_id) for chunk_id in needs):
            return
        group.members, group.present, group.needs = members, flags, needs
        self._grouped.add(asked.id)

    def _oracle_present(self, asked: Asked) -> bool:
        return bool(asked.oracle_ids) and random.Random(self._hash("oracle", asked.id)).random() < (
            self._settings.oracle_fraction
        )

    def _bears(self, members: Sequence[Asked], present: Sequence[bool], chunk_id: str) -> bool:
        """Whether the chunk may stand in the context of these questions."""
        return all(
            here if chunk_id in asked.oracle_ids else not self._answers(asked.id, chunk_id)
            for asked, here in zip(members, present, strict=True)
        )

    def _companions(self, first: Asked, at: int, rng: random.Random) -> Iterator[Asked]:
        """Questions to ask over the same context: those whose oracle is near the first one's (hard), any (random),
        or near ones for half of the places and then any (mixed)."""
        if self._settings.policy != "random":
            anchors = [*first.oracle_ids, *first.near_ids]
            rng.shuffle(anchors)
            near = (asked for chunk_id in anchors for asked in self._by_oracle.get(chunk_id, ()))
            near = (asked for asked in near if asked.id not in self._grouped)
            hard = self._settings.policy == "hard"
            yield from itertools.islice(near, None if hard else self._settings.questions_per_context // 2)
        if self._settings.policy != "hard":
            for _ in range(_TRIES * self._settings.questions_per_context):
                yield self._order[rng.randrange(at, len(self._order))]

    def _fill(self, group: _Group, rng: random.Random) -> list[str]:
        """The group's oracles, filled up with distractors to exactly its size."""
        chosen = dict(group.needs)
        wanted = group.size - len(chosen)
        near, far = self._near(group, wanted, rng), self._far(rng)
        always_near = self._settings.policy != "mixed" or not all(asked.oracle_ids for asked in group.members)
        while len(chosen) < group.size:
            sources = (near, far) if always_near or rng.random() < 0.5 else (far, near)
            chunk_id = next(itertools.chain(*sources), None)
            if chunk_id is None:
                raise InputError(
                    f"a context of {group.size} chunks cannot be filled from {len(self._pool)} chunks, less those "
                    "that answer its questions", "Index more documents, or lower context.distractors"
                )  # fmt: skip
            if chunk_id not in chosen and self._bears(group.members, group.present, chunk_id):
                chosen[chunk_id] = None
        return list(chosen)

    def _near(self, group: _Group, wanted: int, rng: random.Random) -> Iterator[str]:
        """Near misses of the members in turn, from the best few at random, so that draws differ. With the random
        policy only an unanswerable question brings its own: without them it would be told by its context."""
        random_policy = self._settings.policy == "random"
        members = sorted(group.members, key=lambda asked: bool(asked.oracle_ids))  # unanswerable questions first
        lists = [asked.near_ids for asked in members if not (random_policy and asked.oracle_ids)]
        ranked = dict.fromkeys(c for rank in itertools.zip_longest(*lists) for c in rank if c in self._allowed)
        near = [c for c in ranked if self._bears(group.members, group.present, c)]
        window = near[: 2 * wanted]
        rng.shuffle(window)
        yield from window
        yield from near[2 * wanted :]

    def _far(self, rng: random.Random) -> Iterator[str]:
        """The pool in random order."""
        for _ in range(_TRIES if self._pool else 0):
            yield self._pool[rng.randrange(len(self._pool))]
        yield from rng.sample(self._pool, len(self._pool))

    def _hash(self, what: str, question_id: str) -> str:
        key = f"{self._settings.seed}/{self._draw}/{what}/{question_id}"
        return hashlib.sha256(key.encode()).hexdigest()
