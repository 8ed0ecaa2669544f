"""Whether two answers may say the same: what keeps right answers out of the rejected ones (preferences.py).

Doubt counts as sameness: a pair that is lost costs little, one that punishes a right answer does harm.
"""

from __future__ import annotations

import re
import string
import unicodedata
from decimal import Decimal, InvalidOperation

from raft.records import AnswerType
from raft.training.rewards import token_f1

_TOO_CLOSE = 0.5  # word F1 from which a final answer may be right in part
_NUMBER = re.compile(r"((?<![a-z\d])\d+(?:[.,]\d+)*)")  # not the 2 of m²
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_DIGITS = {word: str(number) for number, word in enumerate(_SMALL)}
_SMALL_NUMBER = re.compile(rf"(?<!-)\b(?:{'|'.join(_SMALL)})\b")
_WITHOUT_SPACES = re.compile(  # Thai to Burmese, Khmer, kana, Chinese characters
    "[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def differs(text: str, said: str, answer: str, answer_type: AnswerType) -> bool:
    """Whether a text whose final answer is ``said`` holds nothing of ``answer``."""
    final, right = _plain(said), _plain(answer)
    if not right:  # an article or a sign, as labels may be
        final, right = raw(said), raw(answer)
        if answer_type != "label":
            return not (_holds(final, right) or _holds(right, final))
    if answer_type == "label":
        return final != right
    if answer_type == "yesno":
        return final.split()[:1] != right.split()[:1]
    if _holds(_plain(text), right) or _holds(right, final):
        return False
    numbers, known = _numbers(said), _numbers(answer)
    if numbers and known:
        return numbers.isdisjoint(known)
    return token_f1(final, right) < _TOO_CLOSE


def raw(text: str) -> str:
    """The text in lower case, and nothing else of it changed but the way its characters are coded."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _plain(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words; numbers in one way of writing."""
    parts = _NUMBER.split(_folded(text))  # every second one is a number
    parts[1::2] = [_value(number) for number in parts[1::2]]
    parts[::2] = ["".join(sign for sign in part if not _is_punctuation(sign)) for part in parts[::2]]
    return " ".join(_ARTICLES.sub(" ", "".join(parts)).split())


def _folded(text: str) -> str:
    return _SMALL_NUMBER.sub(lambda found: _DIGITS[found.group()], raw(text))


def _numbers(text: str) -> set[str]:
    return set(map(_value, _NUMBER.findall(_folded(text))))


def _value(number: str) -> str:
    """12.0 and 12, 1,000 and 1000, 2,5 and 2.5 alike; what is no one number (a date, a version) as it stands."""
    try:
        return format(Decimal(_THOUSANDS.sub("", number).replace(",", ".")).normalize(), "f")
    except InvalidOperation:
        return number


def _is_punctuation(sign: str) -> bool:
    return not sign.isalnum() and (sign in string.punctuation or unicodedata.category(sign).startswith("P"))


def _holds(text: str, words: str) -> bool:
    """Whether the words stand in the text; in scripts that put no spaces between words, anywhere in it."""
    if _WITHOUT_SPACES.search(words):
        return words.replace(" ", "") in text.replace(" ", "")
    return f" {words} " in f" {text} "
