"""Record files: a row is a document, its text untouched; other tables and json are one readable document."""

from __future__ import annotations

import gzip
import json

import pytest

from raft.corpus.chunking import split_documents
from raft.records import Document
from tests.readers.files import outcomes_of, read_one, refusal


def test_rows_are_documents_with_their_text_untouched() -> None:
    rows = [
        {"id": "a", "title": "T", "text": " line\r\nnext ", "source": "s", "year": 2020, "tags": "x, y",
         "date": "March 1, 2024", "labels": "hr;board"},
        {"text": "no id", "date": "03/04/05", "tags": ["x", 7]},
        {"id": 7, "text": "bad \ud800 char"},
    ]  # fmt: skip
    data = gzip.compress("\n\n".join(json.dumps(row) for row in rows).encode())
    found = [outcome.document for outcome in outcomes_of(data, "c.jsonl.gz")]
    metadata = {"year": 2020, "tags": ["x", "y"], "date": "2024-03-01", "labels": ["hr", "board"]}
    assert found[0] == Document("a", " line\r\nnext ", "T", "s", metadata)
    assert found[1] == Document("c.jsonl.gz#3", "no id", "", "c.jsonl.gz", {"date": "03/04/05", "tags": ["x", "7"]})
    assert found[2] is not None
    assert (found[2].id, found[2].text) == ("7", "bad \ufffd char")


def test_a_bad_row_is_one_refusal() -> None:
    lines = ['{"id": "a", "text": "fine"}', "not json", "[1]", '{"id": "b"}', '{"id": "c", "text": 4}',
             '{"id": "d", "text": " "}', '{"id": {"x": 1}, "text": "t"}', '{"id": "f", "text": "t", "labels": null}',
             '{"id": "g", "text": "t", "labels": {"a": 1}}', '{"id": "e", "text": "fine too"}']  # fmt: skip
    found = outcomes_of("\n".join(lines), "c.jsonl")
    assert [o.status for o in found] == ["indexed", *["refused"] * 8, "indexed"]
    assert [o.source for o in found] == [f"c.jsonl#{n}" for n in range(1, 11)]
    assert all(o.reason for o in found if o.status == "refused")
    assert "access labels" in found[7].reason


def test_rows_before_the_break_of_a_packed_file_are_kept() -> None:
    rows = "".join(json.dumps({"text": f"Row {n} " + "ab" * (n % 7)}) + "\n" for n in range(3000))
    found = outcomes_of(gzip.compress(rows.encode())[:-900], "c.jsonl.gz")
    assert found[-1].source == "c.jsonl.gz"
    assert "breaks off" in found[-1].reason
    assert len(found) > 100
    assert {o.status for o in found[:-1]} == {"indexed"}


def test_csv_rows_are_documents() -> None:
    data = 'id;title;text;year;Labels\n1;One;"first; text\nnext line";2020;a\n2;;;2021;b\n3;;t;1;"x,,y"\n4;;t;1\n'
    first, *others = outcomes_of(data, "a.csv")
    assert first.document == Document("1", "first; text\nnext line", "One", "a.csv", {"year": "2020", "labels": ["a"]})
    assert [o.status for o in others] == ["refused"] * 3
    assert "access labels" in others[1].reason
    assert "access labels" in others[2].reason  # the row breaks off before them


@pytest.mark.parametrize("columns", ["text,labels,Labels", "text,labels,labels", "labels,body"])
def test_a_csv_whose_labels_cannot_be_kept_is_refused(columns: str) -> None:
    assert "access labels" in refusal(f"{columns}\na,b,c\n", "a.csv")


def test_a_csv_without_a_text_column_is_one_readable_document() -> None:
    document = read_one('drug,dose,note\nCorvalexin,"4 mg,\ntwice"\nAmoxicillin,500 mg,oral,with water\n', "d.csv")
    assert document.text == (
        "drug: Corvalexin\ndose: 4 mg, twice\n\ndrug: Amoxicillin\ndose: 500 mg\nnote: oral\nwith water"
    )
    assert document.metadata == {"format": "csv"}
    assert read_one("drug\tdose\n", "d.tsv").text == "drug | dose"


def test_a_csv_row_with_more_fields_than_columns_is_refused() -> None:
    cut, whole = outcomes_of('text\nLeave, when unpaid, ends\n"Leave, when paid, stays"\n', "a.csv")
    assert (cut.source, cut.status) == ("a.csv#2", "refused")
    assert cut.reason == "row 2 has 3 fields for 1 columns: quote the field that holds a ','"
    assert whole.document is not None
    assert whole.document.text == "Leave, when paid, stays"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_csv_rows_end_at_line_breaks_only(separator: str) -> None:
    # A control character counts as a sign of binary data, so it stands in enough text.
    text = f"Leave ends{separator}after ten years. " + "It is unpaid. " * 20
    found = [outcome.document for outcome in outcomes_of(f"id,text\r\n1,{text}\r\n2,Rent\r\n", "a.csv")]
    assert [document and document.text for document in found] == [text, "Rent"]


@pytest.mark.parametrize("value", ["0 12", 7, [0, "x"], [0, 3]])
def test_a_column_page_starts_is_not_taken_for_pages(value: object) -> None:
    document = read_one(json.dumps({"text": "Leave ends.", "page_starts": value}), "c.jsonl")
    assert document.metadata == {"row_page_starts": value}
    (chunk,) = split_documents([document], lambda text: [(0, len(text))], 40, 0, True)
    assert chunk.page is None


@pytest.mark.parametrize(
    "value",
    [
        {"Labels": ["a"], "body": "b"},
        [{"body": "b"}, {"labels": [], "body": "b"}],
        {"documents": [{"text": "Salaries.", "labels": ["hr"]}]},
        [[{"text": "Salaries.", "labels": ["hr"]}]],
        {"a": {"b": [1, {"c": {" LABELS ": "hr"}}]}},
        {"text": "Cover.", "documents": [{"text": "Salaries.", "labels": ["hr"]}]},
    ],
)
def test_a_json_whose_labels_cannot_be_kept_is_refused(value: object) -> None:
    assert "access labels" in refusal(json.dumps(value), "a.json")


TWICE = '{"text": "Salaries.", "labels": ["hr"], "labels": []}'


@pytest.mark.parametrize(
    ("data", "name"),
    [(TWICE, "a.json"), (f"[{TWICE}]", "a.json"), (f'{{"a": [{TWICE}]}}', "a.json"), (TWICE, "a.jsonl")],
)
def test_labels_that_are_there_twice_are_refused(data: str, name: str) -> None:
    assert "access labels twice" in refusal(data, name)


def test_labels_inside_another_column_refuse_the_row_unless_it_has_its_own() -> None:
    inner = {"text": "Salaries.", "meta": {"labels": ["hr"]}}
    cut, whole = outcomes_of("\n".join(json.dumps(row) for row in (inner, inner | {"labels": ["a"]})), "c.jsonl")
    assert cut.status == "refused"
    assert "access labels inside another column" in cut.reason
    assert whole.document is not None
    assert whole.document.metadata["labels"] == ["a"]


def test_json_rows_are_documents() -> None:
    rows = [{"id": "a", "text": "One."}, {"id": "b"}, 7]
    found = outcomes_of(json.dumps(rows, indent=1), "c.json")
    assert [(o.source, o.status) for o in found] == [
        ("c.json#1", "indexed"), ("c.json#2", "refused"), ("c.json#3", "refused"),
    ]  # fmt: skip
    assert read_one('{"text": "One."}', "c.json") == Document("c.json", "One.", "", "c.json")
    lines = outcomes_of('{"text": "One."}\n{"text": "Two."}\n', "c.json")
    assert [o.document and o.document.text for o in lines] == ["One.", "Two."]


def test_other_json_is_readable() -> None:
    value = {"name": "Ash ward", "beds": 12, "open": True, "hours": {"mon": "8-17", "sun": None},
             "staff": ["Ann", {"name": "Bo", "role": "nurse"}]}  # fmt: skip
    document = read_one(json.dumps(value), "ward.json")
    assert document.text == (
        "name: Ash ward\nbeds: 12\nopen: true\nhours:\n  mon: 8-17\n  sun: null\n"
        "staff:\n  - Ann\n  name: Bo\n  role: nurse"
    )
    assert document.metadata == {"format": "json"}


@pytest.mark.parametrize("data", ["{", "[" * 100_000, "[" * 2000 + "]" * 2000, '{"a": }'])
def test_damaged_json_is_refused(data: str) -> None:
    assert "damaged json" in refusal(data, "x.json")
