from __future__ import annotations

from dataclasses import replace

import pytest

from raft.dataset.complaints import complaint
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.records import Chunk

QUOTE = "Kortisem tablets are continued for 6 days in adults, without a tapering dose."
CHUNK = Chunk("c", "d", QUOTE, 0, len(QUOTE), title="Acute Asthma")


def of(question, faults, answer="6 days"):
    item = GroundedQuestion("q", question, answer, "number", (Passage("c", QUOTE),), ("d",), "teacher")
    return complaint(item, CHUNK, faults, "For how many days")


@pytest.mark.parametrize(
    ("question", "faults", "said"),
    [
        ("For how many days are Kortisem tablets continued in adults?", [], ""),
        (
            "For how many days are Kortisem tablets continued in adults?",
            ["question_leaves_out"],
            'Keep these words of the sentence: "without", "tapering", "dose".',
        ),
        (
            "For how many days do children take Kortisem in acute asthma?",
            ["question_beside_quote"],
            'Do not use: "children".',
        ),
        ("Who?", ["question_names_no_subject"], "Name the subject: Acute Asthma."),
        ("How long?", ["question_asks_otherwise"], "Begin with: For how many days."),
        ("Are 6 days right?", ["answer_in_question"], 'Do not use: "6 days".'),
        ("Who?", ["question_asks_otherwise", "quote_not_in_oracle"], ""),
    ],
)
def test_a_teacher_is_told_what_it_can_mend(question, faults, said):
    assert of(question, faults) == said


def test_a_document_without_a_title_cannot_be_named():
    item = GroundedQuestion("q", "Who?", "6 days", "number", (Passage("c", QUOTE),), ("d",), "teacher")
    assert complaint(item, replace(CHUNK, title=" "), ["question_names_no_subject"], "") == ""


def test_all_that_can_be_mended_is_told_at_once():
    found = of("Who stops?", ["question_asks_otherwise", "question_names_no_subject"])
    assert found.count(".") == 2
