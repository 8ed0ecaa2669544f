"""question -> Served: the chunks that were retrieved, the answer, and the citations that hold.

One citation, for the answer ``Document [1] says ##begin_quote##Adults start with 12 mg by mouth.##end_quote## ...``::

    Citation(quote="Adults start with 12 mg by mouth.", hit=Hit(chunk=Chunk("formulary/corvalexin.md#0", ...), rank=1),
             start=204, end=237, text_start=34, text_end=67)

``document.text[204:237]`` are these very words: a quote that stands in none of the retrieved chunks is never a
citation, whatever the model claims.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raft.config import SearchMode
from raft.errors import ModelError
from raft.llm.chat import ChatModel, ChatReply, ChatRequest, PromptTooLong
from raft.prompts import parse_answer, quote_spans, render_refusal
from raft.qa import Ask, check_quotes, to_request
from raft.records import EVERYTHING, Answer, Filter, Hit

if TYPE_CHECKING:
    from raft.retrieval.index import Retriever


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question of a conversation, and the answer that was given to it."""

    question: str
    answer: str


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
class Served:
    """One answered question. ``unverified`` counts the quotes that were dropped because no chunk holds them;
    ``reply`` has the token counts, and is None when the model streams without counting."""

    answer: Answer
    hits: tuple[Hit, ...]
    citations: tuple[Citation, ...]
    unverified: int
    reply: ChatReply | None


class AnswerEngine:
    """Answers questions from an index, whose ``fingerprint`` it reports, with a chat model.

    Calls of ``answer`` and ``stream`` are to be made one at a time for a local model (see ``Gate``); ``search``
    may be called from any thread.
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
    ) -> None:
        self.fingerprint = fingerprint
        self._retriever = retriever
        self._model = model
        self._top_k = top_k
        self._mode = mode
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._searching = threading.Lock()  # a fast tokenizer must not be used by two threads at once

    def search(self, query: str, k: int | None = None, where: Filter = EVERYTHING) -> list[Hit]:
        """The best ``k`` chunks (the engine's ``top_k`` when None) that ``where`` allows, best first."""
        with self._searching:
            return self._retriever.search([query], k or self._top_k, self._mode, where)[0]

    def answer(self, asked: Asked) -> Served:
        """Raises ModelError when the model gives no answer, PromptTooLong when ``top_k`` is too many for it."""
        hits = self.search(asked.question, asked.top_k, asked.where)
        if not hits:
            return _refuse()
        reply = next(iter(self._model.complete([self._request(asked, hits)])))
        if reply.too_long:
            raise PromptTooLong(reply.error or "the prompt exceeds the model's window")
        if reply.error is not None:
            raise ModelError(f"the model gave no answer ({reply.error})")
        return _served(reply.text, hits, reply)

    def find(self, asked: Asked) -> list[Hit]:
        """The hits for ``stream``, looked up beforehand from any thread. Raises PromptTooLong when it is plain that
        the model cannot read so many."""
        hits = self.search(asked.question, asked.top_k, asked.where)
        if hits:
            self._model.check(self._request(asked, hits))
        return hits

    def stream(self, asked: Asked, hits: Sequence[Hit] | None = None) -> Generator[str, None, Served]:
        """As ``answer``, in pieces: yields the text as it is made and returns what was served. ``hits`` are those of
        ``find``, and searched for when None."""
        hits = self.search(asked.question, asked.top_k, asked.where) if hits is None else hits
        if not hits:
            served = _refuse()
            yield served.answer.text
            return served
        pieces: list[str] = []
        reply = yield from _keeping(self._model.stream(self._request(asked, hits)), pieces)
        return _served("".join(pieces), hits, reply)

    def _request(self, asked: Asked, hits: Sequence[Hit]) -> ChatRequest:
        limit = min(asked.max_tokens or self._max_new_tokens, self._max_new_tokens)
        return to_request(Ask("served", asked.question, tuple(hit.chunk for hit in hits)), limit, self._temperature)


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


def _refuse() -> Served:
    """What is served when the search finds nothing: the model is not asked, for it could only invent."""
    text = render_refusal()
    return Served(parse_answer(text), (), (), 0, ChatReply("served", text))


def _served(text: str, hits: Sequence[Hit], reply: ChatReply | None) -> Served:
    answer = parse_answer(text)
    by_chunk = {hit.chunk.id: hit for hit in hits}
    checked = check_quotes(answer, [hit.chunk for hit in hits])
    citations = []
    for quote, (text_start, text_end) in zip(checked, quote_spans(text), strict=True):
        chunk, start, end = quote.chunk, quote.start, quote.end
        if chunk is not None and start is not None and end is not None:
            words = chunk.text[start - chunk.start : end - chunk.start]
            citations.append(Citation(words, by_chunk[chunk.id], start, end, text_start, text_end))
    return Served(answer, tuple(hits), tuple(citations), len(checked) - len(citations), reply)
