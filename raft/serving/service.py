"""What the routes share, and the record of each request that they leave."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fastapi import Request

from raft.records import Hit
from raft.serving.catalog import Catalog
from raft.serving.engine import Asked, Served
from raft.serving.gate import Gate
from raft.serving.guard import Guard
from raft.serving.keys import Caller

if TYPE_CHECKING:
    from raft.serving.audit import Audit
    from raft.serving.recent import Feedback

_LONGEST_NAME = 200
log = logging.getLogger("raft.serving")
Route = Literal["chat", "responses", "search"]
Outcome = Literal["answered", "abstained", "searched", "failed", "cancelled", "refused"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one request: until its hits were there (waiting and the rewriting of a follow-up counted); from then
    to the first words, waiting for its turn counted (None when none came); from beginning to end."""

    retrieval: float
    first_token: float | None
    total: float


@dataclass(frozen=True, slots=True)
class Exchange:
    """One finished request: who asked what, what was shown and served, how it ended. ``id`` is that of the answer.
    ``served`` is None where no whole answer was made; ``fingerprint`` is that of the index, and ``needs`` the labels
    of the documents that the model was tuned on."""

    id: str
    route: Route
    caller: Caller
    model: str
    asked: Asked
    hits: tuple[Hit, ...]
    served: Served | None
    outcome: Outcome
    timing: Timing
    fingerprint: str = ""
    needs: frozenset[str] = frozenset()

    @property
    def model_in_logs(self) -> str:
        """The model's name, which is the client's words until it is found, and may be long."""
        return self.model[:_LONGEST_NAME]


Listener = Callable[[Exchange], None]
"""Is told of every finished request: metrics, logs, the audit trail, answers that may be rated. Must not block."""


@dataclass(frozen=True, slots=True)
class Service:
    """Searches have a gate of their own, so that they do not wait behind answers. ``answer_seconds`` is the longest
    time for one answer; ``passages_as_events`` puts the passages into streams in Open WebUI's form."""

    catalog: Catalog
    guard: Guard
    answers: Gate
    searches: Gate
    started: int
    listeners: tuple[Listener, ...] = field(default=())
    feedback: Feedback | None = None
    answer_seconds: float | None = None
    passages_as_events: bool = False
    audit: Audit | None = None  # nothing is answered while it cannot be written

    def finished(self, exchange: Exchange) -> None:
        """Tell all listeners. One that breaks is logged: it takes no answer from its client."""
        for listener in self.listeners:
            try:
                listener(exchange)
            except Exception:
                log.exception("a listener broke")


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def caller_of(request: Request) -> Caller:
    """Who sent a request that came through a GuardedRoute."""
    caller: Caller = request.state.caller
    return caller
