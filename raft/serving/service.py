"""What the routes share, and the record of each request that they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from fastapi import Request

from raft.records import Hit
from raft.serving.catalog import Catalog
from raft.serving.engine import Asked, Served
from raft.serving.gate import Gate
from raft.serving.guard import Guard
from raft.serving.keys import Caller

Route = Literal["chat", "responses", "search"]
Outcome = Literal["answered", "abstained", "searched", "failed", "cancelled", "refused"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one request: of the search; from the search to the first words, waiting for its turn counted (None
    when none came); from beginning to end."""

    retrieval: float
    first_token: float | None
    total: float


@dataclass(frozen=True, slots=True)
class Exchange:
    """One finished request: who asked what, what was shown and served, how it ended. ``id`` is that of the answer.
    ``served`` is None where no whole answer was made."""

    id: str
    route: Route
    caller: Caller
    model: str
    asked: Asked
    hits: tuple[Hit, ...]
    served: Served | None
    outcome: Outcome
    timing: Timing


Listener = Callable[[Exchange], None]
"""Is told of every finished request: metrics, logs, the audit trail, answers that may be rated. Must not block."""


@dataclass(frozen=True, slots=True)
class Service:
    """Searches have a gate of their own, so that they do not wait behind answers."""

    catalog: Catalog
    guard: Guard
    answers: Gate
    searches: Gate
    started: int
    listeners: tuple[Listener, ...] = field(default=())

    def finished(self, exchange: Exchange) -> None:
        for listener in self.listeners:
            listener(exchange)


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def caller_of(request: Request) -> Caller:
    """Who sent a request that came through a GuardedRoute."""
    caller: Caller = request.state.caller
    return caller
