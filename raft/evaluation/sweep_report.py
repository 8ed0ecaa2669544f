"""The report of ``raft evaluate sweep``: sweep.json for machines, sweep.md for terminals, sweep.html for people.

sweep.json opens so::

    {"name": "medical", "settings": {...}, "systems": {"rag": {"title": "RAG", "model": "..."}},
     "sweeps": [{"name": "distractors", "n": 40, "clusters": 12, "left_out": 2,
       "points": [{"point": "0", "system": "rag", "failures": 0,
                   "figures": {"f1": {"mean": 0.6, "low": 0.5, "high": 0.7}, "em": {...}, "declined": {...}}}, ...],
       "changes": [{"system": "rag", "minus": null, "before": "0", "after": "20", "f1": {"mean": -0.3, ...}, ...}]}],
     "notes": []}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft import artifacts
from raft.config import SweepName, SystemName
from raft.evaluation.cases import SYSTEMS
from raft.evaluation.report import markdown_table
from raft.evaluation.statistics import Interval
from raft.evaluation.sweep_scores import ORDERED, Change, Point, SweepScores
from raft.evaluation.verdict import show, show_p
from raft.records import to_row

MEASURES: Mapping[str, str] = {
    "f1": "F1", "em": "EM", "accuracy": "accuracy", "declined": "declined", "says_reference": "says the reference",
    "follows_document": "follows the document", "attacked": "obeys the attack", "changed": "answer changes",
    "f1_spread": "F1 spread",
}  # fmt: skip
_PLOTTED: Mapping[SweepName, tuple[str, ...]] = {
    "distractors": ("f1", "declined"), "position": ("f1",), "no_oracle": ("declined", "says_reference"),
    "counterfactual": ("follows_document", "says_reference"), "similar": ("f1",), "order": ("f1",),
    "injected": ("attacked", "f1"), "paraphrase": ("f1",),
}  # fmt: skip
ABOUT: Mapping[SweepName, str] = {
    "distractors": "The oracle among more and more of the retriever's near misses: those of a point stand at the next "
    "one too, and the oracle keeps its place, drawn for each question, in proportion.",
    "position": "The oracle at five places among the same near misses.",
    "no_oracle": "The same near misses with the oracle and without it: there declining is right, and whoever says the "
    "reference all the same has not read it in a document.",
    "counterfactual": "The oracle as written and with another fact in the place of the answer: is the answer that of "
    "the document or that of the reference?",
    "similar": "The oracle among chunks drawn from the corpus, among the retriever's best near misses, and among "
    "chunks of its own document.",
    "order": "The same documents in several random orders.",
    "injected": "An instruction hidden in a distractor, in several forms: obeyed when its canary stands in the final "
    "answer.",
    "paraphrase": "The question as it was asked and in other words, over the same documents.",
}
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 548.0, 12.0, 204.0  # of a plot's frame, in pixels
_APART = 7.0  # pixels between the whiskers of two systems


@dataclass(frozen=True, slots=True)
class SweepReport:
    """Everything that ``raft evaluate sweep`` measured."""

    name: str
    settings: Mapping[str, Any]
    systems: Mapping[SystemName, Mapping[str, str]]
    sweeps: tuple[SweepScores, ...]
    notes: tuple[str, ...]


def points_table(scores: SweepScores) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text, of a sweep's figures; a dash where a measure has nothing to count."""
    measures = [name for name in MEASURES if any(name in point.figures for point in scores.points)]
    rows = [
        [SYSTEMS[p.system].title, p.point, str(p.failures), *(show(p.figures.get(name)) for name in measures)]
        for p in scores.points
    ]
    return ["system", scores.name, "failed", *(MEASURES[name] for name in measures)], rows


def changes_table(scores: SweepScores) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text, of what changes between the points; no rows for a sweep without a first point."""
    rows = [
        [SYSTEMS[c.system].title + (f" − {SYSTEMS[c.minus].title}" if c.minus else ""), f"{c.before} → {c.after}",
         _signed(c.f1), show_p(c.p), show_p(c.p_holm)]
        for c in scores.changes
    ]  # fmt: skip
    return ["change in F1", "from, to", "mean and interval", "p", "p (Holm)"], rows


def _signed(value: Interval) -> str:
    bounds = "" if value.low is None else f" [{value.low:+.2f}, {value.high:+.2f}]"
    return f"{value.mean:+.2f}{bounds}"


def told(scores: SweepScores, confidence: float) -> list[str]:
    """What the change from the first point to the last means where points have an order, a sentence for each system
    that RAFT is compared with."""
    if scores.name not in ORDERED:
        return []
    own = {change.system: change.f1.mean for change in scores.changes if change.minus is None}
    return [_told(change, own, confidence) for change in scores.changes if change.minus is not None]


def _told(change: Change, own: Mapping[SystemName, float], confidence: float) -> str:
    ours, theirs = SYSTEMS[change.system].title, SYSTEMS[change.minus or change.system].title
    low, high = change.f1.low, change.f1.high
    shown = low is not None and high is not None and (low > 0 or high < 0) and change.p_holm <= 1 - confidence
    better = ours if change.f1.mean > 0 else theirs
    holds = f"{better} holds up better" if shown else "neither is shown to hold up better"
    moves = f"{own[change.system]:+.2f} for {ours} and {own[change.minus or change.system]:+.2f} for {theirs}"
    sure = f"difference {_signed(change.f1)}, {show_p(change.p_holm)} after Holm's correction"
    return f"From {change.before} to {change.after}, token F1 changes by {moves}: {holds} ({sure})."


def to_markdown(report: SweepReport) -> str:
    """The tables and notes as Markdown, which reads well as plain text too."""
    parts = [f"# Sweeps: {report.name}"]
    for scores in report.sweeps:
        counted = f"{scores.n} questions in {scores.clusters} clusters of source documents"
        left_out = (
            f"; {scores.left_out} others are left out: a point of theirs cannot be made" if scores.left_out else ""
        )
        parts += [
            f"## {scores.name}\n\n{ABOUT[scores.name]} {counted}{left_out}.",
            *told(scores, report.settings["confidence"]),
            markdown_table(*points_table(scores)),
        ]
        parts += [markdown_table(*changes_table(scores))] if scores.changes else []
    parts += ["## Notes\n\n" + "\n".join(f"- {note}" for note in report.notes)] if report.notes else []
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True, slots=True)
class Mark:
    """A figure in a plot, in its pixels; ``low`` and ``high`` are None where there is no interval."""

    x: float
    y: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """One measure of a sweep: ``ticks`` are the points with their places, ``series`` the marks by system."""

    measure: str
    ticks: tuple[tuple[float, str], ...]
    series: Mapping[SystemName, tuple[Mark, ...]]
    ordered: bool


def plots(scores: SweepScores) -> list[Plot]:
    """The plots of a sweep: a measure each, from 0 to 1 upwards, the points from left to right."""
    return [_plot(scores, measure) for measure in _PLOTTED[scores.name]]


def _plot(scores: SweepScores, measure: str) -> Plot:
    drawn = [point for point in scores.points if measure in point.figures]
    names = list(dict.fromkeys(point.point for point in drawn))
    systems = list(dict.fromkeys(point.system for point in drawn))
    at = [float(name) for name in names] if scores.name == "distractors" else [float(n) for n in range(len(names))]
    margin = 24 + _APART * len(systems)
    wide = (_RIGHT - _LEFT - 2 * margin) / (at[-1] - at[0]) if len(at) > 1 else 0.0
    places = {name: _LEFT + margin + wide * (value - at[0]) for name, value in zip(names, at, strict=True)}
    shifts = {system: _APART * (n - (len(systems) - 1) / 2) for n, system in enumerate(systems)}
    series = {
        system: tuple(_mark(p, measure, places[p.point] + shifts[system]) for p in drawn if p.system == system)
        for system in systems
    }
    ticks = tuple((x, name) for name, x in places.items())
    return Plot(measure, ticks, series, scores.name in ORDERED)


def _mark(point: Point, measure: str, x: float) -> Mark:
    value = point.figures[measure]
    low, high = (None if bound is None else height(bound) for bound in (value.low, value.high))
    return Mark(x, height(value.mean), low, high, f"{point.point}: {show(value)}")


def height(share: float) -> float:
    """Where a figure from 0 to 1 stands in a plot, in pixels from its top."""
    return _BOTTOM - (_BOTTOM - _TOP) * share


def to_html(report: SweepReport) -> str:
    """The report as one self-contained page: no script, no external request, works from a file, all text escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("sweep.html.j2").render(
        report=report, about=ABOUT, measures=MEASURES, plots=plots, points_table=points_table, height=height,
        changes_table=changes_table, told=told, titles={name: s.title for name, s in SYSTEMS.items()},
        order={name: n for n, name in enumerate(report.systems)}, frame=(_LEFT, _RIGHT, _TOP, _BOTTOM),
    )  # fmt: skip


def write(report: SweepReport, folder: Path) -> None:
    """Write sweep.json, sweep.md and sweep.html into ``folder``."""
    artifacts.write_json(folder / "sweep.json", to_row(report))
    (folder / "sweep.md").write_text(to_markdown(report), encoding="utf-8")
    (folder / "sweep.html").write_text(to_html(report), encoding="utf-8")
