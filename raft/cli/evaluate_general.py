"""raft evaluate general: what a tuned model can do beside what it was tuned for, before and after.

raft evaluate general --adapter runs/adapters/mine
raft evaluate general --adapter runs/adapters/mine --task arc_easy --task hellaswag --limit 200
raft evaluate general --adapter runs/adapters/mine --task-folder my-tasks --task wards
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Overwrite, Settings, ToJson, default_out, progress_bar
from raft.config import load_recipe
from raft.config_evaluate import EvaluateGeneralRecipe

if TYPE_CHECKING:
    from raft.evaluation.general import GeneralReport


def evaluate_general(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe")] = None,
    adapter: Annotated[Path | None, typer.Option(help="tuned model made by raft train")] = None,
    model: Annotated[str | None, typer.Option(help="the model before [default: what the adapter was tuned on]")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "--tasks", help="task of lm-evaluation-harness, where installed (may be repeated)"),
    ] = None,
    task_folder: Annotated[
        Path | None, typer.Option(help="folder of your own tasks for it (YAML; may name Python that is run)")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="at most this many questions of each task")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new report")] = None,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Measure what the tuning cost: general text, multiple choice, everyday chat, tasks of lm-evaluation-harness."""
    from raft.evaluation import general

    chosen = load_recipe(
        EvaluateGeneralRecipe, recipe, settings or (),
        adapter=adapter, model=model, tasks=task or None, task_folder=task_folder, limit=limit, out=out,
    )  # fmt: skip
    named = f"{chosen.adapter.resolve().name}-general" if chosen.adapter else "general"
    folder = chosen.out or default_out("reports", named)
    with progress_bar("models") as bar:
        row = bar.add_task("asking", total=2)
        begun: list[str] = []

        def on_side(side: str) -> None:
            bar.update(row, completed=len(begun), description=f"asking  {side}")
            begun.append(side)

        report = general.evaluate_general(chosen, folder, overwrite=overwrite, on_side=on_side)
    _show(report, str(folder / "report.md"), to_json)


def _show(report: GeneralReport, page: str, to_json: bool) -> None:
    from raft.evaluation import general_report
    from raft.records import to_row

    if to_json:
        typer.echo(json.dumps({**to_row(report), "report": page}, ensure_ascii=False))
        return
    typer.echo("\n".join(general_report.verdict(report)))
    for score in report.tasks:
        typer.echo(general_report.task_line(score))
    typer.echo(f"report: {page}")
