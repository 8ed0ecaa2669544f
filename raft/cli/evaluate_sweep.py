"""raft evaluate sweep: questions over documents that change, point by point -> how the answers change.

raft evaluate sweep configs/evaluate/sweep.toml --index indexes/medical --questions FILE --adapter runs/adapters/mine
raft evaluate sweep --index indexes/medical --questions FILE --sweep position --sweep injected --set limit=20
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raft.cli.options import Overwrite, Resume, Settings, ToJson, default_out, progress_bar
from raft.config import EvaluateSweepRecipe, load_recipe


def evaluate_sweep(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe, e.g. configs/evaluate/sweep.toml")] = None,
    index: Annotated[Path | None, typer.Option(help="index made by raft index")] = None,
    questions: Annotated[Path | None, typer.Option(help="questions with reference answers (JSONL)")] = None,
    adapter: Annotated[Path | None, typer.Option(help="tuned model made by raft train")] = None,
    dsf_adapter: Annotated[
        Path | None, typer.Option("--dsf-adapter", help="model tuned without documents, made by raft train")
    ] = None,
    model: Annotated[str | None, typer.Option(help="base model: hub id, folder, package:NAME")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="distractors, position, no_oracle, counterfactual, similar, order, injected or paraphrase "
            "(may be repeated) [default: all]"
        ),
    ] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new report")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Ask the same questions over more distractors, other places of the oracle, false or hostile documents."""
    from raft.evaluation import sweep_report, sweeps
    from raft.records import to_row

    chosen = load_recipe(
        EvaluateSweepRecipe, recipe, settings or (),
        index=index, questions=questions, adapter=adapter, dsf_adapter=dsf_adapter, model__model=model,
        sweeps=sweep or None, out=out,
    )  # fmt: skip
    folder = chosen.out or default_out("sweeps", recipe.stem if recipe else "sweep")
    with progress_bar("answers") as bar:
        task = bar.add_task("asking", total=None)

        def on_reply(done: int, total: int, system: str) -> None:
            bar.update(task, total=total, completed=done, description=f"asking  {system}")

        report = sweeps.evaluate_sweeps(chosen, folder, resume=resume, overwrite=overwrite, on_reply=on_reply)
    page = str(folder / "sweep.html")
    if to_json:
        typer.echo(json.dumps({**to_row(report), "report": page}, ensure_ascii=False))
        return
    typer.echo(sweep_report.to_markdown(report))
    typer.echo(f"report: {page}")
