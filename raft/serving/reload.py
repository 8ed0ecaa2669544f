"""New versions of indexes and adapters are served without a restart, and no request is dropped for it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import threading
import weakref
from collections.abc import Callable, Iterator

from raft.serving.catalog import Catalog
from raft.serving.engine import AnswerEngine
from raft.serving.open import Stock

log = logging.getLogger("raft.serving")


class Reloader:
    """Looks at a stock every ``seconds`` (0: never by itself), and whenever the process gets SIGHUP, which also tries
    again what could not be opened."""

    def __init__(self, stock: Stock, seconds: float) -> None:
        engines = stock.engines()
        self.catalog = Catalog(engines)
        self._stock = stock
        self._seconds = seconds or None
        self._engines = engines
        self._retired: list[weakref.ref[AnswerEngine]] = []

    async def run(self) -> None:
        """Look until cancelled. Opening is done in a thread: the event loop goes on."""
        asked = asyncio.Event()
        with _on_hangup(asked.set):
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asked.wait(), self._seconds)
                again = asked.is_set()
                asked.clear()
                await asyncio.to_thread(self.look, again)

    def look(self, again: bool = False) -> None:
        """Open what was made anew and serve it; requests in work keep what they began with."""
        self._collect()
        if self._stock.refresh(again):
            self._retired += map(weakref.ref, self._engines.values())
            self._engines = self._stock.engines()
            self.catalog.swap(self._engines)
            log.info("serving a new version")

    def _collect(self) -> None:
        """Give back the memory of engines that no request uses any more: parts of an index refer to each other, and
        such go only when somebody looks for them."""
        alive = [engine for engine in self._retired if engine() is not None]
        if len(alive) < len(self._retired):
            gc.collect()
        self._retired = alive


@contextlib.contextmanager
def _on_hangup(do: Callable[[], object]) -> Iterator[None]:
    """Signals reach the main thread alone; a server in another one does without."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGHUP"):
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, do)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
