"""Files whose rows are documents: jsonl, json and csv.

A row holds its ``text``; columns other than id, title, text and source become the document's metadata::

    {"id": "acts/leases", "title": "Leases Act", "text": "1. A lease ends after ten years.", "source": "gazette 12",
     "date": "1 March 2024", "tags": "land, rent", "labels": ["legal"]}

Its text stays as it is, because question files give offsets into it. A csv without a column ``text``, or a json that
holds no such rows, is one document that shows its values as ``name: value`` lines.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from raft.errors import InputError
from raft.readers.plain import (
    Limits,
    ReadOutcome,
    clean,
    decode,
    encodable,
    file_document,
    has_labels_within,
    is_labels,
    normalized,
    one_line,
)
from raft.records import Document

_MAX_DEPTH = 100  # of nested json that is shown as lines


def read_jsonl(data: bytes, name: str, limits: Limits) -> Iterator[ReadOutcome]:
    """One outcome a line; blank lines count as none."""
    if data[:4].replace(b"\x00", b"") != data[:4] or data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = decode(data).encode("utf-8", "surrogatepass")  # of two or four bytes a character
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.strip():
            yield _jsonl_row(line, name, number)


def _jsonl_row(line: bytes, name: str, number: int) -> ReadOutcome:
    where = f"{name}#{number}"
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), object_pairs_hook=_labelled_once)
    except InputError as error:
        return ReadOutcome(where, "refused", reason=str(error))
    except (ValueError, RecursionError) as error:
        return ReadOutcome(where, "refused", reason=f"is not JSON ({error})")
    return _row_outcome(row, name, where)


def _labelled_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A json object. Of a key that is there twice the last counts, which for access labels would lose the first."""
    found = dict(pairs)
    if len(found) != len(pairs) and sum(is_labels(key) for key, _ in pairs) > 1:
        raise InputError("has access labels twice in one object: keep one 'labels'")
    return found


def read_json(data: bytes, name: str, limits: Limits) -> Iterator[ReadOutcome]:
    """The rows of a list, or of an object that has a text; of any other json one document."""
    text = decode(data).removeprefix("\ufeff")
    try:
        value = json.loads(text, object_pairs_hook=_labelled_once)
    except RecursionError:
        raise InputError("damaged json (nested too deeply)") from None
    except ValueError as error:
        if _is_jsonl(text):
            yield from read_jsonl(text.encode("utf-8", "surrogatepass"), name, limits)
            return
        raise InputError(f"damaged json ({error})") from None
    if isinstance(value, dict) and "text" in value:
        yield _row_outcome(value, name, name)
    elif isinstance(value, list) and any(isinstance(row, dict) and "text" in row for row in value):
        yield from (_row_outcome(row, name, f"{name}#{number}") for number, row in enumerate(value, 1))
    else:
        if has_labels_within(value):
            raise InputError(f"{_UNKEPT}: make it a list of rows with 'text' and 'labels' each, or rename 'labels'")
        yield ReadOutcome(name, "indexed", file_document(name, "\n".join(_shown(value, "", 0)), "json"))


# Rows with access labels are documents or nothing: one document for all of them would lose the labels.
_UNKEPT = "has access labels, which one document for all of it would lose"


def _is_jsonl(text: str) -> bool:
    """Whether the first line is an object of its own: rows under the name of a json file."""
    try:
        return isinstance(json.loads(text.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def _shown(value: object, key: str, depth: int) -> Iterator[str]:
    """A json value as indented lines: ``name: value``, and ``- value`` for the items of a list."""
    lead, inner = "  " * depth + (f"{key}: " if key else ""), depth + (1 if key else 0)
    if depth > _MAX_DEPTH:
        raise InputError(f"damaged json (nested more than {_MAX_DEPTH} deep)")
    if isinstance(value, dict):
        if key:
            yield lead.rstrip()
        for name, item in value.items():
            yield from _shown(item, one_line(str(name)) or "-", inner)
    elif isinstance(value, list):
        if key:
            yield lead.rstrip()
        for item in value:
            nested = isinstance(item, (dict, list))
            yield from _shown(item, "", inner) if nested else ["  " * inner + f"- {_scalar(item)}"]
            if nested and depth == 0:
                yield ""
    else:
        yield lead + _scalar(value)


def _scalar(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_csv(data: bytes, name: str, limits: Limits) -> Iterator[ReadOutcome]:
    """One outcome a row where a column is called ``text``; else the whole table as one document. A row with more
    fields than columns is refused, because its text may be among them."""
    text = clean(decode(data)).removeprefix("\ufeff")
    csv.field_size_limit(max(limits.max_file_bytes, 1 << 17))
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        if sum(is_labels(column) for column in rows.fieldnames or ()) > 1:
            raise InputError("has two columns of access labels: keep one")
        if "text" in (rows.fieldnames or ()):
            yield from _csv_rows(rows, name)
        else:
            yield ReadOutcome(name, "indexed", _csv_document(rows, name))
    except csv.Error as error:
        raise InputError(f"damaged csv near line {rows.line_num} ({error})") from None


def _delimiter(text: str) -> str:
    head = text.partition("\n")[0]
    return max(",;\t|", key=head.count)


def _csv_rows(rows: csv.DictReader[str], name: str) -> Iterator[ReadOutcome]:
    columns = len(rows.fieldnames or ())
    for number, row in enumerate(rows, 2):
        surplus = len(_surplus(row))
        if surplus:
            counts = f"row {number} has {columns + surplus} fields for {columns} columns"
            reason = f"{counts}: quote the field that holds a {rows.reader.dialect.delimiter!r}"
            yield ReadOutcome(f"{name}#{number}", "refused", reason=reason)
        else:
            yield _row_outcome(row, name, f"{name}#{number}")


def _csv_document(rows: csv.DictReader[str], name: str) -> Document:
    """The table as one document: a block of ``column: value`` lines a row."""
    columns = [one_line(column) for column in rows.fieldnames or ()]
    if any(map(is_labels, columns)):
        raise InputError(f"{_UNKEPT}: call the column that holds the text 'text', or rename 'labels'")
    blocks = ["\n".join(_csv_lines(columns, row)) for row in rows]
    return file_document(name, "\n\n".join(block for block in blocks or [" | ".join(columns)] if block), "csv")


def _csv_lines(columns: Iterable[str], row: dict[str, Any]) -> Iterator[str]:
    surplus = _surplus(row)
    for column, value in zip(columns, row.values(), strict=False):
        if value and value.strip():
            yield f"{column}: {one_line(value)}" if column else one_line(value)
    yield from (one_line(value) for value in surplus if value.strip())


def _surplus(row: dict[Any, Any]) -> list[str]:
    """The fields for which there is no column, taken out of the row: DictReader keeps them under None."""
    return row.pop(None, None) or []


def _row_outcome(row: object, name: str, where: str) -> ReadOutcome:
    if not isinstance(row, Mapping):
        return ReadOutcome(where, "refused", reason=f"is {type(row).__name__}, not a JSON object")
    text, title, source = row.get("text"), row.get("title") or "", row.get("source") or name
    identifier = row.get("id")
    if not isinstance(text, str) or not text.strip():
        found = "is empty" if isinstance(text, str) else f"is {type(text).__name__}, not a string"
        return ReadOutcome(where, "refused", reason=f"its text {found}" if "text" in row else "it has no text")
    if isinstance(identifier, (dict, list, bool, float)) or not isinstance(title, str):
        return ReadOutcome(where, "refused", reason="its id must be a string or an integer, its title a string")
    try:
        metadata = _row_metadata(row)
    except InputError as error:
        return ReadOutcome(where, "refused", reason=encodable(str(error)))
    document = Document(
        id=encodable(where if identifier in (None, "") else str(identifier)),
        text=encodable(text),  # else unchanged: gold spans of question files are offsets into it
        title=encodable(one_line(title)),
        source=encodable(str(source)),
        metadata=metadata,
    )
    return ReadOutcome(where, "indexed", document)


def _row_metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    # "page_starts" is what read_pdf counts; a row's own column of that name says nothing about its text.
    values = {
        "row_page_starts" if key == "page_starts" else key: value
        for key, value in row.items()
        if key not in ("id", "title", "text", "source")
    }
    if not any(map(is_labels, values)) and has_labels_within(values):
        raise InputError("it has access labels inside another column: move 'labels' up ([] for none), or rename it")
    found: dict[str, Any] = json.loads(encodable(json.dumps(normalized(values), ensure_ascii=False, default=str)))
    return found
