"""Bytes say what a file is; its name only tells texts apart."""

from __future__ import annotations

import gzip
import random

import pytest

from raft.readers.formats import FORMATS, Unread, read_file, sniff
from raft.readers.plain import Limits
from tests.readers.files import make_docx, make_epub, make_odt, make_pdf, make_zip, outcomes_of, read_one, refusal
from tests.readers.test_mail import make_mail
from tests.readers.test_office import make_pptx, make_xlsx

PAGE = "<!DOCTYPE html><html><body><h1>Leave</h1></body></html>"
SAMPLES = {
    "pdf": make_pdf([["Words."]]), "docx": make_docx(), "pptx": make_pptx(), "xlsx": make_xlsx(), "epub": make_epub(),
    "odt": make_odt("<text:p>Words.</text:p>"), "rtf": rb"{\rtf1 Words.}", "html": PAGE.encode(),
    "xml": b'<?xml version="1.0"?><p>Words.</p>', "eml": make_mail().as_bytes(), "json": b'{"a": 1}',
}  # fmt: skip
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500)


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("name", ["x.docx", "x.pdf", "x.txt", "x.epub", "x", "x.doc", "1. a file"])
def test_the_bytes_decide(kind: str, name: str) -> None:
    trusted = {("eml", "x.txt"), ("json", "x.txt")}  # a text may begin like a mail, or be about json
    unsure = {("json", name) for name in ("x.docx", "x.epub", "x.doc")}
    if (kind, name) in trusted:
        assert sniff(SAMPLES[kind], name) == "txt"
    elif (kind, name) in unsure:
        assert outcomes_of(SAMPLES[kind], name)[0].document is None
    elif name == "x.pdf" and kind in ("eml", "json"):
        assert refusal(SAMPLES[kind], name).startswith("damaged pdf")
    else:
        assert sniff(SAMPLES[kind], name) == kind
        assert read_one(SAMPLES[kind], name).metadata["format"] == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.TXT", "txt"), ("a.md", "md"), ("a.rst", "txt"), ("a.csv", "csv"), ("a.tsv", "csv"), ("a.jsonl", "jsonl"),
     ("a.ndjson", "jsonl"), ("a.json", "json"), ("a.jsonl.gz", "jsonl"), ("a.eml", "eml"), ("a.htm", "html")],
)  # fmt: skip
def test_the_suffix_tells_texts_apart(name: str, kind: str) -> None:
    assert sniff(b"Some words.", name) == kind


@pytest.mark.parametrize(
    ("mark", "remedy"),
    [("WordDocument", ".docx"), ("Workbook", ".xlsx"), ("PowerPoint Document", ".pptx"), ("__substg1.0_", ".eml"),
     ("EncryptedPackage", "password"), ("Other", ".docx, .pptx or .xlsx")],
)  # fmt: skip
def test_old_office_files_are_refused_with_the_way_on(mark: str, remedy: str) -> None:
    assert remedy in refusal(OLE + mark.encode("utf-16-le"), "x.doc")


@pytest.mark.parametrize("name", ["x.mp4", "x", "x.py", "x.svg", "x.tar.gz", "Makefile", "x.doc"])
def test_what_is_no_document_is_skipped_with_a_reason(name: str) -> None:
    for data in (b"Some words.", random.Random(0).randbytes(5000), b""):
        (outcome,) = outcomes_of(gzip.compress(data) if name.endswith(".gz") else data, name)
        assert outcome.status == "skipped", (name, outcome.reason)
        assert outcome.reason.startswith("format ")


def test_other_zip_archives_are_skipped_and_false_names_refused() -> None:
    data = make_zip({"a.txt": "Words."})
    assert outcomes_of(data, "x.zip")[0].status == "skipped"
    assert "is not docx" in refusal(data, "x.docx")
    assert "damaged docx" in refusal(b"PK\x03\x04", "x.docx")
    assert "is not docx" in refusal(b"PK", "x.docx")


def test_packed_files_are_read_by_what_is_in_them() -> None:
    assert read_one(gzip.compress(b"Words."), "a.txt.gz").text == "Words."
    assert read_one(gzip.compress(b"Words.") + gzip.compress(b" More."), "a.txt.gz").text == "Words. More."
    assert read_one(gzip.compress(SAMPLES["pdf"]), "a.pdf.gz").text == "Words."
    assert "breaks off" in refusal(gzip.compress(random.Random(0).randbytes(999).hex().encode())[:500], "a.txt.gz")
    assert "unpacks to more than 1000" in refusal(gzip.compress(bytes(9000)), "a.txt.gz", max_file_bytes=1000)


def test_texts_that_are_binary_or_empty_are_refused() -> None:
    assert "binary" in refusal(random.Random(0).randbytes(4000), "a.txt")
    assert "binary" in refusal(bytes(100), "a.md")
    assert refusal(b" \n ", "a.txt") == "holds no text"


def test_a_text_that_is_too_long_is_refused() -> None:
    assert "1001 characters; at most 1000" in refusal("x" * 1001, "a.txt", max_text_chars=1000)
    rows = '{"text": "' + "x" * 1001 + '"}\n{"text": "y"}'
    assert [o.status for o in outcomes_of(rows, "a.jsonl", max_text_chars=1000)] == ["refused", "indexed"]


def test_a_film_is_not_read_to_its_end(tmp_path) -> None:
    film = tmp_path / "x.mp4"
    film.write_bytes(bytes(10_000))
    with pytest.raises(Unread, match=r"format \.mp4 is not read"):
        read_file(str(film), "x.mp4", "", Limits(max_file_bytes=5000))
    assert ".pdf" in FORMATS
