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


def question_messages(chunk: Chunk, count: int) -> tuple[Message, ...]:
    """The prompt that asks for ``count`` questions about a chunk, one a line."""
    heading = " > ".join(dict.fromkeys(part for part in (chunk.title, *chunk.headings) if part))
    subject = f" ({heading})" if heading else ""
    return (
        Message("system", "You write exam questions. Write only the questions, one on each line, numbered."),
        Message(
            "user",
            neutralize(
                f"{heading}\n{chunk.text.strip()}\n\n"
                f"Write {count} different questions whose short answers stand in the words above{subject}. Name the "
                "subject in every question, so that it can be understood alone. Ask for facts: numbers, names, "
                "conditions, limits, exceptions."
            ).strip(),
        ),
    )


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
