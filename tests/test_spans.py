"""Verbatim search forgives what extraction changes and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.corpus.spans import find_span, normalize


@given(st.text(max_size=80), st.text(max_size=30), st.text(max_size=80))
def test_what_stands_there_is_found_unless_it_splits_a_word(before: str, passage: str, after: str) -> None:
    text = f"{before} {passage} {after}"
    span = find_span(text, passage)
    if normalize(passage):
        assert span is not None
        assert normalize(text[span[0] : span[1]]) == normalize(passage)
    else:
        assert span is None


@pytest.mark.parametrize(
    ("text", "passage"),
    [
        ("a  line\nbreak", "a line break"),
        ("12\u00a0mg", "12 mg"),
        ("\u201cyes\u201d \u2013 no", '"yes" - no'),
        ("Wa\u00adter", "water"),
    ],
)
def test_extraction_noise_is_forgiven(text: str, passage: str) -> None:
    assert find_span(text, passage) == (0, len(text))


@pytest.mark.parametrize(
    ("text", "passage"), [("112 mg", "12 mg"), ("12 mg", "13 mg"), ("not allowed", "allowed not"), ("x", "")]
)
def test_other_words_are_not_found(text: str, passage: str) -> None:
    assert find_span(text, passage) is None
