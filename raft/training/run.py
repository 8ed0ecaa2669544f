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
from pathlib import Path
from typing import Any

from raft.artifacts import Draft, check_free, writing
from raft.config_train import TrainRecipe
from raft.errors import ModelError
from raft.llm.local import inherited_labels, resolve_base
from raft.models import model_fingerprint, quiet_libraries
from raft.rows import read_rows
from raft.training.plan import Plan, data_facts, make_plan, write_seen

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
    InputError when no example fits, ModelError when the model cannot be loaded or the loss is not finite.
    """
    quiet_libraries()
    check_free(out, overwrite)
    inputs, facts = data_facts(recipe, dataset)
    base = resolve_base(recipe.model)
    inputs["model"] = model_fingerprint(base)
    facts |= {
        "objective": recipe.objective, "method": recipe.method, "base_model": recipe.model,
        "base_fingerprint": inputs["model"], "labels": sorted({*facts["labels"], *inherited_labels(recipe.model)}),
    }  # fmt: skip
    settings = recipe.model_dump(mode="json", exclude={"out", "dataset"})
    with writing(out, "adapter", settings, inputs, overwrite=overwrite, resume=resume) as draft:
        plan = make_plan(recipe, dataset, base)
        write_seen(None if recipe.objective == "pretrain" else dataset, draft.folder, recipe.model)
        return _run(recipe, plan, base, draft, out, facts, on_step or (lambda *_: None))


def _run(
    recipe: TrainRecipe, plan: Plan, base: Path, draft: Draft, out: Path, facts: dict[str, Any], on_step: Progress
) -> TrainSummary:
    from transformers import set_seed

    from raft.training.methods import count_parameters
    from raft.training.plot import plot_loss
    from raft.training.student import load_student, save_student
    from raft.training.trainer import LogFile, Unfreezing, last_checkpoint, make_trainer, training_arguments

    began = time.monotonic()
    set_seed(recipe.seed)
    model = load_student(recipe, base)
    trainable, total = count_parameters(model)
    checkpoints = draft.folder / "checkpoints"
    optim = recipe.optim.model_dump()
    arguments = training_arguments(
        checkpoints, steps=plan.steps, groups_per_step=recipe.optim.groups_per_step, optim=optim,
        every_steps=recipe.watch.every_steps, has_dev=bool(plan.dev), seed=recipe.seed,
    )  # fmt: skip
    log = LogFile(draft.folder / "log.jsonl", [len(p) for p in plan.schedule], recipe.optim.groups_per_step, on_step)
    callbacks = [log, *([Unfreezing(recipe.layers)] if recipe.method == "unfreeze" else [])]
    trainer = make_trainer(model, plan.schedule, plan.dev, arguments, recipe.watch.patience, callbacks)
    checkpoint = last_checkpoint(checkpoints)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        raise _explain(error, recipe) from error
    save_student(model, base, recipe, draft.folder)
    plot_loss(list(read_rows(draft.folder / "log.jsonl")), draft.folder / "loss.svg")
    draft.scratch.append(checkpoints)
    seconds = time.monotonic() - began
    summary = TrainSummary(
        out, trainer.state.global_step, trainer.state.best_metric, trainable, total, round(seconds, 1),
        _last_rate(draft.folder), peak_memory_mb(),
    )  # fmt: skip
    draft.facts.update(facts, examples=plan.examples, dropped=plan.dropped, tokens=plan.tokens)
    draft.facts.update({k: getattr(summary, k) for k in summary.__slots__ if k != "out"}, device=str(model.device))
    return summary


def _explain(error: RuntimeError, recipe: TrainRecipe) -> Exception:
    if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error).lower():
        return error
    return ModelError(
        f"out of memory with sequences of up to {recipe.max_tokens} tokens",
        "Lower max_tokens, set gradient_checkpointing = true, or use method = qlora",
    )


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
