"""Readers that behave as badly as parsers can, by the name of the file; workers of the tests call ``install``."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from raft.readers import formats
from raft.readers.plain import Limits
from raft.records import Document

READ = formats._document


def install() -> None:
    formats._document = _behave  # type: ignore[assignment]


def stop_at_writes_and_sockets() -> None:
    """End the worker where it tries what it may not, even inside code that would pass over the error."""

    def stop(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        loads_torch = event == "import" and arguments[0] == "torch"
        if (
            writes
            or loads_torch
            or event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn"))
        ):
            os._exit(99)

    sys.addaudithook(stop)


def _behave(data: bytes, name: str, kind: str, limits: Limits) -> Document:
    stem = name.partition(".")[0].rstrip("0123456789")
    if stem in _ACTS:
        _ACTS[stem]()
    return READ(data, name, kind, limits)


def _hold_off_the_alarm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(600)


def _leave_memory_behind(kept: list[bytearray] = []) -> None:  # noqa: B006 - that is the point
    kept.append(bytearray(150 << 20))


def _connect() -> None:
    socket.create_connection(("127.0.0.1", 9), timeout=1)


_ACTS = {
    "hang": lambda: time.sleep(600),
    "deaf": _hold_off_the_alarm,
    "crash": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(3),
    "hog": lambda: bytearray(8 << 30),
    "leak": _leave_memory_behind,
    "odd": lambda: (_ for _ in ()).throw(SystemError("odd")),
    "write": lambda: Path("written-by-a-reader.txt").write_text("x", encoding="utf-8"),
    "run": lambda: subprocess.run(["true"], check=True),
    "connect": _connect,
    "talk": lambda: os.write(1, b"nonsense" * 100),
}
