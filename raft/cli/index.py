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
    from raft.indexing.build import IndexSummary
    from raft.indexing.embeddings import OnProgress

_SHOWN = 10  # files left out that the summary names; outcomes.jsonl names all


def index(
    source: Annotated[Path | None, typer.Argument(help="Folder or file of documents.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe, e.g. configs/index/cpu.toml.")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the index [default: indexes/NAME].")] = None,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Read, chunk and encode documents into a searchable index, or bring one up to date."""
    from raft.config import IndexRecipe, load_recipe, require
    from raft.indexing.build import build_index

    chosen = load_recipe(IndexRecipe, recipe, settings or (), source=source, out=out)
    documents: Path = require(chosen.source, "source", "SOURCE")
    with progress_bars() as on_progress:
        summary = build_index(
            documents,
            chosen.out or default_index(documents),
            reading=chosen.reading,
            rules=chosen.rules,
            chunking=chosen.chunking,
            encoder=chosen.encoder,
            dense=chosen.dense,
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
        "version": summary.version,
        "changed": summary.changed,
        "documents": summary.documents,
        "chunks": summary.chunks,
        "cut": summary.cut,
        "parsed": summary.parsed,
        "encoded": summary.encoded,
        "outcomes": summary.outcomes,
        "idle_rules": summary.idle_rules,
        "left_out": [{"source": o.source, "status": o.status, "reason": o.reason} for o in summary.left_out],
        "seconds": round(summary.seconds, 2),
    }


def _as_text(summary: IndexSummary) -> str:
    what = f"{summary.documents} documents, {summary.chunks} chunks"
    if summary.changed:
        lines = [f"{summary.path}: {what}, in {summary.seconds:.1f} s ({summary.encoded} chunks encoded)"]
    else:
        lines = [f"{summary.path}: {what}, up to date: nothing has changed since {summary.version} was made"]
    if summary.cut:
        lines.append(f"{summary.cut} chunks are longer than the encoder reads: dense search sees only their beginning")
    lines += [f"rule {path!r} matches no file: nothing gets its labels and tags" for path in summary.idle_rules]
    lines += _table(summary)
    lines.append(f'Next: raft search "your question" --index {summary.path}')
    return "\n".join(printable(line) for line in lines)


def _table(summary: IndexSummary) -> list[str]:
    """What became of the files and rows: counts, and the first of those that were left out."""
    if not summary.left_out:
        return []
    counts = ", ".join(f"{count} {status}" for status, count in sorted(summary.outcomes.items()))
    shown = summary.left_out[:_SHOWN]
    width = max(len(outcome.source) for outcome in shown)
    lines = [f"files and rows: {counts}"]
    lines += [f"  {o.status:8} {o.source:{width}}  {o.reason}" for o in shown]
    if len(summary.left_out) > _SHOWN:
        all_in = summary.path / summary.version / "outcomes.jsonl"
        lines.append(f"  and {len(summary.left_out) - _SHOWN} more, all in {all_in}")
    return lines
