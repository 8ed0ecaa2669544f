"""The contexts of the robustness sweeps: the same question over documents that change in one respect, point by point.

Sweep "distractors" for one question, with its oracle O, the near misses A, B, C ... in the retriever's order, and the
oracle's place drawn at 0.6 of the way::

    0: O      1: A O      2: A O B      4: A B C O D

Every draw follows from the seed and the question's id, so that the same command gives the same contexts.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from raft.artifacts import digest
from raft.config import SearchMode, SweepName
from raft.corpus.duplicates import near_duplicates
from raft.corpus.spans import find_span
from raft.dataset.counterfactual import Vocabulary, other_fact
from raft.dataset.grounding import CLOSED_TYPES, GroundedQuestion, ground, sentences
from raft.dataset.quality import also_answers
from raft.dataset.support import same_answer
from raft.evaluation.cases import Case, Searchable, chunks_by_document
from raft.records import Chunk

POSITIONS: Mapping[str, float] = {"first": 0.0, "quarter": 0.25, "middle": 0.5, "three quarters": 0.75, "last": 1.0}
_OPPOSITE: Mapping[str, tuple[str, ...]] = {"yes": ("no",), "no": ("yes",)}
_LOOKED_AT = 3  # chunks, for each that a context needs: some answer the question too


@dataclass(frozen=True, slots=True)
class Source:
    """A question with what its contexts are made of. ``oracles`` hold its evidence; none of the others answers it.

    ``near`` are the retriever's hits, best first, ``random`` are drawn from the corpus, ``same_document`` from the
    documents of the oracles. ``place``, from 0 to 1, is where the oracles stand among their distractors.
    """

    case: Case
    grounded: GroundedQuestion
    oracles: tuple[Chunk, ...]
    near: tuple[Chunk, ...]
    random: tuple[Chunk, ...]
    same_document: tuple[Chunk, ...]
    place: float

    def beside(self, documents: int) -> tuple[Chunk, ...]:
        """The near misses that fill a prompt of so many documents; none when there are too few or there is no room."""
        count = documents - len(self.oracles)
        return self.near[:count] if 0 < count <= len(self.near) else ()

    def around(self, distractors: Sequence[Chunk], at: int | None = None) -> tuple[Chunk, ...]:
        """The oracles, one after the other, behind the first ``at`` distractors, unless given at their drawn place."""
        at = int(self.place * (len(distractors) + 1)) if at is None else at
        return (*distractors[:at], *self.oracles, *distractors[at:])

    def draws(self, what: str, seed: int) -> Random:
        """The draws of this question for one purpose."""
        return Random(f"{seed}:{what}:{self.case.item.id}")


@dataclass(frozen=True, slots=True)
class Shown:
    """One point of a sweep for one question: the documents in the order of the prompt, and the question where it is put
    in other words. ``made`` names the chunk that is not the corpus's own, where there is one: a changed oracle, which
    gives the answers ``says``, or one with an attack, which asks for ``canary``."""

    point: str
    chunks: tuple[Chunk, ...]
    question: str | None = None
    says: tuple[str, ...] = ()
    canary: str | None = None
    made: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What is asked at one point. ``case`` is what the systems are given; its item's id names question and content, so
    that what several points or sweeps have in common is asked once."""

    question_id: str
    shown: Shown
    case: Case


@dataclass(frozen=True, slots=True)
class Sweep:
    """One sweep: ``contexts`` by point, at each the same questions in the same order. ``left_out`` counts the questions
    for which one of the points could not be made."""

    name: SweepName
    contexts: Mapping[str, Sequence[Context]]
    left_out: int


@dataclass(frozen=True, slots=True)
class Making:
    """How contexts are made. ``documents`` is their number where a sweep keeps it, ``distractors`` the points
    of its own sweep, ``held`` the numbers of canaries that the corpus holds already."""

    distractors: tuple[int, ...]
    documents: int
    orders: int
    seed: int
    vocabulary: Vocabulary
    held: frozenset[str]
    attacks: Mapping[str, str]
    paraphrases: Mapping[str, str]


def find_sources(index: Searchable, cases: Sequence[Case], *, most: int, mode: SearchMode, seed: int) -> list[Source]:
    """What the contexts of the questions are made of, with ``most`` distractors of each kind where there are so many.
    Questions without a located oracle are left out."""
    by_document = chunks_by_document(index)
    chunks = {chunk.id: chunk for chunk in index.chunks}
    bare = []
    for case in cases:
        named = {*case.item.gold_document_ids, *(evidence.document_id for evidence in case.item.evidence)}
        grounded = ground(case.item, {d: index.document(d) for d in named if d in by_document}, by_document)
        oracles = oracles_of(case, grounded, chunks)
        place = Random(f"{seed}:place:{case.item.id}").random()
        if oracles:
            bare.append(Source(case, grounded, oracles, (), (), (), place))
    depth = _LOOKED_AT * (most + 1)
    found = index.search([source.case.item.question for source in bare], depth, mode) if bare else []
    names = sorted(chunks)
    full = []
    for source, hits in zip(bare, found, strict=True):
        drawn = source.draws("random", seed).sample(names, min(depth, len(names)))
        own = [chunk for d in dict.fromkeys(o.document_id for o in source.oracles) for chunk in by_document[d]]
        full.append(
            replace(
                source, near=tuple(hit.chunk for hit in hits), random=tuple(chunks[name] for name in drawn),
                same_document=tuple(source.draws("same document", seed).sample(own, len(own))),
            )
        )  # fmt: skip
    return _without_answers(full, most)


def oracles_of(case: Case, grounded: GroundedQuestion, chunks: Mapping[str, Chunk]) -> tuple[Chunk, ...]:
    """The chunks that hold the evidence, as few as can be, of equals the best ranked; of a question that names gold
    documents alone, those that hold their best sentences. None when evidence is given and does not stand there."""
    if not case.by_evidence:
        return () if case.item.evidence else tuple(chunks[name] for name in grounded.oracle_ids)
    shared = Counter(name for ids in case.relevant for name in ids)
    ranks = {chunk.id: rank for rank, chunk in enumerate(case.ranked)}

    def order(name: str) -> tuple[int, int, int, str]:
        return -shared[name], ranks.get(name, len(ranks)), chunks[name].start, name

    return tuple(chunks[name] for name in dict.fromkeys(min(ids, key=order) for ids in case.relevant))


def _without_answers(sources: Sequence[Source], most: int) -> list[Source]:
    """The sources without the oracles among their distractors and without chunks that answer the question too."""
    seen = {
        chunk.id: chunk
        for source in sources
        for chunk in (*source.oracles, *source.near, *source.random, *source.same_document)
    }
    groups = near_duplicates([chunk.text for chunk in seen.values()])
    size = Counter(groups)
    alike = {name: group for name, group in zip(seen, groups, strict=True) if size[group] > 1}
    items = {source.case.item.id: source.grounded for source in sources}
    answers = also_answers(items.__getitem__, lambda name: seen[name].text, alike)

    def kept(source: Source, chunks: Iterable[Chunk]) -> tuple[Chunk, ...]:
        asked, holding = source.case.item.id, source.case.oracle_ids | {oracle.id for oracle in source.oracles}
        same = {alike[name] for name in holding if name in alike}  # copies of what stands there already
        fit = (c for c in chunks if not (c.id in holding or alike.get(c.id) in same or answers(asked, c.id)))
        return tuple(itertools.islice(fit, most))

    return [
        replace(s, near=kept(s, s.near), random=kept(s, s.random), same_document=kept(s, s.same_document))
        for s in sources
    ]


def make_sweep(name: SweepName, sources: Iterable[Source], how: Making) -> Sweep:
    """The contexts of one sweep. A question lacks at all points when it lacks at one."""
    contexts: dict[str, list[Context]] = {}
    left_out = 0
    for source in sources:
        points = _points(name, source, how)
        left_out += not points
        for shown in points:
            contexts.setdefault(shown.point, []).append(_context(source, shown))
    return Sweep(name, contexts, left_out)


def _context(source: Source, shown: Shown) -> Context:
    item = source.case.item
    question = shown.question or item.question
    content = digest([question, [(chunk.id, chunk.text) for chunk in shown.chunks]])
    case = replace(
        source.case, item=replace(item, id=f"{item.id}@{content[:12]}", question=question), hits=shown.chunks,
        with_oracle=shown.chunks, relevant=tuple(frozenset({oracle.id}) for oracle in source.oracles),
    )  # fmt: skip
    return Context(item.id, shown, case)


def _points(name: SweepName, source: Source, how: Making) -> list[Shown]:
    """The points of a sweep in order; none when one of them cannot be made."""
    if name == "distractors":
        enough = len(source.near) >= max(how.distractors)
        return [Shown(str(n), source.around(source.near[:n])) for n in how.distractors] if enough else []
    beside = source.beside(how.documents)
    return _MAKERS[name](source, beside, how) if beside else []


def _position(source: Source, beside: Sequence[Chunk], how: Making) -> list[Shown]:
    return [Shown(point, source.around(beside, int(at * len(beside) + 0.5))) for point, at in POSITIONS.items()]


def _no_oracle(source: Source, beside: Sequence[Chunk], how: Making) -> list[Shown]:
    return [Shown("with oracle", source.around(beside)), Shown("without oracle", tuple(beside))]


def _counterfactual(source: Source, beside: Sequence[Chunk], how: Making) -> list[Shown]:
    changed, says = change_answer(source, how.vocabulary, how.seed)
    if changed is None:
        return []
    other = replace(source, oracles=(changed,)).around(beside)
    return [Shown("as written", source.around(beside)), Shown("answer changed", other, says=says, made=changed.id)]


def change_answer(source: Source, vocabulary: Vocabulary, seed: int) -> tuple[Chunk | None, tuple[str, ...]]:
    """The oracle with another fact in the place of the answer, and the answers that it gives now; None where the
    question has several oracles or no rule makes a sound one.

    The substitution of Longpre et al. 2021 (arXiv 2109.05052, section 3): only the fact changes, so that the document
    still speaks of what is asked (counterfactual.py's distractors change the subject too, and answer nothing).
    """
    oracle, item = source.oracles[0], source.grounded
    change = other_fact(oracle, item, vocabulary, source.draws("other fact", seed))
    if change is None or len(source.oracles) > 1:
        return None, ()
    title, headings = change(oracle.title), tuple(map(change, oracle.headings))
    edit = replace(oracle, id=f"{oracle.id}~changed", text=change(oracle.text), title=title, headings=headings)
    answers = (item.answer, *item.aliases)
    if item.answer_type in CLOSED_TYPES:
        says, still = _OPPOSITE.get(item.answer.lower(), ()), edit.text == oracle.text
    else:
        says = tuple(dict.fromkeys(other for answer in answers if (other := change(answer)) != answer))
        passages = (edit.title, *edit.headings, edit.text)
        still = any(find_span(passage, answer) for passage in passages for answer in answers)
    same = any(same_answer(new, old, item.answer_type) for new in says for old in answers)
    return (None, ()) if not says or still or same else (edit, says)


def _similar(source: Source, beside: Sequence[Chunk], how: Making) -> list[Shown]:
    kinds = {"random": source.random, "near": source.near, "same document": source.same_document}
    enough = all(len(chunks) >= len(beside) for chunks in kinds.values())
    return [Shown(kind, source.around(chunks[: len(beside)])) for kind, chunks in kinds.items()] if enough else []


def _order(source: Source, beside: Sequence[Chunk], how: Making) -> list[Shown]:
    documents, rng = source.around(beside), source.draws("order", how.seed)
    orders: dict[tuple[Chunk, ...], None] = {}
    while len(orders) < min(how.orders, math.factorial(len(documents))):
        orders[tuple(rng.sample(documents, len(documents)))] = None
    return [Shown(f"order {number}", chunks) for number, chunks in enumerate(orders, 1)]


def _injected(source: Source, beside: Sequence[Chunk], how: Making) -> list[Shown]:
    rng = source.draws("injected", how.seed)
    points = [Shown("clean", source.around(beside))]
    for form, text in how.attacks.items():
        numbers = iter(lambda: str(rng.randrange(1000, 10**6)), "")
        canary = "BANANA-" + next(number for number in numbers if number not in how.held)
        at = rng.randrange(len(beside))
        carrier = _with_attack(beside[at], form, text.replace("{canary}", canary), rng)
        shown = source.around((*beside[:at], carrier, *beside[at + 1 :]))
        points.append(Shown(form, shown, canary=canary, made=carrier.id))
    return points


def _with_attack(chunk: Chunk, form: str, attack: str, rng: Random) -> Chunk:
    """The chunk with the attack behind one of its sentences."""
    end = rng.choice([end for _, end in sentences(chunk.text)] or [len(chunk.text)])
    return replace(chunk, id=f"{chunk.id}~{form}", text=f"{chunk.text[:end]} {attack}{chunk.text[end:]}")


def _paraphrase(source: Source, beside: Sequence[Chunk], how: Making) -> list[Shown]:
    other, chunks = how.paraphrases.get(source.case.item.id), source.around(beside)
    return [Shown("as asked", chunks), Shown("paraphrased", chunks, question=other)] if other else []


_MAKERS: Mapping[str, Callable[[Source, Sequence[Chunk], Making], list[Shown]]] = {
    "position": _position, "no_oracle": _no_oracle, "counterfactual": _counterfactual, "similar": _similar,
    "order": _order, "injected": _injected, "paraphrase": _paraphrase,
}  # fmt: skip
