"""One answer, from the search to the last word: what every route that answers shares.

answering = stream(service, Call("chatcmpl-4f", "chat", caller, "raft", Asked("What is the first dose?")))
await anext(answering)        # Found, once admitted; Overloaded, Refused, PromptTooLong or TimedOut before that
async for piece in answering  # the words, and last the Exchange
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import anyio
from fastapi import Request

from raft.records import Hit
from raft.serving.engine import AnswerEngine, Asked, Found, Served
from raft.serving.gate import Overloaded
from raft.serving.http_errors import Refused
from raft.serving.keys import Caller
from raft.serving.limits import Deadline
from raft.serving.service import Exchange, Outcome, Route, Service, Timing

T = TypeVar("T")
Pieces = AsyncGenerator[Found | str | Exchange, None]
_CLIENT_LEFT = 499  # of no use to who left; it stands in logs


@dataclass(frozen=True, slots=True)
class Call:
    """A request, as a route has read it. ``id`` is that of the answer to come."""

    id: str
    route: Route
    caller: Caller
    model: str
    asked: Asked

    @property
    def asker(self) -> Caller:
        """The caller with the labels that this request uses: they choose the models too."""
        return replace(self.caller, labels=self.asked.where.labels)


async def answer(service: Service, call: Call) -> Exchange:
    """The whole answer. Raises what ``stream`` raises."""
    async with contextlib.aclosing(stream(service, call)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Exchange):
                return piece
    raise RuntimeError("an answer ended without its end")


async def stream(service: Service, call: Call) -> Pieces:
    """First what was found, once the request is admitted, then the words of the answer as they are made, last the
    Exchange.

    Raises Refused and Overloaded before the first piece, PromptTooLong too where it is plain; ModelError later.
    However it ends, the listeners of the service are told: of a whole answer before its last piece.
    """
    record = _Record(service, call)
    due = Deadline(service.answer_seconds)
    try:
        engine = service.catalog.engine(call.model, call.asker)
        record.engine = engine
        found = await due.result(_find(service, engine, call.asked))
        record.found(found.hits)
        async with contextlib.aclosing(due.pieces(service.answers.stream(engine.stream(call.asked, found)))) as pieces:
            await anext(pieces)  # there is a place in the queue
            yield found
            async for piece in pieces:
                if isinstance(piece, Served):
                    record.answered(piece)
                    yield record.tell()
                    return
                if piece:
                    record.wrote()
                yield piece
    except Exception as error:
        record.failed(error)
        raise
    finally:
        record.tell()


async def _find(service: Service, engine: AnswerEngine, asked: Asked) -> Found:
    reading = None
    if engine.asks_before_it_searches(asked):
        reading = await service.answers.run(partial(engine.read, asked))
    return await service.searches.run(partial(engine.find, asked, reading))


async def search(service: Service, call: Call, engine: AnswerEngine) -> list[Hit]:
    """The hits for a query, best first; the listeners of the service are told. Raises Overloaded, and what the index
    raises."""
    record = _Record(service, call, engine)
    try:
        look_up = partial(engine.search, call.asked.question, call.asked.top_k, call.asked.where)
        hits = await Deadline(service.answer_seconds).result(service.searches.run(look_up))
        record.found(tuple(hits))
        record.outcome = "searched"
    except Exception as error:
        record.failed(error)
        raise
    finally:
        record.tell()
    return hits


async def unless_left(request: Request, job: Awaitable[T]) -> T:
    """What ``job`` gives. It is cancelled when the client leaves: nobody waits for it, others do."""
    result: list[T] = []
    failure: list[Exception] = []
    async with anyio.create_task_group() as both:

        async def work() -> None:
            try:
                result.append(await job)
            except Exception as error:  # noqa: BLE001 - raised below, out of the group, which would wrap it
                failure.append(error)
            both.cancel_scope.cancel()

        both.start_soon(work)
        while (await request.receive())["type"] != "http.disconnect":
            pass  # the body has been read; what may still come of it is empty
        both.cancel_scope.cancel()
    if failure:
        raise failure[0]
    if not result:
        raise Refused(_CLIENT_LEFT, "the client left")
    return result[0]


@dataclass(slots=True)
class _Record:
    """What is known of a request so far; ``tell`` says it to the listeners, once."""

    service: Service
    call: Call
    engine: AnswerEngine | None = None
    hits: tuple[Hit, ...] = ()
    served: Served | None = None
    outcome: Outcome = "cancelled"
    began: float = field(default_factory=time.monotonic)
    retrieval: float = 0.0
    first: float | None = None
    told: Exchange | None = None

    def found(self, hits: tuple[Hit, ...]) -> None:
        self.hits = hits
        self.retrieval = time.monotonic() - self.began

    def wrote(self) -> None:
        if self.first is None:
            self.first = time.monotonic() - self.began - self.retrieval

    def answered(self, served: Served) -> None:
        self.served = served
        if self.call.route != "responses":  # whose streams send all that was found before the model is asked
            self.hits = served.hits
        self.outcome = "abstained" if served.answer.abstained else "answered"

    def failed(self, error: Exception) -> None:
        self.outcome = "refused" if isinstance(error, Overloaded | Refused) else "failed"

    def tell(self) -> Exchange:
        if self.told is None:
            call, timing = self.call, Timing(self.retrieval, self.first, time.monotonic() - self.began)
            fingerprint, needs = (self.engine.fingerprint, self.engine.needs) if self.engine else ("", frozenset[str]())
            self.told = Exchange(
                call.id, call.route, call.caller, call.model, call.asked, self.hits, self.served, self.outcome, timing,
                fingerprint, needs,
            )  # fmt: skip
            self.service.finished(self.told)
        return self.told
