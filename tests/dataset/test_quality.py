from __future__ import annotations

from dataclasses import replace

import pytest

from raft.dataset.grounding import GroundedQuestion, Passage
from raft.dataset.quality import (
    also_answers,
    answer_faults,
    force_faults,
    form_faults,
    omission_faults,
    opening_faults,
    question_faults,
    reply_faults,
    retrieval_flag,
    round_trip_faults,
    subject_faults,
    support_faults,
)
from raft.prompts import parse_answer, render_refusal, render_target
from raft.records import Chunk, Quote


def item(answer="12 mg", quotes=("Adults start with 12 mg.",), kind="short", **more):
    passages = tuple(Passage("c", quote) for quote in quotes)
    return GroundedQuestion(
        "q", "What is the first dose of Corvalexin?", answer, kind, passages, ("d",), "qa", **more
    )  # fmt: skip


ORACLE = {"c": "The formulary. Adults start\nwith 12 mg. Children do not."}


@pytest.mark.parametrize(
    "question",
    [
        "What does the text above say about doses?",
        "According to the passage, what is the dose?",
        "According to this document, what is the dose?",
        "What is mentioned above about the dose?",
        "What is the dose in the given context?",
        "What does the author say about the dose?",
        "Which dose does the excerpt name for adults?",
    ],
)
def test_questions_that_point_at_an_unseen_text_are_refused(question):
    assert question_faults(question, 1, 60) == ["question_speaks_of_text"]


@pytest.mark.parametrize(
    "question",
    [
        "Which document must the tenant sign before moving in?",
        "According to the privacy policy of ted.com, who may read mail?",
        "What does Article 5 of the Tenancies Act forbid?",
        "What may be said in the context of a hearing?",
        "Under section 4, what is the ceiling on a deposit?",
        "Within how many days must the documents be returned?",
    ],
)
def test_questions_about_documents_and_sections_of_the_world_pass(question):
    assert question_faults(question, 4, 60) == []


def test_length_bounds_of_a_question():
    assert question_faults("How much?", 4, 60) == ["question_too_short"]
    assert question_faults("How much is it now?", 4, 4) == ["question_too_long"]
    assert question_faults("How much is it?", 4, 4) == []


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        (item(), []),
        (item(quotes=("adults start with  12 mg",)), []),
        (item(quotes=()), ["quote_missing"]),
        (item(quotes=("Adults start with 13 mg.",), answer="13 mg"), ["quote_not_in_oracle"]),
        (item(answer="5 ml"), ["number_not_in_quote", "answer_not_in_quote"]),
        (item(answer="12 ml"), ["number_not_in_quote", "answer_not_in_quote"]),
        (item(answer="by mouth"), ["answer_not_in_quote"]),
        (item(answer="the adult starts"), []),
        (item(answer="5 ml", aliases=("12 mg",)), []),
        (item(answer="no", kind="yesno"), []),
        (item(answer="maybe", kind="label", quotes=()), ["quote_missing"]),
        (item(answer="not in the documents"), ["answer_refuses", "answer_not_in_quote"]),
        (item(answer="12 mg " * 5), ["answer_too_long"]),
        (item(answer="", quotes=(), kind="unanswerable"), []),
    ],
)
def test_answers(given, faults):
    assert answer_faults(given, ORACLE, max_words=8, min_overlap=0.5) == faults


def test_overlap_counts_content_words():
    two_of_three = item(answer="the 12 mg of zinc")
    assert support_faults(two_of_three, ORACLE["c"], 0.66) == []
    assert support_faults(two_of_three, ORACLE["c"], 0.67) == ["answer_not_in_quote"]
    assert support_faults(item(answer="zinc", aliases=("12 mg",)), ORACLE["c"], 1.0) == []


def test_numbers_may_be_computed_from_two_quotes():
    two = ("Until 2019 adults started with 20 mg.", "Adults start with 12 mg.")
    for answer, faults in (("8 mg", []), ("32 mg", []), ("9 mg", ["number_not_in_quote", "answer_not_in_quote"])):
        assert support_faults(item(answer=answer, quotes=two), "", 0.5) == faults
    assert support_faults(item(answer="8 mg", quotes=(" ".join(two),)), "", 0.5) != []


def test_a_bound_of_nothing_asks_for_no_support():
    assert support_faults(item(answer="13 ml of Zinc"), ORACLE["c"], 0.0) == []


def test_a_name_may_stand_anywhere_in_the_oracles():
    named = item(answer="12 mg, says the Formulary", quotes=("start with 12 mg says",))
    assert support_faults(named, ORACLE["c"], 0.6) == []
    assert support_faults(named, "Adults start with 12 mg.", 0.6) == ["name_not_in_oracle"]


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        (item(), []),
        (item(kind="yesno", answer="yes", question_type="yesno"), []),
        (item(answer="12 mg", question_type="yesno"), ["answer_not_yesno"]),
        (item(answer="by mouth", question_type="numeric"), ["answer_not_numeric"]),
        (item(answer="two doses", question_type="numeric"), []),
        (item(answer="a drug", question_type="definition"), ["definition_too_short"]),
        (item(question_type="multihop"), ["multihop_single_chunk"]),
        (item(answer="Corvalexin"), ["answer_in_question"]),
        (item(answer="the first Corvalexin dose"), ["answer_restates_question"]),
        (item(answer="the first 2 doses"), []),
        (item(answer="Corvalexin A"), []),
        (item(answer="Corvalexin", question_type="comparison"), ["comparison_single_chunk"]),
        (item(answer="", quotes=(), kind="unanswerable", question_type="unanswerable"), []),
    ],
)
def test_the_form_that_a_type_of_question_asks_for(given, faults):
    assert form_faults(given) == faults


@pytest.mark.parametrize(
    ("question", "several"),
    [
        ("What is the dose? Who sets it?", True),
        ("What is the dose, and who must set it?", True),
        ("What is the dose and how often is it given?", True),
        ("What is the dose for adults and children who weigh 40 kg?", False),
        ("When must the tenant pay, or leave?", False),
        ("Under the Act of 2019, what is the ceiling, and to which homes does it apply?", False),
        ("What is the dose?", False),
    ],
)
def test_several_questions_in_one(question, several):
    assert form_faults(replace(item(), question=question)) == ["several_questions"] * several


def test_a_choice_holds_its_answer():
    assert form_faults(replace(item(answer="adults"), question="Who gets it, adults or children?")) == []


def test_what_the_retriever_does_not_find_is_flagged():
    assert retrieval_flag(["a", "b"], ["x", "b"], 2) is None
    assert retrieval_flag(["a", "b"], ["x", "b"], 1) == "oracle_not_retrieved"
    assert retrieval_flag(["a"], [], 5) == "oracle_not_retrieved"
    assert retrieval_flag([], ["x"], 5) is None


def said(answer, quote=""):
    return parse_answer(render_target(answer, "So it is.", [Quote(quote, 1)] if quote else []))


REFUSED = parse_answer(render_refusal())
YES = item(answer="yes", kind="yesno")
NOWHERE = item(answer="", quotes=(), kind="unanswerable")


@pytest.mark.parametrize(
    ("given", "with_oracle", "without_oracle", "faults"),
    [
        (item(), said("12 mg by mouth"), REFUSED, []),
        (item(), said("12 mg"), None, []),
        (item(), None, None, []),
        (item(), REFUSED, REFUSED, ["oracle_does_not_answer"]),
        (item(), said("13 mg"), said("14 mg"), ["oracle_does_not_answer"]),
        (item(answer="a dozen mg", aliases=("12 mg",)), said("12 mg"), None, []),
        (item(), said("12 mg"), said("12 mg"), ["distractors_answer"]),
        (item(), said("13 mg"), said("12 mg"), ["oracle_does_not_answer", "distractors_answer"]),
        (YES, said("yes"), said("yes"), []),
        (YES, said("yes"), said("yes", "Adults may."), ["distractors_answer"]),
        (YES, said("no"), None, ["oracle_does_not_answer"]),
        (NOWHERE, REFUSED, REFUSED, []),
        (NOWHERE, REFUSED, said("12 mg"), ["unanswerable_is_answered"]),
        (NOWHERE, said("12 mg"), None, ["unanswerable_is_answered"]),
    ],
)
def test_the_round_trip(given, with_oracle, without_oracle, faults):
    assert round_trip_faults(given, with_oracle, without_oracle) == faults


def test_the_form_of_a_reply():
    assert reply_faults(parse_answer("It is 12 mg."), 0) == ["answer_malformed"]
    assert reply_faults(parse_answer("##begin_quote##made up##end_quote##\n<ANSWER>: 12 mg"), 0) == [
        "quote_not_in_oracle"
    ]
    assert reply_faults(parse_answer("##begin_quote##right##end_quote##\n<ANSWER>: 12 mg"), 1) == []


def test_a_chunk_that_answers_too_is_known_by_quote_or_by_answer_and_topic():
    texts = {
        "copy": "Elsewhere: adults  start with 12 mg. So be it.",
        "topic": "The first dose of Corvalexin, in short: 12 mg.",
        "number": "The fee is 12 mg of gold.",
        "inside": "The first dose of Corvalexin is 112 mg or 12 mgs.",
        "other": "The first dose of Corvalexin is secret.",
    }
    answers = also_answers(dict.fromkeys("q", item()).__getitem__, texts.__getitem__, {})
    assert {name for name in texts if answers("q", name)} == {"copy", "topic"}
    closed = also_answers(
        dict.fromkeys("q", item(answer="no", kind="yesno")).__getitem__,
        {"x": "no first dose of Corvalexin"}.__getitem__,
        {},
    )
    assert not closed("q", "x")


def test_a_near_duplicate_of_an_oracle_answers_whatever_its_words():
    texts = dict.fromkeys("cdef", "words that do not answer")
    alike = {"c": 0, "d": 0, "e": 1, "f": 1}
    answers = also_answers(dict.fromkeys("q", item()).__getitem__, texts.__getitem__, alike)
    assert {name for name in "def" if answers("q", name)} == {"d"}
    lost = also_answers(
        dict.fromkeys("q", item(answer="", quotes=(), kind="unanswerable")).__getitem__, texts.__getitem__, alike
    )
    assert not any(lost("q", name) for name in "def")


def subject(question, answer="30 days", quote="An opened pen may be kept for 30 days.", named=True):
    chunk = Chunk("c", "d", quote, 0, len(quote), title="Rapilin (rapid insulin)", headings=("Storage",))
    asked = replace(item(answer, (quote,)), question=question)
    return subject_faults(asked, {"c": chunk}, 0.8, named)


def test_a_question_about_something_else_than_its_quote_is_refused():
    assert subject("How long may an opened pen of Rapilin be kept?") == []
    assert subject("How long may an opened pen of Rapilin be in storage?") == ["question_beside_quote"]  # the heading
    assert subject("What is the maximum storage time for an unopened Rapilin vial?") == ["question_beside_quote"]
    assert subject("What is the minimum time for an opened pen of Rapilin?") == ["question_beside_quote"]
    assert subject("What is the longest time that a Rapilin pen is kept?", quote="Pens are kept up to 30 days.") == []
    assert subject("How long do children keep a Rapilin pen at home?") == ["question_beside_quote"]


def test_a_question_must_say_what_it_is_about_where_that_is_asked():
    assert subject("How long may an opened pen be kept?") == ["question_names_no_subject"]
    assert subject("How long may an opened pen be kept?", named=False) == []
    assert "question_names_no_subject" not in subject("How long may an opened pen be kept by Dr Prowse?")
    lost = item("", (), "unanswerable")
    assert subject_faults(lost, {}, 1.0, True) == []


@pytest.mark.parametrize(
    ("question", "quote", "answer", "left_out"),
    [
        ("How long may an opened pen of Rapilin be kept?", "An opened pen may be kept for 30 days.", "30 days", False),
        (
            "How long must have passed since the injury before it is given?",
            "Do not give it if more than 3 hours have passed since the injury.",
            "3 hours",
            True,
        ),
        (
            "Within how many hours must the doctor attend after a fall?",
            "In all other falls the doctor must attend within 3 hours.",
            "3 hours",
            True,
        ),
        ("What is the highest rate of the infusion?", "The infusion rate must not exceed 40 mg.", "40 mg", False),
        ("What is the strength of the tablets?", "Tablets of 15 mg (grey) and 35 mg are stocked.", "15 mg", True),
        (
            "After how many weeks is heavy work possible?",
            "Office work is usually possible after 6 weeks, and heavy work after 14 weeks.",
            "14 weeks",
            True,
        ),
        (
            "Within how many hours are the next of kin told before a transfer to another hospital?",
            "They are told before a transfer to another hospital, and within 3 hours after one between wards.",
            "3 hours",
            True,
        ),
        (
            "What is the daily dose of the elderly?",
            "Unless a doctor says more the daily dose of the elderly is not more than 40 mg",
            "not more than 40 mg",
            True,
        ),
        ("At what grade is such a fall graded?", "Such a fall is graded at least Amber.", "Amber", True),
        ("What is the least grade of a fall?", "A fall is graded at least Amber.", "Amber", False),
        ("For how long are pens kept?", "Pens mustn’t be kept at home for 3 weeks.", "3 weeks", True),
        ("Who agrees?", "The warden agrees with the change, if the clerk has read it.", "the wardens", False),
    ],
)  # fmt: skip
def test_a_question_that_leaves_out_what_its_quote_says_is_refused(question, quote, answer, left_out):
    asked = replace(item(answer, (quote,)), question=question)
    assert omission_faults(asked, 0.8) == ["question_leaves_out"] * left_out
    assert omission_faults(asked, 0.0) == []


@pytest.mark.parametrize(
    ("question", "opening", "faults"),
    [
        ("In winter, within how many hours of arrival is the scan done?", "Within how many hours of", []),
        ("How many milligrams of Bronvatol are given?", "How many mg of", []),
        ("How long is the scan done after arrival?", "Within how many hours of", ["question_asks_otherwise"]),
        ("Within how many hours offered is it?", "Within how many hours of", ["question_asks_otherwise"]),
        ("Who calls?", "", []),
    ],
)
def test_a_question_asks_with_the_words_it_was_given(question, opening, faults):
    assert opening_faults(question, opening) == faults


@pytest.mark.parametrize(
    ("question", "quote", "faults"),
    [
        ("Within how many days must it be sold?", "It may be sold within 5 days.", ["question_changes_force"]),
        ("Within how many days can it be sold?", "It may be sold within 5 days.", []),
        ("Within how many days should it be answered?", "It must be answered within 5 days.", []),
        ("Within how many days must it be answered?", "It is answered within 5 days.", []),
        ("What does each request cost?", "Each request could cost 5 marns.", ["question_changes_force"]),
        ("How many marns could each request cost?", "Each request could cost 5 marns.", []),
        ("How many visitors are allowed?", "Two visitors were allowed.", ["question_changes_force"]),
        ("How many pounds must be paid?", "In May 5 pounds are paid.", []),
        ("How many scans does it need?", "It needs 5 scans.", []),
    ],
)
def test_a_question_keeps_may_must_and_the_past(question, quote, faults):
    item = GroundedQuestion("q", question, "5", "number", (Passage("c", quote),), ("d",), "teacher")
    assert force_faults(item) == faults
