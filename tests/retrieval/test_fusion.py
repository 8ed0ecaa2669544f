"""Reciprocal rank fusion against the formula, written the slow way."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.retrieval.fusion import reciprocal_rank_fusion

rankings = st.lists(st.lists(st.integers(0, 12), unique=True, max_size=10), max_size=4)


@given(rankings, st.integers(1, 100))
def test_equals_the_obvious_version(lists: list[list[int]], k: int) -> None:
    everything = sorted({item for ranking in lists for item in ranking})
    expected = {
        item: sum(Fraction(1, k + ranking.index(item) + 1) for ranking in lists if item in ranking)
        for item in everything
    }
    fused = reciprocal_rank_fusion(lists, k)
    assert dict(fused) == pytest.approx({item: float(score) for item, score in expected.items()})
    assert [score for _, score in fused] == sorted((score for _, score in fused), reverse=True)


def test_equal_sums_keep_the_order_of_positions() -> None:
    assert [item for item, _ in reciprocal_rank_fusion([[7, 3], [3, 7]])] == [3, 7]
    assert reciprocal_rank_fusion([[5], [5]]) == [(5, pytest.approx(2 / 61))]
