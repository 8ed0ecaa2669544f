"""Word, PowerPoint and Excel: structure is kept; what is hidden, deleted or furniture is left out."""

from __future__ import annotations

import datetime

import docx
import openpyxl
import pptx
import pytest
from docx.enum.style import WD_STYLE_TYPE
from docx.oxml import parse_xml
from pptx.util import Inches

from tests.readers.files import make_docx, make_zip, members_of, read_one, refusal, saved

M = "http://schemas.openxmlformats.org/officeDocument/2006/math"
W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def test_docx_keeps_paragraphs_and_tables_in_order() -> None:
    document = read_one(make_docx(), "x.docx")
    assert document.title == "Leave Policy"
    assert document.text == (
        "# Leave Policy\n\n## Annual leave\n\nStaff have 27 days.\n\nGrade | Days\nB7 | 31\n\n- Ask early."
    )
    assert document.metadata == {"format": "docx", "author": "python-docx", "date": "2013-12-23"}


def test_docx_properties_give_title_and_date() -> None:
    document = docx.Document()
    document.add_paragraph("Words.")
    document.core_properties.title = "The Lease"
    document.core_properties.modified = datetime.datetime(2024, 5, 6, 7, 8)
    found = read_one(saved(document), "x.docx")
    assert (found.title, found.metadata["date"]) == ("The Lease", "2024-05-06")


def test_docx_leaves_out_what_is_hidden_deleted_or_furniture() -> None:
    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = "HEADER"
    document.sections[0].footer.paragraphs[0].text = "FOOTER"
    paragraph = document.add_paragraph("Seen ")
    paragraph.add_run("HIDDEN").font.hidden = True
    unseen = document.styles.add_style("Unseen", WD_STYLE_TYPE.CHARACTER)
    unseen.font.hidden = True
    below = document.styles.add_style("Below", WD_STYLE_TYPE.CHARACTER)
    below.base_style = unseen
    paragraph.add_run("HIDDEN", style="Unseen")
    paragraph.add_run("HIDDEN", style="Below")
    paragraph.add_run("words").font.hidden = False
    paragraph._p.append(parse_xml(f"<w:del {W}><w:r><w:delText>DELETED</w:delText></w:r></w:del>"))
    paragraph._p.append(parse_xml(f"<w:ins {W}><w:r><w:t>, inserted</w:t></w:r></w:ins>"))
    document.add_comment(paragraph.runs[0], "COMMENT")
    assert read_one(saved(document), "x.docx").text == "Seen words, inserted"


def test_docx_keeps_content_controls_text_boxes_links_and_footnotes() -> None:
    document = docx.Document()
    body = document.element.body
    control = f"<w:sdt {W}><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    link = f"<w:p {W}><w:hyperlink><w:r><w:t>A link</w:t></w:r></w:hyperlink><w:r><w:br/><w:t>below</w:t></w:r></w:p>"
    inner = "<w:txbxContent><w:p><w:r><w:t>In a box.</w:t></w:r></w:p></w:txbxContent>"
    box = (
        f'<w:p {W} xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><w:r><mc:AlternateContent>'
        f"<mc:Choice>{inner}</mc:Choice><mc:Fallback>{inner}</mc:Fallback></mc:AlternateContent></w:r></w:p>"
    )
    note = f'<w:p {W}><w:r><w:t>Cited</w:t></w:r><w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
    math = f'<w:p {W} xmlns:m="{M}"><m:oMath><m:r><m:t>a+b</m:t></m:r></m:oMath></w:p>'
    above, base = "<w:rt><w:r><w:t>kan</w:t></w:r></w:rt>", "<w:rubyBase><w:r><w:t>漢</w:t></w:r></w:rubyBase>"
    ruby = f"<w:p {W}><w:r><w:ruby>{above}{base}</w:ruby></w:r></w:p>"
    for number, xml in enumerate((control, link, box, note, math, ruby)):
        body.insert(number, parse_xml(xml))
    members = members_of(saved(document))
    members["word/footnotes.xml"] = (
        f'<w:footnotes {W}><w:footnote w:id="2"><w:p><w:r><w:t>See there.</w:t></w:r></w:p></w:footnote></w:footnotes>'
    ).encode()
    relations = "word/_rels/document.xml.rels"
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes"
    entry = f'<Relationship Id="rId99" Type="{kind}" Target="footnotes.xml"/></Relationships>'.encode()
    members[relations] = members[relations].replace(b"</Relationships>", entry)
    data = make_zip(members)
    assert (
        read_one(data, "x.docx").text
        == "In a control.\n\nA link\nbelow\n\nIn a box.\n\nCited [See there.]\n\na+b\n\n漢"
    )


def test_docx_with_macros_or_of_a_template_is_read() -> None:
    members = members_of(make_docx())
    for kind in (b"ms-word.document.macroEnabled.main", b"ms-word.template.macroEnabledTemplate.main"):
        types = members["[Content_Types].xml"].replace(
            b"openxmlformats-officedocument.wordprocessingml.document.main", kind
        )
        assert "27 days" in read_one(make_zip(members | {"[Content_Types].xml": types}), "x.docm").text


def make_pptx() -> bytes:
    deck = pptx.Presentation()
    for title, body in (("Leave", "27 days.\nAsk early."), ("Secret", "UNSEEN"), ("Pay", "Ten marks.")):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = body
    deck.slides[0].notes_slide.notes_text_frame.text = "Say hello."
    deck.slides[1].element.set("show", "0")
    table = deck.slides[2].shapes.add_table(2, 2, Inches(1), Inches(1), Inches(3), Inches(1)).table
    for at, text in enumerate(("Grade", "Marks", "B7", "31")):
        table.cell(at // 2, at % 2).text = text
    group = deck.slides[2].shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame.text = "In a group."
    gone = deck.slides[2].shapes.add_textbox(0, 0, Inches(1), Inches(1))
    gone.text_frame.text = "UNSEEN"
    gone._element.nvSpPr.cNvPr.set("hidden", "1")
    return saved(deck)


def test_pptx_slides_stand_at_their_offsets() -> None:
    document = read_one(make_pptx(), "x.pptx")
    assert document.text == (
        "## Leave\n\n27 days.\nAsk early.\n\nNotes: Say hello.\n\n\n\n"
        "## Pay\n\nTen marks.\n\nGrade | Marks\nB7 | 31\n\nIn a group."
    )
    starts = document.metadata["page_starts"]
    assert len(starts) == 3
    assert document.text[starts[2] :].startswith("## Pay")
    assert document.title == "Leave"


def make_xlsx() -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Grades"
    for row in (["Grade", "Days", "Since"], ["B7", 31, datetime.date(2024, 3, 1)], ["UNSEEN", 1, None], [None, None],
                ["B8", 0.1 + 0.2, datetime.datetime(2024, 3, 1, 9, 30)], ["yes?", True, "=1+1"]):  # fmt: skip
        sheet.append(row)
    sheet.row_dimensions[3].hidden = True
    sheet["F1"] = "UNSEEN"
    sheet.column_dimensions["F"].hidden = True
    for state in ("hidden", "veryHidden"):
        book.create_sheet(state).append(["UNSEEN"])
        book[state].sheet_state = state
    book.create_sheet("Empty")
    return saved(book)


def test_xlsx_shows_its_visible_sheets_row_by_row() -> None:
    document = read_one(make_xlsx(), "x.xlsx")
    assert document.text == (
        "## Grades\nGrade | Days | Since\nB7 | 31 | 2024-03-01\nB8 | 0.3 | 2024-03-01 09:30\nyes? | yes"
    )
    assert document.metadata["format"] == "xlsx"


@pytest.mark.parametrize("above", [[], [["Staff list"], []]])
def test_xlsx_with_a_column_of_labels_is_refused(above: list[list[str]]) -> None:
    book = openpyxl.Workbook()
    for row in (*above, ["text", "Labels"], ["Salaries.", "hr"]):
        book.active.append(row)
    book.active.column_dimensions["B"].hidden = True
    assert "save the sheet as csv" in refusal(saved(book), "x.xlsx")


def test_xlsx_that_says_a_million_rows_is_read_quickly() -> None:
    members = members_of(make_xlsx())
    sheet = members["xl/worksheets/sheet1.xml"].replace(b'<dimension ref="A1:F6"', b'<dimension ref="A1:XFD1048576"')
    assert b"XFD1048576" in sheet
    assert "B7 | 31" in read_one(make_zip(members | {"xl/worksheets/sheet1.xml": sheet}), "x.xlsx").text
    assert "characters" in refusal(make_xlsx(), "x.xlsx", max_text_chars=20)


def test_a_date_is_never_made_up() -> None:
    for data, name in ((make_xlsx(), "x.xlsx"), (make_docx(), "x.docx"), (make_pptx(), "x.pptx")):
        members = members_of(data)
        del members["docProps/core.xml"]
        relations = members["_rels/.rels"].replace(b"docProps/core.xml", b"docProps/app.xml")
        assert "date" not in read_one(make_zip(members | {"_rels/.rels": relations}), name).metadata


def test_entities_in_a_docx_are_not_looked_up() -> None:
    members = members_of(make_docx())
    body = members["word/document.xml"].replace(b"?>", b'?><!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>', 1)
    body = body.replace(b"27 days", b"&x;27 days")
    assert "root:" not in read_one(make_zip(members | {"word/document.xml": body}), "x.docx").text
