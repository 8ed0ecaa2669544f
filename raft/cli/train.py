"""raft train: RAFT dataset -> tuned model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from raft.cli.options import Overwrite, Resume, Settings, ToJson, default_out, progress_bar
from raft.config import TrainRecipe, load_recipe, require


def train(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe, e.g. configs/train/cpu.toml")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="dataset made by raft generate")] = None,
    model: Annotated[str | None, typer.Option(help="base model: hub id, folder, GGUF file or package:NAME")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new adapter")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    to_json: ToJson = False,
) -> None:
    """Tune a model on a RAFT dataset (LoRA, QLoRA or all weights)."""
    from raft.training.run import train

    chosen = load_recipe(TrainRecipe, recipe, settings or (), dataset=data, model=model, out=out)
    dataset = Path(require(chosen.dataset, "dataset", "--data"))
    folder = chosen.out or default_out("adapters", dataset.name)
    if dry_run:
        _print_plan(chosen, dataset)
        return
    with progress_bar("steps") as bar:
        task = bar.add_task("training", total=None)

        def on_step(step: int, steps: int, row: dict) -> None:
            loss = row.get("eval_loss", row.get("loss", 0.0))
            name = "dev loss" if "eval_loss" in row else "loss"
            bar.update(task, total=steps, completed=step, description=f"training  {name} {loss:.3f}")

        summary = train(chosen, dataset, folder, resume=resume, overwrite=overwrite, on_step=on_step)
    if to_json:
        typer.echo(json.dumps(asdict(summary), default=str))
        return
    dev = f"{summary.best_dev_loss:.4f}" if summary.best_dev_loss is not None else "no dev split"
    share = summary.trainable_parameters / summary.parameters
    typer.echo(
        f"{folder}: {summary.steps} steps, best dev loss {dev}, {summary.trainable_parameters:,} of "
        f"{summary.parameters:,} weights trained ({share:.2%}), {summary.seconds:.0f} s, "
        f"{summary.tokens_per_second:.0f} tokens/s, {summary.peak_memory_mb} MB"
    )
    typer.echo(f"next: raft evaluate --adapter {folder} --index INDEX --questions FILE")


def _print_plan(recipe: TrainRecipe, dataset: Path) -> None:
    from raft.artifacts import open_artifact
    from raft.models import resolve_language_model
    from raft.training.run import make_plan

    open_artifact(dataset, "dataset")
    plan = make_plan(recipe, dataset, resolve_language_model(recipe.model))
    typer.echo(
        f"{plan.examples} examples ({plan.dropped} too long), {len(plan.schedule)} sequences, "
        f"{plan.tokens} tokens, {plan.steps} optimizer steps, {len(plan.dev)} dev sequences"
    )
