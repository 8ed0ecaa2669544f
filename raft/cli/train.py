"""raft train: RAFT dataset -> tuned model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raft.cli.options import Overwrite, Resume, Settings, ToJson, default_out, progress_bar
from raft.config import load_recipe, require
from raft.config_train import TrainRecipe
from raft.training.distributed import is_main

if TYPE_CHECKING:
    from raft.training.retrieval import TuningSummary
    from raft.training.run import Progress, TrainSummary


def train(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe, e.g. configs/train/cpu.toml")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="dataset made by raft generate, index, or JSON lines")
    ] = None,
    model: Annotated[str | None, typer.Option(help="base model: hub id, folder, GGUF file or package:NAME")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new artefact")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print plan, time and memory, and stop")] = False,
    to_json: ToJson = False,
) -> None:
    """Tune a model on a RAFT dataset: the one that answers, or the encoder or reranker that finds the documents."""
    chosen = load_recipe(TrainRecipe, recipe, settings or (), dataset=data, model=model, out=out)
    if chosen.stages:
        _train_stages(chosen, resume, overwrite, dry_run, to_json)
        return
    dataset = Path(require(chosen.dataset, "dataset", "--data"))
    name = dataset.name.partition(".jsonl")[0]  # of a file as of a dataset
    folder = chosen.out or default_out(f"{_MADE.get(chosen.objective, 'adapter')}s", name)
    if dry_run:
        if is_main():
            from raft.cli.train_plan import print_plan

            print_plan(chosen, dataset, to_json)
        return
    summary = _train(chosen, dataset, folder, resume, overwrite)
    if not is_main():
        return
    if to_json:
        typer.echo(json.dumps(asdict(summary), default=str))
        return
    from raft.training.retrieval import TuningSummary

    lines = _tuned_lines(summary) if isinstance(summary, TuningSummary) else _adapter_lines(summary, chosen.objective)
    for line in lines:
        typer.echo(line)


_MADE = {  # anything else: an adapter
    "encoder": "encoder", "reranker": "reranker", "reward": "reward_model", "classify": "classifier",
}  # fmt: skip


def _train(
    recipe: TrainRecipe, dataset: Path, folder: Path, resume: bool, overwrite: bool
) -> TrainSummary | TuningSummary:
    from raft.training.objectives import run_objective

    with _steps() as on_step:
        return run_objective(recipe, dataset, folder, resume=resume, overwrite=overwrite, on_step=on_step)


def _train_stages(recipe: TrainRecipe, resume: bool, overwrite: bool, dry_run: bool, to_json: bool) -> None:
    from raft.config_train import stages_of
    from raft.training.objectives import run_stages

    if dry_run:
        _print_stages(stages_of(recipe), to_json)
        return
    out = recipe.out or default_out("adapters", "stages")
    with _steps() as on_step:
        made = run_stages(recipe, out, resume=resume, overwrite=overwrite, on_step=on_step)
    if not is_main():
        return
    if to_json:
        typer.echo(json.dumps({"stages": [str(folder) for folder in made]}))
        return
    for folder in made:
        typer.echo(str(folder))
    base = f" --model {made[-2]}" if len(made) > 1 else ""
    typer.echo(f"next: raft evaluate --adapter {made[-1]}{base} --index INDEX --questions FILE")


def _print_stages(stages: list[tuple[str, TrainRecipe]], to_json: bool) -> None:
    rows = [
        {"name": name, "objective": stage.objective, "method": stage.method, "dataset": str(stage.dataset)}
        for name, stage in stages
    ]
    if to_json:
        typer.echo(json.dumps({"stages": rows}))
        return
    for row in rows:
        typer.echo("stage {name}: {objective}, {method}, on {dataset}".format(**row))


@contextlib.contextmanager
def _steps() -> Iterator[Progress]:
    if not is_main():
        yield lambda *_: None
        return
    with progress_bar("steps") as bar:
        task = bar.add_task("training", total=None)

        def on_step(step: int, steps: int, row: dict[str, Any]) -> None:
            loss = row.get("eval_loss", row.get("loss", 0.0))
            name = "dev loss" if "eval_loss" in row else "loss"
            bar.update(task, total=steps, completed=step, description=f"training  {name} {loss:.3f}")

        yield on_step


def _adapter_lines(summary: TrainSummary, objective: str) -> list[str]:
    from raft.training.probe import probe_line

    share = summary.trainable_parameters / summary.parameters
    loss = "" if objective in ("grpo", "rloo") else f"best dev loss {_dev_loss(summary)}, "
    following = f"raft evaluate --adapter {summary.out} --index INDEX --questions FILE"
    if objective == "reward":
        following = f"raft train --set objective=grpo --set preference.reward_model={summary.out} --data DATASET"
    if objective == "classify":
        following = f"raft.training.classify.load_classifier(Path({str(summary.out)!r})).classify(TEXTS)"
    return [
        f"{summary.out}: {summary.steps} steps, {loss}"
        f"{summary.trainable_parameters:,} of {summary.parameters:,} weights trained ({share:.2%}), "
        f"{summary.seconds:.0f} s, {summary.tokens_per_second:.0f} tokens/s, {summary.peak_memory_mb} MB",
        *([] if summary.probe is None else [probe_line(summary.probe)]),
        *_class_lines(summary),
        f"next: {following}",
    ]


def _class_lines(summary: TrainSummary) -> list[str]:
    accuracy = getattr(summary, "accuracy", None)  # of classify alone, where there are dev examples
    if accuracy is None:
        return []
    from raft.training.classify import ClassSummary

    assert isinstance(summary, ClassSummary)
    return [
        f"{summary.dev_examples} dev examples of {len(summary.classes)} classes: accuracy {accuracy:.3f}, macro F1 "
        f"{summary.macro_f1:.3f}; the commonest class everywhere would have accuracy {summary.majority_accuracy:.3f}"
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
