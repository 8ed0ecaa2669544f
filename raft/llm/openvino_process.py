"""OpenVINO's engine in a process of its own: a step holds Python's lock until it is done, a second and more when it
reads long prompts, and nothing else in the process that asks would move meanwhile. One that fails takes nobody along.

Between the two go frames, each its length (8 bytes) and then JSON::

    to it      {"folder": "runs/models/language-4c1f-openvino", "blocks": 2800, "precision": "float32",
                "batch_tokens": 32768, "end_ids": [2]}
               {"order": {"id": 7, "prompt": [1, 4093, 198, ...], "max_tokens": 64, ...}}       {"cancel": 7}
    from it    {"ready": true}    {"news": [[7, [504], [], false, 0, ""]]}    {"failed": "..."}
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from raft.errors import ModelError
from raft.llm.openvino_schedule import News, Order, Schedule, last_line

_LENGTH = struct.Struct(">Q")
_REMEDY = "Set engine to transformers"


class EngineProcess:
    """The engine over a converted model or a GGUF file. Any thread may ask it; it is started anew after a failure, and
    ends when nothing refers to this object any more, or this process ends.

    ``settings`` are those of the first frame. Raises ModelError when the engine cannot be opened.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._numbers = itertools.count()
        self._starting = threading.Lock()
        self._life = _Life(self._settings)
        self._end = weakref.finalize(self, self._life.stop)

    def session(self) -> Session:
        return Session(self)

    def send(self, order: Order, arrived: SimpleQueue[News]) -> _Life:
        """Ask for an order under a number that is new; its news come into ``arrived``. Raises ModelError when the
        engine is gone and cannot be opened again."""
        with self._starting:
            if self._life.is_over:
                self._end()
                self._life = _Life(self._settings)
                self._end = weakref.finalize(self, self._life.stop)
            life = self._life
        life.send(order, arrived)
        return life

    def number(self) -> int:
        return next(self._numbers)


class Session:
    """The requests of one caller. Leaving the block cancels what is not done."""

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine
        self._arrived: SimpleQueue[News] = SimpleQueue()
        self._open: dict[int, _Life] = {}

    def __enter__(self) -> Session:
        return self

    def ask(self, order: Order) -> int:
        """The number under which the news of the order come, whatever its own. Raises ModelError."""
        number = self._engine.number()
        self._open[number] = self._engine.send(replace(order, id=number), self._arrived)
        return number

    def next(self, seconds: float | None = None) -> News | None:
        """The next news of any request that was asked; None where none come within ``seconds``. Raises ModelError when
        the engine has failed."""
        try:
            news = self._arrived.get(timeout=seconds)
        except Empty:
            return None
        if news.is_last:
            self._open.pop(news.id, None)
        if news.is_fatal:
            raise ModelError(news.error, _REMEDY)
        return news

    def __exit__(self, *_: object) -> None:
        for number, life in self._open.items():
            life.cancel(number)
        self._open.clear()


class _Life:
    """One process, from its start to its end."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.is_over = False
        self._waiting: dict[int, SimpleQueue[News]] = {}
        self._changing = threading.Lock()  # of who waits, and of is_over
        self._sending = threading.Lock()
        here = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "raft.llm.openvino_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            bufsize=0, process_group=0, env=os.environ | {"PYTHONPATH": paths},
        )  # fmt: skip  # a group of its own: Ctrl-C is for the process that asks, which finishes its answers first
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._sink, self._source = self._process.stdin.fileno(), self._process.stdout.fileno()
        with contextlib.suppress(OSError):
            _send(self._sink, settings)
        said = _receive(self._source) or {"failed": self._how_it_ended()}
        if "failed" in said:
            self.stop()
            raise ModelError(said["failed"], _REMEDY)
        threading.Thread(target=self._listen, daemon=True, name="raft-openvino").start()

    def send(self, order: Order, arrived: SimpleQueue[News]) -> None:
        with self._changing:
            self._waiting[order.id] = arrived
            is_over = self.is_over
        if is_over:
            self._fail("the engine's process has ended")
        with contextlib.suppress(OSError), self._sending:  # a broken pipe shows to who listens, too
            _send(self._sink, {"order": asdict(order)})

    def cancel(self, number: int) -> None:
        with self._changing:
            self._waiting.pop(number, None)
        with contextlib.suppress(OSError), self._sending:
            _send(self._sink, {"cancel": number})

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        """Hand out the news until the process ends."""
        why = ""
        while (said := _receive(self._source)) is not None:
            why = said.get("failed", "")
            for row in said.get("news", ()):
                news = News(*row)
                with self._changing:
                    arrived = self._waiting.pop(news.id, None) if news.is_last else self._waiting.get(news.id)
                if arrived is not None:
                    arrived.put(news)
        self._fail(why or self._how_it_ended())

    def _fail(self, why: str) -> None:
        with self._changing:
            self.is_over = True
            waiting = dict(self._waiting)
            self._waiting.clear()
        for number, arrived in waiting.items():
            arrived.put(News(number, [], [], is_last=True, error=why, is_fatal=True))

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return f"the process of OpenVINO's engine ended ({how}; memory that runs out ends it by SIGKILL)"


def _send(descriptor: int, value: Mapping[str, Any]) -> None:
    data = json.dumps(value).encode()
    left = memoryview(_LENGTH.pack(len(data)) + data)
    while left:
        left = left[os.write(descriptor, left) :]


def _receive(descriptor: int) -> Any:
    """The next frame, waited for; None when there will be none."""
    length = _bytes(descriptor, _LENGTH.size)
    data = length and _bytes(descriptor, _LENGTH.unpack(length)[0])
    return json.loads(data) if data else None


def _bytes(descriptor: int, count: int) -> bytes | None:
    parts = []
    while count:
        try:
            part = os.read(descriptor, min(count, 1 << 20))
        except OSError:
            return None
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# --- in the engine's process -----------------------------------------------------------------------------------------


def main() -> None:
    """Run the engine until the standard input ends; what its libraries print goes to stderr."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever stops a service tells all its processes at once
    source, sink = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError):  # whoever asked has gone
        if (settings := _receive(source)) is not None:
            _serve(settings, source, sink)
    os._exit(0)  # what is left is to tear down threads, which a crash must not turn into a failure


def _serve(settings: Mapping[str, Any], source: int, sink: int) -> None:
    try:
        schedule = _open(settings)
    except ModelError as error:
        _send(sink, {"failed": error.what})
        return
    _send(sink, {"ready": True})
    _run(schedule, source, sink)


def _open(settings: Mapping[str, Any]) -> Schedule:
    from raft.llm.openvino_network import open_engine

    engine = open_engine(Path(settings["folder"]), settings["blocks"], settings["precision"])
    ends = frozenset(settings["end_ids"])
    return Schedule(engine, blocks=settings["blocks"], batch_tokens=settings["batch_tokens"], end_ids=ends)


def _run(schedule: Schedule, source: int, sink: int) -> None:
    while True:
        while not schedule.is_busy or select.select([source], [], [], 0)[0]:
            frame = _receive(source)
            if frame is None:
                return
            if "cancel" in frame:
                schedule.cancel(frame["cancel"])
            else:
                schedule.add(Order(**frame["order"]))
        try:
            news = schedule.step()
        except RuntimeError as error:
            _send(sink, {"failed": f"OpenVINO failed ({last_line(error)})"})
            return
        if news:
            _send(sink, {"news": [_row(each) for each in news]})


def _row(news: News) -> list[Any]:
    return [news.id, news.tokens, news.logprobs, news.is_last, news.cached_tokens, news.error]


if __name__ == "__main__":
    main()
