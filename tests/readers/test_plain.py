"""Encodings, titles, dates, front matter and rtf."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.errors import InputError
from raft.readers.plain import clean, decode, iso_date, normalized
from raft.records import Document
from tests.readers.files import read_one, refusal


def test_text_and_markdown_keep_their_words_and_find_their_titles() -> None:
    texts = {"a.md": "Preface.\n\n## Dose\n\nGive 4 mg.", "b.txt": "FEES\n====\n\nTen marks.", "c.txt": "word " * 60,
             "deep/d.txt": "12\n\nDeep."}  # fmt: skip
    found = [read_one(text, name) for name, text in texts.items()]
    assert [document.title for document in found] == ["Dose", "FEES", "c", "d"]
    assert found[0] == Document("a.md", "Preface.\n\n## Dose\n\nGive 4 mg.", "Dose", "a.md", {"format": "md"})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_text_of_other_encodings_is_read(encoding: str) -> None:
    words = "Die Gebühr für die Prüfung beträgt fünfzehn Mark. Sie wird jährlich geprüft und größtenteils erhöht."
    assert read_one(words.encode(encoding), "x.txt").text == words


@given(st.binary(max_size=200))
def test_any_bytes_end_as_text_or_as_an_input_error(data: bytes) -> None:
    try:
        text = decode(data)
    except InputError:
        return
    assert isinstance(text, str)
    clean(text).encode("utf-8")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2024-03-01", "2024-03-01"), ("2024-3-1", "2024-03-01"), ("2024-03-01T10:00:00Z", "2024-03-01"),
        ("2024-03", "2024-03"), (2024, "2024"), ("D:20240103093826+01'00'", "2024-01-03"), ("20240103", "2024-01-03"),
        ("1 March 2024", "2024-03-01"), ("March 1, 2024", "2024-03-01"), ("01.03.2024", "2024-03-01"),
        ("Fri, 16 Dec 2022 17:04:16 -0500", "2022-12-16"), (datetime.date(2020, 2, 3), "2020-02-03"),
        ("03/04/2024", ""), ("2024-13-01", ""), ("2024-02-30", ""), ("soon", ""), ("", ""), (None, ""),
        ("1700000000", ""),
    ],
)  # fmt: skip
def test_dates_are_read_where_they_are_sure(given: object, expected: str) -> None:
    assert iso_date(given) == expected


def test_front_matter_becomes_metadata_and_leaves_the_text() -> None:
    front = "---\ntitle: Leave policy\ndate: 1 March 2024\ntags: staff, leave\nlabels: [hr, board]\nversion: 3\n"
    document = read_one(front + "page_starts: [9]\nnested: {a: 1}\n---\nStaff have 27 days.", "x.md")
    assert (document.title, document.text) == ("Leave policy", "Staff have 27 days.")
    assert document.metadata == {
        "date": "2024-03-01", "tags": ["staff", "leave"], "labels": ["hr", "board"], "version": 3, "format": "md",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["---\n\nA rule above.\n\n---\n\nText.", "---\n- a\n---\nText.", "---\na: [\n---\nText."]
)
def test_what_is_no_front_matter_stays(text: str) -> None:
    assert read_one(text, "x.md").text == text


@pytest.mark.parametrize(
    "front", ["labels: {a: b}", "labels:", "labels: [a, [b]]", "labels: [1]", "labels: 'a,,b'", "labels: no",
              "Labels: [a\nx: {"],
)  # fmt: skip
def test_front_matter_with_malformed_labels_refuses_the_file(front: str) -> None:
    assert "access labels" in refusal(f"---\n{front}\n---\nText.", "x.md")


@pytest.mark.parametrize(
    "text",
    [
        "---\nlabels: [hr]\nlabels: []\n---\nText.", "---\n{labels: [hr], Labels: []}\n---\nText.",
        "---\nbase: &b {labels: [hr]}\n<<: *b\nlabels: []\n---\nText.", "---\nmeta:\n  labels: [hr]\n---\nText.",
        "---\nlabels: [hr]\n\nText.", "\n---\nlabels: [hr]\nText.", "+++\nlabels = ['hr']\n+++\nText.",
        '+++\n"labels" = ["hr"]\nText.', ';;;\n"labels": ["hr"]\n;;;\nText.', '{\n"labels": ["hr"]\n}\n\nText.',
        "---\n- labels: [hr]\n---\nText.", "Labels: hr\n\nText.",
        "---\ntitle: T\n---\n---\nlabels: [hr]\n---\nText.", "---\n" + "x: 1\n" * 20_000 + "labels: [hr]\n---\nText.",
        "---\na: &a [*a]\nb: {labels: [hr]}\n---\nText.",
    ],
)  # fmt: skip
def test_front_matter_that_would_lose_labels_refuses_the_file(text: str) -> None:
    assert "access labels" in refusal(text, "x.md")


def test_front_matter_may_follow_blank_lines_and_is_read_in_markdown_only() -> None:
    text = "\n  \n---\nlabels: [hr]\n---\nText."
    document = read_one(text, "x.md")
    assert (document.text, document.metadata["labels"]) == ("Text.", ["hr"])
    assert "access labels" in refusal(text, "x.txt")
    assert read_one("# Labels\n\nlabels: what they are", "x.md").text.startswith("# Labels")


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (["a", " b c "], ["a", "b c"]),
        ("a, b;c", ["a", "b", "c"]),
        ('["a, b"]', ["a, b"]),
        ([], []),
        ("", []),
        (" ", []),
    ],
)
def test_labels_are_a_list_of_names(value: object, labels: list[str]) -> None:
    assert normalized({" Labels": value}) == {"labels": labels}


@pytest.mark.parametrize(
    "value", [None, 3, True, {"a": 1}, [1], ["a", ""], [None], "a,,b", "['a']", "[1]", '{"a": ', ["a", ["b"]]]
)
def test_malformed_labels_are_never_dropped(value: object) -> None:
    if value == '{"a": ':
        assert normalized({"labels": value}) == {"labels": ['{"a":']}  # one odd name, kept
        return
    with pytest.raises(InputError, match="access labels"):
        normalized({"labels": value})


def test_rtf_is_read_with_its_tables_and_title() -> None:
    rtf = (
        r"{\rtf1\ansi\ansicpg1252{\fonttbl\f0 Arial;}{\info{\title Fees}{\author T. Orrin}{\revtim\yr2020\mo5\dy6}}"
        r"Geb\'fchr{\v UNSEEN}\v UNSEEN\v0\par 27 days.\par\trowd a\cell b\cell\row\pard}"
    )
    document = read_one(rtf, "fees.doc")  # many rtf files are named so
    assert "Gebühr\n27 days." in document.text
    assert "a | b" in document.text
    assert document.title == "Fees"
    assert document.metadata == {"author": "T. Orrin", "date": "2020-05-06", "format": "rtf"}
