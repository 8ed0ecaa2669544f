"""Rewards that can be checked: what ``objective = "grpo"`` and ``"rloo"`` pay a reply for, one function each.

    reply = parse_answer("Document [2] says ##begin_quote##Adults start with 12 mg.##end_quote##\\n<ANSWER>: 12 mg")
    answer_reward(reply, expected)      1.0

A reward lies between 0 and 1, or is None where it does not apply (no quote can be asked for where the documents lack
the answer). All replies to one prompt are judged by the same rewards, so that what does not apply tells none of them
from another.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raft.corpus.spans import normalize
from raft.prompts import ANSWER_MARK, QUOTE_BEGIN, QUOTE_END, parse_answer
from raft.records import Answer, AnswerType, Chunk, RaftExample

_EXACT: frozenset[AnswerType] = frozenset({"number", "label"})
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_LEAST_QUOTE_WORDS = 3  # a quote of "the" stands verbatim everywhere
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a right reply to one prompt says. ``documents`` are the texts of the prompt's documents in order,
    ``oracles`` the numbers (from 1) of those that hold the answer; ``refuses``: they do not hold it, and the reply has
    to say so; ``quotes``: it has to quote."""

    answers: tuple[str, ...]
    answer_type: AnswerType
    documents: tuple[str, ...]
    oracles: frozenset[int]
    refuses: bool
    quotes: bool


def expected_of(example: RaftExample, chunks: Mapping[str, Chunk], aliases: Sequence[str] = ()) -> Expected:
    """What the example's target teaches, as something replies can be held against."""
    target = parse_answer(example.target)
    oracles = {place for place, name in enumerate(example.context, 1) if name in example.oracle_ids}
    return Expected(
        answers=(example.answer, *aliases),
        answer_type=example.answer_type,
        documents=tuple(chunks[name].text for name in example.context),
        oracles=frozenset(oracles) if example.oracle_present else frozenset(),
        refuses=target.abstained,
        quotes=bool(target.quotes),
    )


def format_reward(reply: Answer, expected: Expected) -> float | None:
    """1.0 for a reply of the one form that is read without guessing: whole quotes, then the answer mark once, and one
    line behind it."""
    text = reply.text.strip()
    lines = text.rpartition(ANSWER_MARK)[2].strip().splitlines()
    whole = text.count(QUOTE_BEGIN) == text.count(QUOTE_END) == len(reply.quotes)
    return float(reply.well_formed and text.count(ANSWER_MARK) == 1 and len(lines) == 1 and whole)


def answer_reward(reply: Answer, expected: Expected) -> float | None:
    """How right the final answer is: for yes or no its first word, for numbers and labels the whole of it, for others
    the F1 of its words (``token_f1``). 0.0 for a refusal; None where a refusal is right."""
    if expected.refuses:
        return None
    if reply.abstained:
        return 0.0
    said = normalize_answer(reply.final)
    known = [normalize_answer(answer) for answer in expected.answers]
    if expected.answer_type == "yesno":
        return float(said.split()[:1] in [answer.split()[:1] for answer in known])
    if expected.answer_type in _EXACT:
        figures = _numbers(reply.final)  # normalized words alone make 1.5 and 15 the same
        alike = (said == normalize_answer(each) and figures == _numbers(each) for each in expected.answers)
        return float(any(alike))
    return max(token_f1(reply.final, answer) for answer in expected.answers)


def _numbers(text: str) -> list[float]:
    """The numbers of an answer, in order."""
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


def quote_reward(reply: Answer, expected: Expected) -> float | None:
    """The share of the reply's quotes that stand verbatim in the document they name (in any, where they name none) and
    have at least three words; 0.0 without a quote; None where none is asked for."""
    if not expected.quotes:
        return None
    return _share([bool(_places(reply, number, expected)) for number in range(len(reply.quotes))])


def oracle_reward(reply: Answer, expected: Expected) -> float | None:
    """The share of the reply's quotes that stand verbatim in a document that holds the answer; 0.0 without a quote;
    None where none is asked for or no such document is there."""
    if not expected.quotes or not expected.oracles:
        return None
    return _share([bool(_places(reply, number, expected) & expected.oracles) for number in range(len(reply.quotes))])


def abstention_reward(reply: Answer, expected: Expected) -> float | None:
    """1.0 when the reply refuses where it has to and answers where it has to."""
    return float(reply.abstained == expected.refuses and reply.well_formed)


REWARDS: Mapping[str, Callable[[Answer, Expected], float | None]] = {
    "format": format_reward,
    "answer": answer_reward,
    "quote": quote_reward,
    "oracle": oracle_reward,
    "abstention": abstention_reward,
}
"""The rewards by the name of their weight in the recipe (``preference.rewards``)."""


def _places(reply: Answer, number: int, expected: Expected) -> frozenset[int]:
    """The numbers of the documents in which a quote stands, of all of them or of the one that it names."""
    quote = reply.quotes[number]
    wanted = normalize(quote.text)
    if len(wanted.split()) < _LEAST_QUOTE_WORDS:
        return frozenset()
    named = range(1, len(expected.documents) + 1) if quote.document is None else (quote.document,)
    inside = (place for place in named if 0 < place <= len(expected.documents))
    return frozenset(place for place in inside if wanted in normalize(expected.documents[place - 1]))


def _share(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else 0.0


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, one space between words (SQuAD: Rajpurkar et al. 2016, arXiv
    1606.05250, section 6.1)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(prediction: str, reference: str) -> float:
    """F1 of word overlap after ``normalize_answer``, from 0 to 1 (Rajpurkar et al. 2016, section 6.1); when a side has
    no words, 1.0 if both have none, else 0.0."""
    said, known = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not said or not known:
        return float(said == known)
    return 2 * sum((Counter(said) & Counter(known)).values()) / (len(said) + len(known))
