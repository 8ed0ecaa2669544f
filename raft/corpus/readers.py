"""From files to documents: one function per format, one reported outcome per file or row.

A row of a record file (``corpus.jsonl``, ``.jsonl.gz`` or ``.csv``) is a document of its own; only ``text`` must be
there, and columns other than these four become its metadata::

    {"id": "acts/leases", "title": "Leases Act", "text": "1. A lease ends after ten years.", "source": "gazette 12"}

A file becomes one document, named by its path inside the source folder (``protocols/sepsis.md``). Headings of html
and docx are written as ``## Heading`` lines, so that one rule finds the sections of every format. What cannot be
read (damaged, encrypted, empty, binary, of another format) is refused with a reason, and the rest goes on.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import logging
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raft.errors import InputError
from raft.records import Document

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from docx.table import Table
    from docx.text.paragraph import Paragraph

MAX_FILE_BYTES = 200 * 1024 * 1024
_MAX_TITLE_CHARS = 120
_MAX_CONTROL_SHARE = 0.01  # of the characters; more means that bytes were taken for text

# What parsing libraries raise on damaged files besides their own errors (the tests damage files at random).
_DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError, EOFError,
    NotImplementedError, OSError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReadOutcome:
    """What became of one file, or of one row of a record file; ``source`` names it inside the source folder.

    ``document`` is set when ``status`` is "indexed"; else ``reason`` says why it is not.
    """

    source: str
    status: Literal["indexed", "skipped", "refused"]
    document: Document | None = None
    reason: str = ""


def read_source(path: Path) -> Iterator[ReadOutcome]:
    """The outcomes of a folder (in sorted order, hidden files left out) or of one file.

    A document id that was used before is refused. Links that lead out of the folder are not followed. Raises
    InputError when ``path`` is not there.
    """
    if not path.exists():
        raise InputError(f"no documents at {path}", "Give a folder or a file of documents")
    seen: dict[str, str] = {}
    for file in _list_files(path):
        name = _printed_name(file.relative_to(path).as_posix() if path.is_dir() else file.name)
        for outcome in _read_file(file, name, path):
            document = outcome.document
            if document is not None and document.id in seen:
                reason = f"its id {document.id!r} is taken by {seen[document.id]}"
                yield ReadOutcome(outcome.source, "refused", reason=reason)
                continue
            if document is not None:
                seen[document.id] = outcome.source
            yield outcome


def _printed_name(name: str) -> str:
    """The name with bytes that are no UTF-8 written out (``r\\xe8gle.txt``): distinct names stay distinct."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if _SURROGATE.search(name) else name


def _list_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [
        file
        for file in path.rglob("*")  # does not descend into linked folders
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
        and (file.is_symlink() or not file.is_dir() or not os.access(file, os.R_OK | os.X_OK))
    ]
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def _read_file(file: Path, name: str, root: Path) -> Iterator[ReadOutcome]:
    skipped = _why_skipped(file, root)
    if skipped:
        yield ReadOutcome(name, "skipped", reason=_encodable(skipped))
        return
    try:
        _check_size(file)
        rows = _RECORDS.get(_suffix(name))
        if rows is not None:
            yield from rows(file, name)
        else:
            yield ReadOutcome(name, "indexed", _READERS[_suffix(name)](file, name))
    except InputError as error:
        yield ReadOutcome(name, "refused", reason=_encodable(str(error)))  # it may quote the file's real name


def _why_skipped(file: Path, root: Path) -> str:
    if file.is_dir():
        return "a link to a folder is not followed" if file.is_symlink() else "the folder cannot be read"
    if file.is_symlink() and root.is_dir() and not file.resolve().is_relative_to(root.resolve()):
        return "a link that leads out of the folder is not followed"
    if _suffix(file.name) not in {*_READERS, *_RECORDS}:
        return f"format {_suffix(file.name) or 'without a suffix'} is not read (formats: {', '.join(FORMATS)})"
    return ""


def _check_size(file: Path) -> None:
    try:
        status = file.stat()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError("is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise InputError(f"has {status.st_size} bytes; at most {MAX_FILE_BYTES} are read")


def _suffix(name: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


# --- files that are one document -------------------------------------------------------------------------------


def read_text(file: Path, name: str) -> Document:
    """A plain text or Markdown file. Its title is its first heading or short first line."""
    return _file_document(name, _decode(_read_bytes(file)))


def read_html(file: Path, name: str) -> Document:
    """An html page: what a reader sees of its body, without scripts, form controls, menus, the page's own header
    and footer, and hidden parts."""
    from bs4 import BeautifulSoup

    data = _read_bytes(file)
    try:
        # Bytes, where they declare their encoding: the declaration is then read as browsers do.
        soup = BeautifulSoup(data if b"charset" in data[:2048].lower() else _decode(data), "lxml")
        title = _html_title(soup)
        return _file_document(name, _html_text(soup), title)
    except _DAMAGE as error:
        raise _damaged("html", error) from None


def read_pdf(file: Path, name: str) -> Document:
    """The text layer of a pdf; ``metadata["page_starts"]`` holds the character offset at which each page begins.

    Raises InputError when it is encrypted, damaged, or has no text (a scan).
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # damage is reported once a file, as its outcome
    try:
        reader = PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError("is encrypted: a password is needed")
        pages = [_clean(page.extract_text()).strip() for page in reader.pages]
        title = str((reader.metadata and reader.metadata.title) or "")
    except (PyPdfError, *_DAMAGE) as error:
        raise _damaged("pdf", error) from None
    if not any(pages):
        raise InputError(f"has no text layer in its {len(pages)} pages (a scan?)")
    starts, offset = [], 0
    for page in pages:
        starts.append(offset)
        offset += len(page) + len(_PAGE_BREAK)
    return _file_document(name, _PAGE_BREAK.join(pages), title, {"page_starts": starts})


def read_docx(file: Path, name: str) -> Document:
    """A Word file: paragraphs and tables in document order. Raises InputError when damaged or too large unpacked."""
    import docx
    from docx.opc.exceptions import OpcError
    from docx.table import Table
    from lxml.etree import LxmlError

    try:
        _check_unpacked_size(file)
        opened = docx.Document(str(file))
        blocks = [
            _docx_table(block) if isinstance(block, Table) else _docx_paragraph(block)
            for block in opened.iter_inner_content()
        ]
        title = opened.core_properties.title
    except (OpcError, LxmlError, *_DAMAGE) as error:
        raise _damaged("docx", error) from None
    return _file_document(name, "\n\n".join(block for block in blocks if block), title)


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None


def _damaged(kind: str, error: Exception) -> InputError:
    detail = " ".join(str(error).split())[:120]
    return error if isinstance(error, InputError) else InputError(f"damaged {kind} ({detail or type(error).__name__})")


def _file_document(name: str, text: str, title: str = "", metadata: Mapping[str, Any] | None = None) -> Document:
    # A pdf's offsets are counted already, so only what they do not depend on is stripped.
    text = _clean(text).rstrip() if metadata else _clean(text).strip()
    if not text.strip():
        raise InputError("holds no text")
    title = title if _is_sane_title(title) else _title_in(text) or Path(name).stem
    return Document(id=name, text=text, title=_encodable(_one_line(title)), source=name, metadata=metadata or {})


_PAGE_BREAK = "\n\n"
_SETEXT_LINE = re.compile(r"^\s*(?:={3,}|-{3,})\s*$")
_INSANE_TITLE = re.compile(r"^(?:untitled.*|\(.*\)|microsoft word.*|.*\.(?:docx?|pdf|indd|qxd|rtf|txt|html?))$", re.I)


def _is_sane_title(title: str) -> bool:
    return bool(_one_line(title)) and not _INSANE_TITLE.match(_one_line(title))


def _title_in(text: str) -> str:
    """The first heading, or else the first line where it is short enough to be a title; "" when neither is there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    heading = next((line.lstrip("#").strip() for line in lines if re.match(r"#{1,6}\s+\S", line)), "")
    title = heading or next((line for line in lines if not _SETEXT_LINE.match(line)), "")
    return title if len(title) <= _MAX_TITLE_CHARS and re.search(r"[^\W\d_]{2}", title) else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _clean(text: str) -> str:
    return _encodable(text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", ""))


def _encodable(text: str) -> str:
    """The text with lone surrogates (a pdf's or JSON's broken characters) replaced, one for one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _SURROGATE.search(text) else text


_SURROGATE = re.compile("[\ud800-\udfff]")
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def _decode(data: bytes) -> str:
    """Bytes of any encoding as text: by their mark, else as UTF-8, else by charset-normalizer's guess."""
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = _guess(data)
    controls = sum(1 for char in text if char < " " and char not in "\t\n\r\f\v")
    if controls > _MAX_CONTROL_SHARE * len(text):
        raise InputError("is binary, not text")
    return text


def _guess(data: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(data).best()
    if best is None or b"\x00" in data:
        raise InputError("is binary, or in an unknown encoding")
    return str(best)


# --- html and docx blocks --------------------------------------------------------------------------------------

_CONTENT = "main, article, section, [role=main]"  # what lies inside belongs to the text
# Controls, but not form: ASP.NET wraps the whole body in one. An article's own header holds its heading.
_UNSEEN = (
    "script, style, nav, noscript, template, svg, iframe, head, [hidden], [aria-hidden=true], "
    "input, select, textarea, button, option, datalist, "
    f":is(header, footer):not(:is({_CONTENT}) *)"
)
_LISTS = f":is(ul, ol):not(:is({_CONTENT}, p, td) *)"  # where a menu may stand
_MENU_WORDS = frozenset({
    "nav", "navbar", "navigation", "subnav", "topnav", "sidenav", "menu", "menubar", "submenu", "breadcrumb",
    "breadcrumbs", "crumb", "crumbs", "related", "header", "footer", "sidebar", "banner", "masthead", "contentinfo",
    "pager", "pagination", "social", "share", "skip", "skiplinks",
})  # fmt: skip
_HEADING_TAG = re.compile("^h[1-6]$")
_HIDING_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d]*[1-9])", re.I)
_BLOCKS = (
    "address, article, aside, blockquote, dd, div, dl, dt, fieldset, figcaption, figure, footer, form, header, main, "
    "ol, p, pre, section, ul"
)


def _html_title(soup: BeautifulSoup) -> str:
    """The page's title, without a site's name behind it ("Visiting hours | Orrin Hospital")."""
    title, heading = (
        _one_line(found.get_text(" ")) if found else "" for found in map(soup.select_one, ("title", "h1"))
    )
    rest = title.removeprefix(heading)
    return heading if not title or rest.startswith((" | ", " - ", " – ", " — ")) else title


def _html_text(soup: BeautifulSoup) -> str:
    from bs4.element import NavigableString

    for element in soup.select(_UNSEEN):
        element.decompose()
    for element in soup.select("[style]"):
        if not element.decomposed and _HIDING_STYLE.search(str(element.get("style", ""))):
            element.decompose()
    for menu in _menus(soup):
        menu.decompose()
    for string in soup.find_all(string=True):
        if type(string) is NavigableString and not string.find_parent("pre"):  # its subclasses: comments, doctype
            string.replace_with(NavigableString(re.sub(r"\s+", " ", string)))
    _mark_blocks(soup)
    lines = [line.strip() for line in soup.get_text().split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _menus(soup: BeautifulSoup) -> list[Tag]:
    """Lists of nothing but links, outside the content, that stand before the page's first heading or are named as a
    menu. Any other list of links may be what the page is there for ("Use these forms")."""
    first = soup.find(_HEADING_TAG)
    above = {id(found) for found in first.find_all_previous(["ul", "ol"])} if first else set()
    above -= {id(parent) for parent in first.parents} if first else set()
    title = soup.find("h1")
    # What holds the title is the page (<body class="with-sidebar">), so its name says nothing about a list.
    page = {id(parent) for parent in title.parents} if title else set()
    return [
        listing
        for listing in soup.select(_LISTS)
        if (id(listing) in above or _is_named_menu(listing, page)) and _is_all_links(listing)
    ]


def _is_all_links(listing: Tag) -> bool:
    linked = "".join(link.get_text() for link in listing.find_all("a"))
    bare = re.sub(r"\s", "", listing.get_text()) == re.sub(r"\s", "", linked)
    return bare and len(listing.find_all("li")) > 1


def _is_named_menu(listing: Tag, page: set[int]) -> bool:
    """Whether the class, id or role of a list, or of what holds it below the page, has a menu's word in it."""
    holders = [tag for tag in (listing, *listing.parents) if tag.name not in ("html", "body") and id(tag) not in page]
    values = [tag.get_attribute_list(key) for tag in holders for key in ("class", "id", "role")]
    names = " ".join(str(value) for found in values for value in found if value)
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", names)  # mainMenu, main-menu, MAIN_MENU
    return not _MENU_WORDS.isdisjoint(word.lower() for word in words)


def _mark_blocks(soup: BeautifulSoup) -> None:
    """Write the page's structure into its text: line breaks, headings, list items, table rows."""
    for heading in soup.find_all(_HEADING_TAG):
        heading.replace_with(f"\n\n{'#' * int(heading.name[1])} {_one_line(heading.get_text(' '))}\n\n")
    for row in soup.find_all("tr"):
        cells = [_one_line(cell.get_text(" ")) for cell in row.find_all(["td", "th"], recursive=False)]
        # A table inside a cell lays out a page: its cells are blocks, not columns.
        if not row.find("table"):
            row.replace_with(f"\n{' | '.join(cells)}\n" if any(cells) else "\n")
    for rule in soup.find_all(["br", "hr"]):
        rule.replace_with("\n")
    for item in soup.find_all("li"):
        item.insert(0, "\n- ")
    for block in soup.select(f"{_BLOCKS}, table, td, th"):
        block.insert(0, "\n\n")
        block.append("\n\n")


def _docx_paragraph(paragraph: Paragraph) -> str:
    text = paragraph.text.strip()
    style = (paragraph.style.name or "") if paragraph.style is not None else ""
    if not text:
        return ""
    if style == "Title":
        return f"# {_one_line(text)}"
    heading = re.fullmatch(r"Heading ([1-9])", style)
    if heading:
        return f"{'#' * min(int(heading[1]) + 1, 6)} {_one_line(text)}"
    return f"- {text}" if style.startswith("List") else text


def _docx_table(table: Table) -> str:
    rows = []
    for row in table.rows:
        cells = list({id(cell._tc): cell for cell in row.cells}.values())  # a merged cell is listed once a column
        rows.append(" | ".join(_one_line(cell.text) for cell in cells))
    return "\n".join(row for row in rows if row.strip(" |"))


def _check_unpacked_size(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(item.file_size for item in archive.infolist())
    if unpacked > MAX_FILE_BYTES:
        raise InputError(f"unpacks to {unpacked} bytes; at most {MAX_FILE_BYTES} are read")


# --- files whose rows are documents ----------------------------------------------------------------------------


def read_jsonl(file: Path, name: str) -> Iterator[ReadOutcome]:
    """One outcome a line; blank lines count as none. Raises InputError when the file breaks off unreadably."""
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as stream:
            lines: Iterable[bytes] = iter(lambda: stream.readline(MAX_FILE_BYTES), b"")
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _jsonl_row(line, name, number)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"breaks off ({getattr(error, 'strerror', None) or error})") from None


def _jsonl_row(line: bytes, name: str, number: int) -> ReadOutcome:
    where = f"{name}#{number}"
    if len(line) >= MAX_FILE_BYTES:
        return ReadOutcome(where, "refused", reason=f"its line is longer than {MAX_FILE_BYTES} bytes")
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        return ReadOutcome(where, "refused", reason=f"is not JSON ({error})")
    if not isinstance(row, dict):
        return ReadOutcome(where, "refused", reason=f"is {type(row).__name__}, not a JSON object")
    return _row_outcome(row, name, where)


def read_csv(file: Path, name: str) -> Iterator[ReadOutcome]:
    """One outcome a row; the first row names the columns, and a row with more fields is refused, because its text
    may be among them. Raises InputError when no column is called ``text``."""
    text = _clean(_decode(_read_bytes(file))).removeprefix("\ufeff")
    csv.field_size_limit(MAX_FILE_BYTES)
    delimiter = _delimiter(text)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = list(rows.fieldnames or [])
        if "text" not in columns:
            raise InputError(f"has no column 'text' (columns: {', '.join(columns) or 'none'})")
        for number, row in enumerate(rows, 2):
            surplus = len(row.pop(None, ()))  # type: ignore[call-overload]  # DictReader's key of what has no column
            if surplus:
                counts = f"row {number} has {len(columns) + surplus} fields for {len(columns)} columns"
                reason = f"{counts}: quote the field that holds a {delimiter!r}"
                yield ReadOutcome(f"{name}#{number}", "refused", reason=reason)
            else:
                yield _row_outcome(row, name, f"{name}#{number}")
    except csv.Error as error:
        raise InputError(f"damaged csv near line {rows.line_num} ({error})") from None


def _delimiter(text: str) -> str:
    head = text.partition("\n")[0]
    return max(",;\t|", key=head.count)


def _row_outcome(row: Mapping[str, Any], name: str, where: str) -> ReadOutcome:
    text, title, source = row.get("text"), row.get("title") or "", row.get("source") or name
    identifier = row.get("id")
    if not isinstance(text, str) or not text.strip():
        found = "is empty" if isinstance(text, str) else f"is {type(text).__name__}, not a string"
        return ReadOutcome(where, "refused", reason=f"its text {found}" if "text" in row else "it has no text")
    if isinstance(identifier, (dict, list, bool, float)) or not isinstance(title, str):
        return ReadOutcome(where, "refused", reason="its id must be a string or an integer, its title a string")
    # "page_starts" is what read_pdf counts; a row's own column of that name says nothing about its text.
    metadata = {
        "row_page_starts" if key == "page_starts" else key: value
        for key, value in row.items()
        if key not in ("id", "title", "text", "source")
    }
    document = Document(
        id=_encodable(where if identifier in (None, "") else str(identifier)),
        text=_encodable(text),  # else unchanged: gold spans of question files are offsets into it
        title=_encodable(_one_line(title)),
        source=_encodable(str(source)),
        metadata=json.loads(_encodable(json.dumps(metadata, ensure_ascii=False, default=str))),
    )
    return ReadOutcome(where, "indexed", document)


_READERS: dict[str, Callable[[Path, str], Document]] = {
    ".txt": read_text, ".md": read_text, ".markdown": read_text, ".html": read_html, ".htm": read_html,
    ".pdf": read_pdf, ".docx": read_docx,
}  # fmt: skip
_RECORDS: dict[str, Callable[[Path, str], Iterator[ReadOutcome]]] = {
    ".jsonl": read_jsonl, ".jsonl.gz": read_jsonl, ".csv": read_csv,
}  # fmt: skip
FORMATS = tuple(sorted({*_READERS, *_RECORDS}))
