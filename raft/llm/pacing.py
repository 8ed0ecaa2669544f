"""How many calls an endpoint gets at once: what is allowed, fewer after it said 429, slowly more as it answers.

512 in flight, one answered 429 with Retry-After: 2
    after two rounds of answers without a refusal: anybody's bad luck
                       it waits for 2 s, the others go on, 460 in flight
    another one within these 2 s, or sooner after a refusal: a limit
                       for 2 s nobody asks; other calls that come back 429 meanwhile belong to the same refusal;
                       then 256 in flight
    every answer       adds GROWTH to that, so that a round of answers is followed by 5 % more calls
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

GROWTH = 0.05  # calls more in flight for every answer
CUT, LONE_CUT = 0.5, 0.9  # what a refusal leaves of the calls in flight
FIRST_PAUSE_SECONDS = 2.0  # after a refusal that names no time; doubled when the next call is refused as well
LONGEST_PAUSE_SECONDS = 60.0  # limits are most often counted by the minute


class Pace:
    """Lets calls in, up to ``most`` at once, from one event loop. ``refusals`` is how many refusals in a row, each
    after its pause, came without any answer between them; lone ones do not count."""

    def __init__(self, most: int) -> None:
        self.refusals = 0
        self._most = most
        self._limit = float(most)
        self._answers = 0  # since the last refusal
        self._running = 0
        self._resume_at = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._alone: set[asyncio.Future[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None

    async def enter(self, again: bool = False) -> float:
        """Waits for room, a call that is tried ``again`` before the others; returns when it starts, in seconds of the
        loop's clock. Call ``leave`` after it."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        (self._waiting.appendleft if again else self._waiting.append)(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # let in and cancelled at once: the room is another's
            raise
        return loop.time()

    def leave(self) -> None:
        self._running -= 1
        self._admit()

    def answered(self) -> None:
        self.refusals = 0
        self._answers += 1
        self._limit = min(float(self._most), self._limit + GROWTH)

    def refused(self, started_at: float, wait_seconds: float | None) -> float:
        """The call that started then was told to come back later, in ``wait_seconds`` if the endpoint named a time.
        Returns how long it is to wait before it asks for room again; 0 where all wait."""
        lone = self._answers >= 2 * self._limit
        if started_at >= self._resume_at:
            self.refusals += not lone
            self._limit = max(1.0, self._limit * (LONE_CUT if lone else CUT))
            self._answers = 0
        if wait_seconds is None:
            wait_seconds = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** max(0, self.refusals - 1))
        if lone:
            return wait_seconds
        self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + wait_seconds)
        return 0.0

    async def wait_alone(self, seconds: float) -> None:
        """Waits before a call is tried again, unless it is given up meanwhile."""
        if seconds <= 0:
            return
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._alone.add(over)
        try:
            await asyncio.wait([over], timeout=seconds)
        finally:
            self._alone.discard(over)

    def give_up(self) -> None:
        """Let everybody in at once, to find that nothing is asked any more."""
        for over in self._alone:
            if not over.done():
                over.set_result(None)
        self._resume_at = 0.0
        self._limit = math.inf
        self._admit()

    def _admit(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._resume_at:
            if self._alarm is None:
                self._alarm = loop.call_at(self._resume_at, self._after_pause)
            return
        while self._waiting and self._running + 1 <= self._limit:
            turn = self._waiting.popleft()
            if not turn.done():  # a cancelled call waits no more
                self._running += 1
                turn.set_result(None)

    def _after_pause(self) -> None:
        self._alarm = None
        self._admit()
