from __future__ import annotations

import random
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from raft.dataset.facts import changed_numbers, negated, numbers


def changed(answer, text, seed=0, question=""):
    return changed_numbers(answer, question, random.Random(seed))(text)


def test_numbers_are_read_in_digits_and_words():
    assert numbers("2,000 ml in fourteen days at 0.08, then 3.") == [
        Decimal(2000), Decimal(14), Decimal("0.08"), Decimal(3),
    ]  # fmt: skip
    assert numbers("OV-FM-110 at 3.2.1, section A12") == [Decimal(110)]


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("12 mg", r"\d{1,2} mg"), ("2,000 ml", r"\d,\d00 ml"), ("0.08 units", r"0\.\d\d units"),
        ("fourteen days", r"[a-z]+ days"), ("12 March 2023", r"\d{1,2} March 20\d\d"), ("95 %", r"\d\d %|100 %"),
        ("08:30", r"\d\d:30"), ("26,000 marns", r"\d\d,000 marns"),
    ],
)  # fmt: skip
def test_a_near_value_has_the_same_form(answer, form):
    for seed in range(30):
        said = changed(answer, f"It is {answer} here.", seed)[6:-6]
        assert said != answer
        assert re.fullmatch(form, said), said


def test_dates_and_shares_stay_possible():
    for seed in range(60):
        day = int(changed("28 February 2023", "28 February 2023", seed).split()[0])
        share = int(changed("100 per cent", "100 per cent", seed).split()[0])
        assert 1 <= day <= 28
        assert 1 <= share <= 100


def test_other_numbers_stay_and_each_value_changes_alike():
    text = "3. Give 12 mg, then 12 mg; at most 30 mg in 24 hours (twelve)."
    said = changed("12 mg", text)
    first, second, most, hours = re.findall(r"\d+(?= mg| hours)", said)
    assert first == second != "12"
    assert (most, hours) == ("30", "24")
    assert "twelve" not in said


def test_the_number_of_a_clause_is_no_fact():
    assert changed("3 days", "3. A sample stands for 3 days.\n(3) Or less.").startswith("3. A sample")


@limits(max_examples=500, deadline=None)
@given(st.integers(0, 10**7) | st.decimals(0, 1000, places=2), st.booleans(), st.integers(0, 99))
def test_a_number_never_stays(value, grouped, seed):
    answer = f"{value:,}" if grouped else str(value)
    said = changed(answer, f"It takes {answer} of them.", seed)
    assert Decimal(answer.replace(",", "")) not in numbers(said)
    assert len(numbers(said)) == 1


@pytest.mark.parametrize(
    ("said", "other"),
    [
        ("The holder may keep a dog.", "The holder may not keep a dog."),
        ("The line must not be flushed.", "The line must be flushed."),
        ("Do not wait for a result.", "Wait for a result."),
        ("It cannot be lent.", "It can be lent."),
        ("The dose is not changed.", "The dose is changed."),
        ("Nurses never sign alone.", "Nurses always sign alone."),
        ("Green tea.", "Green tea."),
    ],
)
def test_a_sentence_is_turned_round(said, other):
    assert negated(said) == other
