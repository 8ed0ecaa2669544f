"""Calibration against scikit-learn, brute force and hand-computed cases; the order of rows must not matter."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from raft.evaluation.calibration import (
    brier_score,
    calibration_error,
    risk_coverage,
    risk_coverage_area,
    thinned,
)

PAIRS = [(0.9, True), (0.8, True), (0.8, False), (0.3, False)]
CONFIDENCE = st.integers(0, 20).map(lambda n: n / 20) | st.floats(0, 1)
ROWS = st.lists(st.tuples(CONFIDENCE, st.booleans()), min_size=1, max_size=40)


def drawn(rng: np.random.Generator, rows: int, tied: bool) -> list[tuple[float, bool]]:
    confidences = rng.integers(0, 21, rows) / 20 if tied else rng.random(rows)
    return [(float(c), bool(r)) for c, r in zip(confidences, rng.random(rows) < confidences, strict=True)]


def error_by_scikit_learn(pairs: list[tuple[float, bool]], bins: int, strategy: str) -> float:
    """Shares and mean confidences of the bins by scikit-learn, their numbers of rows by numpy."""
    confidences, right = [c for c, _ in pairs], [r for _, r in pairs]
    shares, means = calibration_curve(right, confidences, n_bins=bins, strategy=strategy, pos_label=True)
    steps = np.linspace(0, 1, bins + 1)[1:-1]
    ends = steps if strategy == "uniform" else np.quantile(confidences, steps)
    counts = np.bincount(np.digitize(confidences, ends, right=True))
    return float(np.abs(shares - means) @ counts[counts > 0]) / len(pairs)


@pytest.mark.parametrize("tied", [False, True])
def test_equal_width_bins_equal_scikit_learn(tied: bool) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        pairs = drawn(rng, int(rng.integers(1, 80)), tied)
        assert calibration_error(pairs, 10) == pytest.approx(error_by_scikit_learn(pairs, 10, "uniform"))


@pytest.mark.parametrize("tied", [False, True])
def test_equal_mass_bins_equal_scikit_learn_where_rows_divide_evenly(tied: bool) -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        pairs = drawn(rng, 10 * int(rng.integers(1, 9)), tied)
        assert calibration_error(pairs, 10, "mass") == pytest.approx(error_by_scikit_learn(pairs, 10, "quantile"))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40, unique=True), st.integers(1, 12))
def test_equal_mass_bins_differ_by_one_row_at_most(confidences: list[float], bins: int) -> None:
    """With bins of one row each, or of two, the error is that of the rows or of neighbours."""
    pairs = [(confidence, True) for confidence in confidences]
    assert calibration_error(pairs, len(pairs), "mass") == pytest.approx(1 - sum(confidences) / len(confidences))
    ordered = sorted((c, n % 2 == 0) for n, c in enumerate(confidences))
    slow, before = 0.0, 0
    for k in range(1, bins + 1):
        end = math.ceil(len(ordered) * k / bins - 1e-9)
        inside = ordered[before:end]
        slow += abs(sum(right - confidence for confidence, right in inside))
        assert len(inside) <= math.ceil(len(ordered) / bins)
        before = end
    assert calibration_error(ordered, bins, "mass") == pytest.approx(slow / len(ordered))


def test_hand_computed_errors() -> None:
    assert calibration_error(PAIRS, 2) == pytest.approx(0.25 * 0.3 + 0.75 * (2.5 / 3 - 2 / 3))
    assert calibration_error(PAIRS, 2, "mass") == pytest.approx(0.75 * abs(1.9 / 3 - 1 / 3) + 0.25 * 0.1)  # ties stay
    assert calibration_error([(0.5, True)], 2) == 0.5
    assert calibration_error([(0.5, False), (0.51, True)], 2) == pytest.approx((0.5 + 0.49) / 2)  # 0.5 is of the first
    assert calibration_error([(0.0, False), (1.0, True)], 15) == 0.0


@given(ROWS)
def test_brier_equals_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    theirs = brier_score_loss([int(right) for _, right in pairs], [c for c, _ in pairs], labels=[0, 1])
    assert brier_score(pairs) == pytest.approx(theirs)


def test_hand_computed_brier() -> None:
    assert brier_score(PAIRS) == pytest.approx((0.01 + 0.04 + 0.64 + 0.09) / 4)


def test_hand_computed_risk_and_coverage() -> None:
    assert risk_coverage(PAIRS) == [(0.9, 0.25, 0.0), (0.8, 0.75, pytest.approx(1 / 3)), (0.3, 1.0, 0.5)]
    assert risk_coverage_area(PAIRS) == pytest.approx((0 + 0.25 + 1 / 3 + 0.5) / 4)
    assert risk_coverage_area([(0.2, True)] * 3) == 0.0
    assert risk_coverage_area([(-7.0, False), (40.0, False)]) == 1.0  # any number can be a confidence here


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=6))
def test_the_area_is_the_mean_over_all_orders_of_tied_rows(pairs: list[tuple[float, bool]]) -> None:
    areas = []
    for order in itertools.permutations(pairs):
        ranked = sorted(order, key=lambda pair: -pair[0])  # stable: keeps the order inside ties
        wrong = itertools.accumulate(not right for _, right in ranked)
        areas.append(sum(w / n for n, w in enumerate(wrong, 1)) / len(ranked))
    assert risk_coverage_area(pairs) == pytest.approx(sum(areas) / len(areas))


@given(ROWS)
def test_each_point_is_what_answering_from_its_confidence_on_gives(pairs: list[tuple[float, bool]]) -> None:
    points = risk_coverage(pairs)
    assert [point.confidence for point in points] == sorted({c for c, _ in pairs}, reverse=True)
    for confidence, coverage, risk in points:
        answered = [right for c, right in pairs if c >= confidence]
        assert coverage == len(answered) / len(pairs)
        assert risk == answered.count(False) / len(answered)


@given(ROWS, st.integers(1, 15), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(pairs: list[tuple[float, bool]], bins: int, rng: random.Random) -> None:
    mixed = rng.sample(pairs, len(pairs))
    assert brier_score(mixed) == brier_score(pairs)
    assert calibration_error(mixed, bins) == calibration_error(pairs, bins)
    assert calibration_error(mixed, bins, "mass") == calibration_error(pairs, bins, "mass")
    assert risk_coverage(mixed) == risk_coverage(pairs)
    assert risk_coverage_area(mixed) == risk_coverage_area(pairs)


def test_nothing_is_none_and_what_is_no_probability_is_refused() -> None:
    assert (calibration_error([]), brier_score([]), risk_coverage_area([])) == (None, None, None)
    assert risk_coverage([]) == []
    for wrong in (math.nan, -0.1, 1.5, math.inf):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            brier_score([(wrong, True)])
        with pytest.raises(ValueError, match="expected 0 to 1"):
            calibration_error([(0.5, True), (wrong, True)])
    with pytest.raises(ValueError, match="is not a number"):
        risk_coverage([(math.nan, True)])
    with pytest.raises(ValueError, match="is not a number"):
        risk_coverage_area([(0.5, True), (math.nan, True)])
    with pytest.raises(ValueError, match="bins is 0"):
        calibration_error(PAIRS, 0)


@given(st.integers(1, 300), st.integers(2, 60))
def test_a_thinned_curve_keeps_its_ends_and_its_order(rows: int, most: int) -> None:
    curve = risk_coverage([(n / rows, n % 3 == 0) for n in range(rows)])
    kept = thinned(curve, most)
    assert len(kept) == min(len(curve), most)
    assert (kept[0], kept[-1]) == (curve[0], curve[-1])
    places = [curve.index(point) for point in kept]
    assert places == sorted(set(places))
    steps = {after - before for before, after in itertools.pairwise(places)}
    assert max(steps, default=0) - min(steps, default=0) <= 1  # evenly
