"""Formats that are zip archives: the check that every one passes before it is parsed, and epub and odt themselves.

What such a file holds::

    mimetype                 application/epub+zip
    META-INF/container.xml   -> OEBPS/book.opf -> its spine: chapter1.xhtml, chapter2.xhtml
    content.xml, meta.xml    (odt: <text:h text:outline-level="1">Leave</text:h> becomes "# Leave")

Nothing is ever extracted to disk. An archive whose members climb out of it (``../../etc/passwd``), are too many or
unpack to too much is refused, by what its header says and again by what its members really hold.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote

from raft.errors import InputError
from raft.readers.html import html_parts
from raft.readers.plain import Limits, file_document, iso_date, one_line, table_row
from raft.readers.xml import parse_xml, tag_of, text_of
from raft.records import Document

if TYPE_CHECKING:
    from lxml.etree import _Element

_MAX_MEMBERS = 20_000
_PIECE = 1 << 20


def open_zip(data: bytes, limits: Limits) -> zipfile.ZipFile:
    """The archive, unpacked once in memory to see that it is whole and small enough. Raises InputError otherwise."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
        _check_members(members, limits.max_file_bytes)
        left = limits.max_file_bytes
        for member in members:
            with archive.open(member) as stream:
                while piece := stream.read(_PIECE):  # a header may say less than what is there
                    left -= len(piece)
                    if left < 0:
                        raise InputError(f"unpacks to more than {limits.max_file_bytes} bytes, the most that are read")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError) as error:
        raise InputError(f"damaged zip archive ({one_line(str(error))[:120]})") from None
    return archive


def _check_members(members: list[zipfile.ZipInfo], most: int) -> None:
    if len(members) > _MAX_MEMBERS:
        raise InputError(f"holds {len(members)} members; at most {_MAX_MEMBERS} are read")
    unpacked = sum(member.file_size for member in members)
    if unpacked > most:
        raise InputError(f"unpacks to {unpacked} bytes; at most {most} are read")
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
            raise InputError(f"holds a member that climbs out of the archive ({member.filename[:80]!r})")
        if member.flag_bits & 1:
            raise InputError("is encrypted: save it without a password")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise InputError(f"damaged zip archive (it lacks {name[:80]!r})") from None


# --- epub --------------------------------------------------------------------------------------------------------


def read_epub(data: bytes, name: str, limits: Limits) -> Document:
    """An electronic book: the text of its chapters in reading order. Raises InputError when they are encrypted."""
    archive = open_zip(data, limits)
    container = parse_xml(_member(archive, "META-INF/container.xml"))
    roots = [item.get("full-path", "") for item in container.iter("{*}rootfile")]
    if not roots:
        raise InputError("damaged epub (its container names no book)")
    book = parse_xml(_member(archive, roots[0]))
    names = list(_spine(book, posixpath.dirname(roots[0])))
    locked = _encrypted_names(archive)
    if locked.intersection(names):
        raise InputError("is encrypted: its publisher's protection (DRM) must be taken off")
    parts = [html_parts(_member(archive, chapter))[1] for chapter in names]
    return file_document(name, "\n\n".join(filter(None, parts)), "epub", _dc(book, "title"), _book_facts(book))


def _spine(book: _Element, folder: str) -> Iterator[str]:
    """The member names of the chapters, in reading order."""
    items = {item.get("id"): item for item in book.iter("{*}item")}
    for reference in book.iter("{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is not None and "html" in item.get("media-type", "") and reference.get("linear") != "no":
            yield posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))


def _encrypted_names(archive: zipfile.ZipFile) -> set[str]:
    if "META-INF/encryption.xml" not in archive.namelist():
        return set()
    listing = parse_xml(_member(archive, "META-INF/encryption.xml"))
    return {unquote(item.get("URI", "")) for item in listing.iter("{*}CipherReference")}


def _dc(element: _Element, tag: str) -> str:
    """The first Dublin Core value of this name, such as dc:title."""
    return next((text_of(item) for item in element.iter("{http://purl.org/dc/elements/1.1/}" + tag)), "")


def _book_facts(book: _Element) -> dict[str, str]:
    modified = [text_of(item) for item in book.iter("{*}meta") if item.get("property") == "dcterms:modified"]
    dates = (iso_date(date) for date in (_dc(book, "date"), *modified))
    return {"author": _dc(book, "creator"), "date": next(filter(None, dates), "")}


# --- odt -----------------------------------------------------------------------------------------------------------

_UNREAD_ODF = {"annotation", "tracked-changes", "forms", "sequence-decls", "hidden-text", "hidden-paragraph"}


def read_odt(data: bytes, name: str, limits: Limits) -> Document:
    """A text of LibreOffice or OpenOffice: headings, lists, tables; no comments, deleted or hidden text."""
    archive = open_zip(data, limits)
    if "META-INF/manifest.xml" in archive.namelist() and b"encryption-data" in archive.read("META-INF/manifest.xml"):
        raise InputError("is encrypted: save it without a password")
    content = parse_xml(_member(archive, "content.xml"))
    body = next(content.iter("{urn:oasis:names:tc:opendocument:xmlns:office:1.0}text"), None)
    if body is None:
        raise InputError("damaged odt (its content has no text)")
    hidden = _hidden_styles(content)
    text = "\n\n".join(block for block in _odf_blocks(body, hidden, "") if block.strip())
    if "meta.xml" not in archive.namelist():
        return file_document(name, text, "odt")
    meta = parse_xml(archive.read("meta.xml"))
    facts = {"author": _dc(meta, "creator"), "date": iso_date(_dc(meta, "date"))}
    return file_document(name, text, "odt", _dc(meta, "title"), facts)


def _hidden_styles(content: _Element) -> set[str]:
    """The names of the styles whose text is not displayed."""
    return {
        _attribute(style, "name")
        for style in content.iter("{*}style")
        if any(_attribute(item, "display") == "none" for item in style.iter("{*}text-properties"))
    }


def _attribute(element: _Element, name: str) -> str:
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")


def _odf_blocks(element: _Element, hidden: set[str], lead: str) -> Iterator[str]:
    for item in element:
        tag = tag_of(item)
        if tag == "h":
            level = _attribute(item, "outline-level") or "1"
            yield f"{'#' * min(int(level) if level.isdecimal() else 1, 6)} {one_line(_odf_text(item, hidden))}"
        elif tag == "p":
            text = _odf_text(item, hidden).strip()
            yield lead + text if text else ""
        elif tag == "table":
            yield "\n".join(filter(None, (_odf_row(row, hidden) for row in item.iter("{*}table-row"))))
        elif tag == "list":
            yield "\n".join(block for entry in item for block in _odf_blocks(entry, hidden, "- ") if block.strip())
        elif tag and tag not in _UNREAD_ODF and _attribute(item, "display") != "none":
            yield from _odf_blocks(item, hidden, lead)


def _odf_row(row: _Element, hidden: set[str]) -> str:
    cells = [cell for cell in row if tag_of(cell) in ("table-cell", "covered-table-cell")]
    return table_row([" ".join(_odf_blocks(cell, hidden, "")) for cell in cells])


def _odf_text(element: _Element, hidden: set[str]) -> str:
    """The text of a paragraph with its spaces and line breaks; a footnote stands in brackets where it is cited."""
    tag = tag_of(element)
    if tag in _UNREAD_ODF or not tag or (tag in ("p", "span") and _attribute(element, "style-name") in hidden):
        return ""
    if tag in ("s", "tab", "line-break"):
        count = _attribute(element, "c")
        return "\n" if tag == "line-break" else " " * min(int(count) if count.isdecimal() else 1, 100)
    parts = [element.text or ""]
    for child in element:
        parts += [_odf_text(child, hidden), child.tail or ""]
    text = "".join(parts)
    if tag == "note":
        return f" [{one_line(' '.join(_odf_text(part, hidden) for part in element if tag_of(part) == 'note-body'))}]"
    return text
