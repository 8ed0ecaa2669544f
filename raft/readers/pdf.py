"""Pdf through pdfium: the text layer of each page, or what optical character recognition (OCR) sees of a scan.

Of four pages of "Leave Policy 2024", "Staff have twenty-sev\\ufffeen days.", "Page 1 of 4" the text begins with
"Staff have twenty-seven days."; ``metadata["page_starts"]`` holds the character offset at which each page begins, as
in ``[0, 1804, 3622, 5410]``. Lines that repeat at the head or foot of most pages are left out. ``metadata["ocr"]``
marks a text read from pictures, ``metadata["pages_without_text"]`` names the pages (from 1) that are pictures alone.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from raft.errors import InputError
from raft.readers.plain import Limits, clean, file_document, iso_date, one_line
from raft.records import Document

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

_PAGE_BREAK = "\n\n"
_WRONG_PASSWORD = 4  # FPDF_ERR_PASSWORD
_OCR_SCALE = 2.0  # 144 dots an inch: letters of ordinary print are about 20 dots high
_MAX_OCR_SIDE = 3000  # dots
_MAX_OCR_PAGES = 1000  # of one file: a small file can show one picture on any number of pages
_EDGE_LINES = 3  # at the head and foot of a page, among which repeated lines are sought
_LEAST_PAGES = 4
_REPEATED_SHARE = 0.4  # of the pages: left and right pages often have different heads


def read_pdf(data: bytes, name: str, limits: Limits) -> Document:
    """The text of a pdf. Raises InputError when it is encrypted, damaged, or has no text that can be read."""
    from pypdfium2 import PdfiumError

    opened = _open(data, limits.passwords)
    pages, pictures = [], []
    for number in range(len(opened)):
        try:
            page = opened[number]
            pages.append(_page_text(page))
            pictures.append(not pages[-1] and next(page.get_objects(), None) is not None)
        except PdfiumError:  # one page is damaged
            pages.append("")
            pictures.append(True)
    pages = _without_furniture(_joined(pages))
    seen = _recognize(opened, [at for at, bare in enumerate(pictures) if bare], limits)
    pages = [seen.get(at, text) for at, text in enumerate(pages)]
    lacking = [at + 1 for at, bare in enumerate(pictures) if bare and not pages[at]]
    if not any(pages):
        raise InputError(_why_empty(len(pages), bool(lacking), limits))
    return _document(name, opened, pages, lacking, bool(seen))


def _open(data: bytes, passwords: tuple[str, ...]) -> PdfDocument:
    from pypdfium2 import PdfDocument, PdfiumError

    for password in (None, *passwords):
        try:
            return PdfDocument(data, password=password)
        except PdfiumError as error:
            if getattr(error, "err_code", None) != _WRONG_PASSWORD:
                raise InputError(f"damaged pdf ({one_line(str(error))[:120]})") from None
    tried = f"none of the {len(passwords)} known passwords opens it" if passwords else "a password is needed"
    raise InputError(f"is encrypted: {tried}")


def _page_text(page: PdfPage) -> str:
    textpage = page.get_textpage()
    try:
        return re.sub(r"[ \t]+$", "", clean(textpage.get_text_range()), flags=re.MULTILINE).strip()
    finally:
        textpage.close()


def _joined(pages: list[str]) -> list[str]:
    """The pages with words that a line's end divides made whole. Pdfium writes U+FFFE for such a hyphen and line's
    end. It stays a hyphen beside capitals and digits ("Anglo-Saxon"), and where the document writes it elsewhere."""
    written = {word for page in pages for word in re.findall(r"[^\W\d_]+-[^\W\d_]+", page)}

    def join(match: re.Match[str]) -> str:
        before, after = match.groups()
        sure = after.islower() and f"{before}-{after}" not in written
        return before + after if sure else f"{before}-{after}"

    whole = (re.sub(r"([^\W\d_]+)\ufffe([^\W\d_]+)", join, page) for page in pages)
    return [re.sub(r"\ufffe ?", "-", page) for page in whole]


def _without_furniture(pages: list[str]) -> list[str]:
    """The pages without the lines that repeat, numbers aside, at the head or foot of many of them. The first of its
    kind stays, because a running head may be the document's title; page numbers all go."""
    if len(pages) < _LEAST_PAGES:
        return pages
    lines = [page.split("\n") for page in pages]
    counts = Counter(key for page in lines for key in {_folded(page[at]) for edge in _edges(page) for at in edge})
    repeated = {key for key, count in counts.items() if count >= max(3, _REPEATED_SHARE * len(pages))}
    known: set[str] = set()
    kept = []
    for page in lines:
        furniture = {at for edge in _edges(page) for at in _repeats(page, edge, repeated)}
        dropped = {at for at in furniture if _folded(page[at]) in known or _is_page_number(_folded(page[at]))}
        known.update(_folded(page[at]) for at in furniture)
        kept.append("\n".join(line for at, line in enumerate(page) if at not in dropped).strip())
    return kept


def _edges(page: list[str]) -> tuple[list[int], list[int]]:
    """The first and the last lines of a page, each from the outermost inwards."""
    filled = [at for at, line in enumerate(page) if line.strip()]
    return filled[:_EDGE_LINES], filled[: -_EDGE_LINES - 1 : -1]


def _folded(line: str) -> str:
    return re.sub(r"\d+", "#", one_line(line))


def _is_page_number(folded: str) -> bool:
    return re.fullmatch(r"\W*(?:page|seite|p\.?)?\W*#(?:\W*(?:of|von|de|/)?\W*#)?\W*", folded, re.I) is not None


def _repeats(page: list[str], edge: list[int], repeated: set[str]) -> list[int]:
    """The lines of an edge before the first that is the page's own; each kind counts once, so that a table of numbers
    at the foot of a page keeps all but the page number."""
    found: dict[str, int] = {}
    for at in edge:
        key = _folded(page[at])
        if key not in repeated or key in found:
            break
        found[key] = at
    return list(found.values())


def _why_empty(pages: int, has_pictures: bool, limits: Limits) -> str:
    if not has_pictures:
        return f"holds no text: its {pages} pages are blank"
    if limits.ocr and _has_ocr():
        return f"has no text layer in its {pages} pages, and OCR finds no words in them"
    remedy = 'turn OCR on with ocr = "auto"' if _has_ocr() else "install OCR with pip install 'raft-tune[ocr]'"
    return f"has no text layer in its {pages} pages (a scan?): {remedy}"


def _document(name: str, opened: PdfDocument, pages: list[str], lacking: list[int], ocr: bool) -> Document:
    facts = opened.get_metadata_dict()
    starts, offset = [], 0
    for page in pages:
        starts.append(offset)
        offset += len(page) + len(_PAGE_BREAK)
    metadata: dict[str, Any] = {
        "page_starts": starts,
        "author": one_line(clean(facts.get("Author", ""))),
        "date": iso_date(facts.get("ModDate")) or iso_date(facts.get("CreationDate")),
    }
    if lacking:
        metadata["pages_without_text"] = lacking
    if ocr:
        metadata["ocr"] = True
    return file_document(name, _PAGE_BREAK.join(pages), "pdf", clean(facts.get("Title", "")), metadata)


# --- pictures of text --------------------------------------------------------------------------------------------


def _has_ocr() -> bool:
    return all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime"))


def _recognize(opened: PdfDocument, wanted: list[int], limits: Limits) -> dict[int, str]:
    """The words that OCR sees on these pages, by page."""
    if not wanted or not limits.ocr or not _has_ocr():
        return {}
    from pypdfium2 import PdfiumError
    from rapidocr import RapidOCR

    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    engine = RapidOCR(params={"Global.log_level": "critical", **threads})
    found = {}
    for at in wanted[:_MAX_OCR_PAGES]:
        limits.beat()
        try:
            page = opened[at]
            scale = min(_OCR_SCALE, _MAX_OCR_SIDE / max(*page.get_size(), 1.0))
            picture = page.render(scale=scale).to_numpy()
        except PdfiumError:
            continue
        seen: Any = engine(picture, use_cls=False)
        if seen.txts:
            found[at] = clean(_lines(list(zip(seen.boxes.tolist(), seen.txts, strict=True))))
    return found


def _lines(words: list[tuple[list[list[float]], str]]) -> str:
    """Recognized words in lines: those whose middle lies within the height of the line's first one are beside it."""
    lines: list[list[tuple[float, str]]] = []
    bottom = float("-inf")
    for box, text in sorted(words, key=lambda word: sum(corner[1] for corner in word[0])):
        middle = sum(corner[1] for corner in box) / 4
        if middle > bottom:
            lines.append([])
            bottom = max(corner[1] for corner in box)
        lines[-1].append((min(corner[0] for corner in box), text))
    return "\n".join(" ".join(text for _, text in sorted(line)) for line in lines)
