"""What people say of answers, in an SQLite file that survives ``kill -9`` and power loss.

A row, as ``read_feedback`` gives it::

    Row(id="feedback-6d1f", at="2026-11-22T23:40:12+00:00",
        given=GivenAnswer(id="chatcmpl-4f", caller="ward-3", model="raft", index="f1f1...", question="And in children?",
                          asked="What is the first dose in adults? (12 mg) And in children?",
                          earlier=(("What is the first dose in adults?", "12 mg"),),
                          shown=(Shown("formulary.md#0", "formulary.md", "9b74..."),), text="... <ANSWER>: 5 mg",
                          labels=("icu",)),
        opinion=Opinion("down", correction="children are not treated", comment=None))

Documents are named, not copied: whoever reads a row needs the index, and its labels, to see their words. An answer has
one row: rating it again replaces what was said before.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from raft.artifacts import sync_folder
from raft.errors import InputError, RaftError

Rating = Literal["up", "down"]

APPLICATION_ID = 0x52414654  # "RAFT": which program a file is of (SQLite's own field for that)
SCHEMA_VERSION = 2  # 1 had no labels
_BUSY_SECONDS = 5.0  # for another process that writes at this moment
_SCHEMA = """
CREATE TABLE feedback (
    id TEXT PRIMARY KEY,
    answer_id TEXT NOT NULL UNIQUE,
    at TEXT NOT NULL,
    caller TEXT NOT NULL,
    model TEXT NOT NULL,
    index_fingerprint TEXT NOT NULL,
    question TEXT NOT NULL,
    asked TEXT NOT NULL,
    earlier TEXT NOT NULL,
    shown TEXT NOT NULL,
    answer TEXT NOT NULL,
    rating TEXT NOT NULL CHECK (rating IN ('up', 'down')),
    correction TEXT,
    comment TEXT,
    labels TEXT
) STRICT
"""
_KEEP = """
INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (answer_id) DO UPDATE SET
    at = excluded.at, rating = excluded.rating, correction = excluded.correction, comment = excluded.comment
RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A chunk that an answer was made from. ``text_hash`` tells whether an index still has it as it was."""

    chunk_id: str
    document_id: str
    text_hash: str


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """An answer that may be rated, and whom it was given to. ``asked`` is the question as the model was asked it, which
    stands alone; ``earlier`` are (question, answer) of the turns before; ``shown`` is in prompt order; ``index`` is
    the fingerprint of the corpus; ``text`` is the model's own. ``labels`` are the access labels of whatever else than
    the documents shown it may repeat (what its model was tuned on, what earlier turns showed); None: not known."""

    id: str
    caller: str
    model: str
    index: str
    question: str
    asked: str
    earlier: tuple[tuple[str, str], ...]
    shown: tuple[Shown, ...]
    text: str
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a person says of an answer; ``correction`` is the answer as it should have been."""

    rating: Rating
    correction: str | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """An opinion as it was kept, ``at`` an ISO time."""

    id: str
    at: str
    given: GivenAnswer
    opinion: Opinion


class NotKept(RaftError):
    """The feedback could not be written; the message says why, for those who run the server."""


def text_hash(text: str) -> str:
    """32 hex digits of a chunk's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class FeedbackStore:
    """The file, open for writing by one thread. It is created where it is missing, readable by its owner alone."""

    def __init__(self, path: Path) -> None:
        """Raises InputError when the file is damaged, is not one of feedback, or cannot be written."""
        _create(path)
        self._connection = _open(path)
        _close_to_others(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raft-feedback")

    async def keep(self, given: GivenAnswer, opinion: Opinion) -> str:
        """The id of the row, once it lies on the disk. Raises NotKept. The event loop never waits for the disk."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.write, given, opinion)

    def write(self, given: GivenAnswer, opinion: Opinion) -> str:
        """As ``keep``, in this thread, which must be the only one that writes."""
        values = (
            f"feedback-{uuid.uuid4().hex}", given.id, datetime.now(UTC).isoformat(timespec="milliseconds"),
            given.caller, given.model, given.index, given.question, given.asked, _json(given.earlier),
            _json([(shown.chunk_id, shown.document_id, shown.text_hash) for shown in given.shown]), given.text,
            opinion.rating, opinion.correction, opinion.comment,
            None if given.labels is None else _json(given.labels),
        )  # fmt: skip
        clean = [_storable(value) for value in values]
        try:
            with _transaction(self._connection):
                return str(self._connection.execute(_KEEP, clean).fetchone()[0])
        except sqlite3.Error as error:
            raise NotKept(f"feedback on {given.id} was not written ({error})") from error

    def close(self) -> None:
        """Wait for what is being written, and close the file."""
        self._thread.shutdown()
        self._connection.close()


def read_feedback(path: Path) -> list[Row]:
    """Every row of the file, oldest first; a server may go on writing meanwhile.

    Raises InputError when the file is missing, damaged, or not one of feedback.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there", "Name the file that the server's recipe calls feedback")
    with contextlib.closing(_open(path)) as connection:
        return [_row(values) for values in connection.execute("SELECT * FROM feedback ORDER BY at, rowid")]


def _row(values: Any) -> Row:
    name, answer_id, at, caller, model, index, question, asked, earlier, shown, text, *said, labels = values
    turns = tuple((str(before), str(answer)) for before, answer in json.loads(earlier))
    chunks = tuple(Shown(*each) for each in json.loads(shown))
    held = None if labels is None else tuple(json.loads(labels))
    given = GivenAnswer(answer_id, caller, model, index, question, asked, turns, chunks, text, held)
    return Row(name, at, given, Opinion(*said))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _storable(value: str | None) -> str | None:
    """The text without half characters, which JSON can carry and a database cannot hold."""
    return None if value is None else value.encode("utf-8", "replace").decode()


# --- the file --------------------------------------------------------------------------------------------------------


def _create(path: Path) -> None:
    """An empty file where there is none."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        sync_folder(path.parent)
    except FileExistsError:
        pass
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})", "Name another file as feedback") from None


def _close_to_others(path: Path) -> None:
    """Let nobody but its owner read the file, and what SQLite keeps beside it."""
    try:
        for each in (path, *(path.with_name(path.name + ending) for ending in ("-wal", "-shm"))):
            if each.exists() and each.stat().st_mode & 0o077:
                each.chmod(0o600)
    except OSError as error:
        raise InputError(f"{path} can be read by others ({error.strerror})", f"Run: chmod 600 {path}*") from None


def _open(path: Path) -> sqlite3.Connection:
    """A connection to a whole file of feedback; an empty one gets its table. Raises InputError."""
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be used to keep feedback ({error})", _REMEDY) from None
    return connection


_REMEDY = "Move it away to begin a new one, or name another file as feedback"


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    is_empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    if owner != APPLICATION_ID and not (is_empty and owner == 0):
        raise InputError(f"{path} is a database of something else", _REMEDY)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # in WAL mode: a row is on the disk before it is acknowledged
    connection.execute("PRAGMA fullfsync = ON")  # macOS, whose fsync alone does not reach the disk
    with _transaction(connection):  # so that of two servers one makes the table
        if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    version = _version(connection)
    if version not in (1, SCHEMA_VERSION):
        raise InputError(f"{path} has version {version} of its table; expected {SCHEMA_VERSION}", _REMEDY)
    if (said := connection.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
        raise InputError(f"{path} is damaged ({' '.join(said.split())})", _REMEDY)
    if version == 1:
        _add_labels(connection)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _add_labels(connection: sqlite3.Connection) -> None:
    """Make a table of version 1 one of version 2: the labels of its rows are not known."""
    with _transaction(connection):
        if _version(connection) == 1:  # another process may have done it meanwhile
            connection.execute("ALTER TABLE feedback ADD COLUMN labels TEXT")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
