from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from raft.dataset.importers import read_questions
from raft.errors import InputError
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
        ({"id": 7}, "id is 7"),
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
