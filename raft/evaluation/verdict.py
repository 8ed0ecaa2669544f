"""What a comparison means, in plain sentences, and how figures are shown to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raft.config import SystemName
from raft.evaluation.scoring import Difference, Sampling, SystemScores
from raft.evaluation.statistics import Interval

DASH = "–"


@dataclass(frozen=True, slots=True)
class Majority:
    """The constant answer: what always saying the commonest label of these questions would reach."""

    label: str
    accuracy: float
    macro_f1: float


def write_verdict(
    systems: Sequence[SystemScores],
    differences: Sequence[Difference],
    majority: Majority | None,
    counted: Mapping[str, Any],
    draw: Sampling,
) -> tuple[str, ...]:
    """The report in plain sentences, the decisive one first."""
    by_name = {scores.system: scores for scores in systems}
    fair = [s for s in systems if s.documents != "oracle"] or list(systems)
    strongest = max(fair, key=lambda s: s.f1.mean)
    lead = by_name[differences[0].system] if differences else by_name.get("raft", strongest)
    said = [_compare(by_name, difference, counted, draw) for difference in _decisive(fair, differences)]
    if not said:
        alone = "" if any(s.tuned for s in systems) else "No tuned model was evaluated. "
        said = [f"{alone}{strongest.title} has the highest token F1: {show(strongest.f1)}."]
    said += _on_labels(lead, majority) + _on_retrieval(lead) + _on_abstention(lead, counted)
    failures = sum(scores.failures for scores in systems)
    if failures:
        said.append(f"{failures} of {sum(s.n for s in systems)} replies failed; they count as wrong answers.")
    return tuple(said)


def _decisive(fair: Sequence[SystemScores], differences: Sequence[Difference]) -> list[Difference]:
    """The differences that a verdict needs: to RAG, and to the strongest system that is not tuned; where there is
    neither, to the strongest."""
    others = [s for s in fair if any(d.minus == s.system for d in differences)]
    rivals = [s for s in others if not s.tuned] or others
    strongest = max(rivals, key=lambda s: s.f1.mean).system if rivals else None
    return [d for name in dict.fromkeys(["rag", strongest]) for d in differences if d.minus == name]


def _compare(
    systems: Mapping[SystemName, SystemScores], difference: Difference, counted: Mapping[str, Any], draw: Sampling
) -> str:
    ours, theirs = systems[difference.system], systems[difference.minus]
    low, high = difference.f1.low, difference.f1.high
    figures = f"token F1 {ours.f1.mean:.2f} against {theirs.f1.mean:.2f}, a difference of {difference.f1.mean:+.2f}"
    if low is None or high is None:
        return (
            f"{ours.title} and {theirs.title}: {figures}. All questions stem from one source: no interval can be given."
        )
    interval = f"{draw.confidence:.0%} interval {low:+.2f} to {high:+.2f}"
    sure = f"({interval}; {show_p(difference.p_holm)} after Holm's correction)"
    shown = difference.p_holm <= 1 - draw.confidence and (low > 0 or high < 0)
    if shown:
        return f"{ours.title} answers {'better' if low > 0 else 'worse'} than {theirs.title}: {figures} {sure}."
    least = difference.minimum_detectable
    limit = f" {counted['n']} questions can show a difference of about {least:.2f} or more." if least else ""
    return f"{ours.title} is not shown to be better or worse than {theirs.title}: {figures} {sure}.{limit}"


def _on_labels(lead: SystemScores, majority: Majority | None) -> list[str]:
    if lead.labels is None or majority is None:
        return []
    return [
        f"On the {lead.labels.n} label questions {lead.title} has accuracy {show(lead.labels.accuracy)}; always "
        f"answering {majority.label!r} would reach {majority.accuracy:.2f}."
    ]


def _on_retrieval(lead: SystemScores) -> list[str]:
    given, missing = lead.f1_oracle_given, lead.f1_oracle_missing
    if lead.documents != "hits" or (given is None and missing is None):
        return []
    scores = [f"{given.mean:.2f} where it did"] if given else []
    scores += [f"{missing.mean:.2f} where it did not"] if missing else []
    return [
        f"Retrieval found everything needed for {lead.n_oracle_given} of {lead.n_with_oracle} answerable questions; "
        f"{lead.title} has token F1 {' and '.join(scores)}."
    ]


def _on_abstention(lead: SystemScores, counted: Mapping[str, Any]) -> list[str]:
    unanswerable = counted["unanswerable"]
    if not unanswerable:
        return []
    declined = round((lead.abstention_recall or 0.0) * unanswerable)
    answerable = counted["n"] - unanswerable
    wrongly = round((lead.false_abstention_rate or 0.0) * answerable)
    return [
        f"Of the {unanswerable} questions that cannot be answered from the documents, {lead.title} declined {declined};"
        f" of the {answerable} that can, it declined {wrongly}."
    ]


def show(value: Interval | float | int | None, digits: int = 2) -> str:
    """A figure for people: ``0.42 [0.35, 0.49]``, ``0.42``, or a dash for nothing."""
    if value is None:
        return DASH
    if isinstance(value, Interval):
        if value.low is None or value.high is None:
            return f"{value.mean:.{digits}f}"
        return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    return f"{value:.{digits}f}"


def show_p(p: float) -> str:
    """``p = 0.012``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
