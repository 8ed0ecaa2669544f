"""JSON lines files: read, written, and appended to by work that may be stopped at any moment."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raft.errors import InputError


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            count += 1
    return count


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file (gzipped when its name ends in .gz), one at a time.

    Raises InputError naming the line that is not a JSON object.
    """
    import gzip
    import zlib

    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _parse_row(line, path, number)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _parse_row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} line {number} is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{path} line {number} is {type(row).__name__}, not a JSON object")
    return row


class Journal:
    """An append-only JSON lines file that survives ``kill -9``: each row is flushed to the operating system at
    once, and a last line cut short by a crash is dropped on reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = self._recover()
        self._stream = path.open("a", encoding="utf-8")

    def _recover(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.path.open("rb+") as stream:
                stream.truncate(len(whole))
        try:
            lines = whole.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path} cannot be read ({error})") from None
        return [_parse_row(line, self.path, n) for n, line in enumerate(lines, 1) if line.strip()]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that stood in the file when it was opened."""
        return self._rows

    def append(self, row: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class Spool:
    """Rows on disk, appended and read again by number: a hundred thousand of them take 8 bytes each in memory."""

    def __init__(self, path: Path) -> None:
        """Begins an empty file."""
        self.path = path
        self._stream = path.open("w+b")
        self._starts = array("q")

    def append(self, row: Mapping[str, Any]) -> int:
        """The number of the row."""
        self._starts.append(self._stream.seek(0, 2))
        self._stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        return len(self._starts) - 1

    def replace(self, at: int, row: Mapping[str, Any]) -> None:
        """Another row in the place of this number."""
        self._starts[at] = self._starts[self.append(row)]
        self._starts.pop()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, at: int) -> dict[str, Any]:
        self._stream.seek(self._starts[at])
        return dict(json.loads(self._stream.readline().decode("utf-8", "surrogatepass")))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[at] for at in range(len(self)))

    def close(self) -> None:
        self._stream.close()
