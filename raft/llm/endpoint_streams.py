"""Streams from an endpoint, read on an event loop in a thread of its own, so that whoever listens may leave while the
endpoint is silent.

listener's thread   for words in streams.pieces(read): ...   "", "12", " mg", "": empty after a while of silence
loop's thread       await read(client, tell)                 tell("12"), tell(" mg"), returns what they come to
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from raft.llm.chat import SIGN_OF_LIFE_SECONDS

T = TypeVar("T")
Tell = Callable[[str], None]


class Streams:
    """Any number of streams over one client of ``openai``, whose connections are used again; it is closed when nothing
    refers to this object any more."""

    def __init__(self, client: Any) -> None:
        self._client = client
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = runner.get_loop()
        ending = asyncio.Event()
        args = (runner, _stay(client, ending))
        threading.Thread(target=_run, args=args, name="raft-endpoint-streams", daemon=True).start()
        end = weakref.finalize(self, self._loop.call_soon_threadsafe, ending.set)
        end.atexit = False  # the thread goes with the process, which has no time to close connections one by one

    def pieces(self, read: Callable[[Any, Tell], Coroutine[Any, Any, T]]) -> Generator[str, None, T]:
        """What ``read(client, tell)`` tells, an empty piece now and then while that is nothing; returns what it
        returns, raises what it raises. Closing the generator cancels it."""
        arrived: SimpleQueue[str | None] = SimpleQueue()
        reading = asyncio.run_coroutine_threadsafe(read(self._client, arrived.put), self._loop)
        reading.add_done_callback(lambda _: arrived.put(None))
        try:
            while True:
                try:
                    words = arrived.get(timeout=SIGN_OF_LIFE_SECONDS)
                except Empty:
                    yield ""
                    continue
                if words is None:
                    return reading.result()
                yield words
        finally:
            reading.cancel()


def _run(runner: asyncio.Runner, work: Coroutine[Any, Any, None]) -> None:
    with runner:  # which also cancels what is left
        runner.run(work)


async def _stay(client: Any, ending: asyncio.Event) -> None:
    await ending.wait()
    await client.close()


@dataclass(slots=True)
class Said:
    """What the pieces of a stream come to; endpoints send them in more shapes than one."""

    text: str = ""
    refusal: str = ""
    finish: str | None = None
    usage: Any = None
    is_answer: bool = False

    def take(self, piece: Any) -> str:
        """The words of the next piece of ``openai``; "" where it has none."""
        choices = getattr(piece, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        delta = getattr(choice, "delta", None)  # Azure's asynchronous filter sends choices without one
        words = _words(delta, "content")
        self.text += words
        self.refusal += _words(delta, "refusal")
        self.finish = getattr(choice, "finish_reason", None) or self.finish
        self.usage = getattr(piece, "usage", None) or self.usage
        self.is_answer = self.is_answer or hasattr(delta, "content")
        return words

    @property
    def is_cut(self) -> bool:
        """Whether the body ended before the answer did: nothing said that it had."""
        return self.finish is None and self.usage is None


def _words(delta: Any, name: str) -> str:
    words = getattr(delta, name, None)
    return words if isinstance(words, str) else ""
