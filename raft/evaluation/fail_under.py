"""Conditions that a report must meet, for the CI of whoever tunes a model: ``raft evaluate --fail-under CONDITION``::

    rag.f1+0.02              RAFT's f1 must be at least RAG's plus 0.02 (the lead's, where the report has another lead)
    mine.em=few_shot_rag.em  the em of the system mine must be at least that of few_shot_rag
    raft.truthfulness=0.3    RAFT's truthfulness must be at least 0.3

A condition compares the means over the questions as report.json has them. A figure with nothing to count, or of a
system that was not evaluated, meets no condition.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raft.errors import CheckFailed, UsageError

METRICS = (
    "em", "f1", "accuracy", "macro_f1", "rouge_l", "contains", "numeric", "critical_f1", "truthfulness",
    "quote_validity", "quoted_answers", "quotes_in_oracle", "citation_recall", "groundedness", "nli_groundedness",
    "relevance", "abstention_precision", "abstention_recall", "well_formed",
)  # fmt: skip
"""The figures that a condition may name: all are better when they are higher."""
GRAMMAR = "[SYSTEM.METRIC=]SYSTEM.METRIC[+NUMBER|-NUMBER] or SYSTEM.METRIC=NUMBER"
_SLACK = 1e-9  # 0.1 + 0.2 is not above 0.3
_NAME, _NUMBER = r"[a-z][a-z0-9_]*", r"(?:\d+(?:\.\d+)?|\.\d+)"
_AROUND = re.compile(r"\s*([=+-])\s*")
_FIGURE = re.compile(rf"({_NAME})\.({_NAME})")
_BOUND = re.compile(rf"(?P<figure>{_NAME}\.{_NAME})(?P<shift>[+-]{_NUMBER})?|(?P<number>-?{_NUMBER})")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a system; ``system`` is None for the lead of the report."""

    system: str | None
    metric: str


@dataclass(frozen=True, slots=True)
class Condition:
    """``left`` must be at least ``right`` plus ``shift``; without ``right``, at least ``shift``. ``text``: as given."""

    text: str
    left: Figure
    right: Figure | None
    shift: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a condition is met; ``said`` tells it to people. ``found`` and ``needed`` are None where a figure has
    nothing to count."""

    condition: str
    met: bool
    found: float | None
    needed: float | None
    said: str


def parse_conditions(texts: Sequence[str]) -> list[Condition]:
    """The conditions of the command line. Raises UsageError for one that is not of the grammar, or that names a figure
    not in METRICS."""
    return [_parse(text) for text in texts]


def _parse(text: str) -> Condition:
    given, equals, rest = _AROUND.sub(r"\1", text.strip()).rpartition("=")  # other spaces are no part of a condition
    left = _FIGURE.fullmatch(given)
    bound = _BOUND.fullmatch(rest)
    if bound is None or (equals and left is None) or (not equals and bound["figure"] is None):
        raise UsageError(f"--fail-under {text!r} cannot be read; expected {GRAMMAR}", "For example rag.f1+0.02")
    right = Figure(*bound["figure"].split(".")) if bound["figure"] else None
    least = Figure(left[1], left[2]) if left else Figure(None, right.metric if right else "")
    for figure in (least, right):
        if figure and figure.metric not in METRICS:
            raise UsageError(f"--fail-under {text!r}: no figure {figure.metric!r}", f"Known are {', '.join(METRICS)}")
    return Condition(text, least, right, float(bound["shift"] or bound["number"] or 0))


def check_systems(conditions: Sequence[Condition], names: Collection[str], lead: str | None) -> None:
    """Raises UsageError when a condition names a system that is not among ``names``, or leaves it to the lead where
    there is none."""
    for condition in conditions:
        for figure in (condition.left, condition.right):
            if figure is None or (figure.system or lead) in names:
                continue
            if figure.system is None:
                why = f"no system leads, so that it does not say whose {figure.metric} is meant"
                raise UsageError(f"--fail-under {condition.text!r}: {why}", f"Put SYSTEM.{figure.metric}= before it")
            known = ", ".join(names)
            raise UsageError(f"--fail-under {condition.text!r}: {figure.system!r} does not run", f"Name one of {known}")


def outcomes(
    conditions: Sequence[Condition], systems: Mapping[str, Mapping[str, Any]], lead: str | None
) -> list[Outcome]:
    """What the conditions come to on these systems: their rows of report.json, by name. ``lead`` is the system meant
    where a condition names none on its left."""
    return [_outcome(condition, systems, lead) for condition in conditions]


def _outcome(condition: Condition, systems: Mapping[str, Mapping[str, Any]], lead: str | None) -> Outcome:
    found, least = _value(condition.left, systems, lead), condition.shift
    left = f"{condition.left.system or lead}.{condition.left.metric}"
    needed: float | None = least
    name = shift = ""
    if condition.right is not None:
        base = _value(condition.right, systems, lead)
        needed = None if base is None else base + least
        name = f"{condition.right.system}.{condition.right.metric}"
        shift = f" {'+' if least > 0 else '-'} {abs(least):.4g}" if least else ""
    met = found is not None and needed is not None and found >= needed - _SLACK
    digits = _digits(found, needed)
    if needed is None:
        wanted = f"{name}{shift}, and {name} has no value"
    elif condition.right is None:
        wanted = f"{least:.{max(4, digits)}g}"
    else:
        wanted = f"{name}{shift} = {needed:.{digits}f}{_over(condition.right, systems)}"
    over = _over(condition.left, systems, lead)
    has = f"{left} is {found:.{digits}f}{over}" if found is not None else f"{left} has no value"
    return Outcome(condition.text, met, found, needed, f"{has}; expected at least {wanted}")


def _digits(found: float | None, needed: float | None) -> int:
    """How many decimals are shown: four, or more where two figures that differ would else look equal."""
    if found is None or needed is None or abs(found - needed) <= _SLACK:
        return 4
    return next((n for n in (4, 6, 9) if f"{found:.{n}f}" != f"{needed:.{n}f}"), 9)


def _over(figure: Figure, systems: Mapping[str, Mapping[str, Any]], lead: str | None = None) -> str:
    """Over how many questions, or quotes, a figure is, where those are not all questions."""
    row = systems.get(figure.system or lead or "", {})
    count = (row.get("counts") or {}).get(figure.metric)
    return "" if count is None or count == row.get("n") else f" (n = {count})"


def _value(figure: Figure, systems: Mapping[str, Mapping[str, Any]], lead: str | None) -> float | None:
    """The mean that a row holds: a number, an interval, or of the label scores; None where there is none."""
    row = systems.get(figure.system or lead or "", {})
    if figure.metric in ("accuracy", "macro_f1"):
        row = row.get("labels") or {}
    value = row.get(figure.metric)
    if isinstance(value, Mapping):
        value = value.get("mean")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def require(found: Sequence[Outcome]) -> None:
    """Says on stderr, a line each, which conditions are not met; raises CheckFailed when there are any."""
    failed = [outcome for outcome in found if not outcome.met]
    for outcome in failed:
        print(f"raft: --fail-under {outcome.condition}: {outcome.said}", file=sys.stderr)
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(found)} conditions of --fail-under are not met")
