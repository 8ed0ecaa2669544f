"""The probability of a final answer, by hand and against a slow obvious version."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.evaluation.confidence import answer_span, confidence
from raft.prompts import render_refusal, render_target
from raft.qa import read_answer
from raft.records import Quote


@pytest.mark.parametrize(
    ("text", "short", "span"),
    [
        ("12 mg. <ANSWER>: 12 mg", False, "12 mg"),
        ("<ANSWER>: no\n<ANSWER>:\n  12 mg \n12 mg", False, "12 mg"),  # the last mark; its first line
        ("It is 12 mg", False, "It is 12 mg"),  # without the mark
        ("##begin_quote##12 mg##end_quote## they say", False, "they say"),
        ("They ##begin_quote##12 mg##end_quote## say", False, "They ##begin_quote##12 mg##end_quote## say"),
        ("\n 12 mg \nbecause", True, "12 mg"),
        ("12 <ANSWER>: 13", True, "13"),
        (render_refusal(), False, "not in the documents"),
        ("<ANSWER>: ", False, ""),
        ("", False, ""),
        ("", True, ""),
    ],
)
def test_the_span_of_the_final_answer(text: str, short: bool, span: str) -> None:
    begin, end = answer_span(text, short)
    assert text[begin:end] == span
    if span == "12 mg" and not short:
        assert begin > text.rfind("<ANSWER>:")


def test_the_confidence_is_that_of_the_tokens_of_the_answer_alone() -> None:
    before = (("Document [1] says ", -2.0), ("12 mg", -3.0), (" <ANS", -1.0), ("WER>:", -1.0))
    after = (("\n", -4.0), ("12 mg", -9.0))
    text = "".join(piece for piece, _ in before) + " 12 mg" + "\n12 mg"
    assert confidence(text, (*before, (" 12", -0.11), (" mg", -0.02), *after)) == pytest.approx(math.exp(-0.065))
    assert confidence(text, (*before, (" ", -7.0), ("1", -0.1), ("", -0.2), ("2 mg", -0.6), *after)) == pytest.approx(
        math.exp(-0.3)
    )  # a token without text of its own counts inside the answer; the space before it does not
    assert confidence(text, (*before[:3], ("WER>: 12 mg", -0.5), *after)) == pytest.approx(math.exp(-0.5))


def test_nothing_to_be_sure_of_is_none() -> None:
    assert confidence("<ANSWER>: 12 mg", None) is None
    assert confidence("<ANSWER>: 12 mg", ()) is None
    assert confidence("<ANSWER>: ", (("<ANSWER>: ", -0.1),)) is None
    assert confidence("", (("", -0.1),)) is None
    assert confidence("12 mg", (("12", math.nan), (" mg", -0.1))) is None


def test_the_length_of_an_answer_does_not_count_but_its_doubt_does() -> None:
    sure = (("<ANSWER>:", -5.0), (" 12", -0.1), (" mg", -0.1))
    long = (*sure, (" by", -0.1), (" mouth", -0.1))
    assert confidence("<ANSWER>: 12 mg", sure) == pytest.approx(confidence("<ANSWER>: 12 mg by mouth", long))
    doubtful = (*sure, (" by", -0.1), (" mouth", -2.0))
    assert (confidence("<ANSWER>: 12 mg by mouth", doubtful) or 1.0) < math.exp(-0.1)
    assert confidence("12", (("12", 1e-9),)) == 1.0  # rounding of an endpoint


PIECE = st.tuples(st.sampled_from(["12", " mg", "<ANSWER>:", "\n", " ", "", "no"]), st.floats(-20, 0))


@given(st.lists(PIECE, max_size=12), st.booleans())
def test_it_equals_marking_every_character_with_its_token(logprobs: list[tuple[str, float]], short: bool) -> None:
    text = "".join(piece for piece, _ in logprobs)
    owners = [number for number, (piece, _) in enumerate(logprobs) for _ in piece]
    begin, end = answer_span(text, short)
    within = sorted(set(owners[begin:end]))
    inside = [logprobs[number][1] for number in range(within[0], within[-1] + 1)] if within else []
    found = confidence(text, tuple(logprobs), short)
    assert found == (pytest.approx(math.exp(sum(inside) / len(inside))) if inside else None)
    assert read_answer(text, short).final.strip() or found is None


def test_a_whole_reply_of_the_form_that_is_asked_for() -> None:
    text = render_target("12 mg", "It says so.", [Quote("Adults start with 12 mg", 1)])
    assert confidence(text, tuple((char, -0.5 if n >= len(text) - 5 else -9.0) for n, char in enumerate(text))) == (
        pytest.approx(math.exp(-0.5))
    )
