"""question -> Answer. Closed-book, few-shot, RAG and RAFT are ways to fill the same call.

documents = [hit.chunk for hit in index.search([question], k=4)[0]]
messages  = prompts.build_messages(question, documents)
reply     = model.complete([ChatRequest(key, messages)])
answer    = prompts.parse_answer(reply.text)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raft.corpus.spans import find_span
from raft.llm.chat import ChatRequest
from raft.prompts import Shot, build_messages, is_refusal, parse_answer
from raft.records import Answer, Chunk


@dataclass(frozen=True, slots=True)
class Ask:
    """One question as a system sees it. ``chunks=None`` asks closed-book."""

    key: str
    question: str
    chunks: tuple[Chunk, ...] | None
    shots: tuple[Shot, ...] = ()
    short: bool = False
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class CheckedQuote:
    """A quote of an answer, looked up in the documents that were given.

    ``chunk`` is where it stands verbatim (None when nowhere) and ``start``, ``end`` its character offsets in
    that chunk's document. ``misnamed`` is True when it stands in another document than the answer says.
    """

    text: str
    chunk: Chunk | None
    start: int | None = None
    end: int | None = None
    misnamed: bool = False

    @property
    def verbatim(self) -> bool:
        return self.chunk is not None


def to_request(ask: Ask, max_new_tokens: int, temperature: float = 0.0, seed: int = 0) -> ChatRequest:
    """The request that puts ``ask`` to a model."""
    messages = build_messages(ask.question, ask.chunks, ask.shots, ask.short, ask.instruction)
    return ChatRequest(ask.key, tuple(messages), max_new_tokens, temperature, seed)


def read_answer(text: str, short: bool = False) -> Answer:
    """The Answer in a reply. A short reply is its own final answer: its first line, no marker expected."""
    if not short:
        return parse_answer(text)
    parsed = parse_answer(text)
    final = parsed.final if parsed.well_formed else next((ln.strip() for ln in text.splitlines() if ln.strip()), "")
    return Answer(text, final, "", parsed.quotes, is_refusal(final), True)


def check_quotes(answer: Answer, chunks: Sequence[Chunk]) -> list[CheckedQuote]:
    """Each quote of the answer, looked up in the given chunks; the named document is tried first."""
    return [_check_quote(quote.text, quote.document, chunks) for quote in answer.quotes]


def _check_quote(text: str, document: int | None, chunks: Sequence[Chunk]) -> CheckedQuote:
    named = chunks[document - 1] if document is not None and 0 < document <= len(chunks) else None
    ordered = [named, *chunks] if named is not None else list(chunks)
    for chunk in ordered:
        span = find_span(chunk.text, text)
        if span is not None:
            start, end = chunk.start + span[0], chunk.start + span[1]
            return CheckedQuote(text, chunk, start, end, misnamed=document is not None and chunk is not named)
    return CheckedQuote(text, None)
