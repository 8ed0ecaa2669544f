"""raft train: RAFT dataset -> tuned model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raft.cli.options import Overwrite, Resume, Settings, ToJson, default_out, progress_bar
from raft.config import TrainRecipe, load_recipe, require

if TYPE_CHECKING:
    from raft.training.retrieval import TuningSummary
    from raft.training.run import TrainSummary


def train(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe, e.g. configs/train/cpu.toml")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="dataset made by raft generate")] = None,
    model: Annotated[str | None, typer.Option(help="base model: hub id, folder, GGUF file or package:NAME")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new artefact")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")] = False,
    to_json: ToJson = False,
) -> None:
    """Tune a model on a RAFT dataset: the one that answers, or the encoder or reranker that finds the documents."""
    chosen = load_recipe(TrainRecipe, recipe, settings or (), dataset=data, model=model, out=out)
    dataset = Path(require(chosen.dataset, "dataset", "--data"))
    folder = chosen.out or default_out(f"{_MADE[chosen.objective]}s", dataset.name)
    if dry_run:
        _print_plan(chosen, dataset)
        return
    summary = _train(chosen, dataset, folder, resume, overwrite)
    if to_json:
        typer.echo(json.dumps(asdict(summary), default=str))
        return
    from raft.training.retrieval import TuningSummary

    for line in _tuned_lines(summary) if isinstance(summary, TuningSummary) else _adapter_lines(summary):
        typer.echo(line)


_MADE = {"sft": "adapter", "encoder": "encoder", "reranker": "reranker"}


def _train(
    recipe: TrainRecipe, dataset: Path, folder: Path, resume: bool, overwrite: bool
) -> TrainSummary | TuningSummary:
    from raft.training.retrieval import tune
    from raft.training.run import train

    with progress_bar("steps") as bar:
        task = bar.add_task("training", total=None)

        def on_step(step: int, steps: int, row: dict[str, Any]) -> None:
            loss = row.get("eval_loss", row.get("loss", 0.0))
            name = "dev loss" if "eval_loss" in row else "loss"
            bar.update(task, total=steps, completed=step, description=f"training  {name} {loss:.3f}")

        run = train if recipe.objective == "sft" else tune
        return run(recipe, dataset, folder, resume=resume, overwrite=overwrite, on_step=on_step)


def _adapter_lines(summary: TrainSummary) -> list[str]:
    share = summary.trainable_parameters / summary.parameters
    return [
        f"{summary.out}: {summary.steps} steps, best dev loss {_dev_loss(summary)}, "
        f"{summary.trainable_parameters:,} of {summary.parameters:,} weights trained ({share:.2%}), "
        f"{summary.seconds:.0f} s, {summary.tokens_per_second:.0f} tokens/s, {summary.peak_memory_mb} MB",
        f"next: raft evaluate --adapter {summary.out} --index INDEX --questions FILE",
    ]


def _tuned_lines(summary: TuningSummary) -> list[str]:
    lines = [
        f"{summary.out}: {summary.steps} steps on {summary.questions} questions, best dev loss {_dev_loss(summary)}, "
        f"{summary.seconds:.0f} s, {summary.examples_per_second:.1f} examples/s, {summary.peak_memory_mb} MB"
    ]
    if summary.before is not None and summary.after is not None:
        among = "all chunks of the dataset" if summary.objective == "encoder" else "the chunks of their contexts"
        changes = ", ".join(f"{name} {was:.3f} -> {summary.after[name]:.3f}" for name, was in summary.before.items())
        lines.append(f"{summary.dev_questions} dev questions among {among}: {changes}")
    if summary.objective == "reranker":
        return [*lines, f"next: raft search QUESTION --index INDEX --mode reranked --reranker {summary.out}"]
    return [
        *lines,
        f"next: raft index SOURCE --set encoder.model={summary.out} --out AFTER",
        "then: raft evaluate retrieval --index BEFORE --index AFTER --questions FILE",
    ]


def _dev_loss(summary: TrainSummary | TuningSummary) -> str:
    return "no dev split" if summary.best_dev_loss is None else f"{summary.best_dev_loss:.4f}"


def _print_plan(recipe: TrainRecipe, dataset: Path) -> None:
    from raft.artifacts import open_artifact
    from raft.models import resolve_encoder, resolve_language_model
    from raft.training.retrieval import make_tuning_plan
    from raft.training.run import make_plan

    open_artifact(dataset, "dataset")
    if recipe.objective == "sft":
        plan = make_plan(recipe, dataset, resolve_language_model(recipe.model))
        typer.echo(
            f"{plan.examples} examples ({plan.dropped} too long), {len(plan.schedule)} sequences, "
            f"{plan.tokens} tokens, {plan.steps} optimizer steps, {len(plan.dev)} dev sequences"
        )
        return
    resolve_encoder(recipe.model, "reranker" if recipe.objective == "reranker" else "encoder")
    tuning = make_tuning_plan(recipe, dataset)
    typer.echo(
        f"{tuning.questions} questions ({tuning.left_out} without an oracle left out), {tuning.examples} examples of 1 "
        f"oracle and {recipe.retrieval.negatives} negatives, {len(tuning.batches)} optimizer steps, "
        f"{len(tuning.dev)} dev questions, {len(tuning.texts)} chunks, {tuning.twins} oracles with twins"
    )
