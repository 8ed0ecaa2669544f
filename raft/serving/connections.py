"""How long a client may take to send a request and to read an answer, and how many connections may lie open meanwhile.

uvicorn waits for ever for headers that trickle in, one byte every few seconds, and for a body after the answer has gone
out: 300 such connections were once enough to hold honest clients back. Here

- a request's head must be there ``receive_seconds`` after the connection was opened or its first byte came (408, and
  the connection is closed), its body as much later at most (the routes refuse a slow one before that),
- who reads nothing of an answer for SEND_SECONDS is left,
- at most MOST_WAITING connections lie open without a request in work. When there are more, the address that has most
  of them loses its oldest: who sends requests loses none to who only holds connections open, even behind one proxy.

uvicorn.Config(app, http=protocol(receive_seconds=10.0), ws="none")
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SEND_SECONDS = 30.0
MOST_WAITING = 512
_FLUSH_SECONDS = 5.0  # for the last bytes of a connection that is being closed
_BODY = json.dumps(
    {"error": {"message": "the request did not arrive in time", "type": "invalid_request_error", "param": None,
               "code": "request_timeout"}}
).encode()  # fmt: skip
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


def protocol(receive_seconds: float, most_waiting: int = MOST_WAITING) -> Any:
    """What uvicorn.Config takes as ``http``; all connections that it makes share one Waiting."""
    return partial(Connection, receive_seconds=receive_seconds, waiting=Waiting(most_waiting))


def allow_many_sockets(most: int = 65_536) -> None:
    """Let this process open as many sockets as the system lets it, up to ``most``: the usual 1024 are soon used up by
    clients that only hold connections open."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Waiting:
    """The open connections without a request in work, by the address that they come from, the oldest first."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        self._count = 0
        self._by_address: dict[str, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, connection: Connection) -> None:
        """Take it in where it is not there yet. When there are too many, the address with most loses its oldest."""
        same = self._by_address.setdefault(connection.address, {})
        if connection in same:
            return
        same[connection] = None
        self._count += 1
        if self._count > self._most:
            most = max(self._by_address.values(), key=len)
            oldest = next(iter(most))
            self.discard(oldest)
            oldest.transport.abort()

    def discard(self, connection: Connection) -> None:
        same = self._by_address.get(connection.address, {})
        if connection not in same:
            return
        del same[connection]
        self._count -= 1
        if not same:
            del self._by_address[connection.address]


class Connection(H11Protocol):
    """One connection of HTTP/1.1 with the deadlines above."""

    def __init__(self, *given: Any, receive_seconds: float, waiting: Waiting, **named: Any) -> None:
        super().__init__(*given, **named)
        self.address = ""
        self._receive_seconds = receive_seconds
        self._waiting = waiting
        self._deadline: asyncio.TimerHandle | None = None  # of the request that is being received
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.address = self.client[0] if self.client else ""
        self._expect_request()
        self._waiting.add(self)

    def data_received(self, data: bytes) -> None:
        self._expect_request()
        super().data_received(data)
        self._take_stock()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._take_stock()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._waiting.discard(self)
        for timer in (self._deadline, self._unread):
            if timer is not None:
                timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._leave()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_request(self) -> None:
        """Start the time of a request, unless it runs already: more bytes of the same request never move it."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._receive_seconds, self._too_late)

    def _take_stock(self) -> None:
        """After anything has come or gone: stop the time of a request that is whole, and count the connection."""
        nothing_new = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0] and self.cycle is not None
        if self._deadline is not None and (nothing_new or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)):
            self._deadline.cancel()
            self._deadline = None
        if self._answering or self.transport.is_closing():
            self._waiting.discard(self)
        else:
            self._waiting.add(self)

    def _too_late(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.SEND_BODY and self._answering:
            self._deadline = self.loop.call_later(self._receive_seconds, self._leave)  # the route says so itself
            return
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.write(_TOO_SLOW)
        self._leave()

    def _leave(self) -> None:
        """Close the connection, and drop what its client does not read."""
        self.transport.close()
        self.loop.call_later(_FLUSH_SECONDS, self.transport.abort)
