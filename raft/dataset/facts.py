"""Other facts of the same form: near values for numbers, and the opposite of a sentence.

12 mg -> 15 mg        2,000 ml -> 2,500 ml        0.08 units -> 0.06 units        fourteen days -> twelve days
12 March 2023 -> 9 March 2024        08:30 -> 10:30        95 % -> 85 %
The holder may keep a dog. -> The holder may not keep a dog.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from decimal import Decimal

_WORDS: Mapping[str, Decimal] = {
    word: Decimal(value)
    for value, word in (
        (1, "one"), (2, "two"), (3, "three"), (4, "four"), (5, "five"), (6, "six"), (7, "seven"), (8, "eight"),
        (9, "nine"), (10, "ten"), (11, "eleven"), (12, "twelve"), (14, "fourteen"), (15, "fifteen"), (20, "twenty"),
        (30, "thirty"), (40, "forty"), (60, "sixty"), (90, "ninety"),
    )
}  # fmt: skip
_NUMBER = re.compile(
    rf"(?<![\w.,:])(?P<digits>\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d+)?)(?![.,]?\d)"
    rf"|\b(?P<word>{'|'.join(_WORDS)})\b",
    re.IGNORECASE,
)
_MONTH = r"\s+(?:January|February|March|April|May|June|July|August|September|October|November|December)\b"
_MOST: tuple[tuple[re.Pattern[str], int], ...] = (  # what follows a number -> the highest that it may be
    (re.compile(r"\s*(?:%|per ?cent)", re.IGNORECASE), 100),
    (re.compile(rf"(?:st|nd|rd|th)?{_MONTH}"), 28),
    (re.compile(r":\d\d\b"), 23),
    (re.compile(r"-\d\d-\d\d\b"), 2100),
)
_ITEM = re.compile(r"[ \t]*\(?\d+[.)]")  # the number of a clause or list item
_YEARS = range(1800, 2101)
_MODAL = re.compile(
    r"\b(must|may|can|could|should|shall|will|is|are|was|were|does|do|did|has|have)\b( not\b)?", re.IGNORECASE
)
_OPPOSITES = (
    (re.compile(r"\b([Cc])annot\b"), r"\1an"),
    (re.compile(r"\b([Dd])o not (\w)"), None),
    (re.compile(r"\bnever\b"), "always"),
    (re.compile(r"\bNever\b"), "Always"),
    (re.compile(r"\bonly\b"), "not only"),
    (re.compile(r"\bno\b"), "any"),
    (re.compile(r"\bNo\b"), "Any"),
)


def numbers(text: str) -> list[Decimal]:
    """The values of a text's numbers in order, in digits (``2,000``, ``0.08``) or as words (``fourteen``)."""
    return [_value(match) for match in _NUMBER.finditer(text)]


def changed_numbers(answer: str, question: str, rng: random.Random) -> Callable[[str], str]:
    """What changes a text's numbers: each value of ``answer`` becomes a near one that neither answer nor question has,
    wherever it stands, in the form in which it stands there."""
    taken = {*numbers(answer), *numbers(question)}
    others: dict[Decimal, Decimal] = {}
    for match in _NUMBER.finditer(answer):
        value = _value(match)
        if value not in others:
            others[value] = _near_value(value, match, answer, taken, rng)
            taken.add(others[value])
    return lambda text: _NUMBER.sub(lambda match: _in_form(match, others), text)


def _value(match: re.Match[str]) -> Decimal:
    return _WORDS[match["word"].lower()] if match["word"] else Decimal(match["digits"].replace(",", ""))


def _near_value(value: Decimal, match: re.Match[str], text: str, taken: set[Decimal], rng: random.Random) -> Decimal:
    """A value nearby of as many digits: within a third, in round steps where the value is round."""
    if match["word"]:
        nearby = sorted(_WORDS.values(), key=lambda other: (abs(other - value), other))
        return rng.choice([other for other in nearby if other not in taken][:3])
    most = next((Decimal(most) for after, most in _MOST if after.match(text, match.end())), None)
    step, count = _step(value, match["digits"])
    while count > 99:  # of a long number only the first two digits change
        step, count = step * 10, count // 10
    for reach in (max(2, count // 3), 10, 100):
        nearby = [value + step * by for by in range(-reach, reach + 1)]
        fitting = [other for other in nearby if other > 0 and other not in taken and (most is None or other <= most)]
        if fitting:
            return rng.choice(fitting)
    return value + step * (len(taken) + 1)  # past everything that is taken: a value of that size has no near ones


def _step(value: Decimal, digits: str) -> tuple[Decimal, int]:
    """The unit in which a value is counted, and how many of it the value is: 5 and 10 for 50, 0.01 and 8 for 0.08."""
    if "." in digits:
        unit = Decimal(1).scaleb(-len(digits.rpartition(".")[2]))
        return unit, int(value / unit)
    if "," not in digits and len(digits) == 4 and int(value) in _YEARS:
        return Decimal(1), 9  # a year: at most three away
    for unit in map(Decimal, (100000, 50000, 10000, 5000, 1000, 500, 100, 50, 10, 5)):
        if value and value % unit == 0 and value / unit >= 4:
            return unit, int(value / unit)
    return Decimal(1), int(value)


def _in_form(match: re.Match[str], others: Mapping[Decimal, Decimal]) -> str:
    """The number that stands for this one, written as this one is."""
    value = _value(match)
    if value not in others or _ITEM.fullmatch(
        match.string, match.string.rfind("\n", 0, match.start()) + 1, match.end() + 1
    ):
        return match.group()
    other = others[value]
    if match["word"]:
        word = next((name for name, known in _WORDS.items() if known == other), str(other))
        return word.capitalize() if match.group()[0].isupper() else word
    digits = match["digits"]
    decimals = len(digits.rpartition(".")[2]) if "." in digits else 0
    decimals = max(decimals, -int(other.normalize().as_tuple().exponent))  # a text's 2 for an answer's 2.0
    written = f"{other:,.{decimals}f}" if "," in digits else f"{other:.{decimals}f}"
    return written.zfill(len(digits)) if digits.startswith("0") and not decimals else written


def negated(sentence: str) -> str:
    """The sentence with its first verb of duty or being turned round, or another word that decides; unchanged where it
    has none. ``Do not wait.`` becomes ``Wait.``"""
    for pattern, other in _OPPOSITES[:2]:
        changed = pattern.sub(other or _told, sentence, count=1)
        if changed != sentence:
            return changed
    changed = _MODAL.sub(lambda match: match[1] if match[2] else f"{match[1]} not", sentence, count=1)
    if changed != sentence:
        return changed
    for pattern, other in _OPPOSITES[2:]:
        changed = pattern.sub(str(other), sentence, count=1)
        if changed != sentence:
            return changed
    return sentence


def _told(match: re.Match[str]) -> str:
    return match[2].upper() if match[1] == "D" else match[2]
