"""The second table of a report: figures that the first has no room for, each with what it means.

Only the columns that a system has a figure in are shown::

    figures_table(systems) -> (["system", "ROUGE-L", "truthfulness"],
                               [["RAG", "0.31 [0.24, 0.39]", "-0.40 [-0.55, -0.24]"], ["RAFT", ...]])

A figure that is over fewer questions than were asked says over how many: ``1.00 (n = 1)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from raft.evaluation.scoring import SystemScores
from raft.evaluation.verdict import DASH, show


class _Column(NamedTuple):
    title: str
    meaning: str
    cell: Callable[[SystemScores], str]


def _mean(name: str) -> Callable[[SystemScores], str]:
    return lambda s: _over(show(getattr(s, name)), s.counts.get(name, s.n), s.n)


def _of_confidence(name: str) -> Callable[[SystemScores], str]:
    return lambda s: _over(show(getattr(s.calibration, name)), s.calibration.n, s.n) if s.calibration else DASH


def _citations(s: SystemScores) -> str:
    quotes = s.counts.get("quotes_in_oracle", s.n)
    precise = show(s.quotes_in_oracle)
    if precise != DASH and quotes < s.n:
        precise += f" ({quotes} quote{'s' * (quotes != 1)})"
    return f"{precise} / {_mean('citation_recall')(s)}"


def _over(shown: str, n: int, asked: int) -> str:
    return shown if shown == DASH or n >= asked else f"{shown} (n = {n})"


_COLUMNS = (
    _Column(
        "ROUGE-L", "longest common subsequence of words with the reference", _mean("rouge_l")
    ),
    _Column(
        "contains reference", "the words of a reference stand in the answer", _mean("contains")
    ),
    _Column(
        "numbers", "all numbers of a reference stand in the answer, with their units", _mean("numeric")
    ),
    _Column(
        "critical facts", "F1 of numbers with units, section numbers and negation", _mean("critical_f1")
    ),
    _Column(
        "truthfulness", "1 for a right answer, 0 for none, -1 for a wrong one", _mean("truthfulness")
    ),
    _Column(
        "grounded (words)", "share of the answer's words that stand in its documents", _mean("groundedness")
    ),
    _Column(
        "grounded (NLI)", "a model of entailment finds that the documents support the answer",
        _mean("nli_groundedness"),
    ),
    _Column("relevance", "cosine of question and answer, by the index's encoder", _mean("relevance")),
    _Column(
        "citations P / R", "of the quotes, the share that stand in an oracle; of the oracles given, the share quoted",
        _citations,
    ),
    _Column(
        "calibration error", "distance of the confidence (how probable the model found its answer, a token on average) "
        "from the share that are right, over 10 bins, lower is better; over few questions it comes out too high",
        _of_confidence("error"),
    ),
    _Column(
        "Brier", "mean squared distance of the confidence from 1 for right and 0 for wrong, lower is better",
        _of_confidence("brier"),
    ),
    _Column(
        "risk-coverage area", "mean share of wrong answers over all coverages, lower is better",
        _of_confidence("risk_coverage_area"),
    ),
    _Column(
        "AUROC", "chance that a right answer has a higher confidence than a wrong one; 0.5 tells nothing",
        _of_confidence("auroc"),
    ),
)  # fmt: skip


def figures_table(systems: Sequence[SystemScores]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text; the header is ["system"] where no system has such a figure."""
    columns = _shown(systems)
    rows = [[s.title, *(column.cell(s) for column in columns)] for s in systems]
    return ["system", *(column.title for column in columns)], rows


def figures_note(systems: Sequence[SystemScores]) -> str:
    """What the shown columns mean, and how many replies have no confidence."""
    said = ["; ".join(f"{column.title}: {column.meaning}" for column in _shown(systems)) + "."]
    unsure = [f"{c.without} of {s.n} ({s.title})" for s in systems if (c := s.calibration) and c.without]
    figures = "calibration error, Brier, risk-coverage area and AUROC"
    said += [f"Replies without a confidence, which {figures} leave out: {', '.join(unsure)}."] if unsure else []
    return " ".join(said)


def _shown(systems: Sequence[SystemScores]) -> list[_Column]:
    return [column for column in _COLUMNS if any(set(column.cell(s)) - set(f"{DASH} /") for s in systems)]
