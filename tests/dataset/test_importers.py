from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path

import datasets
import pytest

from raft.dataset.importers import read_questions
from raft.errors import InputError, UsageError
from raft.records import Evidence

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("RAFT_SHARED_DATA", ROOT.parent / "shared" / "data"))
GOOD = {"id": "1", "question": "How much?", "answer": "12 mg", "gold_doc_ids": ["d"]}


def written(tmp_path, *rows, name="questions.jsonl"):
    path = tmp_path / name
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def test_all_columns_are_read_from_a_gzipped_file(tmp_path):
    row = GOOD | {
        "aliases": ["12 milligrams"], "answers": ["12 mg", "twelve mg"], "long_answer": "Twelve.", "split": "dev",
        "answer_type": "number", "evidence": [{"doc_id": "d", "text": "Start with 12 mg."}],
    }  # fmt: skip
    [item] = read_questions(written(tmp_path, row, name="q.jsonl.gz"))
    assert (item.id, item.question, item.answer, item.long_answer) == ("1", "How much?", "12 mg", "Twelve.")
    assert item.aliases == ("12 milligrams", "twelve mg")
    assert item.evidence == (Evidence("d", "Start with 12 mg."),)
    assert (item.answer_type, item.split, item.gold_document_ids) == ("number", "dev", ("d",))


def test_gold_spans_become_evidence_with_their_clauses(tmp_path):
    spans = [{"doc_id": "d", "start": 3, "end": 9}]
    bare, said = read_questions(
        written(tmp_path, GOOD | {"gold_spans": spans}, GOOD | {"id": "2", "gold_spans": spans, "clause": ["12 mg."]})
    )
    assert bare.evidence == (Evidence("d", "", 3, 9),)
    assert said.evidence == (Evidence("d", "12 mg.", 3, 9),)


def test_documents_of_the_evidence_are_gold_documents(tmp_path):
    spans = [{"doc_id": name, "start": 3, "end": 9} for name in ("e", "d", "e")]
    said = [{"doc_id": "f", "text": "12 mg."}]
    rows = [GOOD | {"id": "1", "gold_spans": spans}, GOOD | {"id": "2", "gold_doc_ids": None, "evidence": said}]
    both, evidence_alone = read_questions(written(tmp_path, *rows))
    assert both.gold_document_ids == ("d", "e")
    assert evidence_alone.gold_document_ids == ("f",)


@pytest.mark.parametrize(
    ("given", "kind"),
    [("yesnomaybe", "label"), ("date", "short"), ("span", "short"), ("list", "list"), (None, "short")],
)
def test_answer_types_are_mapped(tmp_path, given, kind):
    assert read_questions(written(tmp_path, GOOD | {"answer_type": given}))[0].answer_type == kind


def test_an_unanswerable_question_has_neither_answer_nor_evidence(tmp_path):
    row = {"id": "1", "question": "Who?", "answer": None, "answer_type": "unanswerable", "gold_doc_ids": ["d"]}
    row["evidence"] = [{"doc_id": "e", "text": "12 mg."}]
    [item] = read_questions(written(tmp_path, row))
    assert (item.answer, item.gold_document_ids, item.evidence) == ("", (), ())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": None}, "question is None"),
        ({"question": "  "}, "question is empty"),
        ({"answer": 12}, "answer is 12"),
        ({"answer": None}, "answer is None"),
        ({"id": [7]}, "id is [7]"),
        ({"split": "validation"}, "split is 'validation'"),
        ({"answer_type": "essay"}, "answer_type is 'essay'"),
        ({"gold_doc_ids": "d"}, "gold_doc_ids is 'd'"),
        ({"evidence": ["words"]}, "evidence is ['words']"),
        ({"evidence": [{"text": "words"}]}, "doc_id is None"),
        ({"gold_spans": [{"doc_id": "d", "start": 5, "end": 5}]}, "start 5, end 5"),
        ({"aliases": [1]}, "aliases is [1]"),
    ],
)
def test_a_bad_row_is_named_with_its_column(tmp_path, change, said):
    path = written(tmp_path, GOOD, GOOD | {"id": "2"} | change)
    with pytest.raises(InputError) as caught:
        read_questions(path)
    assert f"{path} row 2" in caught.value.what
    assert said in caught.value.what


def test_repeated_ids_and_empty_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="'1' stands there twice"):
        read_questions(written(tmp_path, GOOD, GOOD))
    with pytest.raises(InputError, match="holds no questions"):
        read_questions(written(tmp_path))
    with pytest.raises(InputError, match="cannot be read"):
        read_questions(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("corpus", ["medical", "legal"])
def test_the_sample_corpora_are_read(corpus):
    items = read_questions(ROOT / "corpora" / corpus / "questions.jsonl")
    assert len(items) >= 120
    assert all(item.evidence for item in items if item.answer_type != "unanswerable")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public data sets are not beside the project")
def test_public_question_sets_are_read():
    paths = sorted(SHARED.glob("*/questions.jsonl.gz"))
    assert len(paths) > 5
    for path in paths:
        assert len(read_questions(path)) > 50


LIST = {"id": "1", "question": "How much?", "answer": "12 mg", "aliases": ["twelve mg", "12 milligrams"],
        "gold_doc_ids": ["a.md", "b.md"], "evidence": [{"doc_id": "a.md", "text": "Start; with 12 mg."}],
        "split": "dev", "answer_type": "number", "long_answer": "Twelve."}  # fmt: skip


def as_cells(row, separator):
    """The row as two lines of a table: one list of texts between semicolons, what else is nested as JSON."""
    cells = row | {
        "aliases": ";".join(row["aliases"]), "gold_doc_ids": json.dumps(row["gold_doc_ids"]),
        "evidence": json.dumps(row["evidence"]),
    }  # fmt: skip
    stream = io.StringIO()
    writer = csv.DictWriter(stream, cells, delimiter=separator)
    writer.writeheader()
    writer.writerow(cells)
    return stream.getvalue()


def same_row_in(form, path):
    if form in (".csv", ".tsv", ".csv.gz", "semicolons.csv"):
        text = as_cells(LIST, {".tsv": "\t", "semicolons.csv": ";"}.get(form, ",")).encode()
        path.write_bytes(gzip.compress(text) if form.endswith(".gz") else text)
    elif form in (".json", ".json.gz"):
        text = json.dumps([LIST]).encode()
        path.write_bytes(gzip.compress(text) if form.endswith(".gz") else text)
    elif form == "lines.json":
        path.write_text(json.dumps(LIST) + "\n" + json.dumps(LIST | {"id": "2"}))
    elif form == ".parquet":
        datasets.Dataset.from_list([LIST]).to_parquet(path)
    elif form == "folder":
        datasets.Dataset.from_list([LIST]).save_to_disk(path)
    else:
        path.write_bytes(json.dumps(LIST).encode(form.removesuffix(".jsonl")))


FORMS = (".csv", ".tsv", ".csv.gz", "semicolons.csv", ".json", ".json.gz", "lines.json", ".parquet", "folder")
ENCODINGS = ("utf-8-sig.jsonl", "utf-16.jsonl", "utf-32.jsonl")


@pytest.mark.parametrize("form", FORMS + ENCODINGS)
def test_every_form_gives_the_same_question(tmp_path, form):
    path = tmp_path / f"q{form}"
    same_row_in(form, path)
    [expected] = read_questions(written(tmp_path, LIST, name="expected.jsonl"))
    assert read_questions(path)[0] == expected


def test_tables_and_json_are_read_in_other_encodings(tmp_path):
    question = "Wie groß ist die tägliche Dosis für Kinder und für ältere Menschen mit schwächerem Gehör?"
    (tmp_path / "q.csv").write_bytes(f"question,answer\n{question},zwölf\n".encode("cp1252"))
    (tmp_path / "q.json").write_bytes(json.dumps([{"question": question, "answer": "zwölf"}]).encode("utf-8-sig"))
    for name in ("q.csv", "q.json"):
        [item] = read_questions(tmp_path / name)
        assert (item.question, item.answer) == (question, "zwölf")


def test_half_a_character_is_replaced(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "How \\ud83d much?", "answer": "12"}')
    [item] = read_questions(tmp_path / "q.jsonl")
    assert item.question == "How \ufffd much?"


def test_the_splits_of_a_folder_are_those_of_its_questions(tmp_path):
    rows = {name: [{"question": f"How much {name}?", "answer": "12"}] for name in ("train", "validation", "test")}
    made = {name: datasets.Dataset.from_list(given) for name, given in rows.items()}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "q")
    assert [item.split for item in read_questions(tmp_path / "q")] == ["train", "dev", "test"]
    datasets.DatasetDict({"extra": made["train"]}).save_to_disk(tmp_path / "odd")
    with pytest.raises(InputError, match="odd extra row 1: split is 'extra'"):
        read_questions(tmp_path / "odd")


SQUAD = {
    "id": "s1", "title": "Alvoran", "question": "How much?",
    "context": "Alvoran is old. Adults start with 12 mg. Dr. Elm checks.",
    "answers": {"text": ["12 mg", "12"], "answer_start": [34, 34]},
}  # fmt: skip


def test_squad_rows(tmp_path):
    empty = {"text": [], "answer_start": []}
    rows = [SQUAD, SQUAD | {"id": "s2", "answers": empty}, SQUAD | {"id": "s3", "answers": {"text": ["12 mg"]}}]
    datasets.Dataset.from_list([{**row, "answers": {**empty, **row["answers"]}} for row in rows]).save_to_disk(
        tmp_path / "squad"
    )
    said, none, whole = read_questions(tmp_path / "squad")
    assert (said.answer, said.aliases) == ("12 mg", ("12",))
    assert said.evidence == (Evidence("Alvoran", "Adults start with 12 mg."),)
    assert said.gold_document_ids == ("Alvoran",)
    assert (none.answer_type, none.answer, none.evidence) == ("unanswerable", "", ())
    assert whole.evidence == (Evidence("Alvoran", SQUAD["context"]),)


def test_other_names_of_columns(tmp_path):
    [item] = read_questions(written(tmp_path, {"instruction": "How much?", "output": "12 mg"}))
    assert (item.question, item.answer) == ("How much?", "12 mg")
    own_first = {"query": "Which?", "question": "How much?", "ground_truth": "1", "answer": "12 mg"}
    [item] = read_questions(written(tmp_path, own_first))
    assert (item.question, item.answer) == ("How much?", "12 mg")
    theirs = {"frage": "Wieviel?", "question": "no", "antwort": "12 mg", "quelle": ["a.md"]}
    columns = {"question": "frage", "answer": "antwort", "gold_doc_ids": "quelle"}
    [item] = read_questions(written(tmp_path, theirs), columns=columns)
    assert (item.question, item.answer, item.gold_document_ids) == ("Wieviel?", "12 mg", ("a.md",))
    with pytest.raises(UsageError, match=r"'frage' is none of raft's. Expected one of id, question"):
        read_questions(written(tmp_path, theirs), columns={"frage": "question"})
    with pytest.raises(InputError, match="question is None"):
        read_questions(written(tmp_path, GOOD), columns={"question": "frage"})


def test_ids_are_made_where_there_are_none(tmp_path):
    bare = {"question": "How much?", "answer": "12 mg"}
    first, second, other = read_questions(written(tmp_path, bare, bare, bare | {"answer": "13 mg"}))
    [again] = read_questions(written(tmp_path, bare, name="again.jsonl"))
    assert first.id == again.id
    assert second.id == f"{first.id}-2"
    assert other.id not in (first.id, second.id)
    assert read_questions(written(tmp_path, GOOD | {"id": 7}))[0].id == "7"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("q.csv", "question,answer\nHow,12,13\n", "row 1 has more fields than the 2 columns"),
        ("q.csv", "question,answer\nHow,12\nWhy\n", "row 2 lacks its answer"),
        ("q.csv", "question,answer\nHow,\n", "row 1: answer is None"),
        ("q.csv", 'question,answer\n"How,12', "is damaged near line"),
        ("q.csv", "question,answer,evidence\nHow,12,here\n", "row 1: evidence is 'here', not JSON"),
        ("q.json", '{"data": []}', "is one dict; expected a list of objects"),
        ("q.json", "[1]", "row 1 is int, not a JSON object"),
        ("q.json", "[{]", "is not JSON"),
        ("q.jsonl", '{"question": "a", "answer": "b"}\nx\n', "line 2 is not JSON"),
        ("q.parquet", "words", "cannot be read"),
        ("q.csv.gz", "words", "cannot be read"),
        ("q.csv", "\x00\x01\x02\x03", "is binary"),
        ("q.jsonl", "\x00\x01\x02\x03", "is binary"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_questions(tmp_path / name)
    assert str(tmp_path / name) in caught.value.what
    assert said in caught.value.what


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "q.jsonl").write_bytes(b'{"question": "a", "answer": "b"}\n{"question": "\xff"}\n')
    with pytest.raises(InputError, match=r"line 2 is not JSON .*utf-8"):
        read_questions(tmp_path / "q.jsonl")


def test_a_folder_of_something_else_and_a_damaged_one(tmp_path):
    (tmp_path / "q").mkdir()
    with pytest.raises(InputError, match="datasets did not save"):
        read_questions(tmp_path / "q")
    (tmp_path / "q" / "state.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_questions(tmp_path / "q")
