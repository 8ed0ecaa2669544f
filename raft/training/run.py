"""RAFT dataset, or a corpus -> tuned model: what ``raft train`` does.

data -> packed sequences in order (plan.py) -> student (student.py) -> Trainer (trainer.py) -> adapter artefact
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.artifacts import Draft, check_free, hash_file
from raft.config_train import MAY_CHANGE_ON_RESUME, TrainRecipe
from raft.llm.local import inherited_labels, resolve_base
from raft.models import model_fingerprint, quiet_libraries
from raft.rows import read_rows
from raft.training.distributed import (
    hear_others,
    is_main,
    join,
    largest,
    main_first,
    one_writer,
    parallel_arguments,
    processes,
    whole_weights,
)
from raft.training.plan import Plan, data_facts, make_plan, write_seen
from raft.training.trackers import check_trackers

if TYPE_CHECKING:
    from raft.training.trainer import PackedTrainer

Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class TrainSummary:
    out: Path
    steps: int
    best_dev_loss: float | None
    trainable_parameters: int
    parameters: int
    seconds: float
    tokens_per_second: float
    peak_memory_mb: int
    probe: dict[str, dict[str, float]] | None = None  # general knowledge "before" and "after" (probe.py)


def train(
    recipe: TrainRecipe,
    dataset: Path,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Progress | None = None,
) -> TrainSummary:
    """Tune ``recipe.model`` on the dataset (objective pretrain: on the documents of an index) and write the adapter
    artefact ``out``.

    Raises ArtifactError when the dataset is missing or damaged, ``out`` is taken or partial work differs,
    InputError when no example fits, ModelError when the model cannot be loaded or the loss is lost (watch.Guard).
    """
    quiet_libraries()
    join(recipe)
    with main_first():
        check_free(out, overwrite)
        check_trackers(recipe.watch.trackers)
        recipe = recipe.model_copy(update={"dataset": dataset})
        inputs, facts = data_facts(recipe, dataset)
        base = resolve_base(recipe.model)
        inputs["model"] = model_fingerprint(base)
        if recipe.parallel.deepspeed_config is not None:
            inputs["deepspeed_config"] = hash_file(recipe.parallel.deepspeed_config)
    plan = make_plan(recipe, dataset, base)  # what it refuses leaves nothing behind
    facts |= {
        "objective": recipe.objective, "method": recipe.method, "base_model": recipe.model,
        "base_fingerprint": inputs["model"], "labels": sorted({*facts["labels"], *inherited_labels(recipe.model)}),
    }  # fmt: skip
    settings = recipe.model_dump(mode="json", exclude={"out", "dataset"})
    with one_writer(
        out, "adapter", settings, inputs, overwrite=overwrite, resume=resume, may_change=MAY_CHANGE_ON_RESUME
    ) as draft:
        own = None if recipe.objective == "pretrain" else dataset
        if is_main():
            write_seen(own, draft.folder, recipe.model, replayed=recipe.replay.data)
        return _run(recipe, plan, base, draft, out, facts, on_step or (lambda *_: None))


def _run(
    recipe: TrainRecipe, plan: Plan, base: Path, draft: Draft, out: Path, facts: dict[str, Any], on_step: Progress
) -> TrainSummary:
    from raft.training.memory import train_within_memory
    from raft.training.plot import plot_loss
    from raft.training.probe import probe_after
    from raft.training.student import save_student

    began = time.monotonic()
    checkpoints = draft.folder / "checkpoints"
    make_trainer = partial(_make_trainer, recipe, plan, base, draft, on_step)
    with hear_others():
        trainer, pieces = train_within_memory(make_trainer, checkpoints, recipe)
        weights = whole_weights(trainer)
    if is_main():
        save_student(trainer.model, base, recipe, draft.folder, weights)
        plot_loss(list(read_rows(draft.folder / "log.jsonl")), draft.folder / "loss.svg")
    draft.scratch.append(checkpoints)
    seconds = time.monotonic() - began
    summary = TrainSummary(
        out, trainer.state.global_step, trainer.state.best_metric, draft.facts["trainable_parameters"],
        draft.facts["parameters"], round(seconds, 1), _last_rate(draft.folder), largest(peak_memory_mb()),
        probe_after(recipe, trainer.model, base, checkpoints),
    )  # fmt: skip
    draft.facts.update(facts, examples=plan.examples, dropped=plan.dropped, tokens=plan.tokens)
    draft.facts.update(pieces, processes=processes())
    counted = {"replayed": plan.replayed, "dev_dropped": plan.dev_dropped}
    draft.facts.update({name: count for name, count in counted.items() if count})
    draft.facts.update({k: getattr(summary, k) for k in summary.__slots__ if k != "out"})
    return summary


def _make_trainer(
    recipe: TrainRecipe, plan: Plan, base: Path, draft: Draft, on_step: Progress, piece_tokens: int | None
) -> PackedTrainer:
    """What trains a newly loaded student, ready to begin or to go on from a checkpoint."""
    from transformers import set_seed

    from raft.training.methods import count_parameters
    from raft.training.student import load_student
    from raft.training.trainer import LogFile, Unfreezing, make_trainer, training_arguments
    from raft.training.watch import Guard, names_of_packed, watch

    optim, folder = recipe.optim.model_dump(), draft.folder
    arguments = training_arguments(
        folder / "checkpoints", steps=plan.steps, groups_per_step=plan.per_step, optim=optim,
        every_steps=recipe.watch.every_steps, has_dev=bool(plan.dev), seed=recipe.seed,
        parallel=parallel_arguments(recipe),
    )  # fmt: skip
    set_seed(recipe.seed)
    model = load_student(recipe, base)  # after the arguments: they tell how it is to be loaded
    trainable, total = count_parameters(model)
    draft.facts.update(trainable_parameters=trainable, parameters=total, device=str(model.device))
    per_step = plan.per_step
    guard = Guard(recipe, names_of_packed(plan.schedule, per_step), on_step, folder / "log.jsonl")
    log = LogFile(folder / "log.jsonl", [len(p) for p in plan.schedule], per_step, guard)
    callbacks = [*([log] if is_main() else []), *([Unfreezing(recipe.layers)] if recipe.method == "unfreeze" else [])]
    trainer = make_trainer(model, plan.schedule, plan.dev, arguments, recipe.watch.patience, callbacks, piece_tokens)
    watch(trainer, recipe, model, base, folder)
    return trainer


def _last_rate(folder: Path) -> float:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return float(next((row["tokens_per_second"] for row in reversed(rows) if "tokens_per_second" in row), 0.0))


def peak_memory_mb() -> int:
    """Largest resident memory of this process so far, in MB (on a GPU: the largest allocation there)."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() / 1e6)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB on Linux
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)
