from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from raft.artifacts import writing
from raft.dataset.figures import dataset_figures, figures_text, histogram
from raft.rows import write_rows
from tests.lodges import lodge_chunks, lodge_examples, lodge_questions, write_lodges

FACTS = {"teacher": "gpt-x", "prompt_tokens": 12345, "completion_tokens": 0, "cost": 0.25}


def refused(name, reasons, **more):
    return {"id": name, "question": "Why?", "answer": "", "reasons": reasons} | more


def figures(tmp_path):
    questions = [
        replace(item, question_type="numeric", flags=("pii_email",) if item.id == "q-7" else ())
        for item in lodge_questions()
    ]
    document = questions[0].document_ids[0]
    rejected = [
        refused("r-1", ["quote_missing", "answer_too_long"], question_type="yesno", document_ids=[document]),
        refused("r-1", ["reply_cut"], question_type="yesno", document_ids=[document]),
        refused("q-3", ["reasoning_empty"]),
        refused("old", ["quote_missing"]),
    ]
    folder = write_lodges(tmp_path / "lodges", questions=questions, rejected=rejected)
    return dataset_figures(folder, FACTS), document


def test_questions_are_counted_by_rule_type_document_and_split(tmp_path):
    found, document = figures(tmp_path)
    assert found.rules == {"quote_missing": 2, "answer_too_long": 1, "reply_cut": 1, "reasoning_empty": 1}
    assert found.types == {
        "numeric": {"accepted": 60, "refused": 0}, "": {"accepted": 0, "refused": 1},
        "yesno": {"accepted": 0, "refused": 1},
    }  # fmt: skip
    assert found.documents[document] == {"accepted": 1, "refused": 1}
    assert sum(count["refused"] for count in found.documents.values()) == 2
    assert found.flags == {"pii_email": 1}
    assert found.sources == {"teacher": 60}
    assert found.splits["train"] == {"questions": 40, "examples": 120, "groups": 60}
    assert found.teacher == {"teacher": "gpt-x", "prompt_tokens": 12345, "cost": 0.25}


def test_lengths_are_those_of_the_rows(tmp_path):
    found, _ = figures(tmp_path)
    chunks, examples = lodge_chunks(), lodge_examples()
    contexts = {row.group: row.context for made in examples.values() for row in made}
    expected = {
        "question words": Counter(len(item.question.split()) for item in lodge_questions()),
        "answer words": Counter(len(item.answer.split()) for item in lodge_questions()),
        "target words": Counter(len(row.target.split()) for made in examples.values() for row in made),
        "context chunks": Counter(len(context) for context in contexts.values()),
        "context words": Counter(
            sum(len(chunks[name].text.split()) for name in context) for context in contexts.values()
        ),
    }
    assert found.lengths == {name: histogram(counts) for name, counts in expected.items()}
    assert found.lengths["context chunks"] == [(4, 4, len(contexts))]


def test_the_text_shows_ten_documents_and_the_rest(tmp_path):
    found, document = figures(tmp_path)
    lines = figures_text(found)
    at = lines.index("questions by document")
    assert lines[at + 1] == f"  {document}: 1 accepted, 1 refused (50%)"
    assert lines[at + 11] == "  51 more: 51 accepted, 0 refused (100%)"
    assert "  not said: 0 accepted, 1 refused (0%)" in lines
    assert "  prompt_tokens: 12,345" in lines
    assert "  train: 40 questions, 120 examples, 60 groups" in lines
    assert any(line.endswith("# " + str(len(lodge_questions()))) for line in lines)


def test_a_dataset_of_an_earlier_version_has_figures_too(tmp_path):
    row = {"id": "e", "context": ["a"], "oracle_present": True, "question": "Which?", "target": "This."}
    with writing(tmp_path / "old", "dataset", {}, {}) as draft:
        write_rows(draft.folder / "train.jsonl", [row])
    found = dataset_figures(tmp_path / "old", {})
    assert found.splits == {"train": {"examples": 1, "groups": 1}}
    assert found.lengths["context chunks"] == [(1, 1, 1)]
    assert figures_text(found)[:3] == ["", "splits", "  train: 1 examples, 1 groups"]


@given(st.dictionaries(st.integers(0, 3000), st.integers(1, 50), min_size=1))
def test_every_length_is_in_its_bin(counts):
    bins = histogram(counts)
    assert 1 <= len(bins) <= 8
    for (least, most, _), (following, _, _) in itertools.pairwise(bins):
        assert least <= most == following - 1
    assert [count for _, _, count in bins] == [
        sum(count for length, count in counts.items() if least <= length <= most) for least, most, _ in bins
    ]
    assert sum(count for _, _, count in bins) == sum(counts.values())


def test_no_lengths_no_bins():
    assert histogram({}) == []
    assert histogram({5: 2}) == [(5, 5, 2)]
    assert histogram({1: 90, 2: 9, 4000: 1}) == [(1, 1, 90), (2, 4000, 10)]
