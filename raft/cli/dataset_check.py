"""raft dataset check: a dataset -> proof that it keeps its word, or exit code 6."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import ToJson, printable

if TYPE_CHECKING:
    from raft.dataset.check import Finding


def dataset_check(
    dataset: Annotated[Path, typer.Argument(help="dataset made by raft generate")],
    to_json: ToJson = False,
) -> None:
    """Check contexts, oracles, quotes, targets and splits of a dataset, and that no dev or test document leaks."""
    from raft.dataset.check import check_dataset
    from raft.errors import CheckFailed

    findings = check_dataset(dataset)
    if to_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False))
    else:
        for finding in findings:
            typer.echo(printable(_line(finding)))
    failed = [finding.name for finding in findings if not finding.holds]
    if failed:
        raise CheckFailed(f"{dataset} fails {len(failed)} of {len(findings)} checks: {', '.join(failed)}")


def _line(finding: Finding) -> str:
    said = f"{'ok    ' if finding.holds else 'FAILED'}  {finding.name}: {finding.checked:,} checked"
    if finding.first:
        said += f", {finding.broken:,} broken, the first: {', '.join(finding.first)}"
    return f"{said}; {finding.note}" if finding.note else said
