"""Questions with the words that prove their answer. One, as a row of a dataset's ``questions.jsonl``::

    {"id": "med-001", "question": "How soon after the adult sepsis bundle is started must antibiotics be running?",
     "answer": "within 50 minutes", "answer_type": "number", "aliases": ["50 minutes"],
     "reasoning": "The adult first-hour protocol sets a limit of 50 minutes.", "reasoning_source": "long_answer",
     "quotes": [{"chunk_id": "protocols/sepsis-adult.md#3",
                 "text": "Antibiotics must be running within 50 minutes of the bundle being started."}],
     "document_ids": ["protocols/sepsis-adult.md"], "source": "qa", "split": "train"}

A quote always stands verbatim in its chunk: it is a slice of the chunk's own text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raft.corpus.spans import find_span, normalize
from raft.records import AnswerType, Chunk, Document, Evidence, QaItem, QuestionType, Split

MOST_QUOTE_WORDS = 40
MOST_QUOTES = 2
CLOSED_TYPES: frozenset[AnswerType] = frozenset({"yesno", "label"})
"""Answers out of a closed set: they follow from a quote without standing in it."""

_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_STOP_WORDS = frozenset((
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "been", "before", "but",
    "by", "can", "could", "did", "do", "does", "for", "from", "had", "has", "have", "he", "her", "his", "how",
    "i", "if", "in", "into", "is", "it", "its", "may", "more", "most", "must", "no", "not", "of", "on", "one",
    "or", "our", "shall", "she", "should", "so", "such", "than", "that", "the", "their", "them", "then", "there",
    "these", "they", "this", "those", "to", "under", "was", "we", "were", "what", "when", "where", "which",
    "who", "whom", "whose", "why", "will", "with", "would", "you", "your",
))  # fmt: skip
_BOUNDARY = re.compile(
    r"(?<=[.!?])(?P<closing>[\"')\]\u201d\u2019]*)\s+(?=[\"'(\[\u201c\u2018]?[A-Z0-9])"  # a full stop, then a new start
    r"|\n\s*\n"  # a blank line
    r"|\n(?=\s*(?:[-*•|#]|\d+[.)]\s|\([a-z0-9]{1,3}\)\s))"  # a list item, a table row, a heading
)
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|vs|cf|Dr|Mr|Mrs|Ms|Prof|St|No|Nos|Art|Sec|Inc|Ltd|Co|Corp|approx|[A-Z])\.$")


@dataclass(frozen=True, slots=True)
class Passage:
    """Words that stand verbatim in a chunk."""

    chunk_id: str
    text: str


@dataclass(frozen=True, slots=True)
class GroundedQuestion:
    """A question, its answer, and the passages that prove it. An unanswerable one has neither.

    ``document_ids`` are the documents that the answer rests on: of the passages, and any other named as gold.
    ``flags`` say what a reviewer should look at ("oracle_not_retrieved", "pii_email"); they refuse nothing.
    """

    id: str
    question: str
    answer: str
    answer_type: AnswerType
    quotes: tuple[Passage, ...]
    document_ids: tuple[str, ...]
    source: Literal["teacher", "qa"]
    aliases: tuple[str, ...] = ()
    reasoning: str = ""
    reasoning_source: Literal["teacher", "long_answer", "reviewer", "none"] = "none"
    split: Split | None = None
    question_type: QuestionType = "factual"
    flags: tuple[str, ...] = ()

    @property
    def oracle_ids(self) -> tuple[str, ...]:
        """The chunks that hold the passages, without repeats."""
        return tuple(dict.fromkeys(quote.chunk_id for quote in self.quotes))


def question_from_row(row: Mapping[str, Any]) -> GroundedQuestion:
    """The inverse of ``records.to_row``; fields that an older dataset lacks take their defaults. Raises TypeError on a
    missing or unknown field."""
    lists = {name: tuple(row.get(name, ())) for name in ("document_ids", "aliases", "flags")}
    return GroundedQuestion(**{**row, **lists, "quotes": tuple(Passage(**quote) for quote in row["quotes"])})


def words(text: str) -> list[str]:
    """The words of a text in comparable form, in order; ``2.5`` and ``1,000`` are one word each."""
    return _WORD.findall(normalize(text))


def content_words(text: str) -> frozenset[str]:
    """The words that carry meaning; all words when there is none of those."""
    found = frozenset(words(text))
    return found - _STOP_WORDS or found


def sentences(text: str) -> list[tuple[int, int]]:
    """Character offsets (start, end) of the sentences, list items and headings of a text, in order."""
    spans, start = [], 0
    for match in _BOUNDARY.finditer(text):
        if not _ABBREVIATION.search(text[max(0, match.start() - 8) : match.start()]):
            spans.append((start, match.end("closing") if match["closing"] else match.start()))
            start = match.end()
    spans.append((start, len(text)))
    return [_strip(text, span) for span in spans if text[span[0] : span[1]].strip()]


def _strip(text: str, span: tuple[int, int]) -> tuple[int, int]:
    part = text[span[0] : span[1]]
    return span[0] + len(part) - len(part.lstrip()), span[0] + len(part.rstrip())


def shorten(text: str, most_words: int = MOST_QUOTE_WORDS) -> str:
    """The leading whole sentences that stay within ``most_words``; the first one however long it is."""
    kept_end, count = 0, 0
    for start, end in sentences(text):
        count += len(text[start:end].split())
        if kept_end and count > most_words:
            break
        kept_end = end
    return " ".join(text[:kept_end].split())


def best_sentence(text: str, answer: str, reference: str) -> tuple[int, int] | None:
    """Offsets of the sentence most likely to prove ``answer``; None for an empty text.

    Sentences that hold the answer's words verbatim come first, then by overlap of content words with
    ``reference`` (Dice's coefficient, so that length alone does not win), then the earliest.
    """
    wanted = content_words(f"{answer} {reference}")

    def score(span: tuple[int, int]) -> tuple[bool, float, int]:
        sentence = text[span[0] : span[1]]
        has = content_words(sentence)
        overlap = 2 * len(wanted & has) / max(1, len(wanted) + len(has))
        return find_span(sentence, answer) is not None, overlap, -span[0]

    return max(sentences(text), key=score, default=None)


def quote_around(text: str, span: tuple[int, int], answer: str = "") -> str:
    """A quote of at most ``MOST_QUOTE_WORDS`` words that is a slice of ``text``: the sentences that ``span``
    touches; where those are too long, the one that proves the answer; where that is too long, a window in it."""
    touched = [s for s in sentences(text) if s[0] < span[1] and span[0] < s[1]]
    if not touched:
        return ""
    start, end = touched[0][0], touched[-1][1]
    if len(text[start:end].split()) <= MOST_QUOTE_WORDS:
        return text[start:end]
    best = best_sentence(text[start:end], answer, text[span[0] : span[1]])
    if best is None:
        return ""
    start, end = start + best[0], start + best[1]
    focus = find_span(text[start:end], answer)
    middle = (start + focus[0], start + focus[1]) if focus else (max(start, span[0]), min(end, span[1]))
    return _window(text, (start, end), middle)


def _window(text: str, sentence: tuple[int, int], focus: tuple[int, int]) -> str:
    spans = [(sentence[0] + m.start(), sentence[0] + m.end()) for m in re.finditer(r"\S+", text[slice(*sentence)])]
    if len(spans) <= MOST_QUOTE_WORDS:
        return text[slice(*sentence)]
    inside = [n for n, span in enumerate(spans) if span[0] < focus[1] and focus[0] < span[1]] or [0]
    spare = max(0, MOST_QUOTE_WORDS - (inside[-1] - inside[0] + 1))
    first = min(max(0, inside[0] - spare // 2), len(spans) - MOST_QUOTE_WORDS)
    return text[spans[first][0] : spans[first + MOST_QUOTE_WORDS - 1][1]]


def locate(document: Document, evidence: Evidence) -> tuple[int, int] | None:
    """Where the evidence stands in its document. Given offsets are taken when they fit its text."""
    start, end = evidence.start, evidence.end
    if start is not None and end is not None and 0 <= start < end <= len(document.text):
        there = normalize(document.text[start:end])
        if there and there == normalize(evidence.text or there):
            return start, end
    return find_span(document.text, evidence.text)


def chunk_of(chunks: Sequence[Chunk], span: tuple[int, int]) -> Chunk | None:
    """The chunk of one document that holds most of ``span``; of equals the one that has it furthest inside."""

    def held(chunk: Chunk) -> tuple[int, int]:
        overlap = min(chunk.end, span[1]) - max(chunk.start, span[0])
        return overlap, min(span[0] - chunk.start, chunk.end - span[1])

    best = max(chunks, key=held, default=None)
    return best if best is not None and held(best)[0] > 0 else None


def ground(item: QaItem, documents: Mapping[str, Document], chunks: Mapping[str, Sequence[Chunk]]) -> GroundedQuestion:
    """The question with its quotes found in the chunks: at most ``MOST_QUOTES``, fewer (or none) when its
    evidence does not stand in the documents.

    ``documents`` and ``chunks`` are by document id; gold documents that are not in them are passed over. Where a
    row names gold documents but no evidence, each one's best sentence is the quote. The reasoning is the first
    sentences of ``long_answer``, unless a gold document says the same words already.
    """
    gold = dict.fromkeys((*item.gold_document_ids, *(evidence.document_id for evidence in item.evidence)))
    known = {name: documents[name] for name in gold if name in documents}
    reasoning = _own_words(item, known)
    sought = "" if item.answer_type in CLOSED_TYPES else item.answer  # "no" stands in many a sentence
    quotes: dict[Passage, None] = {}
    for document_id, span in _spans(item, known, sought, reasoning):
        chunk = chunk_of(chunks.get(document_id, ()), span)
        text = quote_around(chunk.text, (span[0] - chunk.start, span[1] - chunk.start), sought) if chunk else ""
        if chunk is not None and text:
            quotes[Passage(chunk.id, text)] = None
    return GroundedQuestion(
        item.id, item.question, item.answer, item.answer_type, tuple(quotes)[:MOST_QUOTES], tuple(gold), "qa",
        aliases=item.aliases, reasoning=reasoning, reasoning_source="long_answer" if reasoning else "none",
        split=item.split,
    )  # fmt: skip


def _own_words(item: QaItem, gold: Mapping[str, Document]) -> str:
    """The first sentences of ``long_answer`` when they say more than the documents and the answer do."""
    text = shorten(item.long_answer)
    repeats = normalize(text) == normalize(item.answer) or any(find_span(d.text, text) for d in gold.values())
    return "" if repeats else text


def _spans(
    item: QaItem, gold: Mapping[str, Document], sought: str, reasoning: str
) -> list[tuple[str, tuple[int, int]]]:
    """Where the evidence stands, as (document id, span); where none is given, the sentence nearest to the reasoning
    (a question's own words would favour sentences that merely raise it), or to the question when there is none."""
    if item.evidence:
        located = [(e.document_id, locate(gold[e.document_id], e)) for e in item.evidence if e.document_id in gold]
    else:
        first = [gold[name] for name in item.gold_document_ids if name in gold][:MOST_QUOTES]
        located = [(d.id, best_sentence(d.text, sought, reasoning or item.question)) for d in first]
    return [(document_id, span) for document_id, span in located if span is not None]
