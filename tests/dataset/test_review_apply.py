from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.artifacts import open_artifact
from raft.dataset.grounding import Passage, question_from_row
from raft.dataset.review import open_review
from raft.dataset.review_apply import apply_review, rendered
from raft.dataset.trail import trail_path, words_of
from raft.errors import ArtifactError, InputError, UsageError
from raft.prompts import REFUSAL, parse_answer
from raft.records import example_from_row
from raft.rows import read_rows
from tests.review_dataset import questions, write_review_dataset


def rows_of(folder, name):
    path = folder / f"{name}.jsonl"
    return list(read_rows(path)) if path.exists() else []


@pytest.fixture
def dataset(tmp_path):
    return write_review_dataset(tmp_path / "wards")


def decide(dataset, *decisions, who="ada"):
    with open_review(dataset, who) as review:
        for question_id, decision, *rest in decisions:
            words = replace(words_of(review.now(question_id)), **rest[0]) if decision == "edit" else None
            review.decide(question_id, decision, rest[0] if decision == "reject" else "", words, override=True)


def check_consistent(folder):
    """What must hold of any dataset: examples say what their question says, over contexts that are whole."""
    items = {item.id: item for item in map(question_from_row, rows_of(folder, "questions"))}
    chunks = {row["id"]: row["text"] for row in rows_of(folder, "chunks")}
    for split in ("train", "dev", "test"):
        rows = [example_from_row(row) for row in rows_of(folder, split)]
        groups = list(dict.fromkeys(row.group for row in rows))
        assert [row.group for row in rows] == sorted((row.group for row in rows), key=groups.index)
        for row in rows:
            item, said = items[row.question_id], parse_answer(row.target)
            assert (row.question, row.oracle_ids, item.split) == (item.question, item.oracle_ids, split)
            assert row.answer == said.final == (item.answer if row.oracle_present else REFUSAL)
            assert set(row.context) <= chunks.keys()
            for quote in said.quotes:
                assert quote.text in " ".join(chunks[row.context[quote.document - 1]].split())
    return items


def test_decisions_are_applied_in_place(dataset):
    before = {name: rows_of(dataset, name) for name in ("train", "dev")}
    was = open_artifact(dataset, "dataset")
    new = {"question": "Which cupboard has the keys of Cedar?", "answer": "number 42",
           "quotes": (Passage("wards/2.md#0", "in CUPBOARD 42"),)}  # fmt: skip
    decide(dataset, ("q/0", "accept"), ("q/1", "reject", "personal data: a name"), ("q/2", "edit", new))
    trail = trail_path(dataset).read_bytes()
    done = apply_review(dataset)
    assert (done.accepted, done.edited, done.rejected, done.undecided, done.questions) == (1, 1, 1, 3, 5)

    items = check_consistent(dataset)
    assert "q/1" not in items
    assert items["q/2"].quotes == (Passage("wards/2.md#0", "in cupboard 42"),)
    kept = [row for row in before["train"] if row["question_id"] != "q/1"]
    after = rows_of(dataset, "train")
    assert [row["id"] for row in after] == [row["id"] for row in kept]
    assert [row["context"] for row in after] == [row["context"] for row in kept]
    assert [row for row in after if row["question_id"] != "q/2"] == [r for r in kept if r["question_id"] != "q/2"]
    assert rows_of(dataset, "dev") == before["dev"]
    assert {row["answer"] for row in after if row["question_id"] == "q/2"} == {"number 42"}

    first, refused = rows_of(dataset, "rejected")
    assert first["id"] == "lost"
    assert (refused["id"], refused["reasons"], refused["said"]) == ("q/1", ["reviewer"], "personal data: a name")
    assert (refused["question_type"], refused["document_ids"]) == ("numeric", ["wards/1.md"])
    assert {row["id"] for row in rows_of(dataset, "chunks")} == {
        name for row in [*after, *before["dev"]] for name in (*row["context"], *row["oracle_ids"])
    }
    manifest = open_artifact(dataset, "dataset")
    assert (manifest.recipe, manifest.inputs["index"]) == (was.recipe, was.inputs["index"])
    assert set(manifest.inputs) == {"index", "review"}
    assert (dataset / "notes.txt").read_text() == "kept as it is\n"
    assert "# Dataset" in (dataset / "README.md").read_text()
    assert (dataset / "review.jsonl").read_bytes() == trail
    assert not trail_path(dataset).exists()
    facts = manifest.facts
    assert facts["review"] == {"accepted": 1, "edited": 1, "rejected": 1, "undecided": 3, "reviewers": ["ada"]}
    assert facts["questions"] == {"train": 4, "dev": 1}
    assert facts["examples"] == {"train": len(after), "dev": 1}
    assert facts["groups"] == len({row["group"] for row in [*after, *before["dev"]]})
    assert (facts["refused"], facts["refused_by_rule"]) == (2, {"x": 1, "reviewer": 1})
    assert facts["labels"] == ["ward"]


def test_only_what_was_accepted_is_left_in_a_new_dataset(dataset, tmp_path):
    before = {path.name: path.read_bytes() for path in dataset.iterdir()}
    decide(dataset, ("q/0", "accept"), ("q/2", "reject", "trivial"), ("q/3", "edit", {"reasoning": "It says so."}))
    done = apply_review(dataset, tmp_path / "new", accepted_only=True)
    assert set(check_consistent(done.out)) == {"q/0", "q/3"}
    assert rows_of(done.out, "dev") == []
    assert "dev.jsonl" not in open_artifact(done.out, "dataset").files
    reasons = {row["id"]: row["reasons"] for row in rows_of(done.out, "rejected")}
    assert reasons == {"lost": ["x"], "q/2": ["reviewer"]} | {n: ["not_reviewed"] for n in ("q/1", "q/4", "u/0")}
    rewritten = ["It says so." in row["target"] for row in rows_of(done.out, "train") if row["question_id"] == "q/3"]
    assert rewritten == [True, False]  # the second one goes without its oracle, and refuses
    assert {path.name: path.read_bytes() for path in dataset.iterdir()} == before
    assert trail_path(dataset).exists()
    with pytest.raises(ArtifactError, match="exists already"):
        apply_review(dataset, tmp_path / "new")


@pytest.mark.parametrize("form", ["quotes", "plain", "noise"])
def test_an_example_rendered_with_its_own_words_is_itself(tmp_path, form):
    dataset = write_review_dataset(tmp_path / "wards", form=form)
    with open_review(dataset, "ada") as review:
        for example in map(example_from_row, rows_of(dataset, "train") + rows_of(dataset, "dev")):
            assert rendered(review, example, review.now(example.question_id)) == example
    decide(dataset, ("q/0", "edit", {"answer": "number 40"}))
    apply_review(dataset)
    check_consistent(dataset)


def test_a_question_over_two_chunks_may_lose_one_of_them(tmp_path):
    two = (Passage("wards/0.md#0", "in cupboard 40"), Passage("wards/5.md#0", "in cupboard 45"))
    items = [replace(questions()[0], quotes=two), *questions()[1:]]
    dataset = write_review_dataset(tmp_path / "wards", items)
    decide(dataset, ("q/0", "edit", {"quotes": two[:1]}))
    apply_review(dataset)
    assert check_consistent(dataset)["q/0"].oracle_ids == ("wards/0.md#0",)


def test_a_second_review_goes_on_from_the_first(dataset):
    decide(dataset, ("q/0", "accept"), ("q/1", "reject", "wrong"), ("q/2", "edit", {"reasoning": "So."}))
    apply_review(dataset)
    with open_review(dataset, "bob") as review:
        assert [review.status(name) for name in ("q/0", "q/2", "q/3")] == ["accepted", "edited", "undecided"]
        with pytest.raises(InputError, match="Applied ones cannot be undone"):
            review.decide("q/0", "undo")
        review.decide("q/2", "accept")
        review.decide("q/3", "reject", "trivial")
    done = apply_review(dataset)
    assert (done.accepted, done.edited, done.rejected, done.reviewers) == (1, 1, 2, ("ada", "bob"))
    assert [row["who"] for row in rows_of(dataset, "review")] == ["ada"] * 3 + ["bob"] * 2
    assert set(check_consistent(dataset)) == {"q/0", "q/2", "q/4", "u/0"}
    assert {row["id"] for row in rows_of(dataset, "rejected")} == {"lost", "q/1", "q/3"}
    assert apply_review(dataset, accepted_only=True).questions == 2


def test_a_stop_before_the_trail_was_removed_is_told(dataset):
    decide(dataset, ("q/0", "accept"))
    trail = trail_path(dataset).read_bytes()
    apply_review(dataset)
    trail_path(dataset).write_bytes(trail)
    with pytest.raises(ArtifactError, match=r"are applied to .* already\. Delete"):
        apply_review(dataset)


def test_nothing_to_apply_and_nothing_left_are_told_and_change_nothing(dataset):
    before = (dataset / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="nothing is decided"):
        apply_review(dataset)
    decide(dataset, ("q/0", "accept"), ("q/0", "undo"))
    with pytest.raises(UsageError, match="nothing is decided"):
        apply_review(dataset)
    decide(dataset, *((item.id, "reject", "wrong") for item in questions()))
    with pytest.raises(InputError, match="no question is left"):
        apply_review(dataset)
    assert (dataset / "manifest.json").read_bytes() == before


def test_applying_waits_for_the_reviewer(dataset):
    with open_review(dataset, "ada") as review:
        review.decide("q/0", "accept")
        with pytest.raises(UsageError, match="another raft review"):
            apply_review(dataset)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["accept", "reject", "undo", "edit"])), max_size=12))
def test_whatever_is_decided_the_dataset_stays_consistent(tmp_path_factory, decisions):
    dataset = write_review_dataset(tmp_path_factory.mktemp("any") / "wards")
    expected = {item.id: "undecided" for item in questions()}
    with open_review(dataset, "ada") as review:
        for n, (which, decision) in enumerate(decisions):
            item = questions()[which]
            if decision == "undo" and not review.decisions(item.id):
                continue
            words = replace(words_of(review.now(item.id)), question=f"In which cupboard, number {n}, is it?")
            review.decide(item.id, decision, "wrong", words, override=True)
            expected[item.id] = review.status(item.id)
    left = {name for name, status in expected.items() if status != "rejected"}
    if review.trail_rows and left:
        apply_review(dataset)
        assert set(check_consistent(dataset)) == left
        open_artifact(dataset, "dataset")
        assert json.loads((dataset / "manifest.json").read_text())["facts"]["review"]["rejected"] == 6 - len(left)
