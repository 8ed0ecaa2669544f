"""Does a system know when it is right? Figures over (confidence, right) pairs, one a question::

    pairs = [(0.9, True), (0.8, True), (0.8, False), (0.3, False)]
    calibration_error(pairs, bins=2)     -> 0.2, of which 0.075 where 0 of 1 are right, 0.125 where 2 of 3 are
    brier_score(pairs)                   -> 0.195
    risk_coverage(pairs)                 -> [(0.9, 0.25, 0.0), (0.8, 0.75, 0.333...), (0.3, 1.0, 0.5)]
    risk_coverage_area(pairs)            -> 0.270...

The order of the pairs changes no figure: rows of one confidence fall into the same bin, and are answered or left
together. None stands for nothing to count. A confidence that is not a number is refused with ValueError, and so is one
outside of 0 to 1 where a probability is asked for.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Literal, NamedTuple

Pairs = Sequence[tuple[float, bool]]


class Selected(NamedTuple):
    """What answering only from this ``confidence`` on comes to: ``coverage`` is the share of questions that are
    answered, ``risk`` the share of wrong ones among their answers."""

    confidence: float
    coverage: float
    risk: float


def calibration_error(pairs: Pairs, bins: int = 10, edges: Literal["width", "mass"] = "width") -> float | None:
    """Expected calibration error, from 0 to 1: the mean over bins, weighted by their rows, of |share right - mean
    confidence| (Guo et al. 2017, section 2, equation 3). None of nothing.

    Bins of equal ``width`` are (0, 1/bins], (1/bins, 2/bins] and so on, the first with 0 (Guo et al. 2017); those of
    equal ``mass`` hold as equal numbers of rows as ties allow (Nguyen & O'Connor 2015, section 3). Raises ValueError
    for a number of bins below 1.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; expected 1 or more")
    _check_probabilities(pairs)
    if not pairs:
        return None
    ordered = sorted(confidence for confidence, _ in pairs)
    if edges == "mass":
        ends = [ordered[-(-len(pairs) * k // bins) - 1] for k in range(1, bins)]  # the value at rank ceil(n k / bins)
    else:
        ends = [k / bins for k in range(1, bins)]
    gaps: dict[int, list[float]] = {}
    for confidence, right in pairs:  # an end belongs to the bin that it ends
        gaps.setdefault(bisect_left(ends, confidence), []).append(float(right) - confidence)
    return math.fsum(abs(math.fsum(inside)) for inside in gaps.values()) / len(pairs)


def brier_score(pairs: Pairs) -> float | None:
    """The mean of (confidence - right)², from 0 to 1 (Brier 1950, in the form for two outcomes). None of nothing."""
    _check_probabilities(pairs)
    return math.fsum((confidence - right) ** 2 for confidence, right in pairs) / len(pairs) if pairs else None


def risk_coverage(pairs: Pairs) -> list[Selected]:
    """The risk-coverage curve (Geifman & El-Yaniv 2017, section 2): a point for each confidence that occurs, highest
    first. Empty of nothing."""
    points, answered, wrong = [], 0, 0
    for confidence, rows, errors in _groups(pairs):
        answered, wrong = answered + rows, wrong + errors
        points.append(Selected(confidence, answered / len(pairs), wrong / answered))
    return points


def thinned(points: Sequence[Selected], most: int) -> list[Selected]:
    """At most ``most`` (2 or more) of the points, evenly by their place, the first and the last among them: a curve to
    draw."""
    if len(points) <= most:
        return list(points)
    return [points[round(at * (len(points) - 1) / (most - 1))] for at in range(most)]


def risk_coverage_area(pairs: Pairs) -> float | None:
    """The area under the risk-coverage curve, from 0 to 1, lower is better: the mean risk of answering the 1, 2, ...
    n most confident questions (Geifman & El-Yaniv 2017; Geifman, Uziel & El-Yaniv 2019). None of nothing.

    Inside a tie it is the mean over all orders of the tied rows, in which each of them is as wrong as they are
    together.
    """
    risks: list[float] = []
    answered, wrong = 0, 0
    for _, rows, errors in _groups(pairs):
        risks += [(wrong + n * errors / rows) / (answered + n) for n in range(1, rows + 1)]
        answered, wrong = answered + rows, wrong + errors
    return math.fsum(risks) / len(risks) if risks else None


def _groups(pairs: Pairs) -> list[tuple[float, int, int]]:
    """(confidence, rows, wrong rows) of each confidence, highest first."""
    if any(math.isnan(confidence) for confidence, _ in pairs):
        raise ValueError(f"a confidence of {len(pairs)} is not a number")
    counts: list[tuple[float, int, int]] = []
    for confidence, rows in groupby(sorted(pairs, reverse=True), key=lambda pair: pair[0]):
        right = Counter(bool(good) for _, good in rows)
        counts.append((confidence, right.total(), right[False]))
    return counts


def _check_probabilities(pairs: Pairs) -> None:
    strange = [confidence for confidence, _ in pairs if not 0.0 <= confidence <= 1.0]
    if strange:
        raise ValueError(f"a confidence is {strange[0]} ({len(strange)} of {len(pairs)}); expected 0 to 1")
