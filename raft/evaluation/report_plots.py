"""Where the risk-coverage curves of a report are drawn: pixels, and labels that do not cover each other.

A curve that is answered at once is a point; the label of each line stands to the right of where it ends::

    Curve(system="raft", title="RAFT", kind=4, tuned=True, points="46.0,210.0 203.0,190.1 360.0,131.4",
          end=(360.0, 131.4), label=128.0, text="0.31 wrong when all are answered, 0.12 for the surest half; ...")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raft.config import SystemName
from raft.evaluation.scoring import Calibration, SystemScores
from raft.evaluation.verdict import show

LEFT, RIGHT, TOP = 46.0, 360.0, 12.0  # of the frame, in pixels
_APART, _LEAST = 16.0, 210.0  # pixels between labels, least height of the frame


@dataclass(frozen=True, slots=True)
class Curve:
    """The line of one system. ``kind`` is its place among all systems (its mark and colour), ``label`` the height of
    its label, ``text`` what the line says, for those who do not see it."""

    system: SystemName
    title: str
    kind: int
    tuned: bool
    points: str
    end: tuple[float, float]
    label: float
    text: str


@dataclass(frozen=True, slots=True)
class RiskPlot:
    """The plot of all curves: from LEFT to RIGHT the share answered, from ``bottom`` up to TOP the share wrong."""

    curves: tuple[Curve, ...]
    bottom: float
    unsure: Mapping[SystemName, int]

    def across(self, coverage: float) -> float:
        return LEFT + (RIGHT - LEFT) * coverage

    def down(self, risk: float) -> float:
        return self.bottom - (self.bottom - TOP) * risk


def risk_plot(systems: Sequence[SystemScores]) -> RiskPlot | None:
    """The risk-coverage curves of the systems that have them, None where none has. ``unsure`` of the plot counts, by
    system, the replies that no curve holds for want of a confidence."""
    drawn = [(n, s, s.calibration) for n, s in enumerate(systems) if s.calibration is not None]
    if not drawn:
        return None
    plot = RiskPlot((), TOP + max(_LEAST, _APART * len(drawn)), {s.system: c.without for _, s, c in drawn if c.without})
    ends = [(plot.across(c.curve[-1].coverage), plot.down(c.curve[-1].risk)) for _, _, c in drawn]
    labels = spread([y for _, y in ends], _APART, TOP, plot.bottom)
    curves = tuple(
        Curve(
            s.system, s.title, kind, s.tuned,
            " ".join(f"{plot.across(p.coverage):.1f},{plot.down(p.risk):.1f}" for p in c.curve), end, label, _told(c),
        )
        for (kind, s, c), end, label in zip(drawn, ends, labels, strict=True)
    )  # fmt: skip
    return RiskPlot(curves, plot.bottom, plot.unsure)


def _told(calibration: Calibration) -> str:
    half = next(point for point in calibration.curve if point.coverage >= 0.5)
    return (
        f"{show(calibration.curve[-1].risk)} wrong when all are answered, {show(half.risk)} for the surest "
        f"{half.coverage:.0%}; area {show(calibration.risk_coverage_area)}"
    )


def spread(heights: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Heights near those given, in their order, at least ``apart`` from each other and within ``low`` to ``high``
    (where that has room for them)."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [0.0] * len(heights)
    at = low - apart
    for i in order:
        at = placed[i] = max(heights[i], at + apart)
    at = high + apart
    for i in reversed(order):
        at = placed[i] = min(placed[i], at - apart)
    return placed
