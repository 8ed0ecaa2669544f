"""raft tune: RAFT dataset -> the settings of raft train with the lowest dev loss."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Overwrite, Resume, Settings, ToJson, default_out, printable, progress_bar
from raft.config import load_recipe, require
from raft.config_train_rules import PREFERENCE_OBJECTIVES
from raft.config_tune import Space, TuneRecipe

if TYPE_CHECKING:
    from raft.training.search import SearchSummary
    from raft.training.search_study import Tried


def tune(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe, e.g. configs/tune/cpu.toml")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="dataset made by raft generate")] = None,
    trials: Annotated[int | None, typer.Option(min=2, help="trainings at most, that of the start among them")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new artefact")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    to_json: ToJson = False,
) -> None:
    """Search for the settings of raft train with the lowest dev loss, by training again and again."""
    chosen = load_recipe(TuneRecipe, recipe, settings or (), dataset=data, trials=trials, out=out)
    dataset = Path(require(chosen.dataset or chosen.train.dataset, "dataset", "--data"))
    folder = chosen.out or default_out("tunings", dataset.name)
    if dry_run:
        _print_plan(chosen, dataset)
        return
    summary = _search(chosen, dataset, folder, resume, overwrite)
    if to_json:
        typer.echo(json.dumps(asdict(summary), default=str))
        return
    for line in _lines(summary):
        typer.echo(printable(line))


def _search(recipe: TuneRecipe, dataset: Path, folder: Path, resume: bool, overwrite: bool) -> SearchSummary:
    from raft.training.search import search

    with progress_bar("trials") as bar:
        task = bar.add_task("searching", total=recipe.trials)
        losses: list[float] = []

        def on_trial(trial: Tried) -> None:
            if trial.state == "complete" and trial.dev_loss is not None:
                losses.append(trial.dev_loss)
            best = f"  best dev loss {min(losses):.4f}" if losses else ""
            bar.update(task, completed=trial.number + 1, description=f"searching{best}")

        return search(recipe, dataset, folder, resume=resume, overwrite=overwrite, on_trial=on_trial)


def _lines(summary: SearchSummary) -> list[str]:
    start, best = summary.start_dev_loss, summary.best_dev_loss
    against = "the starting recipe's failed" if start is None else f"{start:.4f} with the starting recipe"
    lines = [
        f"{summary.out}: {summary.trials} trials ({summary.complete} complete, {summary.pruned} pruned, "
        f"{summary.failed} failed), {summary.seconds:.0f} s, "
        f"best dev loss {best:.4f} in trial {summary.best_trial}, {against}"
    ]
    lines += [f"  {name} = {json.dumps(value)}" for name, value in summary.settings.items()]
    if summary.model is not None:
        lines.append(f"its model: {summary.model}")
    return [*lines, f"next: raft train {summary.out / 'best.toml'} --out ADAPTER"]


def _print_plan(recipe: TuneRecipe, dataset: Path) -> None:
    from raft.training.search import check_inputs
    from raft.training.search_study import require_optuna

    require_optuna()
    check_inputs(recipe.train, dataset)
    points = math.prod(len(space.values() or ()) for space in recipe.search.values())
    among = f" of {points} combinations" if recipe.sampler == "grid" else ""
    pruned = "stopped when worse than the median" if recipe.pruner.on else "each to its end"
    typer.echo(f"at most {recipe.trials} trainings, {recipe.sampler}{among}, the starting recipe first, {pruned}")
    for name, space in recipe.search.items():
        typer.echo(f"  {name}: {_space_text(space)}")
    typer.echo(f"each as in: {_plan_line(recipe, dataset)}")


def _plan_line(recipe: TuneRecipe, dataset: Path) -> str:
    from raft.llm.local import resolve_base
    from raft.training.plan import make_plan
    from raft.training.preference_rows import make_preference_plan
    from raft.training.retrieval import make_tuning_plan

    start = recipe.train
    if start.objective in PREFERENCE_OBJECTIVES:
        preferring = make_preference_plan(start, dataset, resolve_base(start.model))
        return f"{preferring.steps} optimizer steps, {len(preferring.dev)} dev pairs"
    if start.objective in ("encoder", "reranker"):
        tuning = make_tuning_plan(start, dataset)
        return f"{len(tuning.batches)} optimizer steps, {len(tuning.dev)} dev questions"
    plan = make_plan(start, dataset, resolve_base(start.model))
    return f"{plan.steps} optimizer steps, {plan.tokens} tokens, {len(plan.dev)} dev sequences"


def _space_text(space: Space) -> str:
    if space.choices is not None:
        return ", ".join(json.dumps(choice) for choice in space.choices)
    step = f", step {space.step}" if space.step is not None else ""
    return f"{space.low} to {space.high}{step}{', log' if space.log else ''}"
