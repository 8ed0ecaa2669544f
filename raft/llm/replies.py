"""Replies on disk: the journal of a run, and the cache of all runs. One SQLite file, one row a reply::

    5d1e0c...  {"text": "Document [1] says ...", "prompt_tokens": 310, "completion_tokens": 41, "truncated": false}

The key is the digest of the whole request: model, endpoint, messages, schema and sampling. Each reply is committed
before the next is asked for its place, so that ``kill -9`` loses nothing that had arrived; none of them is held in
memory.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from pathlib import Path

from raft.errors import InputError
from raft.llm.chat import ChatReply

SIDE_FILES = ("-wal", "-shm")  # what SQLite keeps beside the file while it is open
_BUSY_SECONDS = 60.0
_IN_THE_WAY = "Keep it, and try again once no other program holds it and its disk can be read and written"


class Replies:
    """Digest of a request -> its reply. Several threads may share it, and several processes its file."""

    def __init__(self, path: Path) -> None:
        """Raises InputError when the file cannot be opened or is none of these."""
        self.path = path
        self._turn = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            _patiently(self._file, "PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            _patiently(
                self._file, "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT) WITHOUT ROWID"
            )
        except (sqlite3.OperationalError, OSError) as error:
            raise InputError(f"the replies in {path} cannot be opened ({error})", _IN_THE_WAY) from None
        except sqlite3.Error as error:
            raise InputError(f"the replies in {path} cannot be opened ({error})", "Move the file away") from None

    def get(self, key: str) -> ChatReply | None:
        """Raises InputError when the file cannot be read or is damaged."""
        try:
            with self._turn:
                row = self._file.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            return None if row is None else ChatReply(key, **json.loads(row[0]))
        except sqlite3.OperationalError as error:
            raise InputError(f"the replies in {self.path} cannot be read ({error})", _IN_THE_WAY) from None
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise InputError(f"the replies in {self.path} are damaged ({error})", "Move the file away") from None

    def put(self, reply: ChatReply) -> None:
        """Keep a reply under its key; the first one stays. Raises OSError when it cannot be written."""
        row = {
            "text": reply.text, "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens,
            "truncated": reply.truncated,
        }  # fmt: skip
        try:
            with self._turn:
                self._file.execute(
                    "INSERT OR IGNORE INTO replies VALUES (?, ?)", (reply.key, json.dumps(row, ensure_ascii=False))
                )
        except sqlite3.DatabaseError as error:
            raise OSError(f"{self.path} cannot be written ({error})") from error

    def __len__(self) -> int:
        return int(self._file.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._file.close()


def _patiently(file: sqlite3.Connection, command: str) -> None:
    """Run what does not wait for another process by itself: to change the kind of journal, for one."""
    give_up = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            file.execute(command)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.05)
