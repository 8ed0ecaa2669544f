"""raft index: documents -> searchable index."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Overwrite, Settings, ToJson, printable

if TYPE_CHECKING:
    from raft.retrieval.index import IndexSummary, OnProgress

_SHOWN = 10  # files left out that the summary names; outcomes.jsonl names all


def index(
    source: Annotated[Path | None, typer.Argument(help="Folder or file of documents.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe, e.g. configs/index/cpu.toml.")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new index [default: indexes/NAME].")] = None,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Read, chunk and encode documents into a searchable index."""
    from raft.config import IndexRecipe, load_recipe, require
    from raft.retrieval.index import build_index

    chosen = load_recipe(IndexRecipe, recipe, settings or (), source=source, out=out)
    documents: Path = require(chosen.source, "source", "SOURCE")
    with progress_bars() as on_progress:
        summary = build_index(
            documents,
            chosen.out or default_index(documents),
            chunking=chosen.chunking,
            encoder=chosen.encoder,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    print(json.dumps(_as_row(summary), ensure_ascii=False) if to_json else _as_text(summary))


def default_index(source: Path) -> Path:
    """``indexes/NAME``: the source folder's name; that of the folder above for a file or a ``documents`` folder."""
    folder = source.resolve()
    if folder.is_file() or folder.name == "documents":
        folder = folder.parent
    return Path("indexes") / (folder.name or "corpus")


@contextlib.contextmanager
def progress_bars() -> Iterator[OnProgress]:
    """A bar a stage on stderr, with its rate and the time left; where stderr is no terminal, its last state only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    tasks: dict[str, tuple[TaskID, float]] = {}
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:

        def on_progress(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, rate="-"), time.monotonic()
            task, began = tasks[stage]
            rate = done / max(time.monotonic() - began, 1e-3)
            progress.update(task, completed=done, total=total, rate=f"{rate:.0f}")

        yield on_progress


def _as_row(summary: IndexSummary) -> dict[str, object]:
    return {
        "index": str(summary.path),
        "documents": summary.documents,
        "chunks": summary.chunks,
        "cut": summary.cut,
        "left_out": [{"source": o.source, "status": o.status, "reason": o.reason} for o in summary.left_out],
        "seconds": round(summary.seconds, 2),
    }


def _as_text(summary: IndexSummary) -> str:
    lines = [
        f"{summary.path}: {summary.documents} documents, {summary.chunks} chunks, in {summary.seconds:.1f} s",
    ]
    if summary.cut:
        lines.append(f"{summary.cut} chunks are longer than the encoder reads: dense search sees only their beginning")
    if summary.left_out:
        lines.append(f"{len(summary.left_out)} files or rows were left out:")
        lines += [f"  {o.status} {o.source}: {o.reason}" for o in summary.left_out[:_SHOWN]]
    if len(summary.left_out) > _SHOWN:
        lines.append(f"  and {len(summary.left_out) - _SHOWN} more, all in {summary.path / 'outcomes.jsonl'}")
    lines.append(f'Next: raft search "your question" --index {summary.path}')
    return "\n".join(printable(line) for line in lines)
