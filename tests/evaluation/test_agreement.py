"""Kappa as others compute it, and its interval as a slow bootstrap gives it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.evaluation.agreement import cohen_kappa, kappa_interval


@given(pairs=st.lists(st.tuples(st.sampled_from([True, False, None]), st.booleans()), min_size=1, max_size=60))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[bool | None, bool]]) -> None:
    from sklearn.metrics import cohen_kappa_score

    first, second = [str(a) for a, _ in pairs], [str(b) for _, b in pairs]
    found = cohen_kappa([a for a, _ in pairs], [b for _, b in pairs])
    if len({*first, *second}) == 1:
        assert found is None
    else:
        assert found == pytest.approx(float(cohen_kappa_score(first, second)))


def test_kappa_by_hand() -> None:
    judged, people = [True] * 25 + [False] * 25, [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert cohen_kappa(judged, people) == pytest.approx(0.4)  # p_o = 0.7, p_e = 0.5
    with pytest.raises(ValueError, match="no pairs"):
        cohen_kappa([], [])


def slow_interval(judged: list[bool | None], people: list[bool], clusters: list[str]) -> tuple[float, float]:
    """Clusters drawn one by one, kappa computed anew, percentiles by sorting."""
    rng, names = random.Random(1), sorted(set(clusters))
    rows = {name: [(j, p) for j, p, c in zip(judged, people, clusters, strict=True) if c == name] for name in names}
    kappas = []
    for _ in range(3000):
        drawn = [pair for name in rng.choices(names, k=len(names)) for pair in rows[name]]
        kappas.append(cohen_kappa([j for j, _ in drawn], [p for _, p in drawn]) or 0.0)
    kappas.sort()
    return kappas[75], kappas[-76]


@pytest.mark.parametrize("right", [0.5, 0.8, 0.95])
def test_the_interval_of_kappa_is_that_of_a_slow_bootstrap_over_clusters(right: float) -> None:
    rng = random.Random(right)
    people = [rng.random() < 0.6 for _ in range(120)]
    judged = [None if rng.random() < 0.05 else human if rng.random() < right else not human for human in people]
    clusters = [str(n // rng.choice([1, 3])) for n in range(120)]
    found = kappa_interval(judged, people, clusters, confidence=0.95, resamples=3000, seed=0)
    assert found == pytest.approx(slow_interval(judged, people, clusters), abs=0.03)
    assert found == kappa_interval(judged, people, clusters, confidence=0.95, resamples=3000, seed=0)


def test_labels_that_lean_on_one_row_show_no_agreement() -> None:
    people = [True] * 99 + [False]  # a third of all resamples lack the one that tells
    judged: list[bool | None] = [*people]
    assert cohen_kappa(judged, people) == 1.0
    assert kappa_interval(judged, people, [*map(str, range(100))], confidence=0.95, resamples=500, seed=0) == (0.0, 1.0)


def test_a_single_cluster_allows_no_interval() -> None:
    assert kappa_interval([True, False], [True, False], ["q", "q"], confidence=0.95, resamples=100, seed=0) is None
    with pytest.raises(ValueError, match="no pairs"):
        kappa_interval([], [], [], confidence=0.95, resamples=100, seed=0)
    with pytest.raises(ValueError):
        kappa_interval([True], [True, False], ["q", "r"], confidence=0.95, resamples=100, seed=0)
