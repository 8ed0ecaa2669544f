"""Do the words of a text bear an answer out, and do two answers say the same? Told by words, numbers and names.

    text = "Adults start with 12 mg by mouth. Children start with 5 mg."
    support("12 mg by mouth", "How do adults start?", text)      -> 1.0
    support("13 mg by mouth", "How do adults start?", text)      -> 0.0   (no 13 stands there)
    support("12 ml by mouth", "How do adults start?", text)      -> 0.0   (12 stands there, of mg)
    support("12 mg at night", "How do adults start?", text)      -> 0.666...
    same_answer("within 50 minutes", "50 min.", "number")        -> True

Words are compared by their stems. What only a reader would see (a paraphrase, a name of another thing in the same
text, a negation) is left to an entailment model or a judge; benchmarks/quality_gate.py measures what each of them sees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from functools import cache
from typing import Any

from raft.corpus.spans import normalize
from raft.dataset.grounding import content_words, words
from raft.records import AnswerType

SAME_WORDS = 0.6  # F1 of content words from which two answers are the same

_COUNTED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SPELLED = {word: str(number) for number, word in enumerate(_COUNTED, 1)}
_NUMBER_WORD = re.compile(rf"(?<![^\W\d_])(?:{'|'.join(_COUNTED)})(?![^\W\d_])")
_AMOUNT = re.compile(
    r"(?<![^\W\d_]-)(?<![\w.])(\d+(?:[.,]\d+)*)"  # the 19 of Covid-19 counts nothing
    r"(?:st|nd|rd|th)?(?:\b[ -]?|(?=[^\W\d_]))([^\W\d_]+|%)?"
)
_SAME_UNITS = (
    "% percent pct", "s sec secs second seconds", "min mins minute minutes", "h hr hrs hour hours", "day days",
    "week weeks", "month months", "year years", "μg mcg microgram micrograms", "mg milligram milligrams",
    "g gram grams", "kg kilogram kilograms", "ml millilitre millilitres milliliter milliliters",
    "l litre litres liter liters", "mm millimetre millimetres", "cm centimetre centimetres",
    "m metre metres meter meters", "km kilometre kilometres", "mmol", "iu", "mmhg", "million", "billion",
)  # fmt: skip
_UNITS = {name: names.split()[0] for names in _SAME_UNITS for name in names.split()}
KNOWN_UNITS = frozenset(_UNITS)
_MONTHS = frozenset((
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
))  # fmt: skip
_GLUED = re.compile(r"^(\d+(?:[.,]\d+)*)([^\W\d_]{1,4})$")
_NAME = re.compile(r"(?<![.!?:] )(?<!^)(?<!\w)[^\W\d_]\w+")  # not what a sentence begins with
_NEGATION = re.compile(r"\b(?:no|not|never|none|neither|nor|cannot|without|except|unless)\b|n't\b", re.IGNORECASE)


def support(answer: str, question: str, text: str) -> float:
    """From 0 to 1: how far ``text`` bears out the answer. 0 when a number of the answer is missing (``has_numbers``).

    The share of the answer's content words that stand in the text, counted twice: over all of them, and over those
    that the question does not bring along (repeating the question proves nothing). The lower share counts.
    """
    return _share(answer, question, text) if has_numbers(answer, question, text) else 0.0


def _share(answer: str, question: str, text: str) -> float:
    wanted, there = stems(answer), all_stems(text)
    new = wanted - all_stems(question) or wanted
    return min(len(part & there) / len(part) if part else 0.0 for part in (wanted, new))


def has_numbers(answer: str, question: str, text: str) -> bool:
    """Whether every number of the answer stands in the text or the question, by value, and none with another unit."""
    texts = (quantities(text), quantities(question))
    for number, units in quantities(answer).items():
        there = frozenset[str]().union(*(known.get(number, ()) for known in texts))
        if not there or not (units & there or "" in units | there):
            return False
    return True


def has_names(answer: str, question: str, text: str) -> bool:
    """Whether every capitalised word inside the answer's sentences stands in the text or the question."""
    names = {word for match in _NAME.finditer(answer) if match.group()[0].isupper() for word in words(match.group())}
    missing = names.difference(words(question), words(text)) if names else names
    return not missing or _stemmed(missing) <= all_stems(text) | all_stems(question)


def quantities(text: str) -> dict[str, frozenset[str]]:
    """The numbers of a text, by value, with the units that they stand beside ("" where none is known).

    ``1,000`` is 1000, ``2.50`` is 2.5, ``two`` is 2; numbers of sections (2.1.3) are kept as they are written.
    """
    found: dict[str, frozenset[str]] = {}
    folded = _NUMBER_WORD.sub(lambda word: _SPELLED[word.group()], normalize(text))
    for number, unit in _AMOUNT.findall(folded.replace("per cent", "percent")):
        value = _value(number)
        found[value] = found.get(value, frozenset()) | {_UNITS.get(unit, "")}
    return found


def same_units(text: str) -> str:
    """The words of a text, its units in one spelling: "how many mg" for "How many milligrams"."""
    return " ".join(_UNITS.get(word, word) for word in words(text))


def computed(text: str) -> list[str]:
    """The sums, differences and products of two numbers of a text: what an answer in two steps may come to."""
    found = [Decimal(value) for value in quantities(text) if re.fullmatch(r"\d{1,9}(?:\.\d{1,9})?", value)]
    pairs = [(a, b) for at, a in enumerate(found) for b in found[at + 1 :]]
    return sorted({f"{value:f}" for a, b in pairs for value in (a + b, abs(a - b), a * b)})


def _value(number: str) -> str:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", number):
        number = number.replace(",", "")
    if not re.fullmatch(r"\d+(?:[.,]\d+)?", number):
        return number
    return f"{Decimal(number.replace(',', '.')).normalize():f}"


def stems(text: str) -> frozenset[str]:
    """The stems of a text's content words, numbers by value."""
    return _stemmed(content_words(text))


def all_stems(text: str) -> frozenset[str]:
    """The stems of all words of a text, numbers by value."""
    return _stemmed(words(text))


def _stemmed(found: Iterable[str]) -> frozenset[str]:
    """Stems, numbers by value; ``12mg`` is two words, as ``12 mg`` is."""
    parts = [part for word in found for part in (_GLUED.sub(r"\1 \2", word).split() if word[0].isdigit() else (word,))]
    plain = [_value(part) if part[0].isdigit() else _SPELLED.get(part, part) for part in parts]
    return frozenset(_stemmer().stemWords(plain))


@cache
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("english")


def same_answer(one: str, other: str, answer_type: AnswerType) -> bool:
    """Whether two answers to one question say the same.

    yes or no: the same first word; labels: the same words. Numbers: the same values, units that do not clash, the
    same months. Others: word for word inside the other, or F1 of content words at least ``SAME_WORDS``, as long as
    neither numbers nor a negation tell them apart. An empty answer is like no other.
    """
    first, second = words(one), words(other)
    if not first or not second:
        return False
    if answer_type == "yesno":
        return first[0] == second[0]
    if answer_type == "label" or first == second:
        return first == second
    if not _same_numbers(one, other) or bool(_NEGATION.search(one)) != bool(_NEGATION.search(other)):
        return False
    return (answer_type == "number" and bool(quantities(one))) or _same_words(first, second, one, other)


def _same_numbers(one: str, other: str) -> bool:
    if quantities(one).keys() != quantities(other).keys() or not has_numbers(one, "", other):
        return False
    months = [_MONTHS & set(words(text)) for text in (one, other)]
    return has_numbers(other, "", one) and (months[0] == months[1] or not all(months))


def _same_words(first: list[str], second: list[str], one: str, other: str) -> bool:
    longer, shorter = sorted((f" {' '.join(first)} ", f" {' '.join(second)} "), key=len, reverse=True)
    if shorter in longer:
        return True
    has, had = stems(one), stems(other)
    return 2 * len(has & had) >= SAME_WORDS * (len(has) + len(had))
