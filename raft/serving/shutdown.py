"""A stop that breaks no answer off: what is in work is finished, new requests are sent elsewhere meanwhile.

SIGTERM -> /readyz says no, new requests get 503 -> what is in work ends, or its time is over -> the process ends
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import uvicorn

from raft.serving.http_errors import RETRY_AFTER_SECONDS, error_response
from raft.serving.middleware import Receive, Send

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_TICK = 0.05


@dataclass(slots=True)
class Drain:
    """How many requests are in work, and whether new ones are refused."""

    in_work: int = 0
    stopping: bool = False


class Draining:
    """ASGI middleware: counts what is in work, and refuses all but the probes with 503 once the server stops."""

    def __init__(self, app: Any, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._drain.stopping and scope["path"] not in PROBES:
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS), "Connection": "close"}
            message = "the server is stopping; try again in a few seconds"
            refusal = error_response(503, message, kind="server_error", code="shutting_down", headers=headers)
            await refusal(scope, receive, send)
        else:
            self._drain.in_work += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._drain.in_work -= 1


class DrainingServer(uvicorn.Server):
    """A uvicorn server that goes on listening while it finishes what is in work, ``seconds`` at most, so that who asks
    meanwhile is told to come back instead of finding nobody. A second Ctrl-C stops it at once."""

    def __init__(self, config: uvicorn.Config, drain: Drain, seconds: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._seconds = seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._drain.stopping = True
        end = time.monotonic() + self._seconds
        while self._drain.in_work and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(_TICK)
        await super().shutdown(sockets)
