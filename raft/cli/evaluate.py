"""raft evaluate: the same questions through several systems -> report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Overwrite, Resume, Settings, ToJson, default_out, progress_bar
from raft.config import EvaluateRecipe, load_recipe

if TYPE_CHECKING:
    from raft.evaluation.report import Report

_NOT_IN_JSON = ("questions", "results", "chunks")  # the long parts of report.json


def evaluate(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe, e.g. configs/evaluate/cpu.toml")] = None,
    index: Annotated[Path | None, typer.Option(help="index made by raft index")] = None,
    questions: Annotated[Path | None, typer.Option(help="questions with reference answers (JSONL)")] = None,
    adapter: Annotated[Path | None, typer.Option(help="tuned model made by raft train")] = None,
    dsf_adapter: Annotated[
        Path | None, typer.Option("--dsf-adapter", help="model tuned without documents, made by raft train")
    ] = None,
    model: Annotated[str | None, typer.Option(help="base model: hub id, folder, package:NAME")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new report")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Compare closed book, few-shot, RAG and RAFT on the same questions and write a report."""
    from raft.evaluation import compare

    chosen = load_recipe(
        EvaluateRecipe, recipe, settings or (),
        index=index, questions=questions, adapter=adapter, dsf_adapter=dsf_adapter, model__model=model, out=out,
    )  # fmt: skip
    folder = chosen.out or default_out("reports", recipe.stem if recipe else "evaluation")
    with progress_bar("answers") as bar:
        task = bar.add_task("evaluating", total=None)

        def on_reply(done: int, total: int, system: str) -> None:
            bar.update(task, total=total, completed=done, description=f"evaluating  {system}")

        report = compare.evaluate(chosen, folder, resume=resume, overwrite=overwrite, on_reply=on_reply)
    if to_json:
        typer.echo(summary_json(report, folder))
        return
    show_report(report)
    typer.echo(f"report: {folder / 'report.html'}")


def summary_json(report: Report, folder: Path) -> str:
    """The report without its rows, as one line of JSON; ``report`` is the path of the page."""
    from raft.records import to_row

    figures = {key: value for key, value in to_row(report).items() if key not in _NOT_IN_JSON}
    return json.dumps({**figures, "report": str(folder / "report.html")}, ensure_ascii=False)


def show_report(report: Report) -> None:
    """Print the table of the systems and the verdict: a drawn table on a terminal, Markdown elsewhere."""
    from raft.evaluation.report import markdown_table, systems_table

    header, rows = systems_table(report)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        typer.echo(markdown_table(header, rows))
    typer.echo("\n" + "\n".join(report.verdict) + "\n")
