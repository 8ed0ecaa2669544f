"""question -> Served: the chunks that were retrieved, the answer, and the citations that hold.

One citation, for the answer ``Document [1] says ##begin_quote##Adults start with 12 mg by mouth.##end_quote## ...``::

    Citation(quote="Adults start with 12 mg by mouth.", hit=Hit(chunk=Chunk("formulary/corvalexin.md#0", ...), rank=1),
             start=204, end=237, text_start=34, text_end=67)

``document.text[204:237]`` are these very words: a quote that stands in none of the retrieved chunks is never a
citation, whatever the model claims.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from raft.config import SearchMode
from raft.errors import ModelError
from raft.llm.chat import ChatModel, ChatReply, ChatRequest, PromptTooLong
from raft.prompts import parse_answer, quote_spans, render_refusal
from raft.qa import Ask, check_quotes, to_request
from raft.records import Answer, Hit

if TYPE_CHECKING:
    from raft.retrieval.index import Retriever

T = TypeVar("T")


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

    def search(self, query: str, k: int | None = None) -> list[Hit]:
        """The best ``k`` chunks (the engine's ``top_k`` when None), best first."""
        with self._searching:
            return self._retriever.search([query], k or self._top_k, self._mode)[0]

    def answer(self, question: str, k: int | None = None, max_tokens: int | None = None) -> Served:
        """The answer from the best ``k`` chunks; at most ``max_tokens`` are written, and never more than the
        engine's own limit. Raises ModelError when the model gives none, PromptTooLong when k is too many for it."""
        hits = self.search(question, k)
        if not hits:
            return _refuse()
        reply = next(iter(self._model.complete([self._request(question, hits, max_tokens)])))
        if reply.too_long:
            raise PromptTooLong(reply.error or "the prompt exceeds the model's window")
        if reply.error is not None:
            raise ModelError(f"the model gave no answer ({reply.error})")
        return _served(reply.text, hits, reply)

    def find(self, question: str, k: int | None = None, max_tokens: int | None = None) -> list[Hit]:
        """The hits for ``stream``, looked up beforehand from any thread. Raises PromptTooLong when it is plain that
        the model cannot read so many."""
        hits = self.search(question, k)
        if hits:
            self._model.check(self._request(question, hits, max_tokens))
        return hits

    def stream(
        self, question: str, k: int | None = None, max_tokens: int | None = None, hits: Sequence[Hit] | None = None
    ) -> Generator[str, None, Served]:
        """As ``answer``, in pieces: yields the text as it is made and returns what was served. ``hits`` are those of
        ``find``, and searched for when None."""
        hits = self.search(question, k) if hits is None else hits
        if not hits:
            served = _refuse()
            yield served.answer.text
            return served
        pieces: list[str] = []
        reply = yield from _keeping(self._model.stream(self._request(question, hits, max_tokens)), pieces)
        return _served("".join(pieces), hits, reply)

    def _request(self, question: str, hits: Sequence[Hit], max_tokens: int | None) -> ChatRequest:
        limit = min(max_tokens or self._max_new_tokens, self._max_new_tokens)
        return to_request(Ask("served", question, tuple(hit.chunk for hit in hits)), limit, self._temperature)


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


class Overloaded(ModelError):
    """As many requests wait as may wait."""


class Gate:
    """Runs ``workers`` jobs at once, each in a thread of its own, lets ``max_queue`` more wait for their turn, and
    refuses the rest with Overloaded. The event loop never blocks."""

    def __init__(self, workers: int, max_queue: int) -> None:
        self._room = workers + max_queue
        self._turns = asyncio.Semaphore(workers)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="raft-serving")

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._room == 0:
            raise Overloaded("as many requests wait as may wait", "Try again in a few seconds")
        self._room -= 1
        try:
            yield
        finally:
            self._room += 1

    async def run(self, job: Callable[[], T]) -> T:
        """What ``job`` returns. Raises Overloaded, and what the job raises."""
        with self._place():
            async with self._turns:
                return await asyncio.get_running_loop().run_in_executor(self._threads, job)

    async def stream(self, job: Generator[str, None, T]) -> AsyncGenerator[str | T, None]:
        """First an empty piece, once the job has a place in the queue; then its pieces, and last what it returns.

        Closing this generator stops the job at its next piece, and waits until it has stopped, so that the turn
        is free only when the model is. Raises Overloaded before the first piece, later what the job raises.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[str | None] = asyncio.Queue()
        left = threading.Event()
        with self._place():
            yield ""
            async with self._turns:
                future = loop.run_in_executor(
                    self._threads, _pump, job, lambda piece: loop.call_soon_threadsafe(arrived.put_nowait, piece), left
                )
                future.add_done_callback(lambda _: arrived.put_nowait(None))
                try:
                    while (piece := await arrived.get()) is not None:
                        yield piece
                    result = await future
                    if result is not None:
                        yield result
                finally:
                    left.set()
                    await _settled(future)


def _pump(job: Generator[str, None, T], tell: Callable[[str], object], left: threading.Event) -> T | None:
    """Run a generator to its end, or until ``left`` is set, in one thread: models keep per-thread state."""
    with contextlib.closing(job):
        while not left.is_set():
            try:
                tell(next(job))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
    return None


async def _settled(future: asyncio.Future[T]) -> None:
    """Wait for the thread, even in a task that is being cancelled."""
    import anyio

    with anyio.CancelScope(shield=True):
        await asyncio.wait([future])
