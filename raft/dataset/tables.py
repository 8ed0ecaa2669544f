"""The rows of a file of questions, whatever its form: JSON lines, JSON, CSV, TSV, Parquet, or a Hugging Face folder.

    questions.csv  ->  "questions.csv row 1", {"question": "How much?", "gold_doc_ids": "a.md;b.md", "split": "dev"}
    squad/         ->  "squad train row 1", {"question": "How much?", "answers": {"text": ["12 mg"]}, "split": "train"}

Rows are counted from 1, a header not among them. Text is read as the readers of documents read it: byte order marks
are taken away, and JSON and CSV may be in other encodings than UTF-8.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from raft.errors import InputError
from raft.readers.plain import clean, decode, encodable

Row = tuple[str, dict[str, Any]]
"""Where a row stands, for messages, and the row."""

_SPLITS = {"validation": "dev", "valid": "dev", "val": "dev"}  # what others call them
_FORMS = "a .jsonl, .json, .csv, .tsv (each may be .gz) or .parquet file, or a folder saved by Hugging Face datasets"
_WIDE = (b"\xff\xfe", b"\xfe\xff")
_MOST_FIELD_CHARS = 1 << 27


def table_rows(path: Path) -> Iterator[Row]:
    """The rows of a file or folder, one at a time where its form allows it (all but .json, .csv and .tsv).

    Raises InputError naming file and row of what cannot be read.
    """
    if path.is_dir():
        return _folder_rows(path)
    reader = _READERS.get(_form(path), _json_lines)
    return reader(path)


def is_separated(path: Path) -> bool:
    """Whether the table's cells are all text, so that a list is written into one."""
    return _form(path) in (".csv", ".tsv")


def _form(path: Path) -> str:
    """The ending of a name, without .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})", f"Expected {_FORMS}")


def _bytes(path: Path) -> bytes:
    import gzip
    import zlib

    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _text(path: Path) -> str:
    return clean(_decoded(_bytes(path), path)).removeprefix("\ufeff")


def _decoded(data: bytes, path: Path) -> str:
    try:
        return decode(data)
    except InputError as error:  # "is binary, not text"
        raise InputError(f"{path} {error.what}", f"Expected {_FORMS}") from None


# --- JSON ----------------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[Row]:
    import gzip
    import zlib

    count = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(_utf8_lines(stream, path), 1):
                if line.strip():
                    count += 1
                    yield f"{path} row {count}", _object(line, f"{path} line {number}", first=number == 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _utf8_lines(stream: Any, path: Path) -> Iterable[bytes]:
    """The lines; a file of two or four bytes a character is decoded as a whole."""
    head = stream.peek(4)[:4]
    if b"\x00" in head or head.startswith(_WIDE):
        return _decoded(stream.read(), path).encode("utf-8", "surrogatepass").split(b"\n")
    return cast(Iterable[bytes], stream)


def _object(line: bytes, where: str, first: bool = False) -> dict[str, Any]:
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error})", f"Expected {_FORMS}") from None
    return _checked_object(row, where, "\\ud" in text.lower())


def _checked_object(row: object, where: str, may_be_broken: bool) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where} is {type(row).__name__}, not a JSON object", f"Expected {_FORMS}")
    if may_be_broken:  # half of an escaped pair, which no file can hold
        return cast(dict[str, Any], json.loads(encodable(json.dumps(row, ensure_ascii=False))))
    return row


def _json(path: Path) -> Iterator[Row]:
    """A list of objects; or JSON lines under the name of a json file."""
    text = _text(path)
    try:
        value = json.loads(text)
    except RecursionError:
        raise InputError(f"{path} is not JSON (nested too deeply)", f"Expected {_FORMS}") from None
    except ValueError as error:
        if not text.lstrip().startswith("{"):
            raise InputError(f"{path} is not JSON ({error})", f"Expected {_FORMS}") from None
        yield from _json_lines(path)
        return
    if isinstance(value, dict) and isinstance(value.get("question"), str):
        value = [value]  # JSON lines of one row
    if not isinstance(value, list):
        raise InputError(f"{path} is one {type(value).__name__}; expected a list of objects", f"Expected {_FORMS}")
    broken = "\\ud" in text.lower()
    for number, row in enumerate(value, 1):
        where = f"{path} row {number}"
        yield where, _checked_object(row, where, broken)


# --- CSV -----------------------------------------------------------------------------------------------------------


def _separated(path: Path) -> Iterator[Row]:
    """The rows of a .csv (its separator is seen in its header) or a .tsv; empty cells are None."""
    text = _text(path)
    head = text.partition("\n")[0]
    delimiter = "\t" if _form(path) == ".tsv" else max(",;\t|", key=head.count)
    csv.field_size_limit(_MOST_FIELD_CHARS)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for number, row in enumerate(rows, 1):
            where = f"{path} row {number}"
            _check_width(row, where)
            yield where, {name: value if value.strip() else None for name, value in row.items()}
    except csv.Error as error:
        raise InputError(f"{path} is damaged near line {rows.line_num} ({error})", f"Expected {_FORMS}") from None


def _check_width(row: Mapping[Any, Any], where: str) -> None:
    missing = [name for name, value in row.items() if value is None]
    if None in row or missing:
        said = f"has more fields than the {len(row) - 1} columns" if None in row else f"lacks its {missing[0]}"
        raise InputError(f"{where} {said}", "Put fields that hold a separator or a line break in double quotes")


# --- Parquet and Hugging Face folders ----------------------------------------------------------------------------


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            rows = (row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield f"{path} row {number}", row
    except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these two
        raise _unreadable(path, ValueError(str(error).split("\n", 1)[0])) from None


def _folder_rows(path: Path) -> Iterator[Row]:
    """The rows of a Dataset, or of each split of a DatasetDict; a row without a split has that of its place."""
    import datasets

    if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise InputError(f"{path} is a folder that Hugging Face datasets did not save", f"Expected {_FORMS}")
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:  # of its json files, its arrow files, its features
        raise _unreadable(path, ValueError(str(error).split("\n", 1)[0])) from None
    if isinstance(loaded, datasets.Dataset):
        yield from ((f"{path} row {number}", row) for number, row in enumerate(loaded, 1))
        return
    for name, part in loaded.items():
        split = _SPLITS.get(str(name), str(name))
        for number, row in enumerate(part, 1):
            yield f"{path} {name} row {number}", {**row, "split": row.get("split") or split}


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _json,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
}
