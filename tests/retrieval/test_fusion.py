"""Fusion against its formulas, written the slow way."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.retrieval.fusion import LEXICAL_WEIGHT, fuse, sample_positions, spread_of

scores = st.tuples(st.floats(-1, 1), st.floats(0, 60))
candidates = st.dictionaries(st.integers(0, 40), scores, max_size=20)


@given(candidates, st.floats(0.02, 0.3), st.integers(1, 30))
def test_the_fused_score_is_cosine_and_weighted_bm25(
    found: dict[int, tuple[float, float]], spread: float, k: int
) -> None:
    expected = {n: cosine + LEXICAL_WEIGHT * spread * lexical for n, (cosine, lexical) in found.items()}
    fused = fuse(found, spread, k)
    assert fused == [(n, pytest.approx(expected[n])) for n, _ in fused]
    assert [n for n, _ in fused] == sorted(expected, key=lambda n: (-dict(fuse(found, spread, 99))[n], n))[:k]


@given(candidates, st.data())
def test_other_candidates_change_no_score_and_no_order(
    found: dict[int, tuple[float, float]], data: st.DataObject
) -> None:
    """So that filters, candidate depth and k only take hits away."""
    kept = data.draw(st.sets(st.sampled_from(sorted(found)))) if found else set()
    fewer = {n: pair for n, pair in found.items() if n in kept}
    assert fuse(fewer, 0.08, 99) == [hit for hit in fuse(found, 0.08, 99) if hit[0] in kept]


def test_equal_scores_keep_the_order_of_positions() -> None:
    assert [n for n, _ in fuse({9: (0.5, 1.0), 2: (0.5, 1.0), 5: (0.9, 0.0)}, 0.08, 3)] == [5, 2, 9]


def test_the_same_choice_is_made_when_an_encoder_keeps_its_cosines_closer_together() -> None:
    wide = {n: (cosine, lexical) for n, (cosine, lexical) in enumerate([(0.7, 3.0), (0.5, 9.0), (0.2, 1.0)])}
    close = {n: (0.8 + cosine / 4, lexical) for n, (cosine, lexical) in wide.items()}
    assert [n for n, _ in fuse(wide, 0.12, 3)] == [n for n, _ in fuse(close, 0.03, 3)]


def test_spread_is_the_standard_deviation_and_never_nothing() -> None:
    cosines = [0.1, 0.4, 0.7, 0.2]
    assert spread_of(cosines) == pytest.approx(statistics.pstdev(cosines))
    assert spread_of([0.5]) == spread_of([]) == spread_of([0.3, 0.3]) == 0.02


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (999, 999), (1000, 1000), (54321, 1000)])
def test_sample_positions_lie_evenly_in_the_corpus(count: int, size: int) -> None:
    positions = sample_positions(count)
    assert len(set(positions)) == len(positions) == size
    assert all(0 <= position < count for position in positions)
    steps = {b - a for a, b in itertools.pairwise(positions)}
    assert len(steps) <= 2
