"""Preference pairs: a question over its documents with an answer to be preferred and one to be avoided.

They are made from a RAFT dataset, by rules. The chosen answer is the example's target; the rejected one has its form
(as many quotes, words of its own where the target has some, the same account of the documents that do not help) and
errs in one way. For "What is the first dose?" over three documents of which the second says 12 mg:

    distractor      Document [3] says ##begin_quote##Children start with 5 mg.##end_quote## <ANSWER>: 5 mg
    invented_quote  Document [2] says ##begin_quote##Adults start with 40 mg.##end_quote## <ANSWER>: 40 mg
    refusal         None of the documents holds the answer. <ANSWER>: not in the documents
    invented        (the target refuses) Document [3] says ##begin_quote##Children ...##end_quote## <ANSWER>: 5 mg

A rejected answer never holds the right one, so that no training lowers what is right; for the same reason there is no
kind "right, but without a quote": the reward for quotes (rewards.py) teaches that without punishing the answer.

Pairs from a file: preference_file.py.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from raft.corpus.spans import find_span, normalize
from raft.errors import InputError
from raft.prompts import REFUSAL, is_refusal, parse_answer, render_rationale, render_refusal, render_target
from raft.prompts import without_quotes as own_words
from raft.records import Answer, AnswerType, Chunk, Quote, RaftExample
from raft.training.rewards import normalize_answer
from raft.training.sameness import differs, raw

KINDS = ("distractor", "invented_quote", "refusal", "invented")

_CLOSED: frozenset[AnswerType] = frozenset({"yesno", "label"})  # they follow from a quote without standing in it
_OPPOSITE = {"yes": "no", "no": "yes"}
_FEW = 8  # reasonings drawn to find one that is another question's
_MOST_DRAWN = 32  # answers drawn to find one that is wrong, however many there are
_SENTENCE_WORDS = range(4, 41)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_AMOUNT = re.compile(r"\d+(?:[.,]\d+)*(?: ?(?:%|[^\W\d_]+))?")
_WHOLE = re.compile(r"(?<![\d.,])\d{1,9}(?![.,]?\d)")


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one question over the same documents, in prompt order. ``kind`` is one of ``KINDS``, or "given"
    for a pair that was read from a file; ``draw`` and ``split`` are those of the example."""

    id: str
    question: str
    documents: tuple[Chunk, ...]
    chosen: str
    rejected: str
    kind: str
    draw: int = 0
    split: str = "train"


@dataclass(frozen=True, slots=True)
class _Told:
    """One question's answer as its target tells it: ``quotes`` by chunk, ``reasoning`` in its own words."""

    question_id: str
    answer: str
    answer_type: AnswerType
    reasoning: str
    quotes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Pool:
    """What a dataset says. ``form`` is that of its targets, and ``titled`` says whether those that tell which documents
    are noise tell what these speak of. ``reasonings`` are (question, its own words beside quotes and answer),
    ``reasoned`` is the share of answers that have such words."""

    form: str
    titled: bool
    by_chunk: Mapping[str, Sequence[_Told]]
    by_type: Mapping[AnswerType, Sequence[str]]
    reasonings: Sequence[tuple[str, str]]
    reasoned: float


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a rejected answer to an example has to look like: as its target does, so that only what it says tells it
    from that. ``quotes``: how many; ``reasons``: in words of its own too, ``reasoning`` are the target's; ``verdict``:
    the one it gives where yes or no is asked for; ``known``: other right answers."""

    example: RaftExample
    documents: Sequence[Chunk]
    pool: _Pool
    drawn: random.Random
    quotes: int
    reasons: bool
    reasoning: str
    verdict: str | None
    known: Sequence[str]


# --- from a dataset --------------------------------------------------------------------------------------------------


def make_pairs(
    examples: Sequence[RaftExample],
    chunks: Mapping[str, Chunk],
    shares: Mapping[str, float],
    *,
    known: Mapping[str, Sequence[str]] | None = None,
    per_example: int = 1,
    seed: int = 0,
    split: str = "train",
) -> list[PreferencePair]:
    """The pairs of the examples: up to ``per_example`` of each, of different kinds, drawn by ``shares`` (weight by
    kind) among those that the example allows. An example that allows none has none. ``known`` are other right answers
    by question, such as aliases.

    A pair depends on its example, the set of all examples and the seed, never on their order. Raises InputError when
    ``chunks`` lacks a chunk that an example names.
    """
    contexts = [_context(example, chunks) for example in examples]
    pool = _make_pool(list(zip(examples, contexts, strict=True)))
    pairs = []
    for example, documents in zip(examples, contexts, strict=True):
        drawn = random.Random(f"{seed}:{example.id}")
        kinds = _kinds_in_order(example, shares, drawn)
        wanted = _wanted(example, documents, pool, drawn, (known or {}).get(example.question_id, ()))
        texts = ((kind, next(_rejected(kind, wanted), None)) for kind in kinds)
        for kind, rejected in islice(((kind, text) for kind, text in texts if text is not None), per_example):
            name = f"{example.id}:{kind}"
            answers = example.target, rejected
            pairs.append(PreferencePair(name, example.question, documents, *answers, kind, example.draw, split))
    return pairs


def _context(example: RaftExample, chunks: Mapping[str, Chunk]) -> tuple[Chunk, ...]:
    try:
        return tuple(chunks[name] for name in example.context)
    except KeyError as missing:
        raise InputError(f"example {example.id} names chunk {missing}, which chunks.jsonl lacks") from None


def _kinds_in_order(example: RaftExample, shares: Mapping[str, float], drawn: random.Random) -> list[str]:
    """The kinds that the example allows, each drawn by its share among those not yet drawn (Efraimidis and Spirakis
    2006, "Weighted random sampling with a reservoir", algorithm A)."""
    if parse_answer(example.target).abstained:
        allowed: tuple[str, ...] = ("invented",)
    else:
        allowed = ("distractor", "invented_quote", "refusal") if example.oracle_present else ("distractor",)
    keys = {kind: drawn.random() ** (1 / shares[kind]) for kind in allowed if shares.get(kind, 0) > 0}
    return sorted(keys, key=lambda kind: -keys[kind])


def _make_pool(given: Sequence[tuple[RaftExample, Sequence[Chunk]]]) -> _Pool:
    read = [(example, documents, parse_answer(example.target)) for example, documents in given]
    read.sort(key=lambda each: each[0].id)
    form, titled = _form_of(read)
    by_chunk: dict[str, list[_Told]] = {}
    by_type: dict[AnswerType, dict[str, None]] = {}
    reasonings = []
    answered = [each for each in read if not each[2].abstained]
    for example, documents, answer in answered:
        by_type.setdefault(example.answer_type, {})[example.answer] = None
        quotes: dict[str, tuple[str, ...]] = {}
        for quote in answer.quotes:
            if quote.document is not None and 0 < quote.document <= len(example.context):
                name = example.context[quote.document - 1]
                quotes[name] = (*quotes.get(name, ()), quote.text)
        reasoning = _own_reasoning(example, documents, answer, form)
        reasonings += [(example.question_id, reasoning)] if reasoning else []
        told = _Told(example.question_id, example.answer, example.answer_type, reasoning, quotes)
        for name in quotes:
            if told not in by_chunk.setdefault(name, []):
                by_chunk[name].append(told)
    known = {kind: list(answers) for kind, answers in by_type.items()}
    reasoned = len(reasonings) / len(answered) if answered else 0.0
    return _Pool(form, titled, by_chunk, known, list(dict.fromkeys(reasonings)), reasoned)


def _form_of(read: Sequence[tuple[RaftExample, Sequence[Chunk], Answer]]) -> tuple[str, bool]:
    """The form of a dataset's targets, and whether they say what the documents that do not help speak of."""
    noise = False
    for example, documents, answer in read:
        bare, titled = _rationales(example, documents)
        if titled != bare and example.target.startswith(titled):
            return "noise", True
        noise = noise or (bool(bare) and not answer.abstained and example.target.startswith(bare))
    if noise:
        return "noise", False
    return "quotes" if any(answer.reasoning for _, _, answer in read) else "plain", False


def _rationales(example: RaftExample, documents: Sequence[Chunk]) -> tuple[str, str]:
    """What the example's target begins with in the form "noise": without titles, and with them."""
    titles, holding = [document.title for document in documents], _holding(example)
    return render_rationale(holding, len(documents)), render_rationale(holding, len(documents), titles)


def _holding(example: RaftExample) -> list[int]:
    """The numbers, from 1, of the documents that hold the answer."""
    places = enumerate(example.context, 1)
    return [place for place, name in places if example.oracle_present and name in example.oracle_ids]


def _own_reasoning(example: RaftExample, documents: Sequence[Chunk], answer: Answer, form: str) -> str:
    """The words of a target beside its quotes, its answer and what it says of noise."""
    thought = answer.reasoning
    if form == "noise":
        bare, titled = _rationales(example, documents)
        thought = thought.removeprefix(titled).removeprefix(bare)
    return own_words(thought)


def _wanted(
    example: RaftExample, documents: Sequence[Chunk], pool: _Pool, drawn: random.Random, known: Sequence[str]
) -> _Wanted:
    target = parse_answer(example.target)
    asks_yes_or_no = example.answer_type == "yesno"
    if target.abstained:
        verdict = drawn.choice(("yes", "no")) if asks_yes_or_no else None
        return _Wanted(example, documents, pool, drawn, 1, drawn.random() < pool.reasoned, "", verdict, known)
    verdict = _OPPOSITE.get(normalize_answer(example.answer).partition(" ")[0]) if asks_yes_or_no else None
    reasoning = _own_reasoning(example, documents, target, pool.form)
    quotes = len(target.quotes) if example.oracle_present else 1
    return _Wanted(example, documents, pool, drawn, quotes, bool(reasoning), reasoning, verdict, known)


def _rejected(kind: str, wanted: _Wanted) -> Iterator[str]:
    """Rejected answers of one kind, likeliest first, that hold nothing right."""
    if kind == "refusal":
        found: Iterable[str] = [_refusal(wanted)]
    elif kind == "invented_quote":
        found = _with_invented_quote(wanted)
    else:
        found = _from_distractor(wanted)
    return (text for text in found if is_wrong(text, wanted.example, wanted.known))


def is_wrong(text: str, example: RaftExample, known: Sequence[str] = ()) -> bool:
    """Whether nothing in the text is right for the example: it refuses where the target answers or the other way
    round, and neither holds the answer nor gives one that is like it (a part of it, one of its numbers, or half of its
    words). ``known`` are other right answers: aliases, and the answer where the target refuses."""
    said, target = parse_answer(text), parse_answer(example.target)
    if text == example.target or not said.well_formed:
        return False
    if said.abstained:
        return not target.abstained
    if target.abstained and example.answer_type == "yesno":
        return True  # whichever of the two it is, the documents do not say so
    right = [answer for answer in (example.answer, *known) if not is_refusal(answer)]
    return all(differs(text, said.final, answer, example.answer_type) for answer in right)


def _render(wanted: _Wanted, answer: str, reasoning: str, quotes: Sequence[Quote], holding: Sequence[int]) -> str:
    """A target in the form of the dataset's that takes the documents ``holding`` for those with the answer."""
    if wanted.pool.form == "plain":
        return render_target(answer)
    told = render_target(answer, reasoning, quotes)
    return told if wanted.pool.form == "quotes" else f"{_rationale(wanted, holding)} {told}".strip()


def _rationale(wanted: _Wanted, holding: Sequence[int]) -> str:
    titles = [document.title for document in wanted.documents] if wanted.pool.titled else None
    return render_rationale(holding, len(wanted.documents), titles)


def _refusal(wanted: _Wanted) -> str:
    if wanted.pool.form == "quotes":
        return render_refusal()
    return render_target(REFUSAL, _rationale(wanted, ()) if wanted.pool.form == "noise" else "")


def _from_distractor(wanted: _Wanted) -> Iterator[str]:
    """Answers taken from a document that does not hold the answer, quoted verbatim: what another question asks of it,
    or else what one of its sentences says."""
    example, drawn = wanted.example, wanted.drawn
    places = [place for place, name in enumerate(example.context, 1) if name not in example.oracle_ids]
    drawn.shuffle(places)
    for place in places:
        name = example.context[place - 1]
        told = [each for each in wanted.pool.by_chunk.get(name, ()) if _could_answer(each, wanted)]
        for each in drawn.sample(told, len(told)):
            yield _said_of(wanted, place, each.answer, each.quotes[name], each.reasoning)
    for place in places:
        sentences = _sentences(wanted.documents[place - 1])
        for sentence in drawn.sample(sentences, len(sentences)):
            for answer in _answers_of(sentence, wanted):
                yield _said_of(wanted, place, answer, (sentence,))


def _could_answer(told: _Told, wanted: _Wanted) -> bool:
    example = wanted.example
    if wanted.verdict is not None and normalize_answer(told.answer).partition(" ")[0] != wanted.verdict:
        return False
    return example.answer_type in ("unanswerable", told.answer_type) and told.question_id != example.question_id


def _sentences(document: Chunk) -> list[str]:
    found = [" ".join(part.split()) for part in _SENTENCE_END.split(document.text)]
    return [sentence for sentence in found if len(sentence.split()) in _SENTENCE_WORDS]


def _said_of(wanted: _Wanted, place: int, answer: str, quotes: Sequence[str], reasoning: str = "") -> str:
    """The answer taken from document ``place``, by these quotes and, where more are wanted, other sentences of it."""
    more = [sentence for sentence in _sentences(wanted.documents[place - 1]) if sentence not in quotes]
    texts = [*quotes, *wanted.drawn.sample(more, len(more))][: wanted.quotes]
    if not wanted.reasons:
        reasoning = ""
    elif not reasoning:
        reasoning = _reasoning_for(wanted, place, answer)
    return _render(wanted, answer, reasoning, [Quote(text, place) for text in texts], [place])


def _reasoning_for(wanted: _Wanted, place: int, answer: str) -> str:
    """Words to stand before an answer that nobody has explained: the target's with this answer in the place of its
    own, or else another question's, best of the same document."""
    example, drawn = wanted.example, wanted.drawn
    if wanted.reasoning and (swapped := _with_answer(wanted.reasoning, example.answer, answer)) != wanted.reasoning:
        return swapped
    told = wanted.pool.by_chunk.get(example.context[place - 1], ())
    known = [(each.question_id, each.reasoning) for each in told if each.reasoning]
    others = [
        *drawn.sample(known, len(known)),
        *drawn.sample(wanted.pool.reasonings, min(_FEW, len(wanted.pool.reasonings))),
    ]
    return next((text for question, text in others if question != example.question_id), wanted.reasoning)


def _answers_of(sentence: str, wanted: _Wanted) -> Iterator[str]:
    """What somebody might take a sentence to answer, by the type of the answer that was asked for."""
    kind = wanted.example.answer_type
    if wanted.verdict is not None:
        yield wanted.verdict
    elif kind in _CLOSED:
        yield from _pooled(wanted)
    elif kind == "number":
        yield from _AMOUNT.findall(sentence)
    else:
        yield sentence.rstrip(" .!?;:")


def _with_invented_quote(wanted: _Wanted) -> Iterator[str]:
    """The target with another answer in the place of its own, in its quotes too: what they say stands nowhere."""
    own = wanted.example.answer
    target = parse_answer(wanted.example.target)
    texts = [normalize(document.text) for document in wanted.documents]
    for answer in _other_answers(wanted):
        quotes = [Quote(_with_answer(quote.text, own, answer), quote.document) for quote in target.quotes]
        if any(all(normalize(quote.text) not in text for text in texts) for quote in quotes):
            reasoning = _with_answer(wanted.reasoning, own, answer)
            yield _render(wanted, answer, reasoning, quotes, _holding(wanted.example))


def _pooled(wanted: _Wanted) -> Iterator[str]:
    """Some answers to questions of the same type, drawn, that are none of the right ones."""
    pooled = wanted.pool.by_type.get(wanted.example.answer_type, ())
    right = {raw(answer) for answer in (wanted.example.answer, *wanted.known)}
    for place in wanted.drawn.sample(range(len(pooled)), min(_MOST_DRAWN, len(pooled))):
        answer = pooled[place]
        if raw(answer) not in right:
            yield answer


def _other_answers(wanted: _Wanted) -> Iterator[str]:
    own, drawn = wanted.example.answer, wanted.drawn
    yield from _pooled(wanted)
    if number := _WHOLE.search(own):
        other = str(int(number.group()) * drawn.choice((2, 3, 5)) + drawn.choice((1, 2)))
        yield own[: number.start()] + other + own[number.end() :]


def _with_answer(text: str, answer: str, other: str) -> str:
    span = find_span(text, answer)
    return text if span is None else text[: span[0]] + other + text[span[1] :]
