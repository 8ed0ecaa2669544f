"""Files of every format, made by the tests themselves, and short ways to read one."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import docx
from reportlab.pdfgen.canvas import Canvas

from raft.readers.formats import outcomes
from raft.readers.plain import Limits, ReadOutcome
from raft.readers.source import read_source
from raft.records import Document


def outcomes_of(data: bytes | str, name: str, **limits: object) -> list[ReadOutcome]:
    """Read in this process, as a worker would."""
    return list(outcomes(data.encode() if isinstance(data, str) else data, name, Limits(**limits)))  # type: ignore[arg-type]


def read_one(data: bytes | str, name: str, **limits: object) -> Document:
    (outcome,) = outcomes_of(data, name, **limits)
    assert outcome.document is not None, outcome.reason
    assert outcome.status == "indexed"
    return outcome.document


def refusal(data: bytes | str, name: str, **limits: object) -> str:
    (outcome,) = outcomes_of(data, name, **limits)
    assert (outcome.status, outcome.document) == ("refused", None)
    return outcome.reason


def found_in(path: Path) -> dict[str, ReadOutcome]:
    """The outcomes of a folder, by their names."""
    return {outcome.source: outcome for file in read_source(path) for outcome in file.outcomes or ()}


def make_pdf(pages: Sequence[Sequence[str]], title: str | None = None, author: str | None = None) -> bytes:
    stream = io.BytesIO()
    canvas = Canvas(stream, invariant=True)
    if title is not None:
        canvas.setTitle(title)
    if author is not None:
        canvas.setAuthor(author)
    for lines in pages:
        for number, line in enumerate(lines):
            canvas.drawString(72, 780 - 16 * number, line)
        canvas.showPage()
    canvas.save()
    return stream.getvalue()


def make_docx() -> bytes:
    document = docx.Document()
    document.add_heading("Leave Policy", 0)
    document.add_heading("Annual leave", 1)
    document.add_paragraph("Staff have 27 days.")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip([c for row in table.rows for c in row.cells], ["Grade", "Days", "B7", "31"], strict=True):
        cell.text = text
    document.add_paragraph("Ask early.", style="List Bullet")
    return saved(document)


def saved(office_file: object) -> bytes:
    """The bytes of a python-docx, python-pptx or openpyxl document."""
    stream = io.BytesIO()
    office_file.save(stream)  # type: ignore[attr-defined]
    return stream.getvalue()


def make_zip(members: Mapping[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


_CONTAINER = '<container><rootfiles><rootfile full-path="O/book.opf"/></rootfiles></container>'
_BOOK = """<package xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>The Leases</dc:title>
  <dc:creator>T. Orrin</dc:creator><dc:date>2019-05-06</dc:date></metadata>
  <manifest><item id="b" href="two%20.xhtml" media-type="application/xhtml+xml"/>
  <item id="a" href="one.xhtml" media-type="application/xhtml+xml"/><item id="c" href="c.css" media-type="text/css"/>
  </manifest><spine><itemref idref="a"/><itemref idref="b"/><itemref idref="c"/></spine></package>"""


def make_epub(**more: str) -> bytes:
    page = "<html><body><h1>{}</h1><p>{}</p><p hidden>unseen</p></body></html>"
    members = {
        "mimetype": "application/epub+zip", "META-INF/container.xml": _CONTAINER, "O/book.opf": _BOOK,
        "O/two .xhtml": page.format("Second", "It ends."), "O/one.xhtml": page.format("First", "It begins."),
    }  # fmt: skip
    return make_zip(members | {name.replace("__", "/"): text for name, text in more.items()})


_ODF = "urn:oasis:names:tc:opendocument:xmlns:"


def make_odt(body: str, styles: str = "") -> bytes:
    content = (
        f'<o:document-content xmlns:o="{_ODF}office:1.0" xmlns:text="{_ODF}text:1.0" xmlns:table="{_ODF}table:1.0" '
        f'xmlns:style="{_ODF}style:1.0"><o:automatic-styles>{styles}</o:automatic-styles>'
        f"<o:body><o:text>{body}</o:text></o:body></o:document-content>"
    )
    meta = (
        f'<o:document-meta xmlns:o="{_ODF}office:1.0" xmlns:dc="http://purl.org/dc/elements/1.1/"><o:meta>'
        "<dc:title>Rent</dc:title><dc:date>2021-02-03T10:00:00</dc:date></o:meta></o:document-meta>"
    )
    mime = "application/vnd.oasis.opendocument.text"
    return make_zip({"mimetype": mime, "content.xml": content, "meta.xml": meta})
