"""RAFT dataset -> model tuned by what is preferred: what ``raft train`` does with ``objective = "dpo"``, ``"kto"``,
``"orpo"``, ``"reward"``, ``"grpo"`` or ``"rloo"``.

dataset artefact -> pairs or prompts -> ids in order (preference_rows.py) -> TRL's trainer (preference_trainer.py) ->
artefact "adapter", or "reward_model" with a head (reward_model.py)

The reference of dpo, kto, grpo and rloo is the student as it is before the first step.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raft.artifacts import Draft, check_free, write_json, writing
from raft.config_train import MAY_CHANGE_ON_RESUME, TrainRecipe
from raft.errors import ModelError
from raft.llm.local import inherited_labels, resolve_base
from raft.models import load_tokenizer, model_fingerprint, quiet_libraries
from raft.records import question_key
from raft.rows import read_rows
from raft.training.distributed import LEARNED
from raft.training.plan import SEEN, data_facts, write_seen
from raft.training.preference_rows import GENERATING, PACKED, PreferencePlan, make_preference_plan, pair_length
from raft.training.run import Progress, TrainSummary, peak_memory_mb
from raft.training.trackers import check_trackers

LOG, CHECKPOINTS = "log.jsonl", "checkpoints"


def tune_preferences(
    recipe: TrainRecipe,
    dataset: Path,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Progress | None = None,
) -> TrainSummary:
    """Tune ``recipe.model`` to prefer what the dataset (or ``recipe.preference.pairs``) prefers, or to earn rewards,
    and write the artefact ``out``.

    Raises ArtifactError when the dataset or the reward model is missing or damaged, ``out`` is taken or partial work
    differs, InputError when there is nothing to train on, ModelError when TRL is not installed, the model cannot be
    loaded or trained, or the loss is lost (watch.Guard).
    """
    _check_installed(recipe.objective)
    quiet_libraries()
    check_free(out, overwrite)
    check_trackers(recipe.watch.trackers)
    recipe = recipe.model_copy(update={"dataset": dataset})
    inputs, facts = data_facts(recipe, dataset)
    base = resolve_base(recipe.model)
    inputs["model"] = model_fingerprint(base)
    facts |= {
        "objective": recipe.objective, "method": recipe.method, "base_model": recipe.model,
        "base_fingerprint": inputs["model"], "labels": sorted({*facts["labels"], *inherited_labels(recipe.model)}),
    }  # fmt: skip
    settings = recipe.model_dump(mode="json", exclude={"out", "dataset"})
    kind = "reward_model" if recipe.objective == "reward" else "adapter"
    with writing(
        out, kind, settings, inputs, overwrite=overwrite, resume=resume, may_change=MAY_CHANGE_ON_RESUME,
        worth_keeping=LEARNED,
    ) as draft:  # fmt: skip
        plan = make_preference_plan(recipe, dataset, base)
        judge = recipe.preference.reward_model
        write_seen(dataset, draft.folder, recipe.model, *([] if judge is None else [str(judge)]))
        _add_seen(plan, draft.folder)
        return _run(recipe, plan, base, draft, out, facts, on_step or (lambda *_: None))


def _check_installed(objective: str) -> None:
    if importlib.util.find_spec("trl") is None:
        raise ModelError(
            f"objective {objective} needs TRL, which is not installed", "Run: pip install 'raft-tune[preferences]'"
        )


def _add_seen(plan: PreferencePlan, folder: Path) -> None:
    """Questions and documents of a file of pairs are seen as the dataset's are."""
    if not plan.given:
        return
    seen = json.loads((folder / SEEN).read_text(encoding="utf-8"))
    questions = {*seen["questions"], *(question_key(pair.question) for pair in plan.given)}
    documents = {*seen["documents"], *(chunk.document_id for pair in plan.given for chunk in pair.documents)}
    write_json(folder / SEEN, {"questions": sorted(questions), "documents": sorted(documents)})


def _run(
    recipe: TrainRecipe,
    plan: PreferencePlan,
    base: Path,
    draft: Draft,
    out: Path,
    facts: dict[str, Any],
    on_step: Progress,
) -> TrainSummary:
    from raft.training.memory import hand_back_memory, is_out_of_memory, out_of_memory
    from raft.training.methods import count_parameters
    from raft.training.plot import plot_loss
    from raft.training.probe import probe_after
    from raft.training.reward_model import save_reward_model
    from raft.training.student import save_student
    from raft.training.trainer import last_checkpoint
    from raft.training.watch import watch

    began = time.monotonic()
    if recipe.gradient_checkpointing:
        hand_back_memory()
    student, trainer = prepare(recipe, plan, base, draft.folder, on_step)
    watch(trainer, recipe, student, base, draft.folder)
    trainable, total = count_parameters(trainer.model)
    checkpoint = last_checkpoint(draft.folder / CHECKPOINTS)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(recipe) from error
        raise
    if recipe.objective == "reward":
        save_reward_model(trainer.model, student, base, recipe, draft.folder)
    else:
        save_student(student, base, recipe, draft.folder)
    rows = list(read_rows(draft.folder / LOG))
    plot_loss(rows, draft.folder / "loss.svg", f"loss of {recipe.objective}")
    draft.scratch.append(draft.folder / CHECKPOINTS)
    best, generating = trainer.state.best_metric, recipe.objective in GENERATING
    rates = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    summary = TrainSummary(
        out, trainer.state.global_step, None if generating else best, trainable, total,
        round(time.monotonic() - began, 1), rates[-1] if rates else 0.0, peak_memory_mb(),
        probe_after(recipe, student, base, draft.folder / CHECKPOINTS),
    )  # fmt: skip
    draft.facts |= facts | {"examples": plan.examples, "dropped": plan.dropped, "kinds": dict(plan.kinds)}
    draft.facts |= {"best_dev_reward": best} if generating else {}
    draft.facts |= {k: getattr(summary, k) for k in summary.__slots__ if k != "out"} | {"device": str(student.device)}
    return summary


def prepare(recipe: TrainRecipe, plan: PreferencePlan, base: Path, folder: Path, on_step: Progress) -> tuple[Any, Any]:
    """The student as it is saved, and the trainer that moves its weights; ``trainer.model`` is the student itself, or
    (objective reward) the student with a head. Log and checkpoints go to ``folder``."""
    from transformers import set_seed

    from raft.training.preference_trainer import PreferenceLog, make_preference_trainer
    from raft.training.reward_model import with_reward_head
    from raft.training.student import load_student
    from raft.training.watch import Guard

    set_seed(recipe.seed)
    tokenizer = load_tokenizer(base)
    student = load_student(recipe, base)
    if recipe.objective not in PACKED:
        use_plain_attention(student)
    model = with_reward_head(student, tokenizer.pad_token_id) if recipe.objective == "reward" else student
    guard = Guard(recipe, partial(names_of_step, plan, recipe.preference.batch_size), on_step, folder / LOG)
    log = PreferenceLog(folder / LOG, step_lengths(plan, recipe), guard)
    trainer = make_preference_trainer(model, tokenizer, plan, recipe, folder / CHECKPOINTS, log, _learned(recipe))
    return student, trainer


def names_of_step(plan: PreferencePlan, per_step: int, step: int) -> list[str]:
    """The pairs or prompts of an optimizer step, counted from 1."""
    rows = plan.asked or plan.pairs
    return [rows[number].id for number in plan.schedule[(step - 1) * per_step : step * per_step]]


def use_plain_attention(model: Any) -> None:
    """Let a model that attends part by part (attention.py) go back to SDPA, where nothing is packed: only then does
    transformers make the mask that hides a batch's padding."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if inner._can_set_attn_implementation():
        inner.set_attn_implementation("sdpa")


def step_lengths(plan: PreferencePlan, recipe: TrainRecipe) -> list[int] | None:
    """Tokens read in each optimizer step, padding not counted; None where they depend on what is generated."""
    if recipe.objective in GENERATING:
        return None
    lengths = []
    for pair in plan.pairs:
        separate = 2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
        lengths.append(pair_length(pair, recipe.objective) if recipe.objective in PACKED else separate)
    size = recipe.preference.batch_size
    order = plan.schedule
    return [sum(lengths[n] for n in order[start : start + size]) for start in range(0, len(order), size)]


def _learned(recipe: TrainRecipe) -> Callable[[Sequence[Any], Sequence[str]], list[float]] | None:
    """What scores replies to prompts by the reward model that the recipe names."""
    if recipe.preference.reward_model is None or recipe.objective not in GENERATING:
        return None
    from raft.training.reward_model import RewardModel

    judge = RewardModel.load(recipe.preference.reward_model, recipe.precision)

    def scores(asked: Sequence[Any], replies: Sequence[str]) -> list[float]:
        rows = [(item.question, item.documents, reply.strip("\n ")) for item, reply in zip(asked, replies, strict=True)]
        return judge.scores(rows)

    return scores
