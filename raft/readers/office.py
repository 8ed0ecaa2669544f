"""Office files: docx, pptx and xlsx.

What they become: headings as ``## Annual leave`` lines, lists as ``- Ask early.``, tables and sheets as rows::

    ## Grades                (an xlsx sheet of that name, or a slide's title)
    Grade | Days | Since
    B7 | 31 | 2024-03-01

Comments, headers and footers, deleted and hidden text, and hidden slides, sheets, rows and columns are left out.
"""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raft.errors import InputError
from raft.readers.plain import Limits, clean, file_document, is_labels, iso_date, one_line, table_row
from raft.readers.xml import parse_xml, tag_of, text_of
from raft.readers.zipped import open_zip
from raft.records import Document

if TYPE_CHECKING:
    from docx.document import Document as WordFile
    from lxml.etree import _Element
    from pptx.shapes.base import BaseShape
    from pptx.slide import Slide

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_PAGE_BREAK = "\n\n"


def _core_facts(archive: zipfile.ZipFile) -> tuple[str, dict[str, str]]:
    """Title, author and date of the file. Not by the libraries: where a file gives none, they make some up."""
    if "docProps/core.xml" not in archive.namelist():
        return "", {}
    found = {tag_of(item): text_of(item) for item in parse_xml(archive.read("docProps/core.xml"))}
    date = iso_date(found.get("modified")) or iso_date(found.get("created"))
    return found.get("title", ""), {"author": found.get("creator", ""), "date": date}


# --- docx ----------------------------------------------------------------------------------------------------------


def read_docx(data: bytes, name: str, limits: Limits) -> Document:
    """A Word file: paragraphs, tables, text boxes and footnotes in document order."""
    title, facts = _core_facts(open_zip(data, limits))
    opened = _open_word(data)
    hidden, named = _docx_styles(opened)
    notes = _docx_notes(opened, hidden)
    blocks = _docx_blocks(opened.element.body, named, hidden, notes)
    text = "\n\n".join(block for block in blocks if block)
    return file_document(name, text, "docx", title, facts)


def _open_word(data: bytes) -> WordFile:
    """python-docx refuses templates and files with macros, which differ in nothing that is read here."""
    from docx.opc.part import PartFactory
    from docx.package import Package
    from docx.parts.document import DocumentPart

    kinds = (
        "application/vnd.ms-word.document.macroEnabled.main+xml",
        "application/vnd.ms-word.template.macroEnabledTemplate.main+xml",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
    )  # fmt: skip
    PartFactory.part_type_for.update(dict.fromkeys(kinds, DocumentPart))
    part = Package.open(io.BytesIO(data)).main_document_part
    if not isinstance(part, DocumentPart):
        raise InputError("damaged docx (it has no main document)")
    document: WordFile = part.document
    return document


def _is_on(properties: _Element | None, tag: str) -> bool:
    """Whether ``<w:vanish/>`` and its like are set: they are, unless their value says no."""
    found = None if properties is None else properties.find(_W + tag)
    return found is not None and found.get(_W + "val", "1") not in ("0", "false", "off")


def _docx_styles(opened: WordFile) -> tuple[set[str], dict[str, str]]:
    """The ids of the styles that hide their text, and the name of every style ("heading 1")."""
    styles = {style.get(_W + "styleId", ""): style for style in opened.styles.element.iter(_W + "style")}
    hidden = {key for key, style in styles.items() if _is_on(style.find(_W + "rPr"), "vanish")}
    for _ in range(10):  # styles based on a hidden one; chains are short
        hidden |= {key for key, style in styles.items() if _value(style, "basedOn") in hidden}
    return hidden, {key: _value(style, "name").lower() for key, style in styles.items()}


def _value(element: _Element | None, tag: str) -> str:
    found = None if element is None else element.find(_W + tag)
    return "" if found is None else found.get(_W + "val", "")


def _docx_notes(opened: WordFile, hidden: set[str]) -> dict[str, str]:
    """The footnotes and endnotes by their kind and number ("footnote 2")."""
    from docx.oxml import parse_xml

    notes = {}
    for relation in opened.part.rels.values():
        kind = relation.reltype.rpartition("/")[2]
        if kind in ("footnotes", "endnotes") and not relation.is_external:
            for note in parse_xml(relation.target_part.blob).iter(_W + kind[:-1]):
                paragraphs = (_docx_text(item, hidden, {}) for item in note.iter(_W + "p"))
                notes[f"{kind[:-1]} {note.get(_W + 'id')}"] = one_line(" ".join(paragraphs))
    return notes


def _docx_blocks(parent: _Element, named: dict[str, str], hidden: set[str], notes: dict[str, str]) -> Iterator[str]:
    for item in parent:
        tag = str(item.tag).removeprefix(_W)
        if tag == "p":
            yield _docx_paragraph(item, named, hidden, notes)
            for box in item.iter(_W + "txbxContent"):
                # A text box is there twice: the second time (mc:Fallback) for old programs.
                if not any(str(above.tag).endswith("}Fallback") for above in box.iterancestors()):
                    yield from _docx_blocks(box, named, hidden, notes)
        elif tag == "tbl":
            yield "\n".join(filter(None, (_docx_row(row, named, hidden, notes) for row in _rows_of(item))))
        elif tag in ("sdt", "sdtContent", "customXml", "smartTag", "ins", "moveTo"):
            yield from _docx_blocks(item, named, hidden, notes)


def _rows_of(table: _Element) -> Iterator[_Element]:
    return (row for row in table.iter(_W + "tr") if next(row.iterancestors(_W + "tbl")) is table)


def _docx_row(row: _Element, named: dict[str, str], hidden: set[str], notes: dict[str, str]) -> str:
    if _is_on(row.find(_W + "trPr"), "hidden") or _is_on(row.find(_W + "trPr"), "del"):
        return ""
    cells = (cell for cell in row.iter(_W + "tc") if next(cell.iterancestors(_W + "tr")) is row)
    return table_row([" ".join(filter(None, _docx_blocks(cell, named, hidden, notes))) for cell in cells])


def _docx_paragraph(item: _Element, named: dict[str, str], hidden: set[str], notes: dict[str, str]) -> str:
    properties = item.find(_W + "pPr")
    style = _value(properties, "pStyle")
    text = "" if style in hidden else _docx_text(item, hidden, notes).strip()
    if not text:
        return ""
    words = named.get(style, "")
    heading = re.fullmatch(r"heading ([1-9])", words)
    outline = _value(properties, "outlineLvl")
    if words == "title":
        return f"# {one_line(text)}"
    if heading or (outline.isdecimal() and int(outline) < 9):
        level = int(heading[1]) if heading else int(outline) + 1
        return f"{'#' * min(level + 1, 6)} {one_line(text)}"
    listed = properties is not None and properties.find(_W + "numPr") is not None
    return f"- {text}" if listed or words.startswith("list ") else text


_BREAKS = {"br": "\n", "cr": "\n", "tab": "\t", "noBreakHyphen": "-"}


def _docx_text(item: _Element, hidden: set[str], notes: dict[str, str]) -> str:
    """The text of a paragraph's runs, but not of what is hidden, deleted or in a text box; footnotes in brackets."""
    parts = []
    for child in item:
        tag = str(child.tag).removeprefix(_W).removeprefix(_MATH)
        if tag == "r":
            properties = child.find(_W + "rPr")
            if not _is_on(properties, "vanish") and _value(properties, "rStyle") not in hidden:
                parts.append(_docx_text(child, hidden, notes))
        elif tag == "t":
            parts.append(child.text or "")
        elif tag in _BREAKS:
            parts.append(_BREAKS[tag])
        elif tag in ("footnoteReference", "endnoteReference"):
            note = notes.get(f"{tag.removesuffix('Reference')} {child.get(_W + 'id')}", "")
            parts.append(f" [{note}]" if note else "")
        elif tag in ("oMath", "oMathPara"):
            parts += [math.text or "" for math in child.iter("{*}t")]
        elif tag in (
            "ruby",
            "rubyBase",
            "hyperlink",
            "ins",
            "moveTo",
            "smartTag",
            "sdt",
            "sdtContent",
            "fldSimple",
            "customXml",
        ):
            parts.append(_docx_text(child, hidden, notes))
    return "".join(parts)


# --- pptx ----------------------------------------------------------------------------------------------------------


def read_pptx(data: bytes, name: str, limits: Limits) -> Document:
    """A presentation; ``metadata["page_starts"]`` holds the character offset at which each slide begins."""
    from pptx import Presentation

    title, facts = _core_facts(open_zip(data, limits))
    opened = Presentation(io.BytesIO(data))
    slides = ["" if slide.element.get("show") == "0" else _slide_text(slide) for slide in opened.slides]
    starts, offset = [], 0
    for text in slides:
        starts.append(offset)
        offset += len(text) + len(_PAGE_BREAK)
    return file_document(name, _PAGE_BREAK.join(slides), "pptx", title, {"page_starts": starts, **facts})


def _slide_text(slide: Slide) -> str:
    title = slide.shapes.title
    words = one_line(title.text_frame.text) if title is not None else ""
    first = title.shape_id if title is not None else None
    blocks = [block for shape in slide.shapes if shape.shape_id != first for block in _shape_blocks(shape)]
    notes = slide.notes_slide.notes_text_frame if slide.has_notes_slide else None
    said = notes.text.strip() if notes is not None else ""
    parts = [f"## {words}" if words else "", *blocks, f"Notes: {said}" if said else ""]
    return clean("\n\n".join(part for part in parts if part)).replace("\x0b", "\n").strip()


def _shape_blocks(shape: BaseShape) -> Iterator[str]:
    inner: Any = shape  # the attributes below are those of its kind
    if inner.element.xpath(".//p:cNvPr[1]/@hidden")[:1] in (["1"], ["true"]):
        return
    if hasattr(inner, "shapes"):
        for part in inner.shapes:
            yield from _shape_blocks(part)
    elif getattr(inner, "has_table", False):
        yield "\n".join(filter(None, (table_row([cell.text for cell in row.cells]) for row in inner.table.rows)))
    elif inner.has_text_frame:
        if inner.is_placeholder and inner.placeholder_format.type in _SLIDE_FURNITURE:
            return
        yield "\n".join(line for line in (paragraph.text.strip() for paragraph in inner.text_frame.paragraphs) if line)


_SLIDE_FURNITURE = (13, 15, 16)  # slide number, footer and date, as MSO_PLACEHOLDER numbers them


# --- xlsx ----------------------------------------------------------------------------------------------------------


def read_xlsx(data: bytes, name: str, limits: Limits) -> Document:
    """A workbook: each visible sheet under its name, a line a row; formulas by their last value.

    Raises InputError where a column is called ``labels``: one document for all rows would lose them.
    """
    from openpyxl import load_workbook

    archive = open_zip(data, limits)
    opened = load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
    blocks, size = [], 0
    for sheet in opened.worksheets:
        if sheet.sheet_state != "visible":
            continue
        lines = [f"## {one_line(sheet.title)}"]
        for line in _sheet_rows(sheet, *_hidden_cells(archive, sheet._worksheet_path)):
            lines.append(line)
            size += len(line)
            if size > limits.max_text_chars:
                raise InputError(f"its text has more than {limits.max_text_chars} characters, the most that are read")
        if len(lines) > 1:
            blocks.append("\n".join(lines))
    title, facts = _core_facts(archive)
    return file_document(name, "\n\n".join(blocks), "xlsx", title, facts)


_MAX_HEADER_ROW = 10


def _sheet_rows(sheet: Any, rows: set[int], columns: set[int]) -> Iterator[str]:
    sheet.reset_dimensions()  # they are wrong in many files, and may say a million rows
    above = 0  # rows that are not empty: column names stand in the first, or below a title
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        above += any(value is not None for value in row)
        if above <= _MAX_HEADER_ROW and any(map(is_labels, row)):
            raise InputError("has a column of access labels: save the sheet as csv, with its text in a column 'text'")
        if number not in rows:
            line = table_row([_cell(value) for at, value in enumerate(row, 1) if at not in columns])
            if line:
                yield line


def _hidden_cells(archive: zipfile.ZipFile, path: str) -> tuple[set[int], set[int]]:
    """The numbers of a sheet's hidden rows and columns, which openpyxl does not tell when it reads row by row."""
    from lxml import etree

    rows: set[int] = set()
    columns: set[int] = set()
    number = 0
    with archive.open(path) as stream:
        for _, item in etree.iterparse(
            stream, tag=(_M + "row", _M + "col"), resolve_entities=False, no_network=True, load_dtd=False
        ):
            hidden = item.get("hidden") in ("1", "true")
            if item.tag == _M + "row":
                number = int(item.get("r") or number + 1)
                if hidden:
                    rows.add(number)
            elif hidden:
                columns.update(range(int(item.get("min", 0)), min(int(item.get("max", 0)), 16384) + 1))
            item.clear()
    return rows, columns


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return value.date().isoformat() if midnight else value.isoformat(" ", "minutes")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(value)
