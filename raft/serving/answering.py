"""One answer, from the search to the last word: what every route that answers shares.

answering = stream(service, Call("chatcmpl-4f", "chat", caller, "raft", Asked("What is the first dose?")))
await anext(answering)        # "", once admitted; Overloaded, Refused or PromptTooLong before that
async for piece in answering  # the words, and last the Exchange
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial

from raft.records import Hit
from raft.serving.engine import Asked, Served
from raft.serving.gate import Overloaded
from raft.serving.keys import Caller
from raft.serving.service import Exchange, Outcome, Route, Service, Timing


@dataclass(frozen=True, slots=True)
class Call:
    """A request for an answer, as a route has read it. ``id`` is that of the answer to come."""

    id: str
    route: Route
    caller: Caller
    model: str
    asked: Asked


async def answer(service: Service, call: Call) -> Exchange:
    """The whole answer. Raises what ``stream`` raises."""
    async with contextlib.aclosing(stream(service, call)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Exchange):
                return piece
    raise RuntimeError("an answer ended without its end")


async def stream(service: Service, call: Call) -> AsyncGenerator[str | Exchange, None]:
    """First "" once the request is admitted, then the words of the answer as they are made, last the Exchange.

    Raises Refused and Overloaded before the first piece, PromptTooLong too where it is plain; ModelError later.
    However it ends, the listeners of the service are told.
    """
    began = time.monotonic()
    hits: tuple[Hit, ...] = ()
    retrieval, first = 0.0, None
    outcome: Outcome = "cancelled"
    served: Served | None = None

    def exchange() -> Exchange:
        timing = Timing(retrieval, first, time.monotonic() - began)
        return Exchange(call.id, call.route, call.caller, call.model, call.asked, hits, served, outcome, timing)

    try:
        engine = service.catalog.engine(call.model, call.caller)
        hits = tuple(await service.searches.run(partial(engine.find, call.asked)))
        retrieval = time.monotonic() - began
        async with contextlib.aclosing(service.answers.stream(engine.stream(call.asked, hits))) as pieces:
            async for piece in pieces:
                if isinstance(piece, Served):
                    served = piece
                    outcome = "abstained" if served.answer.abstained else "answered"
                    yield exchange()
                    return
                if piece and first is None:
                    first = time.monotonic() - began - retrieval
                yield piece
    except Exception as error:
        outcome = "refused" if isinstance(error, Overloaded) else "failed"
        raise
    finally:
        service.finished(exchange())
