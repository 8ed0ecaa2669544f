"""The report of raft evaluate judge: report.json for machines, report.md for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raft import artifacts
from raft.evaluation.report import markdown_table
from raft.records import to_row

if TYPE_CHECKING:
    from raft.evaluation.judged import Agreement, JudgedReport, JudgedScore

_DASH = "–"


def to_markdown(report: JudgedReport) -> str:
    """Each figure of the judge beside its agreement with people; where none is shown, why."""
    by_metric = {each.metric: each for each in report.agreement}
    rows = [_row(score, by_metric[score.metric]) for score in report.scores]
    parts = [f"# {report.name}", f"Judged by {report.judge}; intervals at {report.settings['confidence']:.0%}."]
    header = ["system", "metric", "share", "n", "no verdict", "agrees with people"]
    parts += [markdown_table(header, rows)] if rows else []
    parts += [f"{each.metric}: {each.doubt}." for each in report.agreement if each.doubt]
    parts += [f"{each.metric}: no figures, for {each.withheld}." for each in report.agreement if each.withheld]
    parts += [f"Note: {note}." for note in report.notes]
    return "\n\n".join(parts) + "\n"


def _row(score: JudgedScore, agreement: Agreement) -> list[str]:
    found = score.holds
    share = f"{found.mean:.2f}" + ("" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]")
    return [score.title, score.metric, share, str(score.n), str(score.failures), agreement_line(agreement)]


def agreement_line(found: Agreement) -> str:
    """``κ = 0.71 [0.58, 0.83], 0.87 of 120, 2 without verdict``, and the doubt where there is one."""
    if found.agree is None:
        return _DASH
    kappa = _DASH if found.kappa is None else f"{found.kappa:.2f}"
    low_high = "" if found.kappa_low is None else f" [{found.kappa_low:.2f}, {found.kappa_high:.2f}]"
    failures = f", {found.failures} without verdict" if found.failures else ""
    doubt = f"; {found.doubt}" if found.doubt else ""
    return f"κ = {kappa}{low_high}, {found.agree:.2f} of {found.n}{failures}{doubt}"


def write(report: JudgedReport, folder: Path) -> None:
    """Write report.json and report.md into ``folder``."""
    artifacts.write_json(folder / "report.json", to_row(report))
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
