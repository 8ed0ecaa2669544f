"""The records that cross rooms.

A question of a corpus, as one line of its ``questions.jsonl``::

    {"id": "med-001", "question": "What is the first dose of Corvalexin in adults?", "answer": "12 mg",
     "aliases": [], "answer_type": "short", "long_answer": "The formulary sets the first adult dose at 12 mg.",
     "gold_doc_ids": ["formulary/corvalexin.md"],
     "evidence": [{"doc_id": "formulary/corvalexin.md", "text": "Adults start with 12 mg by mouth."}],
     "split": "train"}

All records are frozen; a role (oracle, distractor) or a score never lies on a chunk, because it
belongs to one example or one search and not to the text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "dev", "test"]
AnswerType = Literal["short", "number", "list", "yesno", "label", "long", "unanswerable"]
QuestionType = Literal["factual", "numeric", "yesno", "definition", "comparison", "multihop", "unanswerable"]


@dataclass(frozen=True, slots=True)
class Document:
    """A source file or record as read. ``metadata`` holds JSON values (page starts, dates, tags)."""

    id: str
    text: str
    title: str = ""
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The unit of retrieval: ``text == document.text[start:end]`` (character offsets)."""

    id: str
    document_id: str
    text: str
    start: int
    end: int
    title: str = ""
    headings: tuple[str, ...] = ()
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which documents a search may return. Conditions of one kind are alternatives; different kinds must all hold.

    ``labels`` are what the asker holds: a document is seen by who holds all of its labels, and one without labels by
    everybody. None stands for all that the index was opened with. ``sources`` are beginnings of a source's name
    ("guidelines/"), ``since`` and ``until`` ISO dates, both included; a document without a date has none of them.
    """

    labels: frozenset[str] | None = None
    sources: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None


EVERYTHING = Filter()


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk returned by a search. ``rank`` counts from 1; ``parts`` holds the score of each retriever."""

    chunk: Chunk
    score: float
    rank: int
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A verbatim passage of a document that supports an answer (offsets are optional hints)."""

    document_id: str
    text: str
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class QaItem:
    """A question with its reference answer and evidence. An unanswerable one has no answer and no evidence."""

    id: str
    question: str
    answer: str
    answer_type: AnswerType = "short"
    aliases: tuple[str, ...] = ()
    long_answer: str = ""
    gold_document_ids: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Quote:
    """Words that an answer claims to take from a document; ``document`` is its number in the prompt, from 1."""

    text: str
    document: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system said: the raw ``text`` and what ``prompts.parse_answer`` found in it.

    ``well_formed`` is False when the text lacks the answer marker; ``final`` is then the whole text.
    """

    text: str
    final: str
    reasoning: str = ""
    quotes: tuple[Quote, ...] = ()
    abstained: bool = False
    well_formed: bool = True


@dataclass(frozen=True, slots=True)
class RaftExample:
    """One training example: a question over a context of chunks, and the text the student learns to write.

    ``context`` lists chunk ids in prompt order; ``oracle_ids`` are the question's oracle chunks whether or
    not they stand in the context (``oracle_present`` says so). Examples with the same ``group`` share their
    context, chunk for chunk. ``draw`` numbers the drawing of contexts: epoch e trains on draw e modulo draws.
    """

    id: str
    question_id: str
    question: str
    answer: str
    target: str
    answer_type: AnswerType
    context: tuple[str, ...]
    oracle_ids: tuple[str, ...]
    oracle_present: bool
    group: str
    draw: int = 0


def to_row(record: Any) -> dict[str, Any]:
    """The record as a JSON-ready dict, fields in declared order. (``dataclasses.asdict`` copies every value, and takes
    four times as long.)"""
    return {name: _to_value(getattr(record, name)) for name in record.__dataclass_fields__}


def _to_value(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_to_value(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _to_value(each) for key, each in value.items()}
    return to_row(value) if hasattr(value, "__dataclass_fields__") else value


def chunk_from_row(row: Mapping[str, Any]) -> Chunk:
    """The inverse of ``to_row`` for chunks. Raises TypeError on a missing or unknown field."""
    return Chunk(**{**row, "headings": tuple(row["headings"])})


def example_from_row(row: Mapping[str, Any]) -> RaftExample:
    """The inverse of ``to_row`` for examples. Raises TypeError on a missing or unknown field."""
    return RaftExample(**{**row, "context": tuple(row["context"]), "oracle_ids": tuple(row["oracle_ids"])})


_SECTION_NUMBER = re.compile(r"(?P<number>\d{1,4}(?:\.\d{1,4})*)[.)]?\s+(?P<words>.*)")
_SAYS_WHERE = re.compile(r"§|(?:section|clause) \d+\.\d", re.IGNORECASE)  # a heading that needs none of those above it
_MOST_CITED = 160  # characters


def citation(chunk: Chunk) -> str:
    """Where a chunk stands, for people: ``Guideline 12, section 3.2 Dose, page 4``.

    The document's title (its id when it has none), the deepest heading (with the one above it, unless its number
    says where it stands), and the page; at most 160 characters.
    """
    title = " ".join(chunk.title.split()) or chunk.document_id
    headings = dict.fromkeys(" ".join(heading.split()) for heading in chunk.headings)
    useful = [_named(h) for h in headings if h.casefold() != title.casefold() and any(map(str.isalnum, h))]
    page = f", page {chunk.page}" if chunk.page is not None else ""
    kept = useful[-1:] if useful and _SAYS_WHERE.match(useful[-1]) else useful[-2:]
    title = _shortened(title, (_MOST_CITED - len(page)) // 2 if kept else _MOST_CITED - len(page))
    room = _MOST_CITED - len(title) - len(page) - len(", ")
    where = " > ".join(kept)
    return ", ".join(part for part in (title, _shortened(where, room)) if part) + page


def _named(heading: str) -> str:
    """``section 3.2 Dose`` for the heading ``3.2. Dose``; any other as it is."""
    match = _SECTION_NUMBER.fullmatch(heading)
    return f"section {match['number']} {match['words']}" if match else heading


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 4].rsplit(" ", 1)[0].rstrip(" ,>") + " ..."


def question_key(question: str) -> str:
    """What two questions of the same words share, whatever their case, spacing and punctuation: 16 hex digits."""
    return hashlib.sha256(" ".join(re.findall(r"\w+", question.lower())).encode()).hexdigest()[:16]
