"""question -> Served: the chunks that were retrieved, the answer, and the citations that hold.

One citation, for the answer ``Document [1] says ##begin_quote##Adults start with 12 mg by mouth.##end_quote## ...``::

    Citation(quote="Adults start with 12 mg by mouth.", hit=Hit(chunk=Chunk("formulary/corvalexin.md#0", ...), rank=1),
             start=204, end=237, text_start=34, text_end=67)

``document.text[204:237]`` are these very words: a quote that stands in none of the retrieved chunks is never a
citation, whatever the model claims.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raft.config import SearchMode
from raft.llm.chat import ChatModel, ChatReply, ChatRequest, PromptTooLong
from raft.prompts import parse_answer, quote_spans, render_refusal
from raft.qa import Ask, check_quotes, to_request
from raft.records import EVERYTHING, Answer, Filter, Hit
from raft.serving import conversation
from raft.serving.conversation import FollowUps, Reading
from raft.serving.conversation import Turn as Turn

if TYPE_CHECKING:
    from raft.retrieval.index import Retriever


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to the engine. ``earlier`` are the turns before it, oldest first; ``top_k`` and ``max_tokens`` are
    the engine's own when None, and ``max_tokens`` is never more than the engine's limit; ``where`` says which documents
    it may be answered from."""

    question: str
    earlier: tuple[Turn, ...] = ()
    top_k: int | None = None
    max_tokens: int | None = None
    where: Filter = EVERYTHING


@dataclass(frozen=True, slots=True)
class Citation:
    """A quote of the answer that stands verbatim in a retrieved chunk.

    ``quote`` is ``document.text[start:end]``, the document's own spelling; ``text_start`` and ``text_end`` say
    where the answer's text quotes it.
    """

    quote: str
    hit: Hit
    start: int
    end: int
    text_start: int
    text_end: int


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer is to be made from: how the question was understood, the hits that the model is given, and the
    number of those that were ``dropped``, the last ones, because its window does not hold them."""

    reading: Reading
    hits: tuple[Hit, ...]
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """One answered question. ``hits`` are those that the model was given, ``dropped`` the number of those that its
    window did not hold, ``query`` what was searched for and ``question`` what the model was asked. ``unverified``
    counts the quotes that were dropped because no chunk holds them; ``reply`` has the token counts, and is None when
    the model streams without counting."""

    answer: Answer
    hits: tuple[Hit, ...]
    citations: tuple[Citation, ...]
    unverified: int
    reply: ChatReply | None
    dropped: int = 0
    query: str = ""
    question: str = ""

    @property
    def truncated(self) -> bool:
        """Whether the text was cut at its limit."""
        return self.reply is not None and self.reply.truncated


class AnswerEngine:
    """Answers questions from an index, whose ``fingerprint`` it reports, with a chat model that may be asked by those
    who hold the labels it ``needs`` (it was tuned on such documents, and may repeat their words).

    ``concurrency`` says how many calls of ``stream`` may be made at once (see ``Gate``). A retriever is searched by one
    thread at a time.
    """

    def __init__(
        self,
        retriever: Retriever,
        model: ChatModel,
        fingerprint: str,
        *,
        top_k: int = 4,
        mode: SearchMode = "fused",
        max_new_tokens: int = 192,
        temperature: float = 0.0,
        follow_ups: FollowUps = "join",
        needs: frozenset[str] = frozenset(),
    ) -> None:
        self.fingerprint = fingerprint
        self.needs = needs
        self._retriever = retriever
        self._model = model
        self._top_k = top_k
        self._mode = mode
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._follow_ups = follow_ups

    @property
    def concurrency(self) -> int:
        """How many answers the model makes at once."""
        return self._model.concurrency

    def search(self, query: str, k: int | None = None, where: Filter = EVERYTHING) -> list[Hit]:
        """The best ``k`` chunks (the engine's ``top_k`` when None) that ``where`` allows, best first."""
        return self._retriever.search([query], k or self._top_k, self._mode, where)[0]

    def asks_before_it_searches(self, asked: Asked) -> bool:
        """Whether ``read`` needs the model."""
        return self._follow_ups == "model" and asked.earlier != ()

    def read(self, asked: Asked) -> Reading:
        """How the question is understood after those before it."""
        return conversation.read(asked.question, asked.earlier, self._follow_ups, self._model)

    def find(self, asked: Asked, reading: Reading | None = None) -> Found:
        """What ``stream`` answers from, looked up beforehand; ``reading`` is that of ``read``, and made when None.

        Where it is plain that the model's window does not hold all hits, the last ones are left out. Raises
        PromptTooLong when it does not hold even one.
        """
        reading = reading or self.read(asked)
        hits = self.search(reading.query, asked.top_k, asked.where)
        count = self._fitting(asked, Found(reading, tuple(hits)))
        return Found(reading, tuple(hits[:count]), len(hits) - count)

    def answer(self, asked: Asked, found: Found | None = None) -> Served:
        """As ``stream``, all at once."""
        pieces = self.stream(asked, found)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    def stream(self, asked: Asked, found: Found | None = None) -> Generator[str, None, Served]:
        """Answer in pieces: yields the text as it is made and returns what was served. ``found`` is that of ``find``,
        and looked up when None.

        An endpoint says only when it is asked that its window does not hold the prompt: it is asked again with fewer
        hits then. Raises ModelError when the model gives no answer, PromptTooLong when it cannot read even one hit.
        """
        found = found or self.find(asked)
        if not found.hits:
            served = _refuse(found)
            yield served.answer.text
            return served
        pieces: list[str] = []
        while True:
            try:
                reply = yield from _keeping(self._model.stream(self._request(asked, found)), pieces)
                return _served("".join(pieces), found, reply)
            except PromptTooLong:
                if any(pieces) or len(found.hits) == 1:
                    raise
            found = _without_the_last(found)

    def _fitting(self, asked: Asked, found: Found) -> int:
        """How many of the hits, from the first one on, the model's window holds."""

        def too_many(count: int) -> bool:
            try:
                self._model.check(self._request(asked, Found(found.reading, found.hits[:count])))
            except PromptTooLong:
                if count == 1:
                    raise
                return True
            return False

        most = len(found.hits)
        if most == 0 or not too_many(most):
            return most
        return bisect_left(range(1, most), True, key=too_many)

    def _request(self, asked: Asked, found: Found) -> ChatRequest:
        limit = min(asked.max_tokens or self._max_new_tokens, self._max_new_tokens)
        chunks = tuple(hit.chunk for hit in found.hits)
        return to_request(Ask("served", found.reading.question, chunks), limit, self._temperature)


def _without_the_last(found: Found) -> Found:
    """A quarter of the hits less: few steps for many hits, and of four or fewer one at a time."""
    kept = len(found.hits) - max(1, len(found.hits) // 4)
    return Found(found.reading, found.hits[:kept], found.dropped + len(found.hits) - kept)


def _keeping(pieces: Iterator[str], kept: list[str]) -> Generator[str, None, ChatReply | None]:
    """The pieces, each also added to ``kept``; returns what the iterator returns."""
    with contextlib.closing(pieces) if isinstance(pieces, Generator) else contextlib.nullcontext():
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                return end.value if isinstance(end.value, ChatReply) else None
            kept.append(piece)
            yield piece


def _refuse(found: Found) -> Served:
    """What is served when the search finds nothing: the model is not asked, for it could only invent."""
    text = render_refusal()
    reading = found.reading
    return Served(parse_answer(text), (), (), 0, ChatReply("served", text), 0, reading.query, reading.question)


def _served(text: str, found: Found, reply: ChatReply | None) -> Served:
    hits = found.hits
    answer = parse_answer(text)
    by_chunk = {hit.chunk.id: hit for hit in hits}
    checked = check_quotes(answer, [hit.chunk for hit in hits])
    citations = []
    for quote, (text_start, text_end) in zip(checked, quote_spans(text), strict=True):
        chunk, start, end = quote.chunk, quote.start, quote.end
        if chunk is not None and start is not None and end is not None:
            words = chunk.text[start - chunk.start : end - chunk.start]
            citations.append(Citation(words, by_chunk[chunk.id], start, end, text_start, text_end))
    unverified = len(checked) - len(citations)
    reading = found.reading
    return Served(
        answer, hits, tuple(citations), unverified, reply, found.dropped, reading.query, reading.question
    )  # fmt: skip
