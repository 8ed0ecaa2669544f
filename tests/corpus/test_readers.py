"""Every format is read back, and no damaged, hostile or odd file stops the others."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import zipfile
from pathlib import Path

import docx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfWriter
from reportlab.pdfgen.canvas import Canvas

from raft.corpus import readers
from raft.corpus.chunking import split_documents
from raft.corpus.readers import ReadOutcome, read_source
from raft.corpus.store import write_documents
from raft.errors import InputError
from raft.records import Document

FORMATS = Path(__file__).parents[3] / "shared" / "data" / "formats"


def outcomes(path: Path) -> dict[str, ReadOutcome]:
    return {outcome.source: outcome for outcome in read_source(path)}


def read_one(path: Path) -> Document:
    (outcome,) = read_source(path)
    assert outcome.document is not None, outcome.reason
    return outcome.document


def write_pdf(path: Path, pages: list[list[str]], title: str | None = None) -> Path:
    canvas = Canvas(str(path))
    if title is not None:
        canvas.setTitle(title)
    for lines in pages:
        for number, line in enumerate(lines):
            canvas.drawString(72, 780 - 16 * number, line)
        canvas.showPage()
    canvas.save()
    return path


def write_docx(path: Path) -> Path:
    document = docx.Document()
    document.add_heading("Leave Policy", 0)
    document.add_heading("Annual leave", 1)
    document.add_paragraph("Staff have 27 days.")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip([c for row in table.rows for c in row.cells], ["Grade", "Days", "B7", "31"], strict=True):
        cell.text = text
    document.add_paragraph("Ask early.", style="List Bullet")
    document.save(str(path))
    return path


def test_text_and_markdown_keep_their_words_and_find_their_titles(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Preface.\n\n## Dose\n\nGive 4 mg.", encoding="utf-8")
    (tmp_path / "b.txt").write_text("FEES\n====\n\nTen marks.", encoding="utf-8")
    (tmp_path / "c.txt").write_text("word " * 60, encoding="utf-8")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.txt").write_text("12\n\nDeep.", encoding="utf-8")
    found = {name: outcome.document for name, outcome in outcomes(tmp_path).items()}
    assert list(found) == ["a.md", "b.txt", "c.txt", "deep/d.txt"]
    assert [d.title for d in found.values() if d] == ["Dose", "FEES", "c", "d"]
    assert found["a.md"] == Document("a.md", "Preface.\n\n## Dose\n\nGive 4 mg.", "Dose", "a.md")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_text_of_other_encodings_is_read(tmp_path: Path, encoding: str) -> None:
    words = "Die Gebühr für die Prüfung beträgt fünfzehn Mark. Sie wird jährlich geprüft und größtenteils erhöht."
    (tmp_path / "x.txt").write_bytes(words.encode(encoding))
    assert read_one(tmp_path / "x.txt").text == words


def test_html_shows_what_a_reader_sees(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>Visiting | Orrin Hospital</title><style>p{}</style></head><body>
      <header>Site header</header><nav>Home</nav><h1>Visiting</h1><p>Wards open
      at <b>14:00</b>.</p><script>alert(1)</script><p hidden>secret one</p><p style="display:none">secret two</p>
      <div aria-hidden="true">secret three</div><!-- secret four -->
      <h2>Children</h2><ul><li>under 12<li>with an adult</ul>
      <table><tr><th>Ward</th><th>Hours</th></tr><tr><td>Ash</td><td>2 to 4</td></tr></table>
      <footer>Imprint</footer></body></html>"""
    (tmp_path / "x.html").write_text(page, encoding="utf-8")
    document = read_one(tmp_path / "x.html")
    assert document.title == "Visiting"
    assert document.text == (
        "# Visiting\n\nWards open at 14:00.\n\n## Children\n\n- under 12\n- with an adult\n\n"
        "Ward | Hours\n\nAsh | 2 to 4"
    )


def test_html_menus_that_are_not_marked_as_such_are_left_out(tmp_path: Path) -> None:
    page = """<body><p>Wards open.</p>
      <ul class="related"><li><a href=/a>A to Z</a></li><li><a href=/c>Contact</a></li></ul>
      <ul><li>See <a href=/v>Visiting</a></li><li><a href=/p>Parking</a></li></ul>
      <article><ol><li><a href=#1>Section 1</a></li><li><a href=#2>Section 2</a></li></ol></article></body>"""
    (tmp_path / "x.html").write_text(page, encoding="utf-8")
    text = read_one(tmp_path / "x.html").text
    assert "A to Z" not in text
    assert all(kept in text for kept in ("Wards open.", "- See Visiting", "- Parking", "- Section 2"))


LINKS = "<{tag} {named}><li><a href=/a>Form A</a></li><li><a href=/b>Form B</a></li></{tag}>"


@pytest.mark.parametrize(
    ("page", "kept"),
    [
        ('<h1>Forms</h1><div role="main"><p>Use these:</p>{links}</div>', True),
        ('<div role="main"><p>Use these:</p>{links}</div><h1>Forms</h1>', True),
        ("<h1>Forms</h1><section>{links}</section>", True),
        ("<h1>Forms</h1><div><p>Use these:</p>{links}</div>", True),
        ("<p>Use these:</p>{links}", True),
        ('<body class="with-sidebar"><div id="header-page"><h1>Forms</h1>{links}</div></body>', True),
        ("<h1>Forms</h1><div class=canvas>{links}</div>", True),
        ("{links}<h1>Forms</h1><p>Use these.</p>", False),
        ("<h1>Forms</h1><div id=mainMenu><div>{links}</div></div>", False),
        ("<h1>Forms</h1><div role=navigation>{links}</div>", False),
        ('<h1>Forms</h1><div class="page BREADCRUMBS">{links}</div>', False),
        ('<body class="with-sidebar"><h1>Forms</h1><div class="site_footer">{links}</div></body>', False),
    ],
)
@pytest.mark.parametrize("tag", ["ul", "ol"])
def test_html_lists_of_links_are_menus_by_their_place_or_name(tmp_path: Path, page: str, kept: bool, tag: str) -> None:
    (tmp_path / "x.html").write_text(page.format(links=LINKS.format(tag=tag, named="")), encoding="utf-8")
    assert ("- Form A" in read_one(tmp_path / "x.html").text) == kept


def test_html_headings_that_are_links_are_no_menu(tmp_path: Path) -> None:
    page = "<ul><li><h2><a href=/a>Leave</a></h2></li><li><h2><a href=/b>Pay</a></h2></li></ul>"
    (tmp_path / "x.html").write_text(page, encoding="utf-8")
    assert "## Leave" in read_one(tmp_path / "x.html").text


def test_html_form_around_the_body_loses_its_controls_only(tmp_path: Path) -> None:
    page = """<body><form id="aspnetForm"><input value="one"><h1>Leave</h1><p>Staff have 27 days.</p>
      <label>Grade</label><select><option>two</option></select><textarea>three</textarea><button>four</button>
      <datalist><option>five</option></datalist><header>six</header></form>After the form.</body>"""
    (tmp_path / "x.html").write_text(page, encoding="utf-8")
    text = read_one(tmp_path / "x.html").text
    assert text == "# Leave\n\nStaff have 27 days.\n\nGrade\n\nAfter the form."


@pytest.mark.parametrize("around", ["<article>{}</article>", "<section>{}</section>", "<div role=main>{}</div>"])
def test_html_headers_and_footers_of_the_content_stay(tmp_path: Path, around: str) -> None:
    inner = "<header><h1>Leave</h1>By the Board</header>27 days.<footer>In force since 2020.</footer>"
    page = f"<header>Site</header>{around.format(inner)}<footer>Imprint</footer>"
    (tmp_path / "x.html").write_text(page, encoding="utf-8")
    text = read_one(tmp_path / "x.html").text
    assert text == "# Leave\n\nBy the Board\n\n27 days.\n\nIn force since 2020."


def test_html_title_keeps_what_is_not_the_site(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text("<title>Visiting (2022) | Site</title><h1>Visiting</h1><p>No.", encoding="utf-8")
    assert read_one(tmp_path / "x.html").title == "Visiting (2022) | Site"


def test_pdf_pages_stand_at_their_offsets(tmp_path: Path) -> None:
    document = read_one(write_pdf(tmp_path / "x.pdf", [["First page."], [], ["Third page."]], "The Lease"))
    starts = document.metadata["page_starts"]
    assert document.title == "The Lease"
    assert [document.text[start:][:11] for start in (starts[0], starts[2])] == ["First page.", "Third page."]
    assert len(starts) == 3


def test_pdf_without_a_usable_title_takes_its_first_line(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "x.pdf", [["Lease of Land", "Clause 1."]], "Microsoft Word - lease.doc")
    assert read_one(path).title == "Lease of Land"


def test_docx_keeps_paragraphs_and_tables_in_order(tmp_path: Path) -> None:
    document = read_one(write_docx(tmp_path / "x.docx"))
    assert document.title == "Leave Policy"
    assert document.text == (
        "# Leave Policy\n\n## Annual leave\n\nStaff have 27 days.\n\nGrade | Days\nB7 | 31\n\n- Ask early."
    )


def test_rows_are_documents_with_their_text_untouched(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "title": "T", "text": " line\r\nnext ", "source": "s", "year": 2020, "tags": ["x"]},
        {"text": "no id"},
        {"id": 7, "text": "bad \ud800 char"},
    ]
    with gzip.open(tmp_path / "c.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n\n".join(json.dumps(row) for row in rows))
    found = [outcome.document for outcome in read_source(tmp_path / "c.jsonl.gz")]
    assert found[0] == Document("a", " line\r\nnext ", "T", "s", {"year": 2020, "tags": ["x"]})
    assert found[1] == Document("c.jsonl.gz#3", "no id", "", "c.jsonl.gz")
    assert found[2] is not None
    assert (found[2].id, found[2].text) == ("7", "bad \ufffd char")


def test_a_bad_row_is_one_refusal(tmp_path: Path) -> None:
    lines = ['{"id": "a", "text": "fine"}', "not json", "[1]", '{"id": "b"}', '{"id": "c", "text": 4}',
             '{"id": "d", "text": " "}', '{"id": {"x": 1}, "text": "t"}', '{"id": "a", "text": "again"}',
             '{"id": "e", "text": "fine too"}']  # fmt: skip
    (tmp_path / "c.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = list(read_source(tmp_path / "c.jsonl"))
    assert [o.status for o in found] == ["indexed", *["refused"] * 7, "indexed"]
    assert all(o.reason for o in found if o.status == "refused")
    assert "'a'" in found[7].reason
    assert "c.jsonl#1" in found[7].reason


def test_csv_rows_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id;title;text;year\n1;One;"first; text\nnext line";2020\n2;;;2021\n', "utf-8")
    (tmp_path / "b.csv").write_text("name,body\nx,y\n", encoding="utf-8")
    first, empty, other = read_source(tmp_path)
    assert first.document == Document("1", "first; text\nnext line", "One", "a.csv", {"year": "2020"})
    assert (empty.status, other.status) == ("refused", "refused")
    assert "name, body" in other.reason


def test_a_csv_row_with_more_fields_than_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\nLeave, when unpaid, ends\n"Leave, when paid, stays"\n', encoding="utf-8")
    cut, whole = read_source(tmp_path)
    assert (cut.source, cut.status) == ("a.csv#2", "refused")
    assert cut.reason == "row 2 has 3 fields for 1 columns: quote the field that holds a ','"
    assert whole.document is not None
    assert whole.document.text == "Leave, when paid, stays"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_csv_rows_end_at_line_breaks_only(tmp_path: Path, separator: str) -> None:
    # A control character counts as a sign of binary data, so it stands in enough text.
    text = f"Leave ends{separator}after ten years. " + "It is unpaid. " * 20
    (tmp_path / "a.csv").write_bytes(f"id,text\r\n1,{text}\r\n2,Rent\r\n".encode())
    found = [outcome.document for outcome in read_source(tmp_path)]
    assert [document and document.text for document in found] == [text, "Rent"]


def test_names_that_are_no_utf8_are_written_out(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name, data in ((b"r\xe8gle.txt", b"A rule."), (b"r\xe9gle.txt", b"Another."), (b"c\xe9.csv", b"text\nRow.\n"),
                       (b"bad\xe9.docx", b"PK"), (b"x.\xe9", b"odd")):  # fmt: skip
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(data)
    found = list(read_source(tmp_path))
    documents = {o.document.id: o.document for o in found if o.document is not None}
    assert {key: document.text for key, document in documents.items()} == {
        r"r\xe8gle.txt": "A rule.", r"r\xe9gle.txt": "Another.", r"c\xe9.csv#2": "Row.",
    }  # fmt: skip
    assert {o.source: o.status for o in found if o.document is None} == {
        r"bad\xe9.docx": "refused", r"x.\xe9": "skipped",
    }  # fmt: skip
    assert write_documents(tmp_path, documents.values()) == 3
    for outcome in found:
        (outcome.source + outcome.reason).encode("utf-8")


@pytest.mark.parametrize("value", ["0 12", 7, [0, "x"], [0, 3]])
def test_a_column_page_starts_is_not_taken_for_pages(tmp_path: Path, value: object) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "Leave ends.", "page_starts": value}), encoding="utf-8")
    document = read_one(tmp_path / "c.jsonl")
    assert document.metadata == {"row_page_starts": value}
    (chunk,) = split_documents([document], lambda text: [(0, len(text))], 40, 0, True)
    assert chunk.page is None


def test_each_bad_file_is_one_refusal_and_the_rest_goes_on(tmp_path: Path) -> None:
    write_pdf(tmp_path / "scan.pdf", [[], []])
    writer = PdfWriter(clone_from=write_pdf(tmp_path / "good.pdf", [["Fine."]]))
    writer.encrypt("key", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    (tmp_path / "cut.pdf").write_bytes((tmp_path / "good.pdf").read_bytes()[:300])
    (tmp_path / "fake.docx").write_bytes(b"%PDF-1.4")
    (tmp_path / "empty.txt").write_bytes(b" \n ")
    (tmp_path / "binary.txt").write_bytes(random.Random(0).randbytes(4000))
    (tmp_path / "zeros.md").write_bytes(bytes(100))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(random.Random(0).randbytes(999).hex().encode())[:500])
    (tmp_path / "video.mp4").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / ".hidden.txt").write_text("hidden", encoding="utf-8")
    found = outcomes(tmp_path)
    expected = dict.fromkeys(("binary.txt", "cut.jsonl.gz", "cut.pdf", "empty.txt", "fake.docx", "pipe.txt"), "refused")
    expected |= {"good.pdf": "indexed", "locked.pdf": "refused", "scan.pdf": "refused", "video.mp4": "skipped"}
    assert {name: outcome.status for name, outcome in found.items()} == expected | {"zeros.md": "refused"}
    assert "password" in found["locked.pdf"].reason
    assert "no text layer" in found["scan.pdf"].reason
    assert all(o.reason for o in found.values() if o.status != "indexed")


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("inside", encoding="utf-8")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "in.txt").symlink_to(folder / "a.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    found = {name: outcome.status for name, outcome in outcomes(folder).items()}
    assert found == {
        "a.txt": "indexed", "gone.txt": "refused", "in.txt": "indexed", "out.txt": "skipped", "up": "skipped",
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "a.txt").chmod(0)
    assert {name: outcome.status for name, outcome in outcomes(tmp_path).items()} == {
        "a.txt": "refused", "shut": "skipped",
    }  # fmt: skip


def test_sizes_are_limited_packed_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big.txt").write_text("x" * 5000, encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", "x" * 200_000)
    (tmp_path / "line.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"x" * 9000 + b'"}\n{"text": "y"}'))
    monkeypatch.setattr(readers, "MAX_FILE_BYTES", 4000)
    found = outcomes(tmp_path)
    assert "5000 bytes" in found["big.txt"].reason
    assert "unpacks to 200000" in found["bomb.docx"].reason
    assert found["line.jsonl.gz#1"].status == "refused"


def test_a_missing_source_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no documents at"):
        list(read_source(tmp_path / "nowhere"))


@pytest.mark.parametrize("kind", ["pdf", "docx", "html"])
def test_random_damage_never_escapes_as_another_error(tmp_path: Path, kind: str) -> None:
    good = tmp_path / f"good.{kind}"
    if kind == "pdf":
        write_pdf(good, [["Some words."] * 5] * 2)
    elif kind == "docx":
        write_docx(good)
    else:
        good.write_text("<h1>T</h1>" + "<div>" * 50 + "<table><tr><td>x</td></tr></table>" * 20, encoding="utf-8")
    data, draw = good.read_bytes(), random.Random(1)
    for _ in range(60):
        damaged = bytearray(data[: draw.randint(1, len(data))] if draw.random() < 0.3 else data)
        for _ in range(draw.randint(1, 30)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        (tmp_path / f"bad.{kind}").write_bytes(bytes(damaged))
        (outcome,) = read_source(tmp_path / f"bad.{kind}")
        assert (outcome.document is not None) == (outcome.status == "indexed")


@given(st.binary(max_size=200))
def test_any_bytes_under_a_text_name_end_in_one_outcome(data: bytes) -> None:
    try:
        text = readers._decode(data)
    except InputError:
        return
    assert isinstance(text, str)
    io.BytesIO().write(readers._clean(text).encode("utf-8"))


@pytest.mark.skipif(not FORMATS.is_dir(), reason="the public format samples are not on this machine")
def test_real_and_hostile_files_end_as_expected() -> None:
    found = outcomes(FORMATS)
    rows = [json.loads(line) for line in (FORMATS / "expected.jsonl").read_text(encoding="utf-8").splitlines()]
    checked = 0
    for row in rows:
        outcome = found[row["file"]]
        if row["expect"] == "text" and Path(row["file"]).suffix in readers.FORMATS:
            assert outcome.document is not None, (row["file"], outcome.reason)
            flat = " ".join(outcome.document.text.split())
            assert all(" ".join(snippet.split()) in flat for snippet in row["snippets"]), row["file"]
            checked += 1
        if outcome.document is not None:
            assert not any(word in outcome.document.text for word in row.get("forbidden", [])), row["file"]
        if row["expect"] in ("reject", "password", "empty"):
            assert outcome.document is None, row["file"]
    assert checked >= 8
