"""The teacher writes questions about a chunk. One of its replies, and what is read from it::

Here are the questions:
1. **What is the first dose of Corvalexin in adults?**     -> What is the first dose of Corvalexin in adults?
2) Which form replaced form 1099 in 2021?                  -> Which form replaced form 1099 in 2021?
3. The dose depends on weight.                             -> (no question: left out)
"""

from __future__ import annotations

import re

from raft.prompts import Message, neutralize
from raft.records import Chunk

_BULLETS = " \t>*_#•–—-"
_NUMBER = re.compile(
    r"(?:(?:question|q)\s*)?\(?\d{1,3}(?:\)|[.:](?!\d))\s*|(?:question|q)\s*[.:]\s*",  # "Q1:", "(1)", "12.", "Q."
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"(?<=\?)\s+(?=\(?\d{1,2}[.)]\s)")
_AFTER = re.compile(r"^[\s\"'*_)\u201d]*(?:\(?(?:a|answer)\b\s*[:.].*)?$", re.IGNORECASE | re.DOTALL)
_AROUND = " \t\"'*_`\u201c\u201d"


SAMPLE = Chunk(
    "sample", "sample",
    "Borrowers return a lantern to the lodge within 9 days. A lantern that comes back late costs 4 crowns a day.",
    0, 107, title="Rules of the Lantern Lodge",
)  # fmt: skip
"""The chunk of the worked examples that show small teachers the form."""

_SAMPLE_REPLY = (
    "1. Within how many days must a lantern of the Lantern Lodge be returned?\n"
    "2. What does a late lantern of the Lantern Lodge cost a day?"
)


def question_messages(chunk: Chunk, count: int) -> tuple[Message, ...]:
    """The prompt that asks for ``count`` questions about a chunk, one a line."""
    return (
        Message("system", "You write exam questions about a text. Write only the questions, numbered, one a line."),
        Message("user", _ask(SAMPLE, 2)),
        Message("assistant", _SAMPLE_REPLY),
        Message("user", _ask(chunk, count)),
    )


def _ask(chunk: Chunk, count: int) -> str:
    heading = " > ".join(dict.fromkeys(part for part in (chunk.title, *chunk.headings) if part))
    return neutralize(
        f"{heading}\n{chunk.text.strip()}\n\n"
        f"Write {count} different questions with short answers that stand in this text. Ask for facts: numbers, names, "
        "conditions, limits, exceptions. Name the subject in every question."
    ).strip()


def parse_questions(text: str, most: int) -> list[str]:
    """The questions in a reply, at most ``most``, without numbers, bullets or repeats. Never raises.

    A line counts when it ends in a question mark; an answer written behind the mark is cut off.
    """
    lines = [part for line in text.splitlines() for part in _SEVERAL.split(line)]
    found = (_read_line(line) for line in lines)
    return list(dict.fromkeys(question for question in found if question))[:most]


def _read_line(line: str) -> str:
    question = line.strip(_BULLETS)
    while (number := _NUMBER.match(question)) is not None:
        question = question[number.end() :].lstrip(_BULLETS)
    ends = [mark.end() for mark in re.finditer(r"\?", question) if _AFTER.match(question[mark.end() :])]
    words = question[: ends[0] - 1].strip(_AROUND).split() if ends else []
    return f"{' '.join(words)}?" if words else ""
