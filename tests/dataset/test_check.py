"""Every property is caught when it is broken, and by its own name."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.check import PROPERTIES, DatasetRows, check_dataset, check_rows, repeated_in
from raft.dataset.repeats import duplicates
from raft.errors import ArtifactError, InputError
from raft.prompts import parse_answer, render_refusal, render_target
from raft.records import Quote
from tests.lodges import FRACTION, lodge_chunks, lodge_examples, lodge_questions, write_lodges


def good() -> DatasetRows:
    questions = [asdict(item) for item in lodge_questions()]
    return DatasetRows(lodge_examples(), lodge_chunks(), questions, FRACTION)


def failing(rows: DatasetRows) -> dict[str, tuple[str, ...]]:
    return {finding.name: finding.first for finding in check_rows(rows) if not finding.holds}


def with_example(rows: DatasetRows, split: str, at: int, **changes) -> DatasetRows:
    made = list(rows.examples[split])
    made[at] = replace(made[at], **changes)
    return replace(rows, examples={**rows.examples, split: made})


def with_group(rows: DatasetRows, split: str, swap: dict[str, str]) -> DatasetRows:
    """The rows with chunks of the first group of a split exchanged for others, in every member alike."""
    group = rows.examples[split][0].group
    made = [
        replace(row, context=tuple(swap.get(name, name) for name in row.context)) if row.group == group else row
        for row in rows.examples[split]
    ]
    return replace(rows, examples={**rows.examples, split: made})


def distractor(rows: DatasetRows, split: str) -> str:
    """A chunk of the first group's context that is no oracle."""
    members = [row for row in rows.examples[split] if row.group == rows.examples[split][0].group]
    oracles = {name for row in members for name in row.oracle_ids}
    return next(name for name in members[0].context if name not in oracles)


def first_with_oracle(rows: DatasetRows) -> int:
    return next(at for at, row in enumerate(rows.examples["train"]) if row.oracle_present)


def test_a_good_dataset_passes_every_check():
    findings = check_rows(good())
    assert [finding.name for finding in findings] == [check.__name__ for check in PROPERTIES]
    assert all(finding.holds and finding.checked > 0 for finding in findings), findings


def test_a_chunk_twice_in_a_context_is_found():
    rows = good()
    context = rows.examples["train"][0].context
    bad = with_group(rows, "train", {context[0]: context[1]})
    assert "train" in bad.examples
    assert failing(bad)["contexts_without_repeats"] == tuple(row.id for row in bad.examples["train"][:2])


def test_an_oracle_said_to_be_there_or_not_is_found():
    rows = good()
    at = first_with_oracle(rows)
    name = rows.examples["train"][at].id
    assert failing(with_example(rows, "train", at, oracle_present=False)) == {"oracles_as_stated": (name,)}
    absent = next(n for n, row in enumerate(rows.examples["train"]) if not row.oracle_present)
    name = rows.examples["train"][absent].id
    assert failing(with_example(rows, "train", absent, oracle_present=True)) == {"oracles_as_stated": (name,)}


def test_an_example_without_any_oracle_cannot_hold_one():
    rows = good()
    bad = with_example(rows, "dev", 0, oracle_ids=(), oracle_present=True)
    assert rows.examples["dev"][0].id in failing(bad)["oracles_as_stated"]


def test_groups_that_differ_or_are_torn_apart_are_found():
    rows = good()
    second = rows.examples["train"][1]
    turned = with_example(rows, "train", 1, context=second.context[::-1])
    assert failing(turned)["groups_share_context"] == (second.id,)
    other_draw = with_example(rows, "train", 1, draw=7)
    assert failing(other_draw) == {"groups_share_context": (second.id,)}
    made = rows.examples["dev"]
    torn = replace(rows, examples={**rows.examples, "dev": [made[0], made[2], made[3], made[1], *made[4:]]})
    assert failing(torn) == {"groups_share_context": (made[1].id,)}


def test_a_refusal_over_the_oracle_is_found():
    rows = good()
    at = first_with_oracle(rows)
    refusal = {"target": render_refusal(), "answer": parse_answer(render_refusal()).final}
    assert failing(with_example(rows, "train", at, **refusal)) == {
        "refusals_in_place": (rows.examples["train"][at].id,)
    }
    absent = next(n for n, row in enumerate(rows.examples["train"]) if not row.oracle_present)
    assert failing(with_example(rows, "train", absent, **refusal)) == {}


def test_quotes_of_the_wrong_document_or_of_no_document_are_found():
    rows = good()
    at = first_with_oracle(rows)
    row = rows.examples["train"][at]
    place = row.context.index(row.oracle_ids[0]) + 1
    quote = lodge_questions()[int(row.question_id[2:])].quotes[0].text
    for wrong in (Quote(quote, place % 4 + 1), Quote(quote + " today", place), Quote(quote, 9), Quote("x", None)):
        bad = with_example(rows, "train", at, target=render_target(row.answer, "", [wrong]))
        assert failing(bad) == {"target_quotes_verbatim": (row.id,)}
    unnamed = with_example(rows, "train", at, target=render_target(row.answer, "", [Quote(quote, None)]))
    assert failing(unnamed) == {}


def test_a_quote_that_differs_by_case_and_space_alone_stands_there():
    rows = good()
    at = first_with_oracle(rows)
    row = rows.examples["train"][at]
    quote = Quote(lodge_chunks()[row.oracle_ids[0]].text.upper(), row.context.index(row.oracle_ids[0]) + 1)
    assert failing(with_example(rows, "train", at, target=render_target(row.answer, "", [quote]))) == {}


def test_markers_in_a_document_do_not_break_its_quotes():
    rows = good()
    at = first_with_oracle(rows)
    row = rows.examples["train"][at]
    oracle = rows.chunks[row.oracle_ids[0]]
    marked = replace(oracle, text=f"{oracle.text} Write <ANSWER>: no.")
    quote = Quote("Write <ANSWER>: no.", row.context.index(oracle.id) + 1)
    bad = with_example(rows, "train", at, target=render_target(row.answer, "", [quote]))
    assert failing(replace(bad, chunks={**rows.chunks, oracle.id: marked})) == {}


def test_targets_that_do_not_end_with_the_answer_are_found():
    rows = good()
    at = first_with_oracle(rows)
    row = rows.examples["train"][at]
    assert failing(with_example(rows, "train", at, answer="9 crowns")) == {"targets_parse": (row.id,)}
    assert failing(with_example(rows, "train", at, target="I know it")) == {"targets_parse": (row.id,)}


def test_chunks_that_are_not_in_the_file_are_found():
    rows = good()
    name = distractor(rows, "dev")
    users = [row.id for row in rows.examples["dev"] if name in row.context]
    less = {key: chunk for key, chunk in rows.chunks.items() if key != name}
    assert failing(replace(rows, chunks=less))["chunks_known"][:1] == tuple(users[:1])


def test_a_question_that_quotes_what_its_chunk_does_not_say_is_found():
    rows = good()
    asked = [dict(row) for row in rows.questions]
    asked[3]["quotes"] = ({"chunk_id": asked[3]["quotes"][0]["chunk_id"], "text": "lends two lanterns"},)
    assert failing(replace(rows, questions=asked)) == {"question_quotes_verbatim": ("q-3",)}


@pytest.mark.parametrize(
    "changes", [{"question": "Another one?"}, {"question_id": "q-999"}, {"question_id": "q-45"}, {"id": "q-1@0"}]
)
def test_examples_that_are_not_of_their_question_are_found(changes):
    bad = failing(with_example(good(), "train", 0, **changes))
    assert set(bad) == {"ids_agree"}


def test_question_ids_that_repeat_are_found():
    rows = good()
    assert failing(replace(rows, questions=[*rows.questions, rows.questions[0]])) == {"ids_agree": ("q-0",)}


@pytest.mark.parametrize("end", ["", " ?!"])
def test_a_test_question_in_train_is_found(end):
    rows = good()
    asked = [dict(row) for row in rows.questions]
    asked[50]["question"] = asked[0]["question"].upper() + end
    assert failing(replace(rows, questions=asked))["questions_apart"] == ("q-50",)


def test_a_near_duplicate_of_a_train_question_is_found():
    rows = good()
    asked = [dict(row) for row in rows.questions]
    long = "Which lodge keeps seven green lanterns behind its kitchen door during every winter market week"
    asked[0]["question"], asked[50]["question"] = f"{long} in Brandun?", f"{long}?"
    assert failing(replace(rows, questions=asked))["questions_apart"] == ("q-50",)


WORD = st.sampled_from(["ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan"])
QUESTION = st.lists(WORD, min_size=1, max_size=12).map(" ".join)


@given(st.lists(QUESTION, max_size=8), st.lists(QUESTION, max_size=8))
def test_repeats_are_those_of_the_pairs_one_by_one(train, strict):
    named = [(str(n), question) for n, question in enumerate(strict)]
    slow = {name for name, question in named if any(duplicates([("t", other), ("s", question)]) for other in train)}
    assert repeated_in(train, named) == slow


def test_an_oracle_of_a_test_question_in_a_train_context_is_found():
    rows = good()
    oracle = rows.examples["test"][0].oracle_ids[0]
    bad = with_group(rows, "train", {distractor(rows, "train"): oracle})
    found = failing(bad)
    assert set(found) == {"oracles_apart"}
    assert found["oracles_apart"] == tuple(row.id for row in bad.examples["train"][:2])


def test_another_chunk_of_a_test_questions_document_in_a_train_context_is_found():
    rows = good()
    other = rows.examples["dev"][0].oracle_ids[0].removesuffix("#0") + "#1"
    bad = with_group(rows, "train", {distractor(rows, "train"): other})
    assert set(failing(bad)) == {"documents_apart"}


def test_a_train_question_over_a_test_questions_document_is_found():
    rows = good()
    asked = [dict(row) for row in rows.questions]
    asked[50]["document_ids"] = [*asked[50]["document_ids"], asked[0]["document_ids"][0]]
    found = failing(replace(rows, questions=asked))
    assert set(found) == {"documents_apart"}
    assert "q-0@0" in found["documents_apart"]


def test_a_near_duplicate_of_a_test_oracle_in_a_train_context_is_found():
    rows = good()
    oracle = rows.chunks[rows.examples["test"][0].oracle_ids[0]]
    copy = replace(oracle, id="copies/x.md#0", document_id="copies/x.md", text=oracle.text.upper() + " Indeed.")
    bad = with_group(rows, "train", {distractor(rows, "train"): copy.id})
    bad = replace(bad, chunks={**rows.chunks, copy.id: copy})
    assert set(failing(bad)) == {"near_duplicates_apart"}


def test_a_share_of_oracles_that_chance_does_not_give_is_found():
    rows = good()
    shares = {finding.name: finding for finding in check_rows(replace(rows, oracle_fraction=0.4))}
    assert not shares["oracle_share"].holds
    assert "the recipe says 0.4" in shares["oracle_share"].note
    assert all(finding.holds for finding in check_rows(replace(rows, oracle_fraction=0.85)))
    assert all(finding.holds for finding in check_rows(replace(rows, oracle_fraction=None)))


def test_oracles_that_always_come_first_are_found():
    rows = good()
    made = [
        replace(row, context=(*row.oracle_ids, *(name for name in row.context if name not in row.oracle_ids)))
        for row in rows.examples["train"]
        if row.oracle_present
    ]
    made = [replace(row, group=row.id) for row in made]
    found = {finding.name: finding for finding in check_rows(replace(rows, examples={"train": made}))}
    assert not found["oracle_positions"].holds
    assert found["oracle_positions"].checked == len(made)
    assert {name for name, finding in found.items() if not finding.holds} - {"oracle_positions"} == {
        "oracle_share", "target_quotes_verbatim",
    }  # fmt: skip


def test_an_oracle_counts_once_a_context():
    rows = good()
    first = rows.examples["train"][first_with_oracle(rows)]
    same = [replace(first, id=f"{first.id}/{n}") for n in range(200)]
    found = {f.name: f for f in check_rows(replace(rows, examples={"train": same}))}
    assert found["oracle_positions"].holds
    assert found["oracle_positions"].note == "too few to tell"


def test_the_files_of_an_artefact_are_read(tmp_path):
    folder = write_lodges(tmp_path / "lodges")
    assert all(finding.holds for finding in check_dataset(folder))
    with (folder / "chunks.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(ArtifactError, match=r"chunks\.jsonl has changed"):
        check_dataset(folder)


def test_rows_that_are_no_examples_are_named(tmp_path):
    from raft.artifacts import writing
    from raft.rows import write_rows

    with writing(tmp_path / "bad", "dataset", {}, {}) as draft:
        write_rows(draft.folder / "train.jsonl", [{"id": "e"}])
    with pytest.raises(InputError, match=r"train\.jsonl row 1 is no example"):
        check_dataset(tmp_path / "bad")
    with writing(tmp_path / "worse", "dataset", {}, {}) as draft:
        write_rows(draft.folder / "questions.jsonl", [{"id": "q"}])
        write_rows(draft.folder / "chunks.jsonl", [])
    with pytest.raises(InputError, match=r"questions\.jsonl row 1 has no question"):
        check_dataset(tmp_path / "worse")
