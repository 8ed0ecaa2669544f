"""raft show: what an artefact is and what made it."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from raft.artifacts import MANIFEST, Manifest, open_artifact
from raft.cli.options import ToJson, printable
from raft.errors import ArtifactError
from raft.rows import read_rows


def show(
    folder: Annotated[Path, typer.Argument(help="index, dataset, adapter or report")],
    samples: Annotated[int, typer.Option(min=0, help="examples of a dataset to print")] = 1,
    to_json: ToJson = False,
) -> None:
    """Check an artefact's files against their hashes and print what made it; of a dataset also what is in it."""
    manifest = open_artifact(folder, _kind(folder))
    if to_json:
        typer.echo(json.dumps(_as_row(folder, manifest, samples), ensure_ascii=False, default=str))
        return
    typer.echo(
        f"{manifest.kind} {folder}: whole, {len(manifest.files)} files, "
        f"made {manifest.created} in {manifest.seconds:.1f} s"
    )
    for title, values in (("facts", manifest.facts), ("inputs", manifest.inputs), ("recipe", manifest.recipe)):
        typer.echo(f"\n{title}")
        for key, value in values.items():
            typer.echo(printable(f"  {key} = {json.dumps(value, ensure_ascii=False, default=str)}"))
    typer.echo(f"\nmade with {', '.join(f'{k} {v}' for k, v in manifest.packages.items())} on {manifest.machine}")
    if manifest.kind == "dataset":
        _show_figures(folder, manifest)
        _show_samples(folder, samples)


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"{folder} is not a finished artefact: it has no readable {MANIFEST}") from None


def _as_row(folder: Path, manifest: Manifest, samples: int) -> dict[str, object]:
    row = asdict(manifest)
    if manifest.kind == "dataset":
        from raft.dataset.figures import dataset_figures

        row["figures"] = asdict(dataset_figures(folder, manifest.facts))
        row["samples"] = _samples(folder, samples)
    return row


def _show_figures(folder: Path, manifest: Manifest) -> None:
    from raft.dataset.figures import dataset_figures, figures_text

    for line in figures_text(dataset_figures(folder, manifest.facts)):
        typer.echo(printable(line))


def _samples(folder: Path, count: int) -> list[dict[str, object]]:
    path = folder / "train.jsonl"
    return list(islice(read_rows(path), count)) if path.exists() else []


def _show_samples(folder: Path, count: int) -> None:
    for row in _samples(folder, count):
        context = row["context"]
        size = len(context) if isinstance(context, list) else 0
        typer.echo(f"\nexample {printable(str(row['id']))} over {size} chunks, oracle present: {row['oracle_present']}")
        typer.echo(f"  question: {printable(str(row['question']))}")
        typer.echo("  target:   " + "\n".join(printable(line) for line in str(row["target"]).split("\n")))
