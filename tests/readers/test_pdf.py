"""Pdf: pages at their offsets, running heads left out, passwords, and scans named or read."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from raft.readers.pdf import _joined, _lines
from tests.readers.files import make_pdf, outcomes_of, read_one, refusal

HAS_OCR = importlib.util.find_spec("rapidocr") is not None


def page_texts(data: bytes) -> list[str]:
    document = read_one(data, "x.pdf")
    starts = document.metadata["page_starts"]
    return [document.text[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]


def make_scan(words: str, blank_pages: int = 0, text_page: bool = False) -> bytes:
    picture = Image.new("RGB", (1000, 300), "white")
    ImageDraw.Draw(picture).text((40, 100), words, fill="black", font=ImageFont.load_default(60))
    stream = io.BytesIO()
    canvas = Canvas(stream, invariant=True)
    if text_page:
        canvas.drawString(72, 700, "A page with words.")
        canvas.showPage()
    canvas.drawImage(ImageReader(picture), 50, 500, 500, 150)
    canvas.showPage()
    for _ in range(blank_pages):
        canvas.showPage()
    canvas.save()
    return stream.getvalue()


def test_pages_stand_at_their_offsets() -> None:
    data = make_pdf([["First page."], [], ["Third page."]], "The Lease", "T. Orrin")
    document = read_one(data, "x.pdf")
    starts = document.metadata["page_starts"]
    assert document.title == "The Lease"
    assert [document.text[start:][:11] for start in (starts[0], starts[2])] == ["First page.", "Third page."]
    assert len(starts) == 3
    assert document.metadata["author"] == "T. Orrin"
    assert document.metadata["date"] == "2000-01-01"  # of reportlab's invariant files
    assert "pages_without_text" not in document.metadata  # the second is blank, nothing is missing


def test_offsets_hold_where_the_first_pages_are_blank() -> None:
    assert page_texts(make_pdf([[], [], ["Third page."]])) == ["", "", "Third page."]


def test_without_a_usable_title_the_first_line_is_taken() -> None:
    data = make_pdf([["Lease of Land", "Clause 1."]], "Microsoft Word - lease.doc")
    assert read_one(data, "x.pdf").title == "Lease of Land"


def test_lines_that_repeat_at_head_and_foot_are_left_out_after_the_first() -> None:
    numbers = ["one", "two", "three", "four", "five", "six"]
    pages = [
        ["Leave Policy 2024", f"Clause {word} begins.", "Total", "31", f"Clause {word} ends.", f"Page {n} of 6"]
        for n, word in enumerate(numbers, 1)
    ]
    found = page_texts(make_pdf(pages))
    assert found[0] == "Leave Policy 2024\nClause one begins.\nTotal\n31\nClause one ends."
    assert found[5] == "Clause six begins.\nTotal\n31\nClause six ends."


def test_left_and_right_heads_go_and_a_table_keeps_its_numbers() -> None:
    pages = [[("Orrin et al.", "On leases")[n % 2], f"Words {'abcdefgh'[n]}.", "7", "12", str(n + 1)] for n in range(8)]
    found = page_texts(make_pdf(pages))
    assert found[4] == "Words e.\n7\n12"
    assert found[5] == "Words f.\n7\n12"


def test_short_documents_keep_every_line() -> None:
    assert page_texts(make_pdf([["Same line", str(n)] for n in range(3)])) == [f"Same line\n{n}" for n in range(3)]


def test_words_divided_at_a_lines_end_are_joined_where_that_is_sure() -> None:
    pages = ["con\ufffesectetuer long\ufffeterm Anglo\ufffeSaxon 2\ufffe3", "a long-term plan"]
    assert _joined(pages)[0] == "consectetuer long-term Anglo-Saxon 2-3"


def locked_pdf(password: str) -> bytes:
    stream = io.BytesIO()
    canvas = Canvas(stream, encrypt=StandardEncryption(password, strength=128))
    canvas.drawString(72, 700, "Locked words.")
    canvas.save()
    return stream.getvalue()


def test_an_encrypted_file_needs_one_of_the_passwords() -> None:
    assert refusal(locked_pdf("key"), "x.pdf") == "is encrypted: a password is needed"
    assert "none of the 2 known passwords" in refusal(locked_pdf("key"), "x.pdf", passwords=("a", "b"))
    assert read_one(locked_pdf("key"), "x.pdf", passwords=("a", "key")).text == "Locked words."


def test_a_scan_is_refused_with_the_remedy() -> None:
    reason = refusal(make_scan("Leave"), "x.pdf", ocr=False)
    assert reason.startswith("has no text layer in its 1 pages (a scan?): ")
    assert ("ocr" in reason) or ("raft-tune[ocr]" in reason)
    assert refusal(make_pdf([[], []]), "x.pdf") == "holds no text: its 2 pages are blank"


def test_pages_that_are_pictures_alone_are_named() -> None:
    (outcome,) = outcomes_of(make_scan("Leave", blank_pages=1, text_page=True), "x.pdf", ocr=False)
    assert outcome.document is not None
    assert outcome.document.text == "A page with words."
    assert outcome.document.metadata["pages_without_text"] == [2]
    assert outcome.reason == "pages without text: 2"


@pytest.mark.skipif(not HAS_OCR, reason="raft-tune[ocr] is not installed")
def test_a_scan_is_read_by_ocr() -> None:
    beats: list[int] = []
    document = read_one(make_scan("Staff have 27 days"), "x.pdf", ocr=True, beat=lambda: beats.append(1))
    assert document.text == "Staff have 27 days"
    assert document.metadata["ocr"] is True
    assert len(beats) == 1


def test_recognized_words_stand_in_lines() -> None:
    def box(x: float, y: float) -> list[list[float]]:
        return [[x, y], [x + 50, y], [x + 50, y + 20], [x, y + 20]]

    words = [(box(200, 3), "27"), (box(0, 40), "Ask early."), (box(0, 0), "Days:")]
    assert _lines(words) == "Days: 27\nAsk early."


def test_a_file_without_its_header_is_refused_and_not_skipped(tmp_path: Path) -> None:
    assert refusal(b"\x01\x02 no pdf", "x.pdf").startswith("damaged pdf")
