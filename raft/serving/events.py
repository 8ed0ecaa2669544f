"""Answers as server-sent events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi.responses import StreamingResponse


class EventStream(StreamingResponse):
    """Server-sent events whose source is closed when the client leaves, not whenever it is garbage collected.

    ``source`` is what ``events`` are made of: when the client is gone before the first event, nobody has begun to draw
    from it, and so nothing in ``events`` would close it.
    """

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[Any, None], events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, headers={"x-accel-buffering": "no"})
        self._source = source
        self._events = events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with contextlib.aclosing(self._source), contextlib.aclosing(self._events):
            await super().__call__(scope, receive, send)
