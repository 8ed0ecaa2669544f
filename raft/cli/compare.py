"""raft compare: reports over the same questions -> what changed from the first to the others.

raft compare runs/reports/before runs/reports/after
raft compare runs/reports/seed-0 runs/reports/seed-1 runs/reports/seed-2
raft compare runs/reports/mine --fail-under rag.f1+0.02
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raft.cli.evaluate import FailUnder
from raft.cli.options import ToJson, printable


def compare(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="folders that raft evaluate made")],
    systems: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="FIRST LATER",
            help="pair a system of the first report with one of the others [default: each with its namesake]",
        ),
    ] = None,
    fail_under: FailUnder = None,
    to_json: ToJson = False,
) -> None:
    """Compare reports over the same questions: paired differences, flipped answers, spread over three runs or more.

    A single report can be checked with --fail-under; of several, the last is checked.
    """
    from raft.evaluation import between_reports
    from raft.evaluation import fail_under as gate
    from raft.evaluation.saved_report import open_report
    from raft.records import to_row

    conditions = gate.parse_conditions(fail_under or ())
    found = between_reports.compare_reports(reports, systems) if len(reports) > 1 or not conditions else None
    outcomes = []
    if conditions:
        checked = open_report(reports[-1])
        lead = checked.settings.get("lead", "raft")
        gate.check_systems(conditions, checked.systems, lead)
        outcomes = gate.outcomes(conditions, checked.systems, lead)
    if to_json:
        row = {**(to_row(found) if found else {}), "fail_under": [to_row(outcome) for outcome in outcomes]}
        typer.echo(json.dumps(row, ensure_ascii=False))
    elif found is not None:
        for line in between_reports.to_markdown(found).splitlines():
            typer.echo(printable(line))
    gate.require(outcomes)
