"""What a teacher says, read into questions. Models ignore the form that was asked for, each in its own way::

    1. **What is the first dose?** Answer: 12 mg           -> What is the first dose?
    | 2 | Which form replaced form 1099? | form 12 |       -> Which form replaced form 1099?
    {"questions": ["1. What is it?", "Define it.", "Wh     -> What is it?   Define it.   (cut off: left out)

Nothing here raises, whatever the text, and the time taken grows with its length alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from raft.readers.plain import encodable

_MARKS = "?？؟\u037e"  # the last is the Greek question mark
_MARK = rf"[{_MARKS}]"
_BULLETS = " \t>*_#•–—-|\u3000"
_NUMBER = re.compile(
    r"(?:(?:question|q|no\.)\s*)?#?[(\[]?\d{1,3}(?:\\?[.:．、]?[)\]）]|\s?\\?[.:．](?!\d)|、)\s*"  # "Q1:", "(1)", "12."
    r"|(?:question|q)\s*(?:#?\d{1,3}\s*(?:of\s+\d{1,3}\s*)?)?[.:–—-](?!\d)\s*"  # "Q.", "Question 3 of 5 -"
    r"|\(?(?:[a-z]|[ivx]{2,4})\)\s+"  # "a)", "(iv)"
    r"|\d{1,3}\s(?:\s*[-–—]\s)?\s*(?=[*_\"]*(?:what|which|who|whom|whose|when|where|why|how)\b)",  # "1 - What"
    re.IGNORECASE,
)
_SEVERAL = re.compile(rf"(?<={_MARK})\s+(?=\(?\d{{1,2}}[.)]\s)")
_AFTER = re.compile(  # closing marks, then nothing, an answer, a remark in brackets or behind a dash
    r"[\s\"'*_)|,\u201d\u300d]*"
    r"(?:\(?[*_]*(?:a|ans|answer)\b[*_]*\s*[:.].*|[(\[][^()\[\]?]*[)\]]\s*|[-–—→=]+\s[^?]*)?",
    re.IGNORECASE | re.DOTALL,
)
_QUOTES = (('"', '"'), ("'", "'"), ("`", "`"), ("\u201c", "\u201d"), ("\u300c", "\u300d"))
_AN_ANSWER = re.compile(r"\W*(?:a|ans|answer)\s*\d{0,3}\s*[*_]*:", re.IGNORECASE)
_SMALL_TALK = re.compile(
    r"(?:would|do|should|shall|can|could|may)\s+(?:you|i|we)\s.*\b(?:questions?|anything else|help you)\b",
    re.IGNORECASE,
)
_ASKS = re.compile(r"(?:what|which|who|whom|whose|when|where|why|how)\s", re.IGNORECASE)
_THOUGHTS = re.compile(r"<think(?:ing)?>.*", re.DOTALL)

_JSON_START = re.compile(r"(?:^|:)[ \t`>]{0,20}(?:json)?[ \t]{0,20}(?=(?:\{|\[)\s{0,99}[\"'\u201c{\[])", re.MULTILINE)
_CLOSES = r"(?=\s{0,99}[,\]}:])"  # what follows a quote that ends a string, and not one within
_TOKEN = re.compile(
    rf'"(?P<double>(?:[^"\\]|\\.|"(?!\s{{0,99}}[,\]}}:]))*)"{_CLOSES}'
    rf"|'(?P<single>(?:[^'\\]|\\.|'(?!\s{{0,99}}[,\]}}:]))*)'{_CLOSES}"
    r"|\u201c(?P<curly>[^\u201c\u201d]*)\u201d"
    r"|(?P<mark>[\[\]{}:])"
    r"|(?P<broken>[\"'\u201c])",  # a string that does not end: the reply was cut here
    re.DOTALL,
)
_QUESTION_KEYS = ("", "q", "question", "questions", "text")


def parse_questions(text: str, most: int) -> list[str]:
    """The questions in a reply, at most ``most``, without numbers, bullets or repeats. Never raises.

    JSON is read first: its strings are questions, also those that order ("Define it."). Otherwise a line counts when
    it ends in a question mark; an answer written behind the mark is cut off. What a model thinks aloud is passed over.
    """
    said = _THOUGHTS.sub("", text.rpartition("</think>")[2])
    found = list(_clean(map(_read_string, _json_strings(said)))) or list(_clean(_read_lines(said)))
    return found[:most]


def parse_question(text: str) -> str | None:
    """The first question in a reply, or None. A first line that asks without a question mark is given one."""
    found = parse_questions(text, 1)
    if found:
        return found[0]
    first = next((line for line in text.splitlines() if line.strip()), "")
    words = _without_quotes(_without_number(first)).rstrip(".").split()
    return f"{' '.join(words)}?" if len(words) > 2 and _ASKS.match(" ".join(words)) else None


def _clean(questions: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(question for question in questions if question)


def _read_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        cells = line.split("|") if line.lstrip().startswith("|") else _SEVERAL.split(line)
        for part in cells:
            if not _AN_ANSWER.match(part):
                question = _read_line(part)
                if not _SMALL_TALK.match(question):
                    yield question


def _read_line(line: str) -> str:
    """The question that a line holds, with its own mark; "" when there is none."""
    question = _without_number(line)
    ends = (m for m in re.finditer(_MARK, question) if _AFTER.fullmatch(question[m.end() : m.end() + 2000]))
    mark = next(ends, None)
    words = _without_quotes(question[: mark.start()]).split() if mark else []
    return f"{' '.join(words)}{mark.group()}" if mark and any(map(str.isalnum, "".join(words))) else ""


def _without_number(line: str) -> str:
    rest = line.strip(_BULLETS)
    while (number := _NUMBER.match(rest)) is not None:
        rest = rest[number.end() :].lstrip(_BULLETS)
    return rest


def _without_quotes(words: str) -> str:
    """The words without what wraps the whole of them; a mark whose partner stands among the words stays."""
    words = words.strip(" \t*_")
    for opening, closing in _QUOTES:
        if words.startswith(opening):
            inner = words[1:].removesuffix(closing)
            if opening not in inner and closing not in inner:
                words = inner
            elif words.count(opening) % 2 and opening == closing:
                words = words[1:]
    return words.strip(" \t*_")


def _read_string(value: str) -> str:
    """The question that a string of a structured reply holds: one that asks, or one that orders, of two words up."""
    line = " ".join(value.split())
    if any(mark in line for mark in _MARKS):
        return _read_line(line)
    words = _without_quotes(_without_number(line)).split()
    return " ".join(words) if len(words) > 1 and any(map(str.isalpha, "".join(words))) else ""


def _json_strings(text: str) -> Iterator[str]:
    """The strings of the JSON in a text that may be questions: members of lists, and values of keys that say so.

    Told by where strings, brackets and colons stand and not by a JSON reader, so that single quotes, missing commas
    and a cut end cost nothing but the string they damage.
    """
    at = 0
    while (start := _JSON_START.search(text, at)) is not None:
        at, depth, key = start.end(), 0, ""
        for token in _TOKEN.finditer(text, at):
            at = token.end()
            if token["broken"]:
                return
            if token["mark"]:
                depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token["mark"], 0)
                key = "" if token["mark"] == "{" else key
                if depth == 0:
                    break
            elif text[at : at + 100].lstrip().startswith(":"):
                key = _string(token).lower().strip(" _0123456789")
            elif key in _QUESTION_KEYS:
                yield _string(token)


def _string(token: re.Match[str]) -> str:
    """The characters that a quoted string stands for."""
    if token["double"] is None:
        return str(token["single"] or token["curly"] or "").replace("\\'", "'")
    try:
        return encodable(str(json.loads(f'"{token["double"]}"', strict=False)))
    except ValueError:  # a quote within that was not escaped, or an escape that JSON does not know
        return token["double"].replace('\\"', '"')
