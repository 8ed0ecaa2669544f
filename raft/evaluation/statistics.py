"""How sure a figure is: intervals, paired tests and the smallest difference a question set can show.

Questions about one document are not independent, so that everything here resamples or flips whole clusters (the
source documents). All randomness comes from the given seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 256  # resamples drawn at once, so that memory stays small


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its interval; ``low`` and ``high`` are None where a single cluster allows none."""

    mean: float
    low: float | None
    high: float | None


def bootstrap_interval(
    values: Sequence[float], clusters: Sequence[str], *, confidence: float, resamples: int, seed: int
) -> Interval:
    """The mean of ``values`` with its percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3),
    resampling whole clusters (Davison & Hinkley 1997, section 3.8).

    Raises ValueError when there are no values or a value has no cluster.
    """
    import numpy as np

    sums, sizes = _cluster_sums(values, clusters)
    centre = float(sums.sum() / sizes.sum())
    count = len(sums)
    if count < 2:
        return Interval(centre, None, None)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for at in range(0, resamples, _BLOCK):
        drawn = rng.integers(count, size=(min(_BLOCK, resamples - at), count))  # (block, clusters)
        means[at : at + len(drawn)] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(centre, float(low), float(high))


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
    for at in range(0, resamples, _BLOCK):
        signs = rng.integers(2, size=(min(_BLOCK, resamples - at), len(sums))) * 2 - 1  # (block, clusters)
        hits += int((np.abs(signs @ sums) >= observed - slack).sum())
    return (hits + 1) / (resamples + 1)


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
