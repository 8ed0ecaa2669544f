"""Preference pairs: a question over its documents with an answer to be preferred and one to be avoided.

From a RAFT dataset, by rules. The chosen answer is the example's target; the rejected one has its form and errs in one
way. For "What is the first dose?" over three documents of which the second says 12 mg:

    distractor      Document [3] says ##begin_quote##Children start with 5 mg.##end_quote## <ANSWER>: 5 mg
    invented_quote  Document [2] says ##begin_quote##Adults start with 40 mg.##end_quote## <ANSWER>: 40 mg
    refusal         None of the documents holds the answer. <ANSWER>: not in the documents
    invented        (the target refuses) Document [3] says ##begin_quote##Children ...##end_quote## <ANSWER>: 5 mg

A rejected answer never holds the right one, so that no training lowers what is right; for the same reason there is no
kind "right, but without a quote": the reward for quotes (rewards.py) teaches that without punishing the answer.

From a file of JSON lines, such as people's own choices::

    {"question": "What is the first dose?", "documents": [{"title": "Formulary", "text": "Adults start with 12 mg."}],
     "chosen": "Document [1] says ...\\n<ANSWER>: 12 mg", "rejected": "...\\n<ANSWER>: 5 mg"}

where a document may also be the id of a chunk of the dataset, and ``"split": "dev"`` keeps a pair for the dev loss.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from raft.corpus.spans import find_span, normalize
from raft.errors import InputError
from raft.prompts import REFUSAL, parse_answer, render_rationale, render_refusal, render_target
from raft.prompts import without_quotes as own_words
from raft.records import Answer, AnswerType, Chunk, Quote, RaftExample
from raft.rows import read_rows
from raft.training.rewards import normalize_answer, token_f1

KINDS = ("distractor", "invented_quote", "refusal", "invented")

_CLOSED: frozenset[AnswerType] = frozenset({"yesno", "label"})  # they follow from a quote without standing in it
_TOO_CLOSE = 0.5  # word F1 from which a final answer may be right in part
_SENTENCE_WORDS = range(4, 41)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_AMOUNT = re.compile(r"\d+(?:[.,]\d+)*(?: ?(?:%|[^\W\d_]+))?")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WHOLE = re.compile(r"(?<![\d.,])\d{1,9}(?![.,]?\d)")
_RATIONALE = re.compile(r"Documents? \[[^#]*?\b(?:holds?|does|do)\b[^#]*?\. Document \[\d+\] says")


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
    quotes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Pool:
    """What the other questions of a dataset say; ``form`` is that of the dataset's targets."""

    form: str
    by_chunk: Mapping[str, Sequence[_Told]]
    by_type: Mapping[AnswerType, Sequence[str]]


# --- from a dataset --------------------------------------------------------------------------------------------------


def make_pairs(
    examples: Sequence[RaftExample],
    chunks: Mapping[str, Chunk],
    shares: Mapping[str, float],
    *,
    per_example: int = 1,
    seed: int = 0,
    split: str = "train",
) -> list[PreferencePair]:
    """The pairs of the examples: up to ``per_example`` of each, of different kinds, drawn by ``shares`` (weight by
    kind) among those that the example allows. An example that allows none has none.

    A pair depends on its example, the set of all examples and the seed, never on their order. Raises InputError when
    ``chunks`` lacks a chunk that an example names.
    """
    pool = _make_pool(examples)
    pairs = []
    for example in examples:
        try:
            documents = tuple(chunks[name] for name in example.context)
        except KeyError as missing:
            raise InputError(f"example {example.id} names chunk {missing}, which chunks.jsonl lacks") from None
        drawn = random.Random(f"{seed}:{example.id}")
        kinds = _kinds_in_order(example, shares, drawn)
        texts = ((kind, next(_rejected(kind, example, documents, pool, drawn), None)) for kind in kinds)
        for kind, rejected in islice(((kind, text) for kind, text in texts if text is not None), per_example):
            name = f"{example.id}:{kind}"
            answers = example.target, rejected
            pairs.append(PreferencePair(name, example.question, documents, *answers, kind, example.draw, split))
    return pairs


def _kinds_in_order(example: RaftExample, shares: Mapping[str, float], drawn: random.Random) -> list[str]:
    """The kinds that the example allows, each drawn by its share among those not yet drawn (Efraimidis and Spirakis
    2006, "Weighted random sampling with a reservoir", algorithm A)."""
    if parse_answer(example.target).abstained:
        allowed: tuple[str, ...] = ("invented",)
    else:
        allowed = ("distractor", "invented_quote", "refusal") if example.oracle_present else ("distractor",)
    keys = {kind: drawn.random() ** (1 / shares[kind]) for kind in allowed if shares.get(kind, 0) > 0}
    return sorted(keys, key=lambda kind: -keys[kind])


def _make_pool(examples: Sequence[RaftExample]) -> _Pool:
    answered = [(example, parse_answer(example.target)) for example in sorted(examples, key=lambda e: e.id)]
    answered = [(example, answer) for example, answer in answered if not answer.abstained]
    if any(_RATIONALE.match(example.target) for example, _ in answered):
        form = "noise"
    else:
        form = "quotes" if any(answer.reasoning for _, answer in answered) else "plain"
    by_chunk: dict[str, list[_Told]] = {}
    by_type: dict[AnswerType, dict[str, None]] = {}
    for example, answer in answered:
        by_type.setdefault(example.answer_type, {})[example.answer] = None
        places = [(q.document, q.text) for q in answer.quotes if q.document is not None]
        quotes = {example.context[n - 1]: text for n, text in places if 0 < n <= len(example.context)}
        reasoning = own_words(answer.reasoning) if form == "quotes" else ""
        told = _Told(example.question_id, example.answer, example.answer_type, reasoning, quotes)
        for name in quotes:
            if told not in by_chunk.setdefault(name, []):
                by_chunk[name].append(told)
    return _Pool(form, by_chunk, {kind: list(answers) for kind, answers in by_type.items()})


def _rejected(
    kind: str, example: RaftExample, documents: Sequence[Chunk], pool: _Pool, drawn: random.Random
) -> Iterator[str]:
    """Rejected answers of one kind, likeliest first, that hold nothing right."""
    if kind == "refusal":
        found: Iterable[str] = [_refusal(len(documents), pool.form)]
    elif kind == "invented_quote":
        found = _with_invented_quote(example, documents, pool, drawn)
    else:
        found = _from_distractor(example, documents, pool, drawn)
    return (text for text in found if is_wrong(text, example))


def is_wrong(text: str, example: RaftExample) -> bool:
    """Whether nothing in the text is right for the example: it refuses where the target answers or the other way
    round, and neither holds the answer nor gives one that is like it (a part of it, one of its numbers, or half of its
    words)."""
    said, target = parse_answer(text), parse_answer(example.target)
    if text == example.target or not said.well_formed:
        return False
    if said.abstained:
        return not target.abstained
    final, right = normalize_answer(said.final), normalize_answer(example.answer)
    if not right:
        return True
    if example.answer_type in _CLOSED:
        return final.split()[:1] != right.split()[:1] if example.answer_type == "yesno" else final != right
    if _holds(normalize_answer(text), right) or _holds(right, final):
        return False
    numbers, known = set(_NUMBER.findall(said.final)), set(_NUMBER.findall(example.answer))
    if numbers and known:
        return numbers.isdisjoint(known)
    return token_f1(said.final, example.answer) < _TOO_CLOSE


def _holds(text: str, words: str) -> bool:
    return f" {words} " in f" {text} "


def _render(form: str, answer: str, reasoning: str, quotes: Sequence[Quote], count: int) -> str:
    """A target in the form of the dataset's, over ``count`` documents."""
    if form == "plain":
        return render_target(answer)
    if form == "quotes":
        return render_target(answer, reasoning, quotes)
    rationale = render_rationale(sorted({quote.document for quote in quotes if quote.document}), count)
    return f"{rationale} {render_target(answer, reasoning, quotes)}"


def _refusal(count: int, form: str) -> str:
    if form == "quotes":
        return render_refusal()
    return render_target(REFUSAL, render_rationale((), count) if form == "noise" else "")


def _from_distractor(
    example: RaftExample, documents: Sequence[Chunk], pool: _Pool, drawn: random.Random
) -> Iterator[str]:
    """Answers taken from a document that does not hold the answer, quoted verbatim: what another question asks of it,
    or else what one of its sentences says."""
    places = [place for place, name in enumerate(example.context, 1) if name not in example.oracle_ids]
    drawn.shuffle(places)
    for place in places:
        told = [each for each in pool.by_chunk.get(example.context[place - 1], ()) if _could_answer(each, example)]
        for each in drawn.sample(told, len(told)):
            quote = Quote(each.quotes[example.context[place - 1]], place)
            yield _render(pool.form, each.answer, each.reasoning, [quote], len(documents))
    for place in places:
        found = [" ".join(part.split()) for part in _SENTENCE_END.split(documents[place - 1].text)]
        sentences = [sentence for sentence in found if len(sentence.split()) in _SENTENCE_WORDS]
        for sentence in drawn.sample(sentences, len(sentences)):
            for answer in _answers_of(sentence, example, pool, drawn):
                yield _render(pool.form, answer, "", [Quote(sentence, place)], len(documents))


def _could_answer(told: _Told, example: RaftExample) -> bool:
    same_type = example.answer_type in ("unanswerable", told.answer_type)
    return same_type and told.question_id != example.question_id


def _answers_of(sentence: str, example: RaftExample, pool: _Pool, drawn: random.Random) -> Iterator[str]:
    """What somebody might take a sentence to answer, by the type of the answer that was asked for."""
    if example.answer_type == "yesno":
        yield "no" if normalize_answer(example.answer).startswith("yes") else "yes"
    elif example.answer_type == "label":
        labels = pool.by_type.get("label", ())
        yield from drawn.sample(labels, len(labels))
    elif example.answer_type == "number":
        yield from _AMOUNT.findall(sentence)
    else:
        yield sentence.rstrip(" .!?;:")


def _with_invented_quote(
    example: RaftExample, documents: Sequence[Chunk], pool: _Pool, drawn: random.Random
) -> Iterator[str]:
    """The target with another answer in the place of its own, in its quotes too: what they say stands nowhere."""
    target = parse_answer(example.target)
    texts = [normalize(document.text) for document in documents]
    for answer in _other_answers(example, pool, drawn):
        quotes = [Quote(_with_answer(quote.text, example.answer, answer), quote.document) for quote in target.quotes]
        if any(all(normalize(quote.text) not in text for text in texts) for quote in quotes):
            reasoning = _reasoning_with(target, example.answer, answer) if pool.form == "quotes" else ""
            yield _render(pool.form, answer, reasoning, quotes, len(documents))


def _other_answers(example: RaftExample, pool: _Pool, drawn: random.Random) -> Iterator[str]:
    known = [answer for answer in pool.by_type.get(example.answer_type, ()) if answer != example.answer]
    yield from drawn.sample(known, len(known))
    if number := _WHOLE.search(example.answer):
        other = str(int(number.group()) * drawn.choice((2, 3, 5)) + drawn.choice((1, 2)))
        yield example.answer[: number.start()] + other + example.answer[number.end() :]


def _with_answer(text: str, answer: str, other: str) -> str:
    span = find_span(text, answer)
    return text if span is None else text[: span[0]] + other + text[span[1] :]


def _reasoning_with(target: Answer, answer: str, other: str) -> str:
    return _with_answer(own_words(target.reasoning), answer, other)


# --- from a file -----------------------------------------------------------------------------------------------------


def read_pairs(path: Path, chunks: Mapping[str, Chunk]) -> list[PreferencePair]:
    """The pairs of a JSON lines file; ``chunks`` are those that its rows may name by id.

    Raises InputError naming the row that lacks a field, names an unknown chunk or prefers an answer to itself.
    """
    pairs = [_pair_of(row, f"{path} row {number}", number, chunks) for number, row in enumerate(read_rows(path), 1)]
    if not any(pair.split == "train" for pair in pairs):
        raise InputError(f"{path} holds no pair to train on ({len(pairs)} rows)", 'Rows of "split": "dev" do not count')
    return pairs


def _pair_of(row: Mapping[str, Any], where: str, number: int, chunks: Mapping[str, Chunk]) -> PreferencePair:
    for name in ("question", "chosen", "rejected"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise InputError(f"{where} has no {name!r}", "A pair has question, documents, chosen and rejected")
    if row["chosen"].strip() == row["rejected"].strip():
        raise InputError(f"{where}: chosen and rejected are the same", "Leave the row out")
    if not isinstance(row.get("documents"), list):
        raise InputError(f"{where} has no list 'documents'", "Give titles and texts, or ids of the dataset's chunks")
    split = row.get("split", "train")
    if split not in ("train", "dev"):
        raise InputError(f"{where}: split is {split!r}, expected train or dev")
    documents = tuple(_document(given, where, place, chunks) for place, given in enumerate(row["documents"], 1))
    name = str(row.get("id", f"pair-{number}"))
    return PreferencePair(name, row["question"], documents, row["chosen"], row["rejected"], "given", 0, split)


def _document(given: Any, where: str, place: int, chunks: Mapping[str, Chunk]) -> Chunk:
    if isinstance(given, str):
        if given not in chunks:
            raise InputError(f"{where}: document {place} is {given!r}, which is no chunk of the dataset")
        return chunks[given]
    text, title = (given.get("text"), given.get("title", "")) if isinstance(given, dict) else (None, "")
    if not isinstance(text, str) or not isinstance(title, str):
        raise InputError(f"{where}: document {place} is neither a chunk's id nor {{title, text}}")
    name = title or f"document {place}"
    return Chunk(f"{name}#0", name, text, 0, len(text), title)
