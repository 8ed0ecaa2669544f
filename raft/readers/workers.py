"""The processes that parse: limited in memory and time, unable to write files, and replaced when a file ends them.

Between a worker and its watch go frames, each its length (8 bytes) and then JSON; never pickles, which would let a
parser that a hostile file has taken over run code outside its process::

    to the worker    {"memory_mb": 1500, "seconds": 60, ...}       once
                     [["/docs/a.pdf", "a.pdf", ""], ...]            a batch: path, name, known digest
    from it          ["ready"]  ["beat"]  ["rows", [...]]  ["file", "9f86d0...", [...]]  ["memory"]

A worker is started as a program of its own (``python -c``), not through multiprocessing: that would run the user's
script again in each worker, and forks of a process with threads can hang.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from raft.errors import InputError
from raft.readers.formats import Unread, left_out, read_file
from raft.readers.plain import Limits, ReadOutcome
from raft.records import Document

_LENGTH = struct.Struct(">Q")
_MAX_FRAME_BYTES = 4 << 30
_ROWS_CHARS = 1 << 20  # of text in one frame of rows
_START_SECONDS = 120.0
_GRACE_SECONDS = 2.0  # the worker's own alarm comes first; the watch is for one that holds it off


@dataclass(frozen=True, slots=True)
class Task:
    """A file to read: where it is, its name in the source, and the digest under which its outcome is known."""

    path: str
    name: str
    known: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What workers are started with. ``setup`` names a function ("module:function") that each calls first."""

    seconds: float = 60.0
    memory_mb: int = 1500
    max_file_bytes: int = 200 << 20
    max_text_chars: int = 64 << 20
    passwords: tuple[str, ...] = ()
    ocr: bool = False
    setup: str = ""


Result = tuple[str, tuple[ReadOutcome, ...] | None]
"""The digest of a file, and its outcomes unless they are known."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Files that go to a worker together, so that many small ones cost little."""

    tasks: tuple[Task, ...]
    size: int


# What a worker gets to see of the environment: no keys to anything.
_ENVIRONMENT = {"PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SYSTEMROOT"}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class _Ended(Exception):
    """The worker is gone; ``reason`` says how. Its file ``is_to_blame`` where another try cannot do better."""

    def __init__(self, reason: str, is_to_blame: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.is_to_blame = reason, is_to_blame


# --- the watch: threads of the process that asked ----------------------------------------------------------------


class Worker:
    """One worker process and its replacements. Not for use by two threads at once, except ``stop``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._is_fresh = True  # it has read no file yet

    def read(self, tasks: Sequence[Task]) -> list[Result]:
        """The result of each task. A file that ends the worker is tried once more in a new one, because what ended
        it may be what earlier files left behind; one that takes too long is not."""
        results: list[Result] = []
        while len(results) < len(tasks) and not self._stopped:
            try:
                self._start()
                self._send([[task.path, task.name, task.known] for task in tasks[len(results) :]])
                while len(results) < len(tasks):
                    results.append(self._receive_file())
                    self._is_fresh = False
            except _Ended as error:
                self._kill()
                if (self._is_fresh or error.is_to_blame) and not self._stopped:
                    outcome = ReadOutcome(tasks[len(results)].name, "refused", reason=error.reason)
                    results.append(("", (outcome,)))
        return results

    def stop(self) -> None:
        """End the process; what waits for it sees it end and closes its pipes. Any thread may call this."""
        self._stopped = True
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        self._kill()

    def _start(self) -> None:
        if self._process is not None:
            return
        here = str(Path(__file__).resolve().parents[2])
        paths = [path for path in sys.path if path] + [here]  # never the current folder: it may be the documents'
        code = "import sys; sys.path[:] = sys.argv[1:]; from raft.readers.workers import work; work()"
        environment = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT} | _ONE_THREAD
        command = [sys.executable, "-I", "-S", "-B", "-X", f"utf8={sys.flags.utf8_mode}", "-c", code, *paths]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, process_group=0, env=environment
        )  # a group of its own: Ctrl-C is for the process that asked, which stops its workers
        self._is_fresh = True
        try:
            if self._stopped:  # meanwhile: ``stop`` has not seen this process
                raise _Ended("was stopped")
            self._send({name: getattr(self._settings, name) for name in Settings.__slots__})
            self._receive(_START_SECONDS)
        except _Ended as error:
            self._kill()
            if self._stopped:
                raise
            raise InputError(f"a process to read documents did not start: it {error.reason}") from None

    def _receive_file(self) -> Result:
        rows: list[ReadOutcome] = []
        while True:
            frame = self._receive(self._settings.seconds + _GRACE_SECONDS)
            if frame[0] == "memory":
                raise _Ended(f"needs more than {self._settings.memory_mb} MB of memory (reading.memory_mb)")
            if frame[0] in ("rows", "file"):
                rows += [_outcome(row) for row in frame[-1] or ()]
            if frame[0] == "file":
                return frame[1], None if frame[-1] is None else tuple(rows)

    def _send(self, value: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        data = json.dumps(value).encode()
        try:
            _write(self._process.stdin.fileno(), _LENGTH.pack(len(data)) + data)
        except OSError:
            raise self._how_it_ended() from None

    def _receive(self, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        (length,) = _LENGTH.unpack(self._bytes(_LENGTH.size, deadline))
        if length > _MAX_FRAME_BYTES:
            raise _Ended("ended its reading process (nonsense came out of it)")
        try:
            return json.loads(self._bytes(length, deadline))
        except ValueError:
            raise _Ended("ended its reading process (nonsense came out of it)") from None

    def _bytes(self, count: int, deadline: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        parts, descriptor = [], self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while count:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise self._too_long()
            part = os.read(descriptor, min(count, 1 << 20))
            if not part:
                raise self._how_it_ended()
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _too_long(self) -> _Ended:
        return _Ended(f"takes longer than {self._settings.seconds:g} seconds (reading.seconds)", is_to_blame=True)

    def _how_it_ended(self) -> _Ended:
        assert self._process is not None
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return _Ended("ended its reading process")
        if code == -signal.SIGALRM:
            return self._too_long()
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return _Ended(f"ended its reading process ({how})")

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _outcome(row: list[Any]) -> ReadOutcome:
    source, status, reason, document = row
    return ReadOutcome(source, status, None if document is None else Document(*document), reason)


_AHEAD_BYTES = 256 << 20
_AHEAD_BATCHES = 64


def in_order(batches: Sequence[Batch], settings: Settings, count: int) -> Generator[Result, None, None]:
    """The results of all files, in order, from ``count`` workers. Only so many batches are ahead of the one that is
    wanted, so that memory holds few results. When the caller stops, or is stopped, the workers end."""
    workers = [Worker(settings) for _ in range(count)]
    queue: SimpleQueue[tuple[Batch, Future[list[Result]]] | None] = SimpleQueue()
    for worker in workers:  # daemons: an interpreter that ends does not wait for a file that hangs
        Thread(target=_serve, args=(worker, queue), daemon=True, name="raft-reading").start()
    try:
        ahead: deque[tuple[Batch, Future[list[Result]]]] = deque()
        rest = deque(batches)
        while rest or ahead:
            while rest and _has_room(ahead, rest[0], count):
                ahead.append((rest.popleft(), Future()))
                queue.put(ahead[-1])
            yield from ahead[0][1].result()
            ahead.popleft()
    finally:
        for worker in workers:
            worker.stop()
            queue.put(None)


def _has_room(ahead: Iterable[tuple[Batch, object]], batch: Batch, count: int) -> bool:
    sizes = [other.size for other, _ in ahead]
    return len(sizes) < 2 * count or (len(sizes) < _AHEAD_BATCHES and sum(sizes) + batch.size < _AHEAD_BYTES)


def _serve(worker: Worker, queue: SimpleQueue[tuple[Batch, Future[list[Result]]] | None]) -> None:
    while (item := queue.get()) is not None:
        batch, future = item
        try:
            future.set_result(worker.read(batch.tasks))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)
    worker.close()


# --- the worker process ------------------------------------------------------------------------------------------


def work() -> None:
    """Read batches from the standard input until it ends. Runs in the worker process only."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the process that asked may ignore it, and that is inherited
    source, sink = os.dup(0), os.dup(1)
    settings = _next_frame(source)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # libraries may talk; startup errors were shown until here
        os.dup2(null, descriptor)
    setup = settings.pop("setup")
    _limit(settings.pop("memory_mb"))
    seconds = settings.pop("seconds")

    def beat() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        _reply(sink, ["beat"])

    limits = Limits(**{**settings, "passwords": tuple(settings["passwords"])}, beat=beat)
    sys.addaudithook(_guard)
    _call(setup)
    _reply(sink, ["ready"])
    while (batch := _next_frame(source)) is not None:
        for path, name, known in batch:
            signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process, even inside C code
            _read_one(sink, path, name, known, limits)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _call(setup: str) -> None:
    if setup:
        import importlib

        module, _, function = setup.partition(":")
        getattr(importlib.import_module(module), function)()


def _limit(memory_mb: int) -> None:
    import contextlib
    import resource

    for kind, most in (
        (resource.RLIMIT_AS, memory_mb << 20), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        with contextlib.suppress(ValueError, OSError):  # where the system does not know it, or allows less
            resource.setrlimit(kind, (most, most))


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.remove", "os.rename",
    "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.kill", "ftplib.",
    "urllib.", "http.", "smtplib.", "tempfile.", "shutil.",
)  # fmt: skip


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    """A parser has no business with the network, other programs, or changing files: raise where it tries."""
    if event == "open":
        if isinstance(arguments[2], int) and arguments[2] & _WRITING and arguments[0] != os.devnull:
            raise PermissionError("a reading process writes no file")
    elif event.startswith(_FORBIDDEN):
        raise PermissionError(f"a reading process may not use {event}")


def _read_one(sink: int, path: str, name: str, known: str, limits: Limits) -> None:
    try:
        _reply(sink, _read_frames(sink, path, name, known, limits))
    except MemoryError:
        _reply(sink, ["memory"])
        os._exit(0)


def _read_frames(sink: int, path: str, name: str, known: str, limits: Limits) -> list[Any]:
    """The last frame of a file; rows go ahead of it where they are many."""
    try:
        found = read_file(path, name, known, limits)
    except (Unread, InputError) as error:
        return ["file", "", [_row(left_out(name, error))]]
    if found.outcomes is None:
        return ["file", found.digest, None]
    rows, size = [], 0
    for outcome in found.outcomes:
        rows.append(_row(outcome))
        size += len(outcome.document.text) if outcome.document else 0
        if size > _ROWS_CHARS or len(rows) >= 10_000:
            _reply(sink, ["rows", rows])
            rows, size = [], 0
    return ["file", found.digest, rows]


def _row(outcome: ReadOutcome) -> list[Any]:
    found = outcome.document
    fields = None if found is None else [found.id, found.text, found.title, found.source, dict(found.metadata)]
    return [outcome.source, outcome.status, outcome.reason, fields]


def _reply(sink: int, frame: list[Any]) -> None:
    data = json.dumps(frame, ensure_ascii=False).encode("utf-8", "replace")
    _write(sink, _LENGTH.pack(len(data)))
    _write(sink, data)


def _next_frame(source: int) -> Any:
    head = _read_exactly(source, _LENGTH.size)
    return json.loads(_read_exactly(source, _LENGTH.unpack(head)[0])) if head else None


def _read_exactly(source: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(source, count)
        if not part:
            return b""
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _write(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]
