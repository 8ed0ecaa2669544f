"""Where an artefact is written, and that one process at a time writes there.

indexes/legal            the artefact, once it is finished
indexes/legal.partial    the unfinished work, beside it so that the last rename stays on one disk
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from raft.errors import InputError, UsageError

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EBADF}  # of file systems that know none, NFS among them


def partial_folder(out: Path) -> Path:
    """Where the unfinished work of ``out`` lies, beside it so that the last rename stays on one disk."""
    out = real_folder(out)
    return out.with_name(out.name + ".partial")


def real_folder(out: Path) -> Path:
    """The folder itself where ``out`` is a link to it or is called "." or ".."; raises UsageError for the root."""
    if out.is_symlink() or out.name in ("", ".."):
        out = Path(os.path.realpath(out))
    if not out.name:
        raise UsageError(f"{out} is the root of the disk", "Name a folder inside it")
    return out


def place_of(out: Path) -> Path:
    """The folder that is to be written for ``out``. Raises UsageError when no rename can put one there."""
    if out.name in ("", ".."):
        raise UsageError(f"--out {out} is the folder that you are in or one above it", "Name one inside: --out NAME")
    folder = real_folder(out)
    if folder.is_mount():
        what = f"{out} is a mount point: it cannot be replaced as a whole"
        raise UsageError(what, f"Name a folder inside it: --out {out / 'NAME'}")
    return folder


@contextlib.contextmanager
def locked(out: Path) -> Iterator[Path]:
    """Hold the locks on the partial folder of ``out``, made where it is missing, and on ``out`` where it is there: a
    finished artefact is the renamed partial folder, so that whoever holds the one holds the other. They are the
    system's: they die with their process. Gives the partial folder; raises UsageError when another process has it."""
    partial = partial_folder(out)
    with contextlib.ExitStack() as held:
        try:
            while not _hold(partial, out, held):
                held.close()
        except BlockingIOError:
            raise UsageError(f"another raft is writing {out}", "Wait until it has finished") from None
        except OSError as error:
            raise InputError(f"{partial} cannot be written ({error.strerror})", "Name another --out") from None
        try:
            yield partial
        finally:
            with contextlib.suppress(OSError):
                partial.rmdir()  # only where nothing is kept


def _hold(partial: Path, out: Path, held: contextlib.ExitStack) -> bool:
    """Lock both; False when ``partial`` was moved away meanwhile by the process that had locked it."""
    partial.mkdir(parents=True, exist_ok=True)
    try:
        handle = _lock(partial, held)
        if out.exists():
            try:
                _lock(out, held)
            except BlockingIOError:
                partial.rmdir()  # made above: who writes ``out`` has moved or removed its own
                raise
        return os.path.samestat(os.fstat(handle), partial.stat())
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
