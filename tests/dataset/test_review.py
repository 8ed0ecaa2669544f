from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.corpus.spans import normalize
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.dataset.review import Bounds, edited, open_review, sample_of, warnings_of
from raft.dataset.trail import trail_path, words_of
from raft.errors import ArtifactError, InputError, UsageError
from raft.rows import read_rows
from tests.review_dataset import chunks, questions, write_review_dataset

ROOT = Path(__file__).resolve().parents[2]
ORACLES = {chunk.id: chunk.text for chunk in chunks()}
ITEM, UNANSWERABLE = questions()[0], questions()[-1]


@pytest.fixture
def dataset(tmp_path):
    return write_review_dataset(tmp_path / "wards")


def words(item=ITEM, **changes):
    return replace(words_of(item), **changes)


def test_a_quote_takes_the_spelling_of_its_chunk():
    quote = Passage("wards/0.md#0", "keeps its SPARE  keys in\ncupboard 40")
    item = edited(ITEM, words(quotes=(quote, quote)), ORACLES)
    assert item.quotes == (Passage("wards/0.md#0", "keeps its spare keys in cupboard 40"),)
    assert item.answer_type == "number"
    assert item.aliases == ("40",)


def test_what_follows_from_the_answer_changes_with_it():
    item = edited(ITEM, words(answer=" the  cupboard\nthere ", reasoning=" "), ORACLES)
    assert (item.answer, item.answer_type, item.aliases) == ("the cupboard there", "short", ())
    assert (item.reasoning, item.reasoning_source) == ("", "none")
    told_otherwise = replace(ITEM, answer_type="label")
    assert edited(told_otherwise, words(answer="new"), ORACLES).answer_type == "label"


@pytest.mark.parametrize(
    ("item", "changes", "said"),
    [
        (ITEM, {"question": " \n"}, "question is empty"),
        (ITEM, {"answer": ""}, "answer is empty"),
        (ITEM, {"quotes": ()}, "no quote"),
        (ITEM, {"quotes": (Passage("wards/0.md#0", "in cupboard 4"),)}, "does not stand in"),
        (ITEM, {"quotes": (Passage("wards/0.md#0", " "),)}, "does not stand in"),
        (ITEM, {"quotes": (Passage("nowhere", "cupboard"),)}, "no oracle chunk"),
        (UNANSWERABLE, {"answer": "a painter"}, "neither answer nor quotes"),
    ],
)
def test_an_edit_that_breaks_the_rules_is_refused(item, changes, said):
    with pytest.raises(InputError, match=said):
        edited(item, words(item, **changes), {"wards/0.md#0": ORACLES["wards/0.md#0"]})


def test_every_fault_of_an_edit_is_told_at_once():
    with pytest.raises(InputError) as raised:
        edited(ITEM, words(question="", answer="", quotes=(Passage("wards/0.md#0", "no such words"),)), ORACLES)
    assert all(said in str(raised.value) for said in ("question is empty", "answer is empty", "does not stand"))


@given(st.data())
def test_any_slice_of_whole_words_is_taken_and_stands_in_the_chunk(data):
    text = ORACLES["wards/0.md#0"]
    parts = text.split()
    first = data.draw(st.integers(0, len(parts) - 1))
    quoted = "  ".join(parts[first : data.draw(st.integers(first + 1, len(parts)))]).upper()
    item = edited(ITEM, words(quotes=(Passage("wards/0.md#0", quoted),)), ORACLES)
    assert item.quotes[0].text in text
    assert normalize(item.quotes[0].text) == normalize(quoted)


def test_warnings_are_those_of_the_quality_gate():
    assert warnings_of(ITEM, ORACLES, Bounds()) == []
    off = replace(ITEM, question="Which cupboard?", answer="a yellow bicycle", aliases=())
    assert {"question_too_short", "answer_not_in_quote"} <= set(warnings_of(off, ORACLES, Bounds()))
    assert "question_too_short" not in warnings_of(off, ORACLES, Bounds(min_question_words=2))


def test_decisions_stand_after_a_restart_and_under_two_names(dataset):
    with open_review(dataset, "ada") as review:
        assert review.decide("q/0", "accept") == []
        review.decide("q/1", "reject", " wrong  answer ")
        review.decide("q/2", "edit", words=words(questions()[2], answer="in cupboard 42"))
    with open_review(dataset, "bob") as review:
        assert [review.status(item.id) for item in questions()[:4]] == ["accepted", "rejected", "edited", "undecided"]
        assert review.now("q/2").answer == "in cupboard 42"
        review.decide("q/2", "undo")
        assert (review.status("q/2"), review.now("q/2")) == ("undecided", questions()[2])
    rows = list(read_rows(trail_path(dataset)))
    assert [row["who"] for row in rows] == ["ada", "ada", "ada", "bob"]
    assert rows[1]["reason"] == "wrong answer"
    assert rows[2]["before"] == {"status": "undecided", "answer": "cupboard 42"}
    assert rows[2]["after"] == {"status": "edited", "answer": "in cupboard 42"}
    assert rows[3]["before"] == rows[2]["after"]
    assert rows[3]["after"] == rows[2]["before"]
    assert len({row["dataset"] for row in rows}) == 1


def test_warnings_hold_an_edit_back_unless_it_is_overridden(dataset):
    short = words(question="Which cupboard, Ash?")
    with open_review(dataset, "ada") as review:
        assert review.decide("q/0", "edit", words=short) == ["question_too_short"]
        assert review.status("q/0") == "undecided"
        assert review.decide("q/0", "edit", words=short, override=True) == []
        assert review.status("q/0") == "edited"
        twin = words(questions()[1], question=questions()[2].question + "!")
        assert "duplicate_question" in review.decide("q/1", "edit", words=twin)
    [row] = read_rows(trail_path(dataset))
    assert row["overridden"] == ["question_too_short"]


def test_what_cannot_be_decided_is_refused_and_leaves_no_row(dataset):
    with open_review(dataset, "ada") as review:
        for decision, settings, said in (
            ("reject", {"reason": " "}, "needs its reason"),
            ("undo", {}, "no decision"),
            ("edit", {"words": words()}, "nothing was changed"),
            ("edit", {"words": words(answer="")}, "answer is empty"),
        ):
            with pytest.raises(InputError, match=said):
                review.decide("q/0", decision, **settings)
    assert not trail_path(dataset).exists()


def test_a_second_reviewer_at_once_is_refused(dataset):
    with (
        open_review(dataset, "ada"),
        pytest.raises(UsageError, match="another raft review"),
        open_review(dataset, "bob"),
    ):
        pass


def test_a_trail_of_another_dataset_is_refused(dataset, tmp_path):
    with open_review(dataset, "ada") as review:
        review.decide("q/0", "accept")
    other = write_review_dataset(tmp_path / "other", [replace(item, aliases=()) for item in questions()])
    trail_path(dataset).rename(trail_path(other))
    with pytest.raises(ArtifactError, match="belongs to another dataset"), open_review(other, "ada"):
        pass


def test_an_edit_in_the_trail_is_checked_again(dataset):
    with open_review(dataset, "ada") as review:
        review.decide("q/0", "edit", words=words(answer="40"))
    path = trail_path(dataset)
    path.write_text(path.read_text().replace('"answer": "40"', '"answer": ""'))
    with pytest.raises(ArtifactError, match="cannot be taken"), open_review(dataset, "ada"):
        pass


def test_a_full_disk_is_told_and_nothing_counts_as_decided(dataset, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_review(dataset, "ada") as review:
        review.decide("q/0", "accept")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left"):
            review.decide("q/1", "accept")
        assert review.status("q/1") == "undecided"
        monkeypatch.undo()
        with pytest.raises(InputError, match="start raft review again"):
            review.decide("q/2", "accept")
    assert [row["question_id"] for row in read_rows(trail_path(dataset))] == ["q/0"]


def test_kill_9_loses_no_decision_that_was_told_and_a_cut_line_is_dropped(dataset):
    script = (
        "import sys, pathlib\n"
        "from raft.dataset.review import open_review\n"
        "with open_review(pathlib.Path(sys.argv[1]), 'ada') as review:\n"
        "    for name in list(review.items)[:3]:\n"
        "        review.decide(name, 'accept'); print(name, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(dataset)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    told = [process.stdout.readline().strip() for _ in range(3)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    with trail_path(dataset).open("a") as stream:
        stream.write('{"when": "2026-')
    with open_review(dataset, "ada") as review:
        assert [name for name in review.items if review.status(name) == "accepted"] == told
        review.decide("q/3", "accept")
    assert [row["question_id"] for row in read_rows(trail_path(dataset))] == [*told, "q/3"]


def test_the_example_shown_has_the_oracle_where_one_has(dataset):
    with open_review(dataset, "ada") as review:
        for item in questions():
            example = review.example(item.id)
            assert example.question_id == item.id
            assert example.oracle_present == (item.answer_type != "unanswerable")
        assert review.chunk("wards/3.md#0").text == ORACLES["wards/3.md#0"]
        with pytest.raises(ArtifactError, match="no chunk"):
            review.chunk("wards/99.md#0")


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 3))
def test_a_sample_keeps_the_order_and_grows(small, large, seed):
    ids = [f"q{n}" for n in range(50)]
    one, other = sample_of(ids, min(small, large), seed), sample_of(ids, max(small, large), seed)
    assert len(one) == min(50, small, large)
    assert set(one) <= set(other)
    assert other == sorted(other, key=ids.index)
    assert sample_of(ids, 10, seed) != ids[:10]


def test_ten_thousand_questions_decide_and_read_back(tmp_path):
    made = [
        GroundedQuestion(f"n{n}", f"What is the number of room {n}?", str(n), "number",
                         (Passage("wards/0.md#0", "spare keys"),), ("wards/0.md",), "qa", split="train")
        for n in range(10_000)
    ]  # fmt: skip
    dataset = write_review_dataset(tmp_path / "many", made)
    with open_review(dataset, "ada") as review:
        for name in list(review.items)[:50]:
            review.decide(name, "accept")
        assert review.example("n7") is None
    with open_review(dataset, "ada") as review:
        assert sum(review.status(name) == "accepted" for name in review.items) == 50
