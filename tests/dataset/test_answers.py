from __future__ import annotations

import pytest

from raft.dataset.answers import (
    answer_messages,
    read_teacher_answer,
    reasoning_messages,
    with_reasoning,
)
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.prompts import build_messages, parse_answer
from raft.records import Chunk

CHUNK = Chunk("c1", "d1", "Corvalexin. Adults start\nwith 12 mg by mouth. Children do not.", 0, 62, "Corvalexin")
ITEM = GroundedQuestion(
    "q", "What is the first dose?", "12 mg", "number", (Passage("c1", "Adults start\nwith 12 mg by mouth."),), ("d1",),
    "qa", reasoning="So the formulary sets it.", reasoning_source="long_answer",
)  # fmt: skip


def test_the_teacher_is_asked_with_the_projects_prompt_over_the_oracle_alone():
    messages = answer_messages("What is the first dose?", [CHUNK])
    assert messages[-1] == build_messages("What is the first dose?", [CHUNK])[-1]
    assert messages[0] == build_messages("What is the first dose?", [CHUNK])[0]


def test_the_worked_example_passes_its_own_gate():
    shot = answer_messages("Who?", [CHUNK])[2].content
    answer = parse_answer(shot)
    assert answer.well_formed
    assert answer.quotes[0].text in answer_messages("Who?", [CHUNK])[1].content
    assert answer.quotes[0].document == 1


def test_a_reply_is_taken_apart():
    text = (
        "Document [1] says ##begin_quote##adults start with 12 mg##end_quote##. So the dose is 12 mg.\n<ANSWER>: 12 mg."
    )
    item, answer = read_teacher_answer("k", "What is the first dose?", text, [CHUNK])
    assert item.quotes == (Passage("c1", "Adults start\nwith 12 mg by mouth."),)
    assert (item.answer, item.answer_type, item.reasoning) == ("12 mg", "number", "So the dose is 12 mg.")
    assert (item.source, item.reasoning_source, item.document_ids) == ("teacher", "teacher", ("d1",))
    assert answer.well_formed


def test_quotes_that_the_teacher_made_up_are_not_kept():
    item, answer = read_teacher_answer(
        "k", "Q?", "##begin_quote##Adults take 99 mg##end_quote##\n<ANSWER>: 99 mg", [CHUNK]
    )
    assert item.quotes == ()
    assert len(answer.quotes) == 1


@pytest.mark.parametrize(
    ("text", "kind"), [("Yes", "yesno"), ("no", "yesno"), ("9 days", "number"), ("mercy", "short")]
)
def test_the_kind_of_answer_is_told_by_its_form(text, kind):
    assert read_teacher_answer("k", "Q?", f"<ANSWER>: {text}", [CHUNK])[0].answer_type == kind


def test_reasoning_is_asked_with_the_reference_answer_and_replaces_the_old():
    prompt = reasoning_messages(ITEM, [CHUNK])[-1].content
    assert "Correct answer: 12 mg" in prompt
    assert "Document [1] Corvalexin" in prompt
    item = with_reasoning(ITEM, "Because it says so.")
    assert (item.reasoning, item.reasoning_source) == ("Because it says so.", "teacher")
