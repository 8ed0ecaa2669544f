"""Many streams from one transformers model: those who ask join the rows that are decoded already (decode.py).

One thread decodes while anybody waits, and ends with the last answer. Between two steps at most one newcomer's prompt
is read, so that the others are held up by no more than that.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from raft.errors import ModelError
from raft.llm.chat import SIGN_OF_LIFE_SECONDS
from raft.llm.prefixes import Prefixes

if TYPE_CHECKING:
    from raft.llm.decode import Decoding, Row


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    """Who waits for the tokens of a row: one by one, then None, or the error that there are no more for."""

    row: Row
    arrived: SimpleQueue[int | Exception | None] = field(default_factory=SimpleQueue)


class Streams:
    """``busy`` is held while the model runs. At most ``most_rows`` rows decode together, fewer where that many would
    have more than ``batch_tokens`` tokens, padding counted; ``cache_mb`` are for the prompts that were read lately."""

    def __init__(
        self, model: Any, end_ids: frozenset[int], busy: threading.Lock, *, most_rows: int, batch_tokens: int,
        cache_mb: int,
    ) -> None:  # fmt: skip
        self._model = model
        self._end_ids = end_ids
        self._busy = busy
        self._most_rows = most_rows
        self._batch_tokens = batch_tokens
        self._kept = Prefixes(cache_mb * 10**6)
        self._changing = threading.Lock()  # of who waits, and of the thread
        self._waiting: deque[_Listener] = deque()
        self._running: list[_Listener] = []
        self._thread: threading.Thread | None = None

    def tokens(self, row: Row) -> Generator[int | None, None, None]:
        """The tokens of a row as they are made, None now and then while there is no new one; closing the iterator ends
        the row. Raises ModelError when the model fails."""
        listener = _Listener(row)
        with self._changing:
            self._waiting.append(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="raft-decoding")
                self._thread.start()
        try:
            while True:
                try:
                    news = listener.arrived.get(timeout=SIGN_OF_LIFE_SECONDS)
                except Empty:
                    yield None
                    continue
                if isinstance(news, Exception):
                    raise ModelError(f"the model failed ({type(news).__name__}: {news})") from news
                if news is None:
                    return
                yield news
        finally:
            row.done = True

    def _run(self) -> None:
        try:
            from raft.llm.decode import Decoding

            decoding = Decoding(self._model, self._end_ids)
            while True:
                with self._changing:
                    newcomers = self._newcomers(decoding)
                    self._running += newcomers
                    if not self._running:
                        self._thread = None
                        return
                with self._busy:
                    if newcomers:
                        decoding.join([each.row for each in newcomers], self._kept)
                    step = decoding.step()
                self._tell(step)
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            with self._changing:
                waiting = [*self._running, *self._waiting]
                self._running.clear()
                self._waiting.clear()
                self._thread = None
            for listener in waiting:
                listener.arrived.put(error)

    def _newcomers(self, decoding: Decoding) -> list[_Listener]:
        """One who may join now; where nobody can join those under way, all who may when these are done."""
        found: list[_Listener] = []
        while self._waiting:
            if self._waiting[0].row.done:  # has left
                self._waiting.popleft()
                continue
            together = [each.row for each in (*self._running, *found, self._waiting[0])]
            if (self._running and not decoding.takes_more) or not self._fits(together):
                break
            found.append(self._waiting.popleft())
            if decoding.takes_more:
                break
        return found

    def _fits(self, rows: Sequence[Row]) -> bool:
        longest = max(len(row.prompt) + row.max_tokens for row in rows)
        return len(rows) == 1 or (len(rows) <= self._most_rows and len(rows) * longest <= self._batch_tokens)

    def _tell(self, step: Sequence[tuple[Row, int]]) -> None:
        tokens = {id(row): token for row, token in step}
        for listener in list(self._running):
            token = tokens.get(id(listener.row))
            if token is not None:
                listener.arrived.put(token)
            if listener.row.done:
                listener.arrived.put(None)
                self._running.remove(listener)
