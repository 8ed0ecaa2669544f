"""Mail: one message with its headers, its words once, and its attachments.

The file ::

    From: Alice Orrin <alice@example.com>
    Subject: Leave
    Content-Type: multipart/mixed; ...     a plain text, the same as html, and an attached rota.xlsx

becomes "# Leave", its ``From: ...``, ``To: ...``, ``Date: ...`` lines, the plain text (the html only where there is
no plain text), and "## Attachment: rota.xlsx" with what that file says, or that it is not read: the metadata then
say why, under ``attachments_not_read``.
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable, Iterator
from email.message import EmailMessage, MIMEPart
from typing import Any

from raft.errors import InputError
from raft.readers.html import html_parts
from raft.readers.plain import Limits, decode, encodable, file_document, iso_date, one_line
from raft.records import Document

PartReader = Callable[[bytes, str, Limits], tuple[list[str], str]]
"""Reads an attached file: the texts of its documents, and what of it could not be read, or "" where nothing."""

_SHOWN = ("From", "To", "Cc", "Date")
_MAX_PARTS = 1000


def read_mail(data: bytes, name: str, limits: Limits, read_part: PartReader) -> Document:
    message = email.message_from_bytes(data.lstrip(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)  # the policy's class
    if sum(1 for _ in message.walk()) > _MAX_PARTS:
        raise InputError(f"has more than {_MAX_PARTS} parts, the most that are read")
    subject = _header(message, "Subject")
    headers = [f"{key}: {_header(message, key)}" for key in _SHOWN if _header(message, key)]
    blocks = [f"# {subject}" if subject else "", "\n".join(headers), _body(message)]
    unread = []
    for part in _attached(message):
        named, texts, problem = _attachment(part, limits, read_part)
        blocks += [f"## Attachment: {named}", *texts]
        unread += [encodable(f"{named} ({problem})")] if problem else []
    if not any(blocks[2:]) and not subject:
        raise InputError("holds no text")
    text = "\n\n".join(block for block in blocks if block)
    facts: dict[str, Any] = {"author": _header(message, "From"), "date": iso_date(_header(message, "Date"))}
    if unread:
        facts["attachments_not_read"] = unread
    return file_document(name, text, "eml", subject, facts)


def _header(message: EmailMessage, key: str) -> str:
    try:
        return one_line(str(message.get(key, "")))
    except (ValueError, LookupError, AttributeError, TypeError):  # the parser of headers trips over hostile ones
        return ""


def _body(message: EmailMessage) -> str:
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None or part.is_attachment():
        return ""
    text = _part_text(part)
    if not text and part.get_content_type() == "text/plain":
        other = message.get_body(preferencelist=("html",))
        text = "" if other is None else _part_text(other)
    return text


def _part_text(part: MIMEPart) -> str:
    data = part.get_payload(decode=True)
    if not isinstance(data, bytes):
        return ""
    try:
        text = data.decode(part.get_content_charset() or "utf-8")
    except (LookupError, ValueError):  # a charset that is wrong or unknown
        text = decode(data)
    return html_parts(text.encode())[1] if part.get_content_type() == "text/html" else text.strip()


def _attached(message: EmailMessage) -> list[MIMEPart]:
    """The parts that are files or messages, and not the words of this message or pictures within them."""
    body = message.get_body(preferencelist=("plain", "html"))
    return [part for part in _parts(message) if part is not body and _is_file(part)]


def _is_file(part: MIMEPart) -> bool:
    is_named = bool(part.get_filename()) and part.get_content_maintype() != "image"
    return part.is_attachment() or is_named or part.get_content_type() == "message/rfc822"


def _parts(message: MIMEPart) -> Iterator[MIMEPart]:
    """The parts of a message; those of a message inside it are that one's own."""
    for part in message.iter_parts():
        if part.get_content_maintype() == "multipart" and not part.is_attachment():
            yield from _parts(part)
        else:
            yield part


def _attachment(part: MIMEPart, limits: Limits, read_part: PartReader) -> tuple[str, list[str], str]:
    """The name of an attachment, its texts, and what of it could not be read."""
    named = one_line(part.get_filename() or "message.eml").replace("/", "_")
    if part.get_content_type() == "message/rfc822":
        data = b"".join(item.as_bytes() for item in part.iter_parts())
    else:
        payload = part.get_payload(decode=True)
        data = payload if isinstance(payload, bytes) else b""
    try:
        return named, *read_part(data, named, limits)
    except InputError as error:
        return named, ["(not read)"], str(error)
