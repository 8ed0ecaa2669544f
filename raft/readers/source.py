"""A folder of documents, read file by file in its sorted order.

    docs/leave.pdf      -> SourceFile("leave.pdf", "9f86d0...", (ReadOutcome("leave.pdf", "indexed", Document(...)),))
    docs/rows.csv       -> SourceFile("rows.csv", "60303a...", (ReadOutcome("rows.csv#2", ...), ...)), one a row
    docs/film.mp4       -> SourceFile("film.mp4", "", (ReadOutcome("film.mp4", "skipped", None, "format .mp4 is ..."),))
    docs/.draft.md      -> nothing: hidden files are left out

A file becomes one document, named by its path inside the folder; a row of a record file is a document of its own.
What cannot be read is refused with a reason, and the rest goes on. Every file is parsed in a process with limits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from raft.config import ReadingRecipe
from raft.errors import InputError
from raft.readers.plain import ReadOutcome, encodable
from raft.readers.workers import Batch, Settings, Task, in_order

__all__ = ["ReadOutcome", "SourceFile", "count_files", "read_source"]

_BATCH_FILES = 256
_BATCH_BYTES = 2 << 20
_SETUP = ""  # "module:function" that each worker calls first; the tests put hostile readers in with it


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the source: its name inside the folder, the sha256 of its bytes ("" where it was never read), and
    what became of it; ``outcomes`` is None where ``known`` holds the same digest."""

    name: str
    digest: str
    outcomes: tuple[ReadOutcome, ...] | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file as the folder lists it; ``skipped`` says why it is not read."""

    path: str
    name: str
    size: int = 0
    skipped: str = ""


def read_source(
    path: Path, reading: ReadingRecipe = ReadingRecipe(), known: Mapping[str, str] = {}
) -> Iterator[SourceFile]:
    """The files of a folder (in sorted order of their names, hidden ones left out), or one file.

    ``known`` maps names to the digests of files whose outcome the caller still has: where the bytes are the same,
    the file is not parsed and its outcomes are None. Links are not followed: under another name, rules by path would
    not hold. Raises InputError when ``path`` or the file of passwords is not there, or no process to read can be
    started.
    """
    entries = _list_entries(path)
    settings = Settings(
        seconds=reading.seconds, memory_mb=reading.memory_mb, max_file_bytes=reading.max_file_mb << 20,
        max_text_chars=reading.max_text_mb << 20, passwords=_passwords(reading.passwords), ocr=reading.ocr == "auto",
        setup=_SETUP,
    )  # fmt: skip
    workers = reading.workers or _cores()
    batches = _batches([entry for entry in entries if not entry.skipped], workers, known)
    with closing(in_order(batches, settings, min(workers, len(batches)))) as results:
        for entry in entries:
            if entry.skipped:
                outcome = ReadOutcome(entry.name, "skipped", reason=encodable(entry.skipped))
                yield SourceFile(entry.name, "", (outcome,))
            else:
                yield SourceFile(entry.name, *next(results))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_files(path: Path) -> int:
    """How many files ``read_source`` will give. Raises InputError when ``path`` is not there."""
    return len(_list_entries(path))


def _passwords(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"the passwords in {path} cannot be read ({detail})") from None
    return tuple(line for line in lines if line)


def _batches(entries: Sequence[_Entry], workers: int, known: Mapping[str, str]) -> list[Batch]:
    """Neighbours together up to a size, but every worker gets several batches where there are enough files."""
    most_files = min(_BATCH_FILES, len(entries) // (4 * workers) + 1)
    batches: list[Batch] = []
    tasks: list[Task] = []
    size = 0
    for entry in entries:
        if tasks and (len(tasks) >= most_files or size + entry.size > _BATCH_BYTES):
            batches.append(Batch(tuple(tasks), size))
            tasks, size = [], 0
        tasks.append(Task(entry.path, entry.name, known.get(entry.name, "")))
        size += entry.size
    return [*batches, Batch(tuple(tasks), size)] if tasks else batches


# --- listing -------------------------------------------------------------------------------------------------------


def _list_entries(path: Path) -> list[_Entry]:
    if not path.exists():
        raise InputError(f"no documents at {path}", "Give a folder or a file of documents")
    if not path.is_dir():
        return [_Entry(str(path), _printed_name(path.name), path.stat().st_size)]
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"the folder {path} cannot be read (Permission denied)", "Give a folder that you may read")
    root = path.resolve()
    found = sorted(_walk(str(path)), key=lambda item: item[0])
    return [_entry(name, item, root) for name, item in found]


def _walk(folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Name (relative to the folder) and entry of all that is not hidden, linked folders not entered."""
    open_folders = [("", folder)]
    while open_folders:
        above, here = open_folders.pop()
        with os.scandir(here) as items:
            for item in items:
                if item.name.startswith("."):
                    continue
                if item.is_dir(follow_symlinks=False) and os.access(item.path, os.R_OK | os.X_OK):
                    open_folders.append((f"{above}{item.name}/", item.path))
                else:
                    yield above + item.name, item


def _entry(name: str, item: os.DirEntry[str], root: Path) -> _Entry:
    skipped, size = "", 0
    if item.is_symlink():
        skipped = _skipped_link(item.path, root)
    elif item.is_dir(follow_symlinks=False):
        skipped = "the folder cannot be read"
    else:
        size = _size(item)
    return _Entry(item.path, _printed_name(name), size, skipped)


def _skipped_link(path: str, root: Path) -> str:
    """Why a link is not read; "" for one that leads nowhere, of which reading it will say so."""
    if os.path.isdir(path):  # noqa: PTH112 - a path of a listing; Path objects would double its time
        return "a link to a folder is not followed"
    target = Path(os.path.realpath(path))  # unlike resolve, it bears links in a ring
    if not target.is_relative_to(root):
        return "a link that leads out of the folder is not followed"
    inside = target.relative_to(root)
    if any(part.startswith(".") for part in inside.parts):
        return "a link to a hidden file is not followed"
    return f"a link to {_printed_name(inside.as_posix())}, which is read under its own name" if target.exists() else ""


def _size(item: os.DirEntry[str]) -> int:
    try:
        return item.stat(follow_symlinks=False).st_size
    except OSError:  # gone meanwhile: reading it will say so
        return 0


_BEFORE_BYTE = re.compile(r"\\+(?=x[89a-f][0-9a-f]|[\udc80-\udcff])")


def _printed_name(name: str) -> str:
    """The name with bytes that are no UTF-8 written out (``r\\xe8gle.txt``). Distinct names stay distinct: backslashes
    before what is or looks like such a byte are doubled, so that an odd number of them means a byte."""
    if "\\" in name:
        name = _BEFORE_BYTE.sub(lambda found: found[0] * 2, name)
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    return name
