"""raft dataset export: a dataset -> the form of another program."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from raft.cli.options import Overwrite, ToJson
from raft.dataset.exporters import ExportForm
from raft.records import Split


def dataset_export(
    dataset: Annotated[Path, typer.Argument(help="dataset made by raft generate")],
    form: Annotated[str, typer.Option("--format", help=", ".join(get_args(ExportForm)))],
    out: Annotated[Path, typer.Option(help="folder of the export")],
    split: Annotated[list[str] | None, typer.Option(help="split to export (may be repeated; all without it)")] = None,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Write a dataset for Hugging Face datasets, OpenAI, TRL, Axolotl, LLaMA-Factory, or raft evaluate."""
    from raft.dataset.exporters import export_dataset

    chosen: ExportForm = _one_of("--format", form, get_args(ExportForm))
    splits: list[Split] = [_one_of("--split", name, get_args(Split)) for name in split or ()]
    summary = export_dataset(dataset, chosen, out, splits=splits, overwrite=overwrite)
    if to_json:
        typer.echo(json.dumps(asdict(summary), default=str))
    else:
        typer.echo(f"{out}: {', '.join(f'{name} {count:,}' for name, count in summary.rows.items())} rows as {form}")


def _one_of(option: str, value: str, known: tuple[str, ...]) -> Any:
    from raft.errors import UsageError

    if value not in known:
        raise UsageError(f"{option} is {value!r}", f"Expected one of {', '.join(known)}")
    return value
