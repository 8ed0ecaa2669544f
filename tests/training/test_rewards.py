"""What a reply is paid for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.evaluation.metrics import normalize_answer as evaluation_normalize
from raft.evaluation.metrics import token_f1 as evaluation_f1
from raft.prompts import parse_answer, render_refusal, render_target
from raft.records import Quote
from raft.training.rewards import (
    REWARDS,
    Expected,
    abstention_reward,
    answer_reward,
    expected_of,
    format_reward,
    normalize_answer,
    oracle_reward,
    quote_reward,
    token_f1,
)
from tests.factories import colour_chunks, colour_examples

DOCUMENTS = ("Children start with 5 mg by mouth.", "Adults start with 12 mg by mouth.", "Visits end at noon.")
DOSE = Expected(("12 mg",), "number", DOCUMENTS, frozenset({2}), refuses=False, quotes=True)
UNKNOWN = replace(DOSE, oracles=frozenset(), refuses=True, quotes=False)


def paid(text: str, expected: Expected = DOSE) -> dict[str, float | None]:
    return {name: reward(parse_answer(text), expected) for name, reward in REWARDS.items()}


def test_a_right_reply_earns_everything() -> None:
    right = render_target("12 mg", "The adult dose.", [Quote("Adults start with 12 mg", 2)])
    assert paid(right) == dict.fromkeys(REWARDS, 1.0)


def test_a_right_refusal_earns_what_applies() -> None:
    assert paid(render_refusal(), UNKNOWN) == {
        "format": 1.0, "answer": None, "quote": None, "oracle": None, "abstention": 1.0
    }  # fmt: skip
    answers = paid(render_target("12 mg"), UNKNOWN)
    assert answers["abstention"] == 0.0
    assert paid(render_refusal())["answer"] == 0.0


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("<ANSWER>: 12 mg", 1.0),
        ("12 mg", 0.0),
        ("<ANSWER>: 12 mg\nand more", 0.0),
        ("<ANSWER>: 12 mg <ANSWER>: 13 mg", 0.0),
        ("<ANSWER>:", 0.0),
        ("Document [2] says ##begin_quote##Adults\n<ANSWER>: 12 mg", 0.0),
        ("##end_quote## ##begin_quote##\n<ANSWER>: 12 mg", 0.0),
    ],
)
def test_the_form(text: str, worth: float) -> None:
    assert format_reward(parse_answer(text), DOSE) == worth


def test_answers_are_compared_by_their_type() -> None:
    def worth(said: str, known: str, kind: str) -> float | None:
        return answer_reward(parse_answer(f"<ANSWER>: {said}"), replace(DOSE, answers=(known,), answer_type=kind))

    assert worth("Yes, they do", "yes", "yesno") == 1.0
    assert worth("No", "yes", "yesno") == 0.0
    assert worth("13 mg", "12 mg", "number") == 0.0
    assert worth("15 mg", "1.5 mg", "number") == worth("5", "-5", "number") == 0.0
    assert worth("1,500 mg", "1500 mg", "number") == 1.0
    assert worth("The 12 mg.", "12 mg", "number") == 1.0
    assert worth("in the red box", "red box", "short") == pytest.approx(0.8)
    assert answer_reward(parse_answer("<ANSWER>: 50 minutes"), replace(DOSE, answers=("x", "50 minutes"))) == 1.0


def test_quotes_count_where_they_stand() -> None:
    def both(text: str, place: int | None) -> tuple[float | None, float | None]:
        reply = parse_answer(render_target("12 mg", "", [Quote(text, place)]))
        return quote_reward(reply, DOSE), oracle_reward(reply, DOSE)

    assert both("Adults start with 12 mg", 2) == (1.0, 1.0)
    assert both("adults  start with 12 mg", None) == (1.0, 1.0)
    assert both("Adults start with 12 mg", 1) == (0.0, 0.0)  # it stands in another document
    assert both("Children start with 5 mg", 1) == (1.0, 0.0)
    assert both("Adults start with 13 mg", 2) == (0.0, 0.0)
    assert both("Adults", 2) == (0.0, 0.0)  # a word proves nothing
    assert both("Adults start with 12 mg", 9) == (0.0, 0.0)
    assert quote_reward(parse_answer("<ANSWER>: 12 mg"), DOSE) == 0.0
    two = [Quote("Adults start with 12 mg", 2), Quote("Visits end at one", 3)]
    assert quote_reward(parse_answer(render_target("12 mg", "", two)), DOSE) == 0.5


def test_no_reply_can_be_paid_for_abstaining_and_answering() -> None:
    assert abstention_reward(parse_answer(""), UNKNOWN) == 0.0  # silence is no refusal


def test_what_is_expected_of_an_example() -> None:
    example = colour_examples()[0]
    expected = expected_of(example, {chunk.id: chunk for chunk in colour_chunks()}, ["scarlet"])
    assert expected.answers == ("red", "scarlet")
    assert expected.oracles == {1}
    assert (expected.refuses, expected.quotes) == (False, True)
    assert {reward(parse_answer(example.target), expected) for reward in REWARDS.values()} == {1.0}
    absent = expected_of(
        replace(example, oracle_present=False, target=render_refusal()), {c.id: c for c in colour_chunks()}
    )
    assert (absent.oracles, absent.refuses, absent.quotes) == (frozenset(), True, False)


@given(st.text(alphabet="ab the,.X1 ", max_size=30), st.text(alphabet="ab the,.X1 ", max_size=30))
def test_the_formulas_are_those_of_evaluation(one: str, other: str) -> None:
    assert normalize_answer(one) == evaluation_normalize(one)
    assert token_f1(one, other) == pytest.approx(evaluation_f1(one, [other]))


@given(st.text(alphabet="#<>[]ANSWER: begin_quote end 12 mg\n", max_size=80))
def test_every_text_has_a_price_between_0_and_1(text: str) -> None:
    for expected in (DOSE, UNKNOWN):
        assert all(worth is None or 0.0 <= worth <= 1.0 for worth in paid(text, expected).values())
