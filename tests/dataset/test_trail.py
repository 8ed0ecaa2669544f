from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.trail import by_question, check_trail, locked, standing, status_of, trail_path, words_after
from raft.errors import ArtifactError, UsageError
from tests.review_dataset import questions

DECISIONS = st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(["accept", "edit", "reject", "undo"])))


def rows(*pairs):
    return [{"question_id": name, "decision": decision, "n": n} for n, (name, decision) in enumerate(pairs)]


def test_an_undo_takes_back_the_last_decision_of_its_question_alone():
    kept = standing(rows(("x", "accept"), ("y", "reject"), ("x", "edit"), ("x", "undo"), ("y", "undo"), ("z", "undo")))
    assert [(row["question_id"], row["decision"]) for row in kept] == [("x", "accept")]


@given(DECISIONS)
def test_the_fold_equals_one_stack_a_question(pairs):
    stacks = {name: [] for name in "xyz"}
    for row in rows(*pairs):
        stack = stacks[row["question_id"]]
        if row["decision"] != "undo":
            stack.append(row)
        elif stack:
            stack.pop()
    assert by_question(standing(rows(*pairs))) == {name: stack for name, stack in stacks.items() if stack}
    assert [row["n"] for row in standing(rows(*pairs))] == sorted(row["n"] for s in stacks.values() for row in s)


@pytest.mark.parametrize(
    ("decisions", "applied", "status"),
    [
        ((), "undecided", "undecided"),
        ((), "edited", "edited"),
        (("accept",), "undecided", "accepted"),
        (("edit", "accept"), "undecided", "edited"),
        (("accept",), "edited", "edited"),
        (("edit", "reject"), "undecided", "rejected"),
        (("reject", "accept"), "undecided", "accepted"),
    ],
)
def test_status(decisions, applied, status):
    assert status_of([{"decision": decision} for decision in decisions], applied) == status


def test_words_are_those_of_the_edits_in_their_order():
    item = questions()[0]
    edits = [
        {"decision": "edit", "after": {"status": "edited", "answer": "40", "reasoning": "r"}},
        {"decision": "accept", "after": {"status": "edited"}},
        {"decision": "edit", "after": {"status": "edited", "answer": "41", "quotes": []}},
    ]
    words = words_after(item, edits)
    assert (words.question, words.answer, words.reasoning, words.quotes) == (item.question, "41", "r", ())


def test_a_trail_of_another_dataset_or_with_foreign_rows_is_refused(tmp_path):
    good = {"dataset": "f1", "decision": "accept", "question_id": "x"}
    check_trail([good], "f1", ["x"], tmp_path)
    for bad, said in (
        ({"dataset": "f2"}, "line 2 belongs to another dataset"),
        ({"decision": "drop"}, "line 2 is no decision"),
        ({"question_id": "y"}, "line 2 is no decision"),
    ):
        with pytest.raises(ArtifactError, match=said):
            check_trail([good, good | bad], "f1", ["x"], tmp_path)


def test_the_trail_stands_beside_the_dataset_whatever_its_name(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    wanted = tmp_path / "data.review.jsonl"
    assert trail_path(tmp_path / "data") == trail_path(tmp_path / "link") == wanted
    monkeypatch.chdir(tmp_path / "data")
    from pathlib import Path

    assert trail_path(Path()) == wanted


def test_one_process_has_the_trail_and_an_empty_one_leaves_no_file(tmp_path):
    path = tmp_path / "data.review.jsonl"
    with locked(path):
        assert path.exists()
        with pytest.raises(UsageError, match="another raft review"), locked(path):
            pass
        assert path.exists()
    assert not path.exists()
    with locked(path):
        path.write_text(json.dumps({"decision": "accept"}) + "\n")
    assert path.exists()
    with locked(path):
        pass
