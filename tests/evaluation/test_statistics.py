"""Intervals and tests against brute force, closed forms and their own promises on synthetic data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raft.evaluation import statistics
from raft.evaluation.statistics import (
    bootstrap_interval,
    bootstrap_intervals,
    holm,
    mcnemar_p,
    minimum_detectable_difference,
    paired_differences,
    run_spread,
    sign_flip_p,
)


def single(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def test_the_interval_equals_a_loop_over_resampled_clusters() -> None:
    rng = np.random.default_rng(3)
    clusters = [str(c) for c in rng.integers(9, size=60)]
    values = rng.random(60).tolist()
    members = [[v for v, c in zip(values, clusters, strict=True) if c == name] for name in sorted(set(clusters))]
    draws = np.random.default_rng(5)
    means = []
    for _ in range(20_000):
        picked = [members[i] for i in draws.integers(len(members), size=len(members))]
        means.append(np.mean([value for group in picked for value in group]))
    found = bootstrap_interval(values, clusters, confidence=0.9, resamples=20_000, seed=1)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [5, 95]), abs=0.004)


def test_the_interval_equals_scipy_when_every_question_is_its_own_cluster() -> None:
    values = np.random.default_rng(0).random(80)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    ours = bootstrap_interval(values.tolist(), single(80), confidence=0.95, resamples=20_000, seed=0)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def slow_interval(
    values: Sequence[float], clusters: Sequence[str], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """The means of resamples drawn one by one, each by picking its clusters."""
    names = sorted(set(clusters))
    members = [[v for v, c in zip(values, clusters, strict=True) if c == name] for name in names]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        picked = [members[i] for i in rng.integers(len(names), size=len(names))]
        means.append(sum(map(sum, picked)) / sum(map(len, picked)))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


@pytest.mark.parametrize("cells", [4_000_000, 100, 1])
def test_intervals_that_share_their_draws_are_those_of_each_alone(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_CELLS", cells)  # smaller blocks draw the same
    rng = np.random.default_rng(7)
    samples = []
    for n, of in ((60, 9), (60, 9), (200, 23), (12, 9), (5, 1), (40, 40)):
        clusters = [str(i) for i in range(of)] + [str(c) for c in rng.integers(of, size=n - of)]
        samples.append((rng.random(n).tolist(), clusters))
    drawn: Any = {"confidence": 0.9, "resamples": 700, "seed": 3}
    found = bootstrap_intervals(samples, **drawn)
    for (values, clusters), interval in zip(samples, found, strict=True):
        alone = bootstrap_interval(values, clusters, **drawn)
        assert interval.mean == alone.mean == pytest.approx(np.mean(values), abs=1e-12)
        if len(set(clusters)) == 1:
            assert (interval.low, interval.high) == (alone.low, alone.high) == (None, None)
            continue
        slow = slow_interval(values, clusters, **drawn)
        assert (interval.low, interval.high) == pytest.approx(slow, abs=1e-12)
        assert (alone.low, alone.high) == pytest.approx(slow, abs=1e-12)
    assert bootstrap_intervals([], **drawn) == []
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_intervals([samples[0], ([], [])], **drawn)


def test_samples_of_as_many_clusters_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(seed) or real(seed))
    samples = [([float(n), 1.0, 0.5], ["a", "b", "c"]) for n in range(20)] + [([0.0, 1.0], ["a", "b"])]
    bootstrap_intervals(samples, confidence=0.95, resamples=50, seed=1)
    assert made == [1, 1]


def test_clustered_intervals_cover_the_truth_where_unclustered_ones_do_not() -> None:
    rng = np.random.default_rng(11)
    covered = {"clustered": 0, "single": 0}
    for seed in range(150):
        means = rng.normal(0.0, 1.0, size=30)  # 30 documents, 8 questions each; the truth is 0
        values = (means[:, None] + rng.normal(0, 0.3, size=(30, 8))).ravel().tolist()
        documents = [str(i) for i in range(30) for _ in range(8)]
        for name, clusters in (("clustered", documents), ("single", single(240))):
            found = bootstrap_interval(values, clusters, confidence=0.95, resamples=400, seed=seed)
            assert found.low is not None
            assert found.high is not None
            covered[name] += found.low <= 0 <= found.high
    assert covered["clustered"] / 150 > 0.88
    assert covered["single"] / 150 < 0.7


def test_same_seed_same_interval_and_the_order_of_questions_does_not_matter() -> None:
    values, clusters = [0.0, 1.0, 0.5, 0.25], ["b", "a", "b", "c"]
    order = [2, 0, 3, 1]
    first = bootstrap_interval(values, clusters, confidence=0.95, resamples=500, seed=4)
    again = bootstrap_interval(
        [values[i] for i in order], [clusters[i] for i in order], confidence=0.95, resamples=500, seed=4
    )
    assert first == again


def test_one_cluster_gives_no_interval_and_empty_input_is_refused() -> None:
    found = bootstrap_interval([0.2, 0.4], ["a", "a"], confidence=0.95, resamples=100, seed=0)
    assert (found.mean, found.low, found.high) == (pytest.approx(0.3), None, None)
    assert minimum_detectable_difference([0.2, 0.4], ["a", "a"], confidence=0.95) is None
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_interval([], [], confidence=0.95, resamples=100, seed=0)
    with pytest.raises(ValueError, match="2 values and 1 clusters"):
        sign_flip_p([0.1, 0.2], ["a"], resamples=100, seed=0)


def test_sign_flips_approach_the_exact_permutation_test() -> None:
    differences, clusters = [0.4, 0.1, -0.2, 0.5, 0.3, 0.6, -0.1, 0.2], ["a", "a", "b", "c", "d", "e", "f", "g"]
    sums = [sum(d for d, c in zip(differences, clusters, strict=True) if c == name) for name in "abcdefg"]
    totals = [
        abs(sum(s * f for s, f in zip(sums, flips, strict=True))) for flips in itertools.product((1, -1), repeat=7)
    ]
    exact = np.mean([t >= abs(sum(sums)) - 1e-9 for t in totals])
    assert sign_flip_p(differences, clusters, resamples=20_000, seed=0) == pytest.approx(exact, abs=0.01)


def test_p_is_never_zero_and_is_one_without_any_difference() -> None:
    assert sign_flip_p([1.0] * 60, single(60), resamples=999, seed=0) == 1 / 1000  # +1 (Phipson & Smyth 2010)
    assert sign_flip_p([0.0] * 10, single(10), resamples=999, seed=0) == 1.0


def test_the_permutation_test_keeps_its_level_under_the_null() -> None:
    rng = np.random.default_rng(2)
    rejected = sum(
        sign_flip_p(rng.normal(size=25).tolist(), single(25), resamples=300, seed=s) <= 0.05 for s in range(400)
    )
    assert 0.02 < rejected / 400 < 0.085


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_equals_its_definition(p_values: list[float]) -> None:
    ordered = sorted(p_values)
    corrected = holm(p_values)
    for p, found in zip(p_values, corrected, strict=True):
        last = max(i for i, q in enumerate(ordered) if q == p)
        steps = [min(1.0, (len(ordered) - j) * ordered[j]) for j in range(last + 1)]
        assert found == pytest.approx(max(steps)) or p_values.count(p) > 1
    assert [c for _, c in sorted(zip(p_values, corrected, strict=True))] == sorted(corrected)
    assert all(c >= p for p, c in zip(p_values, corrected, strict=True))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_the_detectable_difference_is_the_closed_form_and_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(8)
    differences = rng.normal(0, 0.4, size=100)
    least = minimum_detectable_difference(differences.tolist(), single(100), confidence=0.95)
    assert least == pytest.approx((1.959964 + 0.841621) * differences.std(ddof=1) / 10, rel=1e-5)
    shown = 0
    for seed in range(200):
        drawn = rng.normal(0.112, 0.4, size=100).tolist()  # 0.112 is what 100 questions of spread 0.4 can show
        shown += sign_flip_p(drawn, single(100), resamples=300, seed=seed) <= 0.05
    assert 0.7 < shown / 200 < 0.9


OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60)


@given(OUTCOMES)
def test_mcnemar_is_the_binomial_test_of_the_questions_that_tell_two_systems_apart(
    pairs: list[tuple[bool, bool]],
) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    ahead, behind = pairs.count((True, False)), pairs.count((False, True))
    expected = stats.binomtest(ahead, ahead + behind).pvalue if ahead + behind else 1.0
    assert mcnemar_p(first, second) == pytest.approx(expected)
    assert mcnemar_p(second, first) == mcnemar_p(first, second)


def test_mcnemar_by_hand_and_beside_the_sign_flips() -> None:
    first, second = [True] * 8 + [False] * 2 + [True] * 30, [False] * 8 + [True] * 2 + [True] * 30
    assert mcnemar_p(first, second) == 2 * (1 + 10 + 45) / 1024
    differences = paired_differences(first, second)
    flipped = sign_flip_p(differences, single(40), resamples=20_000, seed=0)  # the same test, of lone questions
    assert flipped == pytest.approx(mcnemar_p(first, second), abs=0.01)
    assert mcnemar_p([True, False], [True, False]) == 1.0
    assert mcnemar_p([], []) == 1.0
    assert mcnemar_p([True] * 3000, [False] * 3000) == 0.0  # 2 ** -2999, below what a float can hold
    with pytest.raises(ValueError, match="shorter"):
        mcnemar_p([True, True], [True])


@pytest.mark.parametrize(("ahead", "behind"), [(500, 460), (700, 300), (1203, 1203), (0, 40)])
def test_mcnemar_is_exact_of_many_questions_too(ahead: int, behind: int) -> None:
    first = [True] * ahead + [False] * behind
    split = ahead + behind
    exact = min(1.0, 2 * sum(math.comb(split, k) for k in range(min(ahead, behind) + 1)) / 2**split)
    assert mcnemar_p(first, [not a for a in first]) == exact


@given(
    st.lists(st.integers(-999, 999).map(lambda n: n / 8), min_size=2, max_size=12, unique=True),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
)
def test_the_spread_of_runs_is_students_interval(values: list[float], confidence: float) -> None:
    found = run_spread(values, confidence=confidence)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert (found.runs, found.mean) == (len(values), pytest.approx(np.mean(values), abs=1e-9))
    assert found.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert (found.low, found.high) == (pytest.approx(theirs.low, abs=1e-6), pytest.approx(theirs.high, abs=1e-6))


def test_the_spread_of_runs_by_hand() -> None:
    found = run_spread([1.0, 2.0, 3.0], confidence=0.95)
    assert (found.mean, found.deviation) == (2.0, 1.0)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-6)  # t(0.975, 2) of the tables is 4.303
    same = run_spread([0.5, 0.5], confidence=0.95)
    assert (same.deviation, same.low, same.high) == (0.0, 0.5, 0.5)
    alone = run_spread([0.4], confidence=0.95)
    assert (alone.runs, alone.mean, alone.deviation, alone.low, alone.high) == (1, 0.4, None, None, None)
    for wrong in ([], [0.1, float("nan")]):
        with pytest.raises(ValueError, match="expected finite numbers"):
            run_spread(wrong, confidence=0.95)


def test_paired_differences_refuse_unequal_question_sets() -> None:
    assert paired_differences([1.0, 0.5], [0.5, 1.0]) == [0.5, -0.5]
    with pytest.raises(ValueError, match="shorter"):
        paired_differences([1.0, 0.5], [0.5])
