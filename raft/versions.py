"""Artefacts that are updated in place: the next version is written beside the old one, one rename switches to it.

    with new_version(Path("indexes/legal"), "index", recipe, keep=("embeddings",)) as draft:
        write_rows(draft.folder / "chunks.jsonl", rows)         # draft.folder is indexes/legal.partial/v8

``kill -9`` at any moment leaves the old version or the new one. What a stopped run leaves behind (work in
``NAME.partial``, a version that no manifest names) is never read, and removed by the next run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from raft.artifacts import (
    MANIFEST,
    RESUME,
    Draft,
    finish,
    partial_folder,
    read_manifest,
    sync_folder,
    write_json,
)
from raft.errors import ArtifactError, InputError, UsageError

_CANNOT_WRITE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO,
    None,  # numpy and FAISS do not say why a write came to nothing
}  # fmt: skip
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EBADF}  # of file systems that know none, NFS among them


class Unchanged(Exception):
    """Raised in the block of ``new_version``: the version that stands is right as it is, and stays."""


@contextlib.contextmanager
def new_version(out: Path, kind: str, recipe: Mapping[str, Any], keep: Collection[str] = ()) -> Iterator[Draft]:
    """Write the next version of the artefact ``out``, or its first. When the block ends without an exception the new
    version is the one that is read, and nothing of the old one is left on the disk; nor is anything of this or an
    earlier attempt when the block raises ``Unchanged``.

    ``keep`` names what stays in ``NAME.partial`` when the block fails, for the next run to use: ``draft.folder.parent``
    holds it. Raises UsageError when another process is at work on ``out``; ArtifactError when ``out`` is something
    else, or unfinished work of another kind lies beside it; InputError when the disk is full or not writable.
    """
    partial = partial_folder(out)
    began = time.monotonic()
    with _locked(partial, out), _said_plainly(out):
        draft = Draft(partial / _next_version(out, kind))
        _check_unfinished(partial, kind, keep)
        try:
            _prepare(draft.folder, kind, keep)
            yield draft
            finish(draft, kind, recipe, time.monotonic() - began, draft.folder.name)
            _switch(draft.folder, out)
        except Unchanged:
            _clear(partial)
        except BaseException:
            _clear(partial, keep)
            raise
        finally:
            remove_leftovers(out, kind)


@contextlib.contextmanager
def _said_plainly(out: Path) -> Iterator[None]:
    """Raise what stops the writing of ``out`` as an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        remedy = "Free disk space, or name another --out"
        raise InputError(f"{out} cannot be written ({error.strerror or error})", remedy) from error


# --- one writer at a time ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(partial: Path, out: Path) -> Iterator[None]:
    """Hold the locks on ``partial``, made where it is missing, and on ``out`` where it is there: the first version is
    the renamed ``partial``, so that whoever holds the one holds the other. They are the system's: they die with
    their process."""
    with contextlib.ExitStack() as held:
        try:
            while not _hold(partial, out, held):
                held.close()
        except BlockingIOError:
            raise UsageError(f"another raft is writing {out}", "Wait until it has finished") from None
        except OSError as error:
            raise InputError(f"{partial} cannot be written ({error.strerror})", "Name another --out") from None
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                partial.rmdir()  # only where nothing is kept


def _hold(partial: Path, out: Path, held: contextlib.ExitStack) -> bool:
    """Lock both; False when ``partial`` was moved away meanwhile by the process that had locked it."""
    partial.mkdir(parents=True, exist_ok=True)
    try:
        locked = _lock(partial, held)
        if out.exists():
            try:
                _lock(out, held)
            except BlockingIOError:
                partial.rmdir()  # made above: who writes ``out`` has moved or removed its own
                raise
        return os.path.samestat(os.fstat(locked), partial.stat())
    except FileNotFoundError:
        return False


def _lock(folder: Path, held: contextlib.ExitStack) -> int:
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    held.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return handle


# --- the folders ---------------------------------------------------------------------------------------------------


def _next_version(out: Path, kind: str) -> str:
    """v1 where there is none; raises ArtifactError when ``out`` is no artefact of this kind."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return "v1"
    if not (out / MANIFEST).exists():
        raise ArtifactError(f"{out} is not an artefact of raft and is never replaced", "Name another --out")
    try:
        found = json.loads((out / MANIFEST).read_bytes())
    except (ValueError, RecursionError):  # damaged; who may replace it is not asked here
        found = None
    if isinstance(found, dict) and found.get("kind", kind) != kind:
        raise ArtifactError(
            f"{out} is another artefact ({found['kind']!r}) and is never replaced", "Name another --out"
        )
    numbers = [int(path.name[1:]) for path in out.iterdir() if _VERSION.fullmatch(path.name)]
    return f"v{max(numbers, default=0) + 1}"


_VERSION = re.compile(r"v\d{1,18}")
_UNFINISHED = re.compile(rf"v\d+|({re.escape(MANIFEST)}|{re.escape(RESUME)})(\.tmp)?")


def _check_unfinished(partial: Path, kind: str, keep: Collection[str]) -> None:
    """Raise ArtifactError when what lies in ``partial`` is not what a stopped run of this kind leaves there."""
    marker = partial / RESUME
    if not marker.exists():
        if all(_UNFINISHED.fullmatch(path.name) or path.name in keep for path in partial.iterdir()):
            return
        raise ArtifactError(f"{partial} is not unfinished work of raft", "Move it away")
    if f'"kind": "{kind}"' not in marker.read_text(encoding="utf-8", errors="replace"):
        raise ArtifactError(f"unfinished work of another kind lies in {partial}", "Delete that folder")


def _prepare(folder: Path, kind: str, keep: Collection[str]) -> None:
    _clear(folder.parent, keep)
    write_json(folder.parent / RESUME, {"kind": kind, "resumable": True})
    folder.mkdir()


def _clear(partial: Path, keep: Collection[str] = ()) -> None:
    """Remove unfinished work but for what is kept; the marker that it is raft's goes last."""
    paths = sorted(partial.iterdir(), key=lambda path: path.name == RESUME) if partial.exists() else []
    kept = {path.name for path in paths if path.name in keep}
    for path in paths:
        if path.name not in kept and not (kept and path.name == RESUME):
            _remove(path)


def _switch(version: Path, out: Path) -> None:
    partial = version.parent
    if not (out / MANIFEST).exists():
        with contextlib.suppress(OSError):
            out.rmdir()
        partial.rename(out)
        sync_folder(out.parent)
        return
    version.rename(out / version.name)
    sync_folder(out)
    (partial / MANIFEST).replace(out / MANIFEST)  # from here on the new version is read
    sync_folder(out)
    _clear(partial)


def leftovers(out: Path, kind: str) -> list[Path]:
    """What lies in ``out`` and beside it, and belongs to no version that is read."""
    beside = partial_folder(out)
    return _unread(out, kind) + ([beside] if beside.exists() else [])


def remove_leftovers(out: Path, kind: str) -> None:
    """Remove from ``out`` all but its manifest and the version that this names; nothing where that cannot be told."""
    with contextlib.suppress(ArtifactError):
        for path in _unread(out, kind):
            _remove(path)


def _unread(out: Path, kind: str) -> list[Path]:
    manifest = read_manifest(out, kind)
    version = out / manifest.version
    if not manifest.version or not version.is_dir():
        raise ArtifactError(f"{out} has no versions", "Make it again")
    wanted = {version / name for name in manifest.files}
    inside = (path for path in version.rglob("*") if path not in wanted and not path.is_dir())
    return sorted([path for path in out.iterdir() if path not in {out / MANIFEST, version}] + list(inside))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
