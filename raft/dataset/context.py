"""Which chunks stand before which question. Pure: no model, no file, no clock.

Questions are asked in groups that share one context, chunk for chunk (training packs them behind one copy of
their documents). One context of three chunks, for three questions::

    Context(group="d0-5f1c...", draw=0, chunk_ids=("c7", "c2", "c9"),
            members=(Member("q2", True), Member("q9", True), Member("q4", False)))

``q2`` and ``q9`` find their oracle there; ``q4`` was drawn to go without, so none of its oracles, and no chunk
that would answer it all the same, stands in the context. Whether a question sees its oracle is drawn for each
question by itself (P of RAFT, arXiv 2403.10131, section 3), the number of distractors for each group, and where
each distractor comes from for each place. All draws are seeded, and made in an order that is seeded too: neither
workers nor the order of the input matter.

Each policy falls back on the next where it runs out::

    counterfactual, same_document  ->  hard  ->  random

Distractors are used evenly. Those drawn at random come off a shuffled round of the pool, and a chunk that does
not fit keeps its turn: within a drawing, the numbers of times that two chunks were drawn at random differ by at most
2 (a chunk that nobody could take for a whole round may fall further behind). Near misses are the least used of the
best few. A question whose oracle is left out takes up as much room in its group as one whose oracle is there: else
only those would get into short contexts, and their length would tell.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from raft.errors import InputError, RecipeError

Policy = Literal["random", "hard", "same_document", "counterfactual", "mixed"]
DEFAULT_MIX: Mapping[Policy, float] = MappingProxyType({"random": 0.5, "hard": 0.5})
_FALLS_BACK: Mapping[Policy, tuple[Policy, ...]] = {
    "random": ("random",),
    "hard": ("hard", "random"),
    "same_document": ("same_document", "hard", "random"),
    "counterfactual": ("counterfactual", "hard", "random"),
}
_REMEDY = "Raise context.distractors"
_TRIES = 32  # companions looked at for each place in a group


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
    """``oracle_fraction`` is P; a context holds 1 + k chunks, k from ``distractors`` (least, most). ``mix`` is read
    where the policy is "mixed": how likely each of the others fills a place (any positive weights)."""

    oracle_fraction: float
    distractors: tuple[int, int]
    policy: Policy
    questions_per_context: int
    seed: int
    mix: Mapping[Policy, float] = field(default_factory=lambda: DEFAULT_MIX)


@dataclass
class _Group:
    """A group being formed. ``needs`` are the oracles that its context holds; ``claims`` also those that it leaves
    out, and one for each unanswerable question: at most ``size``, so that room is the same for all."""

    size: int
    members: list[Asked] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)
    needs: dict[str, None] = field(default_factory=dict)
    claims: frozenset[str] = frozenset()


def draw_contexts(
    questions: Iterable[Asked],
    pool: Iterable[str],
    answers: Callable[[str, str], bool],
    settings: ContextSettings,
    draw: int,
    *,
    document_of: Callable[[str], str] = str,
    edits: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> list[Context]:
    """One drawing of contexts: every question stands in exactly one, contexts in a seeded order.

    ``pool`` lists the chunks that may be distractors; ``answers(question id, chunk id)`` says that a chunk which
    is not an oracle answers the question too, and so may not stand beside it. ``document_of`` gives the document of
    a chunk (unless given, every chunk is one by itself). ``edits`` has made-up chunks by question id: only a context
    with that question may hold them, and ``answers`` is asked about them like about any other.

    Raises InputError when a question has more oracles than a context has places, or when the pool cannot fill one;
    RecipeError for a mix that names no source.
    """
    return _Drawing(questions, pool, answers, settings, draw, document_of, edits).contexts()


class _Drawing:
    def __init__(
        self,
        questions: Iterable[Asked],
        pool: Iterable[str],
        answers: Callable[[str, str], bool],
        settings: ContextSettings,
        draw: int,
        document_of: Callable[[str], str],
        edits: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._allowed = frozenset(pool)
        self._answers = answers
        self._settings = settings
        self._draw = draw
        self._document_of = document_of
        self._edits = edits
        self._shares = _shares(settings)
        self._order = sorted(questions, key=lambda asked: self._hash("order", asked.id))
        self._by_oracle: dict[str, list[Asked]] = defaultdict(list)
        for asked in self._order:
            for chunk_id in asked.oracle_ids:
                self._by_oracle[chunk_id].append(asked)
        self._waiting = list(self._order)
        self._grouped: set[str] = set()
        self._uses: Counter[str] = Counter()
        turns = random.Random(self._hash("turns", ""))
        names = sorted(self._allowed)
        self._pool = _Turns(names, turns)
        self._documents = self._by_document(names, turns) if "same_document" in self._shares else {}

    def _by_document(self, names: Iterable[str], rng: random.Random) -> dict[str, _Turns]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in names:
            found[self._document_of(name)].append(name)
        return {document: _Turns(chunk_ids, rng) for document, chunk_ids in found.items()}

    def contexts(self) -> list[Context]:
        return [self._context(asked) for asked in self._order if asked.id not in self._grouped]

    def _context(self, first: Asked) -> Context:
        name = self._hash("group", first.id)
        rng = random.Random(name)
        group = _Group(self._size(first, rng))
        self._join(group, first)
        most = self._settings.questions_per_context
        for companion in itertools.islice(self._companions(first, group, rng), _TRIES * most):
            if len(group.members) == most:
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
        """Add the question when it is free and fits: there is room for its oracles, and nothing in the group's
        context answers anyone who is to go without."""
        claims = group.claims.union(asked.oracle_ids or (asked.id,))
        if len(claims) > group.size or asked.id in self._grouped:
            return
        present = self._oracle_present(asked)
        needs = group.needs | dict.fromkeys(asked.oracle_ids if present else ())
        members, flags = [*group.members, asked], [*group.present, present]
        if not all(self._bears(members, flags, chunk_id) for chunk_id in needs):
            return
        group.members, group.present, group.needs, group.claims = members, flags, needs, claims
        self._grouped.add(asked.id)

    def _oracle_present(self, asked: Asked) -> bool:
        drawn = int(self._hash("oracle", asked.id)[:13], 16) / 16**13
        return bool(asked.oracle_ids) and drawn < self._settings.oracle_fraction

    def _bears(self, members: Sequence[Asked], present: Sequence[bool], chunk_id: str) -> bool:
        """Whether the chunk may stand in the context of these questions."""
        return all(
            here if chunk_id in asked.oracle_ids else not self._answers(asked.id, chunk_id)
            for asked, here in zip(members, present, strict=True)
        )

    def _companions(self, first: Asked, group: _Group, rng: random.Random) -> Iterator[Asked]:
        """Questions to ask over the same context, by the shares of the policy: those whose oracle is a near miss of
        the first one's (hard), or stands in its document, or any. Where nothing is to be random, none is just any."""
        anchors = list(dict.fromkeys((*first.oracle_ids, *first.near_ids))) if set(self._shares) != {"random"} else []
        rng.shuffle(anchors)
        streams: dict[Policy, Iterator[Asked]] = {
            "hard": itertools.chain.from_iterable(self._free(self._by_oracle.get(c, []), rng) for c in anchors),
            "same_document": self._of_same_document(first, rng),
            "counterfactual": iter(()),
            "random": self._free(self._waiting, rng) if "random" in self._shares else iter(()),
        }
        while True:
            order = _FALLS_BACK[self._source(rng)]
            if len(group.claims) >= group.size:  # only who shares an oracle can join: there is no sense in asking all
                order = ("same_document", "hard")
            companion = next(itertools.chain.from_iterable(streams[source] for source in order), None)
            if companion is None:
                return
            yield companion

    def _of_same_document(self, first: Asked, rng: random.Random) -> Iterator[Asked]:
        documents = dict.fromkeys(map(self._document_of, first.oracle_ids)) if self._documents else {}
        for chunk_ids in (self._documents[name].ids for name in documents if name in self._documents):
            for chunk_id in rng.sample(chunk_ids, min(len(chunk_ids), _TRIES)):
                yield from self._free(self._by_oracle.get(chunk_id, []), rng)

    def _free(self, asked: list[Asked], rng: random.Random) -> Iterator[Asked]:
        """The ungrouped questions of a list in random order. Grouped ones that come up are taken out of it for good,
        so that a long list is not gone through again and again."""
        at = 0
        while at < len(asked):
            pick = rng.randrange(at, len(asked))
            if asked[pick].id in self._grouped:
                asked[pick] = asked[-1]
                asked.pop()
            else:
                asked[at], asked[pick] = asked[pick], asked[at]
                at += 1
                yield asked[at - 1]

    def _source(self, rng: random.Random) -> Policy:
        if len(self._shares) == 1:
            return next(iter(self._shares))
        return rng.choices(list(self._shares), list(self._shares.values()))[0]

    def _fill(self, group: _Group, rng: random.Random) -> list[str]:
        """The group's oracles, filled up with distractors to exactly its size."""
        chosen = dict(group.needs)

        def fits(chunk_id: str) -> bool:
            return chunk_id not in chosen and self._bears(group.members, group.present, chunk_id)

        sources: dict[Policy, Iterator[str]] = {
            "random": iter(lambda: self._pool.take(fits), None),
            "hard": self._near(group, fits, rng),
            "same_document": self._beside(group, fits),
            "counterfactual": self._edited(group, fits, rng),
        }
        lost = not all(asked.oracle_ids for asked in group.members)
        while len(chosen) < group.size:
            wanted = self._source(rng)
            order = _FALLS_BACK["hard" if wanted == "random" and lost else wanted]
            chunk_id = next(itertools.chain.from_iterable(sources[source] for source in order), None)
            if chunk_id is None:
                raise InputError(
                    f"a context of {group.size} chunks cannot be filled from {len(self._allowed)} chunks, less those "
                    "that answer its questions", "Index more documents, or lower context.distractors"
                )  # fmt: skip
            chosen[chunk_id] = None
        self._uses.update(chosen.keys() - group.needs.keys())
        return list(chosen)

    def _near(self, group: _Group, fits: Callable[[str], bool], rng: random.Random) -> Iterator[str]:
        """Near misses of the members in turn, of the best few the least used first, else at random, so that draws
        differ. With the random policy only an unanswerable question brings its own: without them it would be told by
        its context."""
        random_policy = set(self._shares) == {"random"}
        members = sorted(group.members, key=lambda asked: bool(asked.oracle_ids))  # unanswerable questions first
        lists = [asked.near_ids for asked in members if not (random_policy and asked.oracle_ids)]
        ranked = dict.fromkeys(c for rank in itertools.zip_longest(*lists) for c in rank if c in self._allowed)
        near = (chunk_id for chunk_id in ranked if fits(chunk_id))
        best = list(itertools.islice(near, 2 * (group.size - len(group.needs))))
        rng.shuffle(best)
        best.sort(key=self._uses.__getitem__)
        yield from (chunk_id for chunk_id in best if fits(chunk_id))  # another source may have taken it since
        yield from near

    def _beside(self, group: _Group, fits: Callable[[str], bool]) -> Iterator[str]:
        """Other chunks of the documents that the members' oracles stand in, whether or not these are there."""
        names = dict.fromkeys(self._document_of(c) for asked in group.members for c in asked.oracle_ids)
        turns = [self._documents[name] for name in names if name in self._documents]
        while turns:
            for one in list(turns):
                chunk_id = one.take(fits)
                if chunk_id is None:
                    turns.remove(one)
                else:
                    yield chunk_id

    def _edited(self, group: _Group, fits: Callable[[str], bool], rng: random.Random) -> Iterator[str]:
        """Edits of the members' oracles, one of each member in turn."""
        lists = [rng.sample(found, len(found)) for asked in group.members if (found := self._edits.get(asked.id, ()))]
        for chunk_id in dict.fromkeys(c for rank in itertools.zip_longest(*lists) for c in rank if c is not None):
            if fits(chunk_id):
                yield chunk_id

    def _hash(self, what: str, question_id: str) -> str:
        key = f"{self._settings.seed}/{self._draw}/{what}/{question_id}"
        return hashlib.sha256(key.encode()).hexdigest()


class _Turns:
    """Names that take turns in a shuffled order, round after round. Who does not fit stays first in line."""

    def __init__(self, names: Sequence[str], rng: random.Random) -> None:
        self.ids = list(names)
        self._rng = rng
        self._line: deque[str] = deque()

    def take(self, fits: Callable[[str], bool]) -> str | None:
        """The first name in line that fits; None when none of all names does."""
        passed: list[str] = []
        refused: set[str] = set()
        taken = None
        while taken is None and len(refused) < len(self.ids):
            if not self._line:
                self._begin_round(passed)
            name = self._line.popleft()
            if name not in refused and fits(name):
                taken = name
            else:
                refused.add(name)
                passed.append(name)
        self._line.extendleft(reversed(passed))
        return taken

    def _begin_round(self, passed: Collection[str]) -> None:
        """Everybody gets one more turn; who has two in store already loses it, so that the line stays short."""
        stored = Counter(passed)
        self._rng.shuffle(self.ids)
        self._line.extend(name for name in self.ids if stored[name] < 2)


def _shares(settings: ContextSettings) -> dict[Policy, float]:
    """How likely each source fills a place, in a fixed order. Raises RecipeError where a mix names none."""
    if settings.policy != "mixed":
        return {settings.policy: 1.0}
    shares: dict[Policy, float] = {name: settings.mix[name] for name in _FALLS_BACK if settings.mix.get(name, 0.0) > 0}
    if not shares or set(settings.mix) - set(_FALLS_BACK) or min(settings.mix.values()) < 0:
        raise RecipeError(
            f"context.mix is {dict(settings.mix)}; expected shares of {', '.join(_FALLS_BACK)}, at least one above 0"
        )
    return shares
