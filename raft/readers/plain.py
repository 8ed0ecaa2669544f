"""Text and what every reader makes of it: decoding, titles, dates, and the document of one file.

A Markdown file with front matter, ``leave.md``::

    ---
    title: Leave policy
    date: 2024-03-01
    tags: [staff, leave]
    labels: [hr]
    ---
    Staff have 27 days.

gives a document whose text begins with "Staff", whose title is "Leave policy" and whose metadata is
``{"date": "2024-03-01", "tags": ["staff", "leave"], "labels": ["hr"], "format": "md"}``. ``labels`` say who may
read it: a value that cannot be understood refuses the document, so that a label is never lost.
"""

from __future__ import annotations

import codecs
import datetime
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal

from raft.errors import InputError
from raft.records import Document

_MAX_TITLE_CHARS = 120
_MAX_CONTROL_SHARE = 0.01  # of the characters; more means that bytes were taken for text
_MAX_FRONT_CHARS = 64 * 1024


@dataclass(frozen=True, slots=True)
class ReadOutcome:
    """What became of one file, or of one row of a record file; ``source`` names it inside the source folder.

    ``document`` is set when ``status`` is "indexed"; ``reason`` says why it is not, or what its text lacks.
    """

    source: str
    status: Literal["indexed", "skipped", "refused"]
    document: Document | None = None
    reason: str = ""


def _no_beat() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader may take: ``beat`` tells the watch that a slow file makes progress (a page of it was seen)."""

    max_file_bytes: int = 200 << 20
    max_text_chars: int = 64 << 20
    passwords: tuple[str, ...] = ()
    ocr: bool = False
    beat: Callable[[], None] = _no_beat


# --- documents -------------------------------------------------------------------------------------------------


def file_document(
    name: str, text: str, kind: str, title: str = "", metadata: Mapping[str, Any] | None = None
) -> Document:
    """The document of a whole file. Raises InputError when it holds no text.

    Where ``metadata`` has page starts, ``text`` is clean already and its beginning stays as it is.
    """
    found = {key: value for key, value in (metadata or {}).items() if value not in ("", None)}
    text = text.rstrip() if "page_starts" in found else clean(text).strip()
    if not text.strip():
        raise InputError("holds no text")
    title = title if _is_sane_title(title) else _title_in(text) or PurePosixPath(name).stem
    return Document(name, text, encodable(one_line(title)), name, found | {"format": kind})


_SETEXT_LINE = re.compile(r"^\s*(?:={3,}|-{3,})\s*$")
_INSANE_TITLE = re.compile(
    r"^(?:untitled.*|\(.*\)|microsoft word.*|(?:powerpoint|word) (?:presentation|document)"
    r"|.*\.(?:docx?|pdf|indd|qxd|rtf|txt|html?|pptx?|xlsx?|odt))$",
    re.I,
)


def _is_sane_title(title: str) -> bool:
    return bool(one_line(title)) and not _INSANE_TITLE.match(one_line(title))


def _title_in(text: str) -> str:
    """The first heading, or else the first line where it is short enough to be a title; "" when neither is there."""
    heading = re.search(r"^[ \t]*#{1,6}[ \t]+(\S.*)$", text, re.MULTILINE)
    lines = (line.strip() for line in text[:20_000].splitlines())
    first = next((line for line in lines if line and not _SETEXT_LINE.match(line)), "")
    title = heading[1].strip() if heading else first
    return title if len(title) <= _MAX_TITLE_CHARS and re.search(r"[^\W\d_]{2}", title) else ""


def one_line(text: str) -> str:
    return " ".join(text.split())


def table_row(cells: list[str]) -> str:
    """The cells of a row as ``a | b | c``; "" when all are empty."""
    return " | ".join(one_line(cell) for cell in cells).rstrip(" |") if any(cell.strip() for cell in cells) else ""


# --- characters ------------------------------------------------------------------------------------------------

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROLS = [chr(code) for code in range(32) if chr(code) not in "\t\n\r\f\v"]
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def clean(text: str) -> str:
    return encodable(text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", ""))


def encodable(text: str) -> str:
    """The text with lone surrogates (a pdf's or JSON's broken characters) replaced, one for one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _SURROGATE.search(text) else text


def decode(data: bytes) -> str:
    """Bytes of any encoding as text: by their mark, else as UTF-8, else by charset-normalizer's guess."""
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = _guess(data)
    if sum(map(text.count, _CONTROLS)) > _MAX_CONTROL_SHARE * len(text):
        raise InputError("is binary, not text")
    return text


def _guess(data: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(data).best()
    if best is None or b"\x00" in data:
        raise InputError("is binary, or in an unknown encoding")
    return str(best)


# --- dates, tags and labels --------------------------------------------------------------------------------------

_NUMERIC_DATES = (  # 2024-03-01T10:00:00Z, 2024-03, a pdf's D:20240301093826+01'00', 20240301
    re.compile(r"(\d{4})(?:-(\d\d?)(?:-(\d\d?)(?:[T ]\d.*)?)?)?$"),
    re.compile(r"D:(\d{4})(\d\d)?(\d\d)?"),
    re.compile(r"(\d{4})(\d\d)(\d\d)(?:\d{6})?$"),
)
_DATE_FORMATS = ("%d %B %Y", "%d %b %Y", "%d. %B %Y", "%B %d, %Y", "%b %d, %Y", "%B %d %Y", "%Y/%m/%d", "%d.%m.%Y")


def iso_date(value: object) -> str:
    """``2024-03-01`` (or ``2024-03``, ``2024``) for what a file gives as a date; "" where that is not sure, as with
    03/04/2024."""
    return value.isoformat()[:10] if isinstance(value, datetime.date) else _date_in(one_line(str(value or ""))[:60])


@lru_cache(maxsize=10_000)
def _date_in(words: str) -> str:
    match = next(filter(None, (pattern.match(words) for pattern in _NUMERIC_DATES)), None)
    if match:
        return _checked_date(*(int(part or 0) for part in match.groups()))
    for form in _DATE_FORMATS:
        try:
            return datetime.datetime.strptime(words, form).date().isoformat()
        except ValueError:
            continue
    return _mail_date(words)


def _checked_date(year: int, month: int, day: int) -> str:
    try:
        datetime.date(year, month or 1, day or 1)
    except ValueError:
        return ""
    return f"{year:04}" + (f"-{month:02}" if month else "") + (f"-{day:02}" if day else "")


def _mail_date(words: str) -> str:
    from email.utils import parsedate_to_datetime

    try:
        # Without a year and a time behind them, words are no date of a mail.
        return parsedate_to_datetime(words).date().isoformat() if re.search(r"\d{4} \d\d?:\d\d", words) else ""
    except (ValueError, TypeError, IndexError):
        return ""


def normalized(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row, or the keys of front matter: ``date`` in ISO form where it can be read, ``tags`` and
    ``labels`` as lists of strings. Raises InputError when the labels cannot be understood."""
    result = {str(key): value for key, value in metadata.items()}
    named = [key for key in result if is_labels(key)]
    if len(named) > 1:
        raise InputError(f"it has {len(named)} columns of access labels ({', '.join(named)}): keep one")
    if named:
        result["labels"] = _labels(result.pop(named[0]))
    if "date" in result:
        result["date"] = iso_date(result["date"]) or result["date"]
    if "tags" in result:
        result["tags"] = _tags(result["tags"])
    return result


def is_labels(key: object) -> bool:
    """Whether a column or key of this name holds access labels."""
    return isinstance(key, str) and key.strip().casefold() == "labels"


def has_labels_within(value: object) -> bool:
    """Whether a value read from json or yaml has access labels at any depth."""
    seen, waiting = set(), [value]
    while waiting:
        item = waiting.pop()
        if not isinstance(item, (dict, list)) or id(item) in seen:  # yaml's aliases may lead round in a ring
            continue
        seen.add(id(item))
        if isinstance(item, dict) and any(map(is_labels, item)):
            return True
        waiting += item.values() if isinstance(item, dict) else item
    return False


def _labels(value: object) -> list[str]:
    listed = _listed(value)
    if listed is None or not all(isinstance(label, str) and label.strip() for label in listed):
        shown = json.dumps(value, default=str, ensure_ascii=False)[:80]
        raise InputError(f"its access labels are {shown}: expected a list of names, [] for none")
    return [one_line(label) for label in listed]


def _tags(value: object) -> list[str]:
    listed = _listed(value)
    listed = [] if value is None else [value] if listed is None else listed
    return [one_line(str(tag)) for tag in listed if str(tag).strip()]


def _listed(value: object) -> list[Any] | None:
    """A list as JSON has it, or as it is written in the cell of a table (``a, b`` or ``["a", "b"]``); else None."""
    if not isinstance(value, str):
        return value if isinstance(value, list) else None
    if not value.lstrip().startswith("["):
        return re.split("[,;]", value) if value.strip() else []
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, list) else None


# --- plain text, Markdown, rtf -----------------------------------------------------------------------------------


def read_text(data: bytes, name: str, limits: Limits) -> Document:
    """A plain text. Its title is its first heading or short first line. Raises InputError where labels stand above it
    as in Markdown, because they are not read here."""
    text = decode(data)
    if _is_fenced_with_labels(clean(text)):
        raise InputError("has access labels in front matter, which is read in Markdown only: name the file .md")
    return file_document(name, text, "txt")


def read_markdown(data: bytes, name: str, limits: Limits) -> Document:
    """A Markdown file, its front matter (see above) taken out of the text. Raises InputError on malformed labels."""
    front, text = _front_matter(clean(decode(data)).removeprefix("\ufeff"))
    return file_document(name, text, "md", one_line(str(front.pop("title", "") or "")), front)


_FRONT = re.compile(r"\s*---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FENCE = re.compile(r"[\s\ufeff\u200b]*(?:---|\+\+\+|;;;)")
_LABELS_KEY = re.compile(r"\blabels[\"' \t]*[:=]", re.IGNORECASE)
_LABELS_LINE = re.compile(r"^[^\w\n]*labels[\"' \t]*[:=]", re.MULTILINE | re.IGNORECASE)


def _front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The metadata above a text, and the rest. What is no mapping of names belongs to the text, but has no labels."""
    match = _FRONT.match(text, 0, _MAX_FRONT_CHARS)
    values = _yaml_mapping(match[1]) if match else None
    if match is None or values is None:
        top = text.strip().partition("\n\n")[0]  # where other programs keep metadata without a fence, or as json
        if _is_fenced_with_labels(text) or _LABELS_LINE.search(top) or (match and _LABELS_KEY.search(match[1])):
            raise InputError("its front matter has access labels but is not YAML between two lines of '---'")
        return {}, text
    rest = text[match.end() :]
    if _is_fenced_with_labels(rest):
        raise InputError("has access labels in a second block of front matter: keep one block")
    if not any(map(is_labels, values)) and has_labels_within(values):
        raise InputError("its front matter has access labels below another key: move 'labels' up ([] for none)")
    kept = {key: _plain_value(value) for key, value in values.items() if str(key) not in ("format", "page_starts")}
    return {key: value for key, value in normalized(kept).items() if value is not None}, rest


def _is_fenced_with_labels(text: str) -> bool:
    """Whether a text begins as front matter does and a line of it gives labels: where the block ends, if it does, is
    not sure."""
    return _FENCE.match(text) is not None and _LABELS_LINE.search(text) is not None


def _yaml_mapping(block: str) -> dict[Any, Any] | None:
    """The mapping that this yaml is, or None. Raises InputError where one mapping in it has labels twice."""
    import yaml

    loader = yaml.SafeLoader("")
    try:
        loader = yaml.SafeLoader(block)
        node = loader.get_single_node()
        if node is not None and _is_labelled_twice(loader, node):
            raise InputError("its front matter has access labels twice: keep one 'labels'")
        values = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None
    finally:
        loader.dispose()
    return values if isinstance(values, dict) else None


def _is_labelled_twice(loader: Any, top: Any) -> bool:
    """Whether any mapping of parsed yaml has labels twice, its own or merged into it; of two, yaml keeps one."""
    import yaml

    seen, waiting = set(), [top]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            if sum(is_labels(key.value) for key, _ in node.value) > 1:
                return True
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return False


def _plain_value(value: object) -> object:
    """A value as JSON knows it; None for what is nested, whose aliases could unfold without end."""
    if isinstance(value, list):
        return [None if isinstance(item, list) else _plain_value(item) for item in value]
    if isinstance(value, datetime.date):
        return value.isoformat()
    return value if isinstance(value, (str, int, float, bool)) else None


def read_rtf(data: bytes, name: str, limits: Limits) -> Document:
    """An rtf file, such as ``{\\rtf1\\ansi Staff have 27 days.}``, with the title, author and date of its info."""
    from striprtf.striprtf import rtf_to_text

    source = data.decode("latin-1")
    shown = re.sub(r"\\v(?![a-z0-9])[^{}]*?(?=\\v0|[{}]|\Z)", "", source)  # \v hides what stands up to \v0
    text = re.sub(r"\|\n", "\n", rtf_to_text(shown, errors="replace"))
    text = re.sub(r"(?<=\S)\|(?=\S)", " | ", text)
    info = {key: _rtf_words(source, key) for key in ("title", "author")}
    saved = re.search(r"\\(?:revtim|creatim)\\yr(\d{4})\\mo(\d\d?)\\dy(\d\d?)", source)
    date = _checked_date(*map(int, saved.groups())) if saved else ""
    return file_document(name, text, "rtf", info["title"], {"author": info["author"], "date": date})


def _rtf_words(source: str, key: str) -> str:
    found = re.search(rf"\{{\\{key} ([^{{}}\\]*)\}}", source[:100_000])
    return one_line(found[1]) if found else ""
