"""How often one caller may ask, and how long one answer may take.

due = Deadline(120.0)
hits = await due.result(service.searches.run(look_up))          # TimedOut once the time is over
async for piece in due.pieces(service.answers.stream(job)): ...  # the same time, for all of them together

limits = RateLimits()
limits.take("intranet", 60)   # Allowance(limit=60, remaining=59, reset=1.0, wait=0.0)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from raft.errors import ModelError

T = TypeVar("T")
_ROUNDING = 1e-6  # who comes back exactly when told to is let through


class TimedOut(ModelError):
    """An answer took longer than one answer may take."""


class Deadline:
    """The time by which a whole answer is to be made, counted from now: its search, its turn, its words."""

    def __init__(self, seconds: float | None = None) -> None:
        """``None`` is no deadline."""
        self._end = None if seconds is None else time.monotonic() + seconds

    async def result(self, job: Awaitable[T]) -> T:
        """What ``job`` gives; it is cancelled, and TimedOut raised, once the time is over."""
        try:
            return await asyncio.wait_for(job, self._left())
        except TimeoutError:
            raise _timed_out() from None

    async def pieces(self, source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The pieces of ``source``, which is closed however this one ends.

        Raises TimedOut once the time is over, without waiting for a source that is slow to stop: a model may be deep in
        a prompt, and the client is not to wait for it. Such a source is told to stop and ends by itself.
        """
        step: asyncio.Future[Any] | None = None
        over = False
        try:
            while True:
                step = asyncio.ensure_future(_next(source))
                await asyncio.wait([step], timeout=self._left())
                if over := not step.done() or self._left() == 0:
                    raise _timed_out()
                piece = step.result()
                if piece is _END:
                    return
                yield piece
        finally:
            if step is not None and (over or not step.done()):
                _leave(step, source)
            else:
                await source.aclose()

    def _left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())


_END = object()
_CLOSING: set[asyncio.Future[None]] = set()  # the event loop itself keeps no task alive


async def _next(source: AsyncGenerator[T, None]) -> T | object:
    return await anext(source, _END)


def _leave(step: asyncio.Future[Any], source: AsyncGenerator[Any, None]) -> None:
    """Stop a source in the middle of a step, without waiting for it."""
    step.cancel()
    closing = asyncio.ensure_future(_closed(step, source))
    _CLOSING.add(closing)
    closing.add_done_callback(_CLOSING.discard)


async def _closed(step: asyncio.Future[Any], source: AsyncGenerator[Any, None]) -> None:
    with contextlib.suppress(Exception):  # of an answer that nobody waits for any more
        await asyncio.wait([step])
        if not step.cancelled():
            step.exception()  # looked at, or asyncio would log that nobody did
        await source.aclose()  # a step that was cancelled before it began has not reached the source


def _timed_out() -> TimedOut:
    return TimedOut("the answer took longer than one answer may take", "Ask again, or for a shorter one (max_tokens)")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a caller has left: of ``limit`` requests a minute, ``remaining`` may come at once; all of them again in
    ``reset`` seconds. ``wait`` is 0 when the request was let through, else the seconds until the next one is."""

    limit: int
    remaining: int
    reset: float
    wait: float


class RateLimits:
    """A token bucket for each caller: it holds as many requests as a minute allows, and fills evenly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # what was in it, and when

    def take(self, caller: str, per_minute: int) -> Allowance:
        """Take one request out of a caller's bucket, if there is one."""
        now = self._clock()
        held, then = self._buckets.get(caller, (float(per_minute), now))
        held = min(float(per_minute), held + (now - then) * per_minute / 60)
        wait = 0.0 if held > 1 - _ROUNDING else (1 - held) * 60 / per_minute
        if wait == 0:
            held = max(0.0, held - 1)
        self._buckets[caller] = (held, now)
        return Allowance(per_minute, int(held), (per_minute - held) * 60 / per_minute, wait)
