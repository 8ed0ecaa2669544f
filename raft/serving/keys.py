"""Who asks: the callers that a server knows, and what each may see.

One line of a key file, made by ``raft keys add intranet --label hr --keys keys.jsonl``::

    {"name": "intranet", "hash": "9f2c...", "labels": ["hr"], "created": "2026-03-02T10:15:00Z",
     "expires": "2027-01-01", "requests_per_minute": 60}

The secret is shown once and kept nowhere, only its SHA-256. A slow hash, as passwords need it, would protect nothing: a
secret is 256 random bits, which nobody finds by trying, however fast each try is; and it would cost every request.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raft.artifacts import sync_folder
from raft.config_serve import Name
from raft.errors import ArtifactError, InputError, UsageError
from raft.places import locked, real_folder
from raft.rows import read_rows, write_rows

LOOK_SECONDS = 1.0
log = logging.getLogger("raft.serving")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. ``name`` is that of the key, for logs, limits and the audit trail; ``labels`` are the access
    labels that it holds, None for all that the server itself was given; ``requests_per_minute`` is the key's own limit,
    None where it has none."""

    name: str
    labels: frozenset[str] | None = None
    requests_per_minute: int | None = None


LOCAL = Caller("local")
"""Whoever reaches a server without keys, which listens to its own machine alone."""


class Key(BaseModel):
    """A line of a key file. From the day ``expires`` on (UTC) the key is refused; None is never."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[Name, Field(max_length=64)]
    hash: str = Field(pattern="^[0-9a-f]{64}$")
    labels: tuple[Annotated[str, Field(min_length=1)], ...]
    created: datetime
    expires: date | None
    requests_per_minute: int | None = Field(ge=1)

    def known(self) -> Known:
        """What a server keeps of it."""
        return Known(self.hash, self.expires, Caller(self.name, frozenset(self.labels), self.requests_per_minute))

    def expired(self, today: date) -> bool:
        return self.expires is not None and self.expires <= today


@dataclass(frozen=True, slots=True)
class Known:
    """A key that a server checks against: the SHA-256 of its secret in hex, and whose it is."""

    hash: str
    expires: date | None
    caller: Caller


def hash_of(secret: bytes) -> str:
    """What stands in the file in place of the secret."""
    return hashlib.sha256(secret).hexdigest()


def find_caller(known: Iterable[Known], secret: bytes, today: date) -> Caller | None:
    """Whose secret this is; None for one that is unknown or expired. Every key is compared, each in the same time, so
    that how long it takes says nothing of how near a guess is, or which key it met."""
    given, found = hash_of(secret), None
    for key in known:
        same = hmac.compare_digest(key.hash, given)
        held = key.expires is None or today < key.expires
        found = key.caller if same and held else found
    return found if secret else None


# --- the file ------------------------------------------------------------------------------------------------------


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file. Raises InputError when it cannot be read, ArtifactError when it is damaged."""
    keys = []
    for number, row in enumerate(read_rows(path), 1):
        try:
            keys.append(Key.model_validate(row))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            what = f"{path}: key {number} is damaged ({where}: {error.errors()[0]['msg']})"
            raise ArtifactError(what, "Restore the file, or remove this line of it") from None
    names = [key.name for key in keys]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ArtifactError(f"{path} has two keys called {twice[0]}", "Remove one of the lines")
    return tuple(keys)


def add_key(
    path: Path, name: str, *, labels: Sequence[str] = (), expires: str | None = None,
    requests_per_minute: int | None = None,
) -> str:  # fmt: skip
    """Add a key to a file, made where it is missing; returns the secret, which is kept nowhere.

    Raises UsageError for a bad or a taken name, a bad date or limit, or while another raft writes the file, InputError
    when it cannot be read or written.
    """
    secret = f"raft-{name}-{secrets.token_urlsafe(32)}"
    row = {
        "name": name, "hash": hash_of(secret.encode()), "labels": sorted({*labels}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "expires": expires,
        "requests_per_minute": requests_per_minute,
    }  # fmt: skip
    key = _checked(row)
    if key.expired(datetime.now(UTC).date()):
        raise UsageError(f"--expires {expires} is not in the future", "Give a later day, like 2099-01-01")
    with _writing(path) as keys:
        if any(other.name == name for other in keys):
            raise UsageError(f"{path} has a key called {name}", f"Revoke it first: raft keys revoke {name}")
        keys.append(key)
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from a file. Raises UsageError when the file has none of this name."""
    with _writing(path) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise UsageError(f"{path} has no key called {name}", f"It has {known}")
        keys[:] = left


def _checked(row: dict[str, Any]) -> Key:
    try:
        return Key.model_validate(row)
    except ValidationError as error:
        mistake = error.errors()[0]
        remedy = {
            "name": "Use small letters, digits, _ and -, at most 64", "expires": "Give a day like 2027-01-01",
            "requests_per_minute": "Give a whole number from 1 on", "labels": "Give --label hr",
        }  # fmt: skip
        where = str(mistake["loc"][0])
        raise UsageError(f"{where} is {mistake['input']!r}", remedy.get(where, "")) from None


@contextmanager
def _writing(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, to be changed in the block; it is then replaced as a whole."""
    path = real_folder(path)
    try:
        with locked(path) as scratch:
            keys = list(read_keys(path)) if path.exists() else []
            yield keys
            _replace(path, scratch / path.name, keys)
    except InputError as error:
        raise InputError(error.what, error.remedy.replace("--out", "--keys")) from None


def _replace(path: Path, new: Path, keys: Sequence[Key]) -> None:
    try:
        os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o600))
        write_rows(new, (key.model_dump(mode="json") for key in keys))
        if path.exists() and hasattr(os, "chown"):  # Windows has none
            held = path.stat()
            os.chown(new, held.st_uid, held.st_gid)  # the server that reads it may be another user's
            new.chmod(held.st_mode & 0o640)
        with new.open("rb") as stream:
            os.fsync(stream.fileno())
        new.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise InputError(
            f"{path} cannot be written ({error.strerror})", "Run it as the file's owner, or name another --keys"
        ) from None  # fmt: skip


class KeyFile:
    """The keys of a file, which is looked at again at most once a second: a key that is added or revoked counts at
    once. While the file is damaged, missing or not to be read, it is ``unreadable``, and the last keys that it had stay
    in force."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises InputError when the file cannot be read, ArtifactError when it is damaged."""
        self.unreadable = False
        self._path = path
        self._clock = clock
        self._seen = _state_of(path)
        if self._seen is None:
            remedy = f"Make it: raft keys add NAME --keys {path}"
            raise InputError(f"there is no key file {path}", remedy)
        self._known = tuple(key.known() for key in read_keys(path))
        self._next_look = clock() + LOOK_SECONDS

    def known(self) -> tuple[Known, ...]:
        """The keys as they are now."""
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + LOOK_SECONDS
            self._look()
        return self._known

    def _look(self) -> None:
        seen = _state_of(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._known = tuple(key.known() for key in read_keys(self._path))
            self.unreadable = False
        except InputError as error:
            self.unreadable = True
            log.error("%s; the keys that it had before stay in force", error.what)


def _state_of(path: Path) -> tuple[int, int, int, int] | None:
    """What tells that a file was changed: a new one has another inode, however fast it came, and one that may be read
    again another time of change."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size
