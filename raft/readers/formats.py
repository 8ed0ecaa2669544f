"""What a file is, by its bytes, and the reader for it.

Names lie ("report.docx" that is a pdf, "old.doc" that is a web page), so the first bytes decide::

    %PDF-1.7 ...              pdf         {\\\\rtf1 ...             rtf
    PK + word/document.xml    docx        <!doctype html ...      html
    PK + "application/epub"   epub        From: ... Subject: ...  eml

The suffix chooses only among formats that are plain text: txt, md, rst, csv, json, jsonl. A file that is none of
these is skipped with a reason; one that has a known name but other bytes is refused.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath

from raft.errors import InputError
from raft.readers.plain import Limits, ReadOutcome, encodable, one_line
from raft.records import Document

HEAD_BYTES = 4096
_BY_SUFFIX = {
    ".txt": "txt", ".text": "txt", ".rst": "txt", ".md": "md", ".markdown": "md", ".csv": "csv", ".tsv": "csv",
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".html": "html", ".htm": "html", ".xhtml": "html",
    ".xml": "xml", ".nxml": "xml", ".eml": "eml", ".pdf": "pdf", ".docx": "docx", ".pptx": "pptx", ".xlsx": "xlsx",
    ".odt": "odt", ".rtf": "rtf", ".epub": "epub",
}  # fmt: skip
FORMATS = tuple(sorted({*_BY_SUFFIX, ".jsonl.gz"}))
_TEXT_KINDS = {"txt", "md", "csv", "json", "jsonl"}  # told apart by their names alone
_ROWS = {"csv", "json", "jsonl"}
_LEGACY = {".doc", ".xls", ".ppt"}  # old formats, under whose names programs also save web pages
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,9}")  # "1. Leave" and "1700.M3.host:2,S" have none


class Unread(Exception):
    """The file is none that is read; the message says why."""


@dataclass(frozen=True, slots=True)
class FileRead:
    """What ``read_file`` found: see ``source.SourceFile``."""

    digest: str
    outcomes: Iterator[ReadOutcome] | None


def read_file(path: str, name: str, known: str, limits: Limits) -> FileRead:
    """Read, hash and parse one file; the outcomes come one by one. They are None when its digest is ``known``.

    Raises Unread or InputError for a file that is left out before it is read whole.
    """
    data = _read_bytes(path, name, limits)
    digest = sha256(data).hexdigest()
    return FileRead(digest, None if digest == known else outcomes(data, name, limits))


def _read_bytes(path: str, name: str, limits: Limits) -> bytes:
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError("is not a regular file")
        # What was put in its place meanwhile (a fifo) must not be waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            head = stream.read(HEAD_BYTES)
            size = os.fstat(stream.fileno()).st_size
            _check_head(head, name)
            if size > limits.max_file_bytes:
                raise InputError(f"has {size} bytes; at most {limits.max_file_bytes} are read")
            return head + stream.read(limits.max_file_bytes)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None


def outcomes(data: bytes, name: str, limits: Limits) -> Iterator[ReadOutcome]:
    """The outcome of a file of these bytes, or those of its rows; whatever its bytes make a parser do, they end it
    with one outcome."""
    kind = ""
    try:
        data, problem = _unpacked(data, limits)
        kind = sniff(data, name)
        if kind in _ROWS:
            whole = data if not problem else data[: data.rfind(b"\n") + 1]
            yield from _rows(whole, name, kind, limits)
        elif not problem:
            yield _document_outcome(_document(data, name, kind, limits), limits)
        if problem:
            yield ReadOutcome(name, "refused", reason=problem)
    except (Unread, InputError) as error:
        yield left_out(name, error)
    except MemoryError:
        raise  # the door of the process tells it from damage
    except Exception as error:  # noqa: BLE001 - parsers raise anything at all on damaged files
        detail = one_line(str(error))[:120] or type(error).__name__
        yield left_out(name, InputError(f"damaged {kind or 'file'} ({detail})"))


def left_out(name: str, error: Unread | InputError) -> ReadOutcome:
    # The reason may quote the file's real name, which need not be text.
    return ReadOutcome(name, "skipped" if isinstance(error, Unread) else "refused", reason=encodable(str(error)))


def _document_outcome(document: Document, limits: Limits) -> ReadOutcome:
    if len(document.text) > limits.max_text_chars:
        raise InputError(f"its text has {len(document.text)} characters; at most {limits.max_text_chars} are read")
    lacking = document.metadata.get("pages_without_text")
    unread = document.metadata.get("attachments_not_read")
    reasons = [f"pages without text: {', '.join(map(str, lacking))}"] if lacking else []
    reasons += [f"attachments not read: {', '.join(unread)}"] if unread else []
    return ReadOutcome(document.source, "indexed", document, "; ".join(reasons))


def _rows(data: bytes, name: str, kind: str, limits: Limits) -> Iterator[ReadOutcome]:
    from raft.readers import rows

    read = {"csv": rows.read_csv, "json": rows.read_json, "jsonl": rows.read_jsonl}[kind]
    for outcome in read(data, name, limits):
        text = outcome.document.text if outcome.document else ""
        if len(text) > limits.max_text_chars:
            reason = f"its text has {len(text)} characters; at most {limits.max_text_chars} are read"
            yield ReadOutcome(outcome.source, "refused", reason=reason)
        else:
            yield outcome


def _document(data: bytes, name: str, kind: str, limits: Limits) -> Document:
    """The document of a file, by the reader of its format, imported here so that a worker loads only what it needs."""
    from raft.readers import html, mail, plain, xml

    if kind == "eml":
        return mail.read_mail(data, name, limits, _read_part)
    if kind in ("docx", "pptx", "xlsx"):
        from raft.readers import office

        return {"docx": office.read_docx, "pptx": office.read_pptx, "xlsx": office.read_xlsx}[kind](data, name, limits)
    if kind == "pdf":
        from raft.readers.pdf import read_pdf

        return read_pdf(data, name, limits)
    if kind in ("odt", "epub"):
        from raft.readers import zipped

        return (zipped.read_odt if kind == "odt" else zipped.read_epub)(data, name, limits)
    texts = {"txt": plain.read_text, "md": plain.read_markdown, "rtf": plain.read_rtf}
    return {**texts, "html": html.read_html, "xml": xml.read_xml}[kind](data, name, limits)


def _read_part(data: bytes, name: str, limits: Limits) -> tuple[list[str], str]:
    """The texts of an attached file, and what of it is not read; mail attached to mail is followed. Raises InputError
    when it has none, or has access labels, which the mail that it would become a part of does not carry."""
    read = list(outcomes(data, name, limits))
    if any(outcome.document is not None and outcome.document.metadata.get("labels") for outcome in read):
        raise InputError("has access labels of its own")
    texts = [outcome.document.text for outcome in read if outcome.document is not None]
    if not texts:
        raise InputError(read[0].reason if read else "holds no text")
    lacking = [outcome for outcome in read if outcome.reason]
    more = f"; and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return texts, f"{lacking[0].reason}{more}" if lacking else ""


def _unpacked(data: bytes, limits: Limits) -> tuple[bytes, str]:
    """What a gzip file holds, or the data themselves; and, where it breaks off, why the rest is missing."""
    if not data.startswith(b"\x1f\x8b"):
        return data, ""
    parts, size, problem = [], 0, ""
    while data.startswith(b"\x1f\x8b") and not problem:
        stream = zlib.decompressobj(wbits=31)
        try:
            parts.append(stream.decompress(data, limits.max_file_bytes - size + 1))
        except zlib.error as error:
            problem = f"breaks off ({error})"
            break
        size += len(parts[-1])
        if size > limits.max_file_bytes:
            raise InputError(f"unpacks to more than {limits.max_file_bytes} bytes, the most that are read")
        problem = "" if stream.eof else "breaks off (its end is missing)"
        data = stream.unused_data
    return b"".join(parts), problem


# --- sniffing ------------------------------------------------------------------------------------------------------


def suffix_of(name: str) -> str:
    """The suffix in small letters, without that of a packed file: ``.jsonl`` for ``corpus.JSONL.gz``."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _check_head(head: bytes, name: str) -> None:
    """Raise Unread for a file whose first bytes and name are those of no format, so that a film is never read."""
    if suffix_of(name) not in _BY_SUFFIX and not _magic(head) and not _markup(head) and not _is_nameless(name):
        raise Unread(_unread_reason(name))


def _unread_reason(name: str) -> str:
    suffix = "".join(PurePath(name.lower()).suffixes[-2:]) if name.lower().endswith(".gz") else suffix_of(name)
    return f"format {suffix or 'without a suffix'} is not read (formats: {', '.join(FORMATS)})"


def _is_nameless(name: str) -> bool:
    return not _SUFFIX.fullmatch(suffix_of(name))


def sniff(data: bytes, name: str) -> str:
    """The format of these bytes. Raises Unread when it is none that is read, InputError when the name promised one."""
    named = _BY_SUFFIX.get(suffix_of(name), "")
    magic = _magic(data[:HEAD_BYTES])
    if magic == "zip":
        return _zip_kind(data, named)
    if magic == "ole":
        raise InputError(_ole_reason(data))
    if magic and magic != "gzip":
        return magic
    if named in ("html", "xml", "eml", "pdf") or named in _TEXT_KINDS:
        return _text_kind(named, _markup(data[:HEAD_BYTES]))
    if named:  # a docx that is no zip, but may be a web page that some program named so
        markup = _markup(data[:HEAD_BYTES])
        if not markup:
            raise InputError(f"is not {named}: its bytes are of no known format (damaged?)")
        return markup
    markup = _markup(data[:HEAD_BYTES])
    if suffix_of(name) in _LEGACY and markup:
        return markup
    if not _is_nameless(name) or not (markup or _is_json(data)):
        raise Unread(_unread_reason(name))
    return markup or "json"


def _text_kind(named: str, markup: str) -> str:
    """A page saved as .txt is a page; but a text may begin like a mail, and an xhtml page like xml."""
    if markup == "html" or (markup == "xml" and named != "html"):
        return markup
    return named


def _magic(head: bytes) -> str:
    start = head.lstrip()
    if start.startswith(b"%PDF-"):
        return "pdf"
    if start.startswith(b"{\\rtf"):
        return "rtf"
    marks = {
        b"PK\x03\x04": "zip",
        b"PK\x05\x06": "zip",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "ole",
        b"\x1f\x8b": "gzip",
    }
    return next((kind for mark, kind in marks.items() if head.startswith(mark)), "")


_MAIL_HEADER = re.compile(rb"([A-Za-z][A-Za-z-]{1,40}):[ \t\r]|[ \t]")
_MAIL_NAMES = {b"from", b"to", b"subject", b"date", b"message-id", b"mime-version", b"received", b"return-path"}


def _markup(head: bytes) -> str:
    """html, xml or eml, where a file's beginning leaves no doubt; else ""."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head[: len(head) // 2 * 2].decode("utf-16", "replace").encode("utf-8", "replace")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "html"
    if start.startswith(b"<?xml"):
        return "html" if re.search(rb"<!doctype html|<html[\s>]", start) else "xml"
    lines = start.split(b"\n")[:40]
    names = set()
    for line in lines:
        match = _MAIL_HEADER.match(line)
        if match is None:
            break
        names.add(match[1])
    return "eml" if len(names & _MAIL_NAMES) >= 3 else ""


def _is_json(data: bytes) -> bool:
    import json

    if data.lstrip()[:1] not in (b"{", b"["):
        return False
    try:
        return isinstance(json.loads(data), (dict, list))
    except (ValueError, RecursionError):
        return False


_ZIP_KINDS = {"word/document.xml": "docx", "ppt/presentation.xml": "pptx", "xl/workbook.xml": "xlsx"}
_MIME_KINDS = {"application/epub+zip": "epub", "application/vnd.oasis.opendocument.text": "odt",
               "application/vnd.oasis.opendocument.text-template": "odt"}  # fmt: skip


def _zip_kind(data: bytes, named: str) -> str:
    """The format of a zip archive by its members, which may say so in a file ``mimetype``."""
    import io
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
            mime = archive.open("mimetype").read(100).decode("latin-1").strip() if "mimetype" in names else ""
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, zlib.error, EOFError) as error:
        raise InputError(f"damaged {named or 'zip archive'} ({one_line(str(error))[:120]})") from None
    found = _MIME_KINDS.get(mime) or next((kind for member, kind in _ZIP_KINDS.items() if member in names), "")
    if not found and "META-INF/container.xml" in names:
        found = "epub"
    if found:
        return found
    if named:
        raise InputError(f"is not {named}: a zip archive without such a document in it (damaged?)")
    raise Unread("a zip archive is not read: unpack it into the folder")


def _ole_reason(data: bytes) -> str:
    """What an old Office file is, by the names in its directory (two bytes a letter), and the way on."""
    kinds = {
        "EncryptedPackage": "is encrypted: save it without a password",
        "WordDocument": "is in the old Word format: save it as .docx",
        "PowerPoint Document": "is in the old PowerPoint format: save it as .pptx",
        "__substg1.0_": "is an Outlook message: save it as .eml",
        "Workbook": "is in the old Excel format: save it as .xlsx",
    }
    found = (reason for mark, reason in kinds.items() if mark.encode("utf-16-le") in data)
    return next(found, "is in an old Office format: save it as .docx, .pptx or .xlsx")
