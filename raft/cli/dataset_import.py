"""raft dataset import: the output of Gorilla's RAFT script -> a dataset."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Overwrite, ToJson, default_out

if TYPE_CHECKING:
    from raft.dataset.gorilla import ImportSummary

_Share = Annotated[float, typer.Option(min=0.0, max=0.99, help="share of oracles whose questions leave train")]


def dataset_import(
    source: Annotated[Path, typer.Argument(help="JSON lines or Parquet file, or Hugging Face folder")],
    out: Annotated[Path | None, typer.Option(help="folder of the new dataset")] = None,
    dev: _Share = 0.05,
    test: _Share = 0.05,
    seed: Annotated[int, typer.Option(help="decides which oracles leave train")] = 0,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Make a dataset of what the RAFT script of Gorilla wrote; rows that break the contract are refused by name."""
    from raft.dataset.gorilla import import_gorilla
    from raft.errors import UsageError

    if dev + test >= 1.0:
        raise UsageError(f"--dev and --test are {dev + test} together", "Leave something to train: less than 1")
    folder = out or default_out("datasets", source.name.split(".")[0])
    summary = import_gorilla(source, folder, dev=dev, test=test, seed=seed, overwrite=overwrite)
    typer.echo(json.dumps(asdict(summary), default=str) if to_json else _as_text(summary))


def _as_text(summary: ImportSummary) -> str:
    examples = ", ".join(f"{split} {count}" for split, count in summary.examples.items())
    kept = summary.rows - summary.refused
    lines = [
        f"{summary.out}: {kept} of {summary.rows} rows taken ({examples}), {summary.refused} refused",
        f"{summary.oracle_share:.1%} of the examples hold their oracle",
        *(f"  refused by {rule}: {count}" for rule, count in summary.refused_by_rule.items()),
        f"next: raft dataset check {summary.out}",
    ]
    return "\n".join(lines)
