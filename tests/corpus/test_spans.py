from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.corpus import spans
from raft.corpus.spans import _SAME, find_span, normalize

TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(list(" \t\n\u00a0\u200b\u00adaB’—ﬁİ①")))
)


def slowly(text):
    """One character after the other, without any table."""
    out = ""
    for char in text:
        for part in unicodedata.normalize("NFKC", char).translate(_SAME).lower():
            if part.isspace():
                out += "" if out.endswith(" ") else " "
            elif unicodedata.category(part) != "Cf":
                out += part
    return out.strip()


@given(TEXTS)
def test_the_table_folds_as_character_by_character(text):
    assert normalize(text) == slowly(text)


@given(TEXTS, TEXTS, TEXTS)
def test_a_span_is_the_passage_as_written_there(before, passage, after):
    text = f"{before} {passage} {after}"
    span = find_span(text, passage)
    if not normalize(passage):
        assert span is None
    else:
        assert span is not None
        assert normalize(text[slice(*span)]) == normalize(passage)


def test_part_of_a_word_is_no_passage():
    assert find_span("112 mg", "12 mg") is None
    assert find_span("a dose of “12 mg”", 'of "12') == (7, 13)


@given(TEXTS, TEXTS, TEXTS)
def test_what_stands_there_as_it_is_is_found_where_the_slow_way_finds_it(before, passage, after):
    text = f"{before}{passage}{after}{passage}"
    found = find_span(text, passage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "_as_written", lambda *_: None)
        assert found == find_span(text, passage)
