"""How many requests are worked on at once, how many wait, and which are refused.

answers = Gate(workers=16, max_queue=32)
served = await answers.run(partial(engine.answer, asked))
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from raft.errors import ModelError

T = TypeVar("T")


class Overloaded(ModelError):
    """As many requests wait as may wait."""


class Gate:
    """Runs ``workers`` jobs at once, each in a thread of its own, lets ``max_queue`` more wait for their turn, and
    refuses the rest with Overloaded. The event loop never blocks."""

    def __init__(self, workers: int, max_queue: int) -> None:
        self._workers = workers
        self._places = self._room = workers + max_queue
        self._turns = asyncio.Semaphore(workers)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="raft-serving")

    @property
    def running(self) -> int:
        """How many jobs are worked on."""
        return min(self._workers, self._places - self._room)

    @property
    def waiting(self) -> int:
        """How many jobs wait for their turn."""
        return self._places - self._room - self.running

    @property
    def full(self) -> bool:
        """Whether the next job is refused."""
        return self._room == 0

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
        """What ``job`` returns. Raises Overloaded, and what the job raises.

        Whoever is cancelled meanwhile does not wait for the job, whose turn is free only when its thread is.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(self._place())
            await self._turns.acquire()
            held.callback(self._turns.release)
            future = asyncio.get_running_loop().run_in_executor(self._threads, job)
            kept = held.pop_all()
        future.add_done_callback(lambda _: kept.close())
        future.add_done_callback(_look_at)
        return await asyncio.shield(future)

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
    """Wait for the thread, even in a task that is being cancelled. What it raises then is nobody's any more."""
    import anyio

    with anyio.CancelScope(shield=True):
        await asyncio.wait([future])
    _look_at(future)


def _look_at(future: asyncio.Future[T]) -> None:
    """Or asyncio would log that nobody looked at what it raised."""
    if not future.cancelled():
        future.exception()
