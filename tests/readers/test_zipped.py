"""Zip archives are checked before they are parsed; epub and odt."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from raft.errors import InputError
from raft.readers.plain import Limits
from raft.readers.zipped import open_zip
from tests.readers.files import make_docx, make_epub, make_odt, make_zip, read_one, refusal

SMALL = {"max_file_bytes": 100_000}


def test_epub_is_read_in_the_order_of_its_spine() -> None:
    document = read_one(make_epub(), "x.epub")
    assert document.text == "# First\n\nIt begins.\n\n# Second\n\nIt ends."
    assert document.title == "The Leases"
    assert document.metadata == {"author": "T. Orrin", "date": "2019-05-06", "format": "epub"}


def test_epub_with_protected_chapters_is_refused_but_hidden_fonts_are_not() -> None:
    listing = "<e><CipherReference URI='{}'/></e>"
    assert "DRM" in refusal(make_epub(**{"META-INF__encryption.xml": listing.format("O/one.xhtml")}), "x.epub")
    assert read_one(make_epub(**{"META-INF__encryption.xml": listing.format("O/font.otf")}), "x.epub")


@pytest.mark.parametrize("missing", ["META-INF/container.xml", "O/book.opf", "O/one.xhtml"])
def test_epub_that_lacks_a_part_is_refused(missing: str) -> None:
    import io

    with zipfile.ZipFile(io.BytesIO(make_epub())) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != missing}
    assert missing in refusal(make_zip(members), "x.epub")


def test_odt_keeps_headings_lists_tables_and_notes() -> None:
    body = (
        '<text:h text:outline-level="1">Rent</text:h><text:p>Ten<text:s text:c="2"/>marks<text:line-break/>a year.'
        "<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>Paid late.</text:p>"
        "</text:note-body></text:note></text:p><text:list><text:list-item><text:p>One</text:p></text:list-item>"
        "<text:list-item><text:p>Two</text:p></text:list-item></text:list><table:table><table:table-row>"
        "<table:table-cell><text:p>a</text:p></table:table-cell><table:table-cell><text:p>b</text:p>"
        "</table:table-cell></table:table-row></table:table>"
        "<text:tracked-changes><text:p>UNSEEN</text:p></text:tracked-changes>"
        '<text:p text:style-name="H">UNSEEN</text:p><text:p>See<text:span text:style-name="H">UNSEEN</text:span>n.'
        "<o:annotation><text:p>UNSEEN</text:p></o:annotation></text:p>"
    )
    style = '<style:style style:name="H"><style:text-properties text:display="none"/></style:style>'
    document = read_one(make_odt(body, style), "x.odt")
    assert document.text == "# Rent\n\nTen  marks\na year. [Paid late.]\n\n- One\n- Two\n\na | b\n\nSeen."
    assert (document.title, document.metadata) == ("Rent", {"date": "2021-02-03", "format": "odt"})


@pytest.mark.parametrize("name", ["../x.xml", "a/../../x", "/etc/x", "C:/x", "..\\x"])
def test_members_that_climb_out_refuse_the_archive(name: str, tmp_path: Path) -> None:
    data = make_zip({"mimetype": "application/epub+zip", name: "x"})
    assert "climbs out" in refusal(data, "x.epub")


def test_an_archive_that_unpacks_to_too_much_is_refused_by_its_header() -> None:
    assert "unpacks to 200000 bytes; at most 100000" in refusal(
        make_zip({"word/document.xml": "x" * 200_000}), "x.docx", **SMALL
    )


def test_an_archive_whose_header_lies_is_refused() -> None:
    data = bytearray(make_zip({"word/document.xml": "x" * 200_000}))
    local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, local + 22, 10)
    struct.pack_into("<I", data, central + 24, 10)
    assert "damaged zip" in refusal(bytes(data), "x.docx", **SMALL)


def test_an_archive_of_too_many_members_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raft.readers.zipped._MAX_MEMBERS", 5)
    with pytest.raises(InputError, match="members"):
        open_zip(make_zip({str(n): "" for n in range(6)}), Limits())


def test_a_damaged_member_refuses_the_archive() -> None:
    data = bytearray(make_docx())
    at = data.index(b"word/document.xml") + 200
    data[at : at + 20] = bytes(20)
    assert refusal(bytes(data), "x.docx").startswith("damaged")
