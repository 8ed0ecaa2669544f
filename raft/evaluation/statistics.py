"""How sure a figure is: intervals, paired tests and the smallest difference a question set can show.

Questions about one document are not independent, so that everything here resamples or flips whole clusters (the
source documents). All randomness comes from the given seed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_BLOCK, _CELLS = 256, 4_000_000  # resamples, and cells of resamples x clusters, drawn at once: memory stays small

Sample = tuple[Sequence[float], Sequence[str]]
"""Values, and the cluster of each."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its interval; ``low`` and ``high`` are None where a single cluster allows none."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Spread:
    """How a figure differs between runs: mean, standard deviation and an interval of the mean; a single run has the
    mean alone."""

    runs: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def bootstrap_interval(
    values: Sequence[float], clusters: Sequence[str], *, confidence: float, resamples: int, seed: int
) -> Interval:
    """The mean of ``values`` with its percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3),
    resampling whole clusters (Davison & Hinkley 1997, section 3.8).

    Raises ValueError when there are no values or a value has no cluster.
    """
    return bootstrap_intervals([(values, clusters)], confidence=confidence, resamples=resamples, seed=seed)[0]


def bootstrap_intervals(samples: Sequence[Sample], *, confidence: float, resamples: int, seed: int) -> list[Interval]:
    """What ``bootstrap_interval`` says of each sample, in their order. Which clusters a resample holds follows from
    their number and the seed alone, so that all samples of as many clusters share their draws: they take most of the
    time. Raises ValueError as ``bootstrap_interval`` does.
    """
    import numpy as np

    counted = [_cluster_sums(values, clusters) for values, clusters in samples]
    found = [Interval(float(sums.sum() / sizes.sum()), None, None) for sums, sizes in counted]
    alike: defaultdict[int, list[int]] = defaultdict(list)  # number of clusters -> places of the samples
    for place, (sums, _) in enumerate(counted):
        alike[len(sums)].append(place)
    tail = 100 * (1 - confidence) / 2
    for count, places in alike.items():
        if count < 2:
            continue
        means = _resampled_means([counted[place] for place in places], resamples, np.random.default_rng(seed))
        for place, (low, high) in zip(places, np.percentile(means, [tail, 100 - tail], axis=0).T, strict=True):
            found[place] = Interval(found[place].mean, float(low), float(high))
    return found


def _resampled_means(
    counted: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """The mean of each sample in each resample, of shape (resamples, samples); all have as many clusters."""
    import numpy as np

    sums, sizes = (np.stack(each, axis=1) for each in zip(*counted, strict=True))  # (clusters, samples)
    count = len(sums)
    means = np.empty((resamples, len(counted)))
    block = _block(count)
    for at in range(0, resamples, block):
        drawn = rng.integers(count, size=(min(block, resamples - at), count))
        drawn += np.arange(len(drawn))[:, None] * count  # numbers of resample and cluster in one
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)
        means[at : at + len(drawn)] = (times @ sums) / (times @ sizes)
    return means


def _block(count: int) -> int:
    """How many resamples of so many clusters are drawn at once."""
    return max(1, min(_BLOCK, _CELLS // count))


def paired_differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """first - second, question by question; bootstrap and test these. Raises ValueError on unequal lengths."""
    return [a - b for a, b in zip(first, second, strict=True)]


def sign_flip_p(differences: Sequence[float], clusters: Sequence[str], *, resamples: int, seed: int) -> float:
    """Two-sided p-value of a mean difference of zero, by flipping the signs of whole clusters at random.

    The permutation test for pairs (Fisher 1935) with (hits + 1) / (resamples + 1), which is never zero
    (Phipson & Smyth 2010, equation 2). Raises ValueError as ``bootstrap_interval`` does.
    """
    import numpy as np

    sums, _ = _cluster_sums(differences, clusters)
    observed = abs(float(sums.sum()))
    slack = 1e-12 * max(1.0, float(np.abs(sums).sum()))  # equal statistics must not differ by rounding
    rng = np.random.default_rng(seed)
    hits = 0
    block = _block(len(sums))
    for at in range(0, resamples, block):
        signs = rng.integers(2, size=(min(block, resamples - at), len(sums))) * 2 - 1  # (block, clusters)
        hits += int((np.abs(signs @ sums) >= observed - slack).sum())
    return (hits + 1) / (resamples + 1)


def mcnemar_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided p-value that two systems are right equally often, from the questions on which just one of them is.

    The exact test (McNemar 1947, with the binomial distribution instead of its approximation): twice the chance of a
    split of those questions as uneven as this one, at most 1; 1.0 where there are none. It takes questions for
    independent: where they share documents, ``sign_flip_p`` is the test. Raises ValueError on unequal lengths.
    """
    pairs = list(zip(first, second, strict=True))
    ahead, behind = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    split = ahead + behind
    term = tail = 1
    for k in range(min(ahead, behind)):
        term = term * (split - k) // (k + 1)  # the binomial coefficient of k + 1: whole numbers, no rounding
        tail += term
    return min(1.0, float(2 * tail / 2**split))


def run_spread(values: Sequence[float], *, confidence: float) -> Spread:
    """Mean and sample standard deviation of a figure over runs that differ in their seed, with Student's t interval of
    the mean (Student 1908): mean ± t((1 + confidence) / 2, runs - 1) · deviation / sqrt(runs).

    Raises ValueError when there are no values, or one is not a finite number.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"the figures of the runs are {list(values)}; expected finite numbers")
    runs = len(values)
    centre = math.fsum(values) / runs
    if runs == 1:
        return Spread(1, centre, None, None, None)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (runs - 1))
    half = float(stdtrit(runs - 1, (1 + confidence) / 2)) * deviation / math.sqrt(runs)
    return Spread(runs, centre, deviation, centre - half, centre + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for their number by Holm's step-down method (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for step, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[i]))
        corrected[i] = highest
    return corrected


def minimum_detectable_difference(
    differences: Sequence[float], clusters: Sequence[str], *, confidence: float, power: float = 0.8
) -> float | None:
    """The smallest true mean difference that these questions would show with the given power, or None with a
    single cluster.

    (z(1 - alpha/2) + z(power)) times the cluster-robust standard error of the mean (Miller 2024,
    arXiv 2411.00640, sections 2.2 and 5).
    """
    import numpy as np

    sums, sizes = _cluster_sums(differences, clusters)
    count, total = len(sums), float(sizes.sum())
    if count < 2:
        return None
    residuals = sums - sizes * (sums.sum() / total)
    error = math.sqrt(float(np.square(residuals).sum()) * count / (count - 1)) / total
    normal = NormalDist()
    return (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)) * error


def _cluster_sums(values: Sequence[float], clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Per cluster, in order of name: the sum of its values and their number, each of shape (clusters,)."""
    import numpy as np

    if not values or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters; expected equal numbers above 0")
    _, which = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(which, weights=np.asarray(values, dtype=float)), np.bincount(which).astype(float)
