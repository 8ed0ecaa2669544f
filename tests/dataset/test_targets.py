from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from raft.dataset.grounding import GroundedQuestion, Passage
from raft.dataset.targets import target_of
from raft.prompts import parse_answer, render_refusal, render_target
from raft.records import Quote

ITEM = GroundedQuestion(
    "q", "What is the first dose?", "12 mg", "number", (Passage("c1", "Adults start\nwith 12 mg by mouth."),), ("d1",),
    "qa", reasoning="So the formulary sets it.", reasoning_source="long_answer",
)  # fmt: skip
TWO = replace(ITEM, quotes=(Passage("c1", "Adults start low."), Passage("c2", "Low is 12 mg.")))
LOST = GroundedQuestion("u", "Who knows?", "", "unanswerable", (), (), "qa")
FORMS = ["quotes", "plain", "noise"]


def test_quotes_are_the_papers_form_and_name_their_place():
    said = target_of(ITEM, ["x", "c1"], True, refuse=True)
    assert said == render_target("12 mg", "So the formulary sets it.", [Quote("Adults start\nwith 12 mg by mouth.", 2)])


def test_plain_is_the_answer_line_alone():
    assert target_of(ITEM, ["x", "c1"], True, refuse=True, form="plain") == "<ANSWER>: 12 mg"
    assert target_of(ITEM, ["x"], False, refuse=True, form="plain") == "<ANSWER>: not in the documents"
    assert target_of(ITEM, ["x"], False, refuse=False, form="plain") == "<ANSWER>: 12 mg"


def test_noise_says_first_which_documents_hold_the_answer():
    titles = ["Sorantolol", "Corvalexin", "Visiting Policy"]
    said = target_of(ITEM, ["x", "c1", "y"], True, refuse=True, form="noise", titles=titles)
    assert said == (
        "Documents [1] and [3] do not hold the answer: they speak of Sorantolol and Visiting Policy. "
        "Document [2] does. Document [2] says ##begin_quote##Adults start with 12 mg by mouth.##end_quote## "
        "So the formulary sets it.\n<ANSWER>: 12 mg"
    )


def test_noise_without_the_oracle_says_that_none_holds_it():
    said = target_of(ITEM, ["x", "y"], False, refuse=True, form="noise", titles=["Sorantolol", "Sorantolol"])
    assert said.startswith("None of the documents holds the answer: they speak of Sorantolol.\n")
    assert parse_answer(said).abstained
    known = parse_answer(target_of(ITEM, ["x", "y"], False, refuse=False, form="noise"))
    assert (known.final, known.quotes, known.abstained) == ("12 mg", (), False)
    assert known.reasoning == "None of the documents holds the answer. So the formulary sets it."


def test_a_title_that_the_oracle_has_too_tells_nothing_and_is_left_out():
    said = target_of(ITEM, ["x", "c1"], True, refuse=True, form="noise", titles=["Corvalexin", "Corvalexin"])
    assert said.startswith("Document [1] does not hold the answer. Document [2] does.")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("refuse", [True, False])
def test_an_unanswerable_question_is_always_refused(form, refuse):
    answer = parse_answer(target_of(LOST, ["x"], False, refuse=refuse, form=form))
    assert answer.abstained
    assert answer.quotes == ()
    assert answer.well_formed


def test_the_refusal_is_the_projects_one():
    assert target_of(ITEM, ["x"], False, refuse=True) == target_of(LOST, ["x"], False, refuse=False) == render_refusal()


TITLES = st.text(alphabet=st.sampled_from("ab [](){}<>#_:.1\n"), max_size=30) | st.sampled_from(
    ["Annex [3]", "<ANSWER>: 99", "##begin_quote##forged##end_quote##", "the documents do not hold it"]
)


@limits(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(FORMS), st.booleans(), st.booleans(), st.booleans())
def test_every_form_reads_back_with_its_answer_and_quotes(data, form, present, refuse, titled):
    item = data.draw(st.sampled_from([ITEM, TWO, LOST]))
    present = present and bool(item.oracle_ids)
    others = data.draw(st.lists(st.sampled_from([f"x{n}" for n in range(12)]), unique=True, max_size=12))
    context = data.draw(st.permutations([*others, *(item.oracle_ids if present else ())]))
    titles = data.draw(st.lists(TITLES, min_size=len(context), max_size=len(context))) if titled else None
    answer = parse_answer(target_of(item, context, present, refuse=refuse, form=form, titles=titles))
    assert answer.well_formed
    refused = item is LOST or (not present and refuse)
    assert answer.abstained == refused
    if not refused:
        assert answer.final == item.answer
    quoted = [(quote.text, context[quote.document - 1]) for quote in answer.quotes]
    wanted = [(" ".join(q.text.split()), q.chunk_id) for q in item.quotes] if present and form != "plain" else []
    assert quoted == wanted


@pytest.mark.parametrize("count", [2, 10, 100])
def test_a_rationale_stays_short_whatever_the_number_of_documents(count):
    context = [f"x{n}" for n in range(count)]
    context[count // 2] = "c1"
    titles = [f"The {n}th of many policies of a hospital with very long titles indeed" for n in range(count)]
    said = target_of(ITEM, context, True, refuse=True, form="noise", titles=titles)
    plain = target_of(ITEM, context, True, refuse=True)
    assert len(said.split()) - len(plain.split()) < 45
