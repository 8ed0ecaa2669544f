"""The audit trail: who asked when, and which documents were shown.

One row, flushed to the operating system before the answer's end is sent::

    {"time": "2026-03-02T10:15:00.123+00:00", "id": "chatcmpl-4f", "caller": "intranet", "route": "chat",
     "model": "raft", "outcome": "answered", "documents": ["formulary/corvalexin.md"]}

It is there to be complete. A row that cannot be written is kept, nothing new is answered (503) until it can be, and
then it is written first. A trail that was moved away (logrotate) is begun anew under its name. One server writes one.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raft.errors import InputError
from raft.serving.http_errors import RETRY_AFTER_SECONDS, Refused
from raft.serving.service import Exchange

log = logging.getLogger("raft.serving")


class Audit:
    """A Listener that appends a row for each request; to be called from one thread."""

    def __init__(self, path: Path, *, texts: bool = False) -> None:
        """``texts`` adds question and answer. Raises InputError when the file cannot be written."""
        self._path = path
        self._texts = texts
        self._unwritten: deque[bytes] = deque()
        try:
            self._file = _open(path)
        except OSError as error:
            what = f"the audit trail {path} cannot be written ({error.strerror})"
            raise InputError(what, "Name another file: --set audit=FILE") from None

    def __call__(self, exchange: Exchange) -> None:
        row = audit_row(exchange, texts=self._texts)
        self._unwritten.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._write()

    def check(self) -> None:
        """Raises Refused 503 while rows wait that cannot be written."""
        if self._unwritten and not self._write():
            raise Refused(
                503, "requests cannot be recorded now, and none is answered without; try again later",
                kind="server_error", code="audit_unavailable", headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            )  # fmt: skip

    def close(self) -> None:
        os.close(self._file)

    def _write(self) -> bool:
        """Write what waits; False when some of it still does."""
        try:
            self._reopen_if_moved()
            while self._unwritten:
                _append(self._file, self._unwritten[0])
                self._unwritten.popleft()
        except OSError as error:
            log.error("the audit trail cannot be written (%s): nothing is answered until it can be", error.strerror)
            return False
        return True

    def _reopen_if_moved(self) -> None:
        try:
            moved = not os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            moved = True
        if moved:
            old, self._file = self._file, _open(self._path)
            os.close(old)


def audit_row(exchange: Exchange, *, texts: bool = False) -> dict[str, Any]:
    """What the trail keeps of a request; the documents of its passages in their order, each once."""
    row: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "id": exchange.id,
        "caller": exchange.caller.name, "route": exchange.route, "model": exchange.model_in_logs,
        "outcome": exchange.outcome, "documents": list(dict.fromkeys(hit.chunk.document_id for hit in exchange.hits)),
    }  # fmt: skip
    return row | texts_of(exchange) if texts else row


def texts_of(exchange: Exchange) -> dict[str, str | None]:
    """What was asked and answered, for those who chose to keep it."""
    served = exchange.served
    return {"question": exchange.asked.question, "answer": None if served is None else served.answer.text}


def _open(path: Path) -> int:
    """The file at its end, of a line begun and never ended too (a machine may have stopped there)."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")
    return file


def _append(file: int, row: bytes) -> None:
    """The whole row or none of it: a disk may fill up in the middle of one."""
    size = os.fstat(file).st_size
    if os.write(file, row) < len(row):
        os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
