"""raft train --dry-run: what a training reads, and what it will take."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from raft.config_train import TrainRecipe
from raft.config_train_rules import PREFERENCE_OBJECTIVES

if TYPE_CHECKING:
    from raft.training.estimate import Estimate


def print_plan(recipe: TrainRecipe, data: Path, to_json: bool) -> None:
    """Print the plan, and where it can be told time and memory; nothing is loaded, trained or written."""
    if recipe.objective in ("encoder", "reranker"):
        facts, lines = _retrieval_plan(recipe, data)
    else:
        with tempfile.TemporaryDirectory() as scratch:  # a plan leaves nothing behind
            facts, lines = _language_plan(recipe, data, Path(scratch))
    typer.echo(json.dumps({"objective": recipe.objective} | facts) if to_json else "\n".join(lines))


def _language_plan(recipe: TrainRecipe, data: Path, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    from raft.llm.local import origin_of
    from raft.models import outline_language_model
    from raft.training.estimate import estimate, packed_work
    from raft.training.plan import data_facts, make_plan

    data_facts(recipe, data)
    base = outline_language_model(origin_of(recipe.model), scratch)
    if recipe.objective in PREFERENCE_OBJECTIVES:
        return _preference_plan(recipe, data, base)
    plan = make_plan(recipe, data, base)
    facts = {
        "examples": plan.examples, "dropped": plan.dropped, "sequences": len(plan.schedule), "tokens": plan.tokens,
        "steps": plan.steps, "dev_sequences": len(plan.dev), "dev_dropped": plan.dev_dropped,
    }  # fmt: skip
    what = "documents" if recipe.objective == "pretrain" else "examples"
    line = (
        f"{plan.examples} {what} ({plan.dropped} too long), {len(plan.schedule)} sequences, "
        f"{plan.tokens} tokens, {plan.steps} optimizer steps, {len(plan.dev)} dev sequences"
        + (f" ({plan.dev_dropped} dev examples too long)" if plan.dev_dropped else "")
    )
    found = estimate(recipe, base, packed_work(recipe, plan))
    return facts | _estimate_facts(found), [line, *_estimate_lines(found, plan.steps)]


def _preference_plan(recipe: TrainRecipe, data: Path, base: Path) -> tuple[dict[str, Any], list[str]]:
    from raft.training.estimate import estimate, preference_work
    from raft.training.preference import step_lengths
    from raft.training.preference_rows import make_preference_plan

    plan = make_preference_plan(recipe, data, base)
    lengths = step_lengths(plan, recipe)
    facts = {
        "examples": plan.examples, "kinds": dict(plan.kinds), "dropped": plan.dropped,
        "tokens": None if lengths is None else sum(lengths), "steps": plan.steps, "dev_examples": len(plan.dev),
    }  # fmt: skip
    kinds = ", ".join(f"{kind} {count}" for kind, count in plan.kinds.items())
    what = "prompts" if recipe.objective in ("grpo", "rloo") else "pairs"
    tokens = "" if lengths is None else f"{sum(lengths)} tokens, "
    line = (
        f"{plan.examples} {what}{f' ({kinds})' if kinds else ''}, {plan.dropped} too long, {tokens}"
        f"{plan.steps} optimizer steps, {len(plan.dev)} dev {what}"
    )
    found = estimate(recipe, base, preference_work(recipe, plan))
    return facts | _estimate_facts(found), [line, *_estimate_lines(found, plan.steps)]


def _retrieval_plan(recipe: TrainRecipe, data: Path) -> tuple[dict[str, Any], list[str]]:
    from raft.artifacts import open_artifact
    from raft.models import resolve_encoder
    from raft.training.retrieval import make_tuning_plan

    open_artifact(data, "dataset")
    resolve_encoder(recipe.model, "reranker" if recipe.objective == "reranker" else "encoder")
    tuning = make_tuning_plan(recipe, data)
    facts = {
        "questions": tuning.questions, "left_out": tuning.left_out, "examples": tuning.examples,
        "steps": len(tuning.batches), "dev_questions": len(tuning.dev), "chunks": len(tuning.texts),
        "twins": tuning.twins,
    }  # fmt: skip
    line = (
        f"{tuning.questions} questions ({tuning.left_out} without an oracle left out), {tuning.examples} examples of 1 "
        f"oracle and {recipe.retrieval.negatives} negatives, {len(tuning.batches)} optimizer steps, "
        f"{len(tuning.dev)} dev questions, {len(tuning.texts)} chunks, {tuning.twins} oracles with twins"
    )
    return facts, [line]


def _estimate_facts(found: Estimate) -> dict[str, Any]:
    facts = asdict(found) | {"fits": found.fits}
    if found.memory is not None:
        facts["memory"] |= {"total": found.memory.total}
    return facts


def _estimate_lines(found: Estimate, steps: int) -> list[str]:
    share = found.trainable_parameters / found.parameters
    lines = [f"{found.trainable_parameters:,} of {found.parameters:,} weights move ({share:.2%})"]
    if found.seconds is not None:
        lines.append(f"about {_duration(found.seconds)} on this machine, {found.seconds / steps:.2g} s a step")
    if found.memory is None:
        return lines
    parts = asdict(found.memory)
    fits = "it fits" if found.fits else "it does not fit"
    lines.append(
        f"about {found.memory.total / 1e9:.2g} GB of memory ("
        f"{', '.join(f'{name} {parts[name] / 1e9:.2f}' for name in parts if parts[name])}), "
        f"{found.available / 1e9:.3g} GB free: {fits}"
    )
    if found.instead:
        ways = (words if total is None else f"{words}: {total / 1e9:.2g} GB" for words, total in found.instead.items())
        lines.append(f"to take less: {', '.join(ways)}")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
