"""RAFT dataset -> tuned model: what ``raft train`` does.

dataset artefact -> groups -> ids -> packed sequences -> schedule -> Trainer -> adapter artefact
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.artifacts import Draft, Manifest, check_free, open_artifact, write_json, writing
from raft.config import TrainRecipe
from raft.errors import InputError, ModelError
from raft.models import (
    load_language_model,
    load_tokenizer,
    model_fingerprint,
    quiet_libraries,
    resolve_language_model,
)
from raft.records import question_key
from raft.rows import read_rows
from raft.training.packing import Packed, fits, pack_group
from raft.training.tokenize import read_chunks, read_groups, tokenize_groups

Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training will run: sequences in order, dev sequences, and counts for the reader."""

    schedule: list[Packed]
    dev: list[Packed]
    steps: int
    examples: int
    dropped: int

    @property
    def tokens(self) -> int:
        """Tokens read over the whole training, shared prefixes once."""
        return sum(map(len, self.schedule))


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
    """Tune ``recipe.model`` on the dataset and write the adapter artefact ``out``.

    Raises ArtifactError when the dataset is missing or damaged, ``out`` is taken or partial work differs,
    InputError when no example fits, ModelError when the model cannot be loaded or the loss is not finite.
    """
    quiet_libraries()
    check_free(out, overwrite)
    data = open_artifact(dataset, "dataset")
    base = resolve_language_model(recipe.model)
    inputs = {"dataset": data.fingerprint, "model": model_fingerprint(base)}
    settings = recipe.model_dump(mode="json", exclude={"out", "dataset"})
    with writing(out, "adapter", settings, inputs, overwrite=overwrite, resume=resume) as draft:
        plan = make_plan(recipe, dataset, base)
        write_seen(dataset, draft.folder)
        return _run(recipe, plan, base, draft, out, _base_facts(recipe, data, inputs), on_step or (lambda *_: None))


def write_seen(dataset: Path, folder: Path) -> None:
    """seen.json: which questions and documents the weights were tuned on, so that evaluation can leave them out::

    {"questions": ["0f3c9a1d2b4e5f60", ...], "documents": ["protocols/sepsis-adult.md", ...]}
    """
    rows = [row for row in read_rows(dataset / "questions.jsonl") if row["split"] != "test"]
    questions = {question_key(row["question"]) for row in rows}
    documents = {name for row in rows for name in row["document_ids"]}
    write_json(folder / "seen.json", {"questions": sorted(questions), "documents": sorted(documents)})


def _base_facts(recipe: TrainRecipe, data: Manifest, inputs: dict[str, str]) -> dict[str, Any]:
    return {
        "method": recipe.method, "base_model": recipe.model, "base_fingerprint": inputs["model"],
        "dataset_fingerprint": inputs["dataset"], "index_fingerprint": data.facts.get("index_fingerprint"),
        "labels": data.facts.get("labels", []),
    }  # fmt: skip


def make_plan(recipe: TrainRecipe, dataset: Path, base: Path) -> Plan:
    """Tokenize, pack and order the dataset. Raises InputError when no train example fits ``max_tokens``."""
    from raft.training.trainer import make_schedule

    tokenizer = load_tokenizer(base)
    chunks = read_chunks(dataset)
    dropped = examples = 0
    packed_draws: list[list[list[Packed]]] = []
    for _, groups in sorted(read_groups(dataset, "train").items()):
        tokenized = tokenize_groups(tokenizer, groups, chunks)
        examples += sum(map(len, tokenized))
        dropped += sum(not fits(example, recipe.max_tokens) for group in tokenized for example in group)
        packed_draws.append([list(pack_group(group, recipe.max_tokens, recipe.share_prefixes)) for group in tokenized])
    if not examples:
        raise InputError(f"{dataset} holds no train examples", "Check the splits of its questions: raft show DATASET")
    if examples == dropped:
        raise InputError(
            f"no train example of {dataset} fits max_tokens = {recipe.max_tokens} ({dropped} are longer)",
            "Raise max_tokens, or generate with fewer or shorter documents",
        )
    dev_groups = read_groups(dataset, "dev").get(0, [])[: recipe.watch.dev_groups]
    dev = [p for group in tokenize_groups(tokenizer, dev_groups, chunks) for p in pack_group(group, recipe.max_tokens)]
    schedule = make_schedule(packed_draws, recipe.optim.epochs, recipe.seed)
    steps = math.ceil(len(schedule) / recipe.optim.groups_per_step)
    if recipe.optim.max_steps is not None and recipe.optim.max_steps < steps:
        steps = recipe.optim.max_steps
        schedule = schedule[: steps * recipe.optim.groups_per_step]
    return Plan(schedule, dev, steps, examples, dropped)


def _run(
    recipe: TrainRecipe, plan: Plan, base: Path, draft: Draft, out: Path, facts: dict[str, Any], on_step: Progress
) -> TrainSummary:
    from transformers import set_seed

    from raft.training.attention import use_packed_attention
    from raft.training.methods import apply_method, count_parameters
    from raft.training.trainer import LogFile, last_checkpoint, make_trainer, training_arguments

    began = time.monotonic()
    set_seed(recipe.seed)
    model = load_language_model(base, recipe.precision, four_bit=recipe.method == "qlora")
    use_packed_attention(model)
    model = apply_method(model, recipe.method, checkpointing=recipe.gradient_checkpointing, **recipe.lora.model_dump())
    trainable, total = count_parameters(model)
    checkpoints = draft.folder / "checkpoints"
    optim = recipe.optim.model_dump()
    arguments = training_arguments(
        checkpoints, steps=plan.steps, groups_per_step=recipe.optim.groups_per_step, optim=optim,
        every_steps=recipe.watch.every_steps, has_dev=bool(plan.dev), seed=recipe.seed,
    )  # fmt: skip
    log = LogFile(draft.folder / "log.jsonl", [len(p) for p in plan.schedule], recipe.optim.groups_per_step, on_step)
    trainer = make_trainer(model, plan.schedule, plan.dev, arguments, recipe.watch.patience, log)
    checkpoint = last_checkpoint(checkpoints)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        raise _explain(error, recipe) from error
    _save(model, base, recipe, draft.folder)
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


def _save(model: Any, base: Path, recipe: TrainRecipe, folder: Path) -> None:
    from raft.training.plot import plot_loss

    if recipe.method == "full":
        model.save_pretrained(folder / "model")
        load_tokenizer(base).save_pretrained(folder / "model")
    else:
        model.peft_config["default"].base_model_name_or_path = recipe.model  # a path of this machine helps nobody
        model.save_pretrained(folder / "adapter", save_embedding_layers=False)  # the vocabulary never changes here
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the manifest tells more
    plot_loss(list(read_rows(folder / "log.jsonl")), folder / "loss.svg")


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
