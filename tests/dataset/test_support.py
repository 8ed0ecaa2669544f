from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.support import has_names, has_numbers, quantities, same_answer, support

TEXT = "Adults start with 12 mg by mouth. Children of 3 years start with 5 mg, at most 1,500 mg in 10-14 days."
ASKED = "How do adults start?"


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("12 mg by mouth", 1.0),
        ("twelve milligrams, by mouth", 2 / 3),  # the unit is the same, its word is not
        ("12.0mg", 1.0),
        ("adults started with 12 mg", 1.0),
        ("12 mg at night", 2 / 3),
        ("adults start at night", 0.0),  # all that is new is missing
        ("adults start", 1.0),
        ("13 mg by mouth", 0.0),
        ("12 ml by mouth", 0.0),
        ("1500 mg", 1.0),
        ("14 days", 1.0),
        ("10 days", 1.0),
    ],
)
def test_support(answer, share):
    assert support(answer, ASKED, TEXT) == pytest.approx(share)


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_support_is_a_share_and_a_text_supports_itself(answer, question, text):
    assert 0.0 <= support(answer, question, text) <= 1.0
    assert has_numbers(text, question, text)
    assert has_names(text, question, text)


@given(st.text("abcdef 0123.,mg", max_size=40), st.text("abcdef 0123.,mg", max_size=40))
def test_more_text_takes_no_support_away(answer, text):
    assert support(answer, "", f"{text} . {text}") == support(answer, "", text)
    assert support(answer, "", f"{text} . {answer}") in (0.0, 1.0)  # 0.0 for an answer without words


def test_quantities_go_by_value_and_unit():
    text = "Covid-19: 10-19 days, 1,000 mg; 2.50% of 5mg under 2.1.3; two weeks, 12-month, 3rd, 7 per cent of 7 crowns"
    assert quantities(text) == {
        "10": {""}, "19": {"day"}, "1000": {"mg"}, "2.5": {"%"}, "5": {"mg"}, "2.1.3": {""}, "2": {"week"},
        "12": {"month"}, "3": {""}, "7": {"%", ""},
    }  # fmt: skip


@given(st.integers(0, 10**9))
def test_a_number_is_the_same_however_it_is_written(number):
    assert quantities(f"{number:,} mg").keys() == quantities(f"{number}mg").keys() == quantities(f"{number}.0").keys()


def test_names_are_capitalised_words_inside_sentences():
    assert has_names("Mumbai, the city", "Where?", "Delhi")  # the first word of a sentence is always so written
    assert not has_names("the city of Mumbai", "Where?", "the city of Delhi")
    assert has_names("the Oberoi Group. Yes", "Who owns Oberoi?", "a group of hotels")


@pytest.mark.parametrize(
    ("one", "other", "kind", "same"),
    [
        ("within 50 minutes", "50 min.", "number", True),
        ("50 minutes", "50 hours", "number", False),
        ("50 minutes", "51 minutes", "number", False),
        ("1,000 crowns", "1000", "number", True),
        ("3 May 2020", "May 3, 2020", "number", True),
        ("3 May 2020", "June 3, 2020", "number", False),
        ("between 5 and 10 days", "10 days", "number", False),
        ("none", "no fee", "number", False),
        ("Yes.", "yes, it does", "yesno", True),
        ("yes", "no", "yesno", False),
        ("Supports", "supports", "label", True),
        ("Supports", "it supports", "label", False),
        ("the tenant", "tenant", "short", True),
        ("insulin", "insulin glargine at bedtime every day", "short", True),
        ("insulin", "not insulin", "short", False),
        ("section 12 of the Act", "section 13 of the Act", "short", False),
        ("heart failure with oedema", "oedema and failing hearts", "short", True),
        ("the landlord", "the tenant", "short", False),
        ("ant", "tenant", "short", False),
        ("", "", "short", False),
        ("...", "tenant", "short", False),
    ],
)
def test_same_answer(one, other, kind, same):
    assert same_answer(one, other, kind) is same
    assert same_answer(other, one, kind) is same


KINDS = st.sampled_from(["short", "number", "list", "yesno", "label", "long"])
ANSWERS = st.text("ab 12.,%mg'not", max_size=30) | st.text(max_size=30)


@given(ANSWERS, ANSWERS, KINDS)
def test_sameness_is_mutual_and_every_answer_with_words_is_its_own(one, other, kind):
    assert same_answer(one, other, kind) == same_answer(other, one, kind)
    assert same_answer(one, one, kind) == any(char.isalnum() or char == "_" for char in one)
