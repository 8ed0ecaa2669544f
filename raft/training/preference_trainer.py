"""The steps of the objectives that prefer.

trainer = make_preference_trainer(model, tokenizer, plan, recipe, folder, log)
trainer.train()
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.rloo_config import RLOOConfig

from raft.config_train import TrainRecipe
from raft.errors import ModelError
from raft.prompts import parse_answer
from raft.training.preference_rows import GENERATING, PACKED, Asked, PreferencePlan, TokenPair
from raft.training.rewards import REWARDS
from raft.training.run import Progress
from raft.training.trainer import Patience, Unfreezing, schedule_name
from raft.training.trl_trainers import (
    FromTable,
    GivenGRPOTrainer,
    GivenRLOOTrainer,
    ORPOConfig,
    PackedDPOTrainer,
    PackedORPOTrainer,
    PackedPairs,
    TableKTOTrainer,
    TableRewardTrainer,
    no_reference,
)

_CURVE = {
    "step": "step", "epoch": "epoch", "loss": "loss", "eval_loss": "eval_loss", "grad_norm": "grad_norm",
    "learning_rate": "learning_rate", "tokens_per_second": "tokens_per_second", "kl": "kl",
    "rewards/margins": "margin", "eval_rewards/margins": "eval_margin", "margin": "margin",
    "eval_margin": "eval_margin", "rewards/accuracies": "accuracy", "eval_rewards/accuracies": "eval_accuracy",
    "accuracy": "accuracy", "eval_accuracy": "eval_accuracy", "reward": "reward", "eval_reward": "eval_reward",
    "reward_std": "reward_std", "completions/mean_length": "reply_tokens", "completions/clipped_ratio": "cut_share",
}  # fmt: skip


class PreferenceLog(TrainerCallback):
    """log.jsonl: one row a logged step. On resume it is rewritten from the checkpoint, so that no row stands twice.

    ``lengths`` counts the tokens of each optimizer step; None: the trainer counts what it generates.
    """

    def __init__(self, path: Path, lengths: Sequence[int] | None, on_step: Progress) -> None:
        self.path = path
        self._lengths = lengths
        self._on_step = on_step
        self._began = time.monotonic()
        self._before = 0
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rows = [row for row in map(_curve_row, state.log_history) if row]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self._before = state.num_input_tokens_seen
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._lengths is None:
            self._tokens = state.num_input_tokens_seen - self._before
        else:
            self._tokens += self._lengths[state.global_step - 1]

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = state.log_history[-1]
        if "loss" in row:
            row["tokens_per_second"] = round(self._tokens / (time.monotonic() - self._began), 1)
        if kept := _curve_row(row):
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(kept) + "\n")
            self._on_step(state.global_step, state.max_steps, kept)


def _curve_row(row: Mapping[str, Any]) -> dict[str, Any]:
    if "loss" not in row and "eval_loss" not in row:
        return {}
    return {name: row[key] for key, name in _CURVE.items() if key in row}


# --- making one ------------------------------------------------------------------------------------------------------


def make_preference_trainer(
    model: Any, tokenizer: Any, plan: PreferencePlan, recipe: TrainRecipe, folder: Path, log: PreferenceLog,
    learned: Callable[[list[Asked], list[str]], list[float]] | None = None,
) -> Any:  # fmt: skip
    """The trainer of ``recipe.objective``, with early stopping when there is a dev set. ``learned`` scores replies to
    prompts by a reward model. Raises ModelError when TRL refuses the model."""
    disable_progress_bar()
    make = {"dpo": _dpo, "orpo": _orpo, "kto": _kto, "reward": _reward, "grpo": _generating, "rloo": _generating}
    arguments = _arguments(recipe, plan, folder)
    with _adapters_as_they_are(model):
        try:
            trainer = make[recipe.objective](model, tokenizer, plan, recipe, arguments, learned)
        except (ValueError, NotImplementedError) as error:
            said = " ".join(str(error).split())[:300]
            raise ModelError(f"objective {recipe.objective} cannot train this model ({said})") from error
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(log)
    if plan.dev:
        trainer.add_callback(Patience(recipe.watch.patience))
    if recipe.method == "unfreeze":
        trainer.add_callback(Unfreezing(recipe.layers))
    return trainer


@contextmanager
def _adapters_as_they_are(model: Any) -> Iterator[None]:
    """TRL casts the adapters of a 4-bit model to bfloat16, in which small steps are lost; they go back."""
    four_bit = getattr(model, "is_loaded_in_4bit", False)
    kept = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad} if four_bit else {}
    yield
    for name, weight in model.named_parameters():
        if name in kept:
            weight.data = kept[name]


def _arguments(recipe: TrainRecipe, plan: PreferencePlan, folder: Path) -> dict[str, Any]:
    """What the arguments of all six trainers share."""
    optim, every, generating = recipe.optim, recipe.watch.every_steps, recipe.objective in GENERATING
    size = 1 if recipe.objective in PACKED else recipe.preference.pairs_at_once
    return {
        "output_dir": str(folder), "max_steps": plan.steps, "learning_rate": optim.lr,
        "per_device_train_batch_size": size, "per_device_eval_batch_size": size,
        "gradient_accumulation_steps": recipe.preference.batch_size // size,
        "warmup_steps": round(plan.steps * optim.warmup_fraction), "lr_scheduler_type": schedule_name(optim.schedule),
        "weight_decay": optim.weight_decay, "max_grad_norm": optim.max_grad_norm, "optim": "adamw_torch",
        "bf16": False, "gradient_checkpointing": False,  # the student comes with its precision and its checkpoints
        "disable_dropout": not recipe.lora.dropout, "logging_steps": 1, "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if plan.dev else "no", "eval_steps": every, "save_strategy": "steps",
        "save_steps": every, "save_total_limit": 2, "load_best_model_at_end": bool(plan.dev),
        "metric_for_best_model": "eval_reward" if generating else "eval_loss", "greater_is_better": generating,
        "prediction_loss_only": True, "remove_unused_columns": False, "report_to": [], "disable_tqdm": True,
        "dataloader_num_workers": 0, "dataloader_pin_memory": False, "seed": recipe.seed, "data_seed": recipe.seed,
        "log_level": "error", "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip


def _on_one_gpu(config: Any) -> Any:
    """The trainer's arguments, of however many GPUs there are for one: DataParallel would cut up what is laid out."""
    config._n_gpu = min(1, config.n_gpu)
    return config


def _rows(numbers: Sequence[int]) -> Any:
    return Dataset.from_dict({"row": list(numbers)}) if numbers else None


def _dpo(model: Any, tokenizer: Any, plan: PreferencePlan, recipe: TrainRecipe, arguments: Any, _: Any) -> Any:
    chosen = recipe.preference
    weighted: dict[str, Any] = {"loss_type": [chosen.loss]}
    if chosen.sft_weight:
        weighted = {"loss_type": [chosen.loss, "sft"], "loss_weights": [1.0, chosen.sft_weight]}
    config = DPOConfig(
        **arguments, **weighted, beta=chosen.beta, label_smoothing=chosen.label_smoothing, max_length=None,
        precompute_ref_log_probs=True,
    )  # fmt: skip
    return PackedDPOTrainer(
        model, no_reference(model.config), _on_one_gpu(config), PackedPairs(plan.pairs, tokenizer.pad_token_id),
        _rows(plan.schedule), _rows(plan.dev), tokenizer,
    )  # fmt: skip


def _orpo(model: Any, tokenizer: Any, plan: PreferencePlan, recipe: TrainRecipe, arguments: Any, _: Any) -> Any:
    config = ORPOConfig(**arguments, beta=recipe.preference.beta)
    trainer = PackedORPOTrainer(
        model, _on_one_gpu(config), PackedPairs(plan.pairs, tokenizer.pad_token_id), _rows(plan.schedule),
        _rows(plan.dev), tokenizer,
    )  # fmt: skip
    trainer.use_dpo_data_collator = True  # or every dev batch would be warned about
    return trainer


def _kto(model: Any, tokenizer: Any, plan: PreferencePlan, recipe: TrainRecipe, arguments: Any, _: Any) -> Any:
    at_once = recipe.preference.pairs_at_once
    train = kto_rows([plan.pairs[number] for number in plan.schedule], at_once)
    dev = kto_rows([plan.pairs[number] for number in plan.dev], at_once)
    sizes = {f"per_device_{name}_batch_size": 2 * at_once for name in ("train", "eval")}
    config = KTOConfig(
        **arguments | sizes, beta=recipe.preference.beta, desirable_weight=recipe.preference.desirable_weight,
        undesirable_weight=recipe.preference.undesirable_weight, max_length=None, precompute_ref_log_probs=True,
    )  # fmt: skip
    collator = FromTable([*train, *dev], DataCollatorForUnpairedPreference(tokenizer.pad_token_id))
    numbers = range(len(train)), range(len(train), len(train) + len(dev))
    return TableKTOTrainer(
        model, no_reference(model.config), _on_one_gpu(config), collator, _rows(numbers[0]), _rows(numbers[1]),
        tokenizer,
    )  # fmt: skip


def kto_rows(pairs: Sequence[TokenPair], at_once: int) -> list[dict[str, Any]]:
    """The rows of KTO in batches of ``at_once`` pairs: their chosen answers, then their rejected ones, so that each
    answer, moved on by one for KTO's estimate of the KL divergence, meets another question's prompt."""
    rows = []
    for start in range(0, len(pairs), at_once):
        part = pairs[start : start + at_once]
        batch = [(pair.prompt, pair.chosen, True) for pair in part] + [(p.prompt, p.rejected, False) for p in part]
        for place, (prompt, answer, label) in enumerate(batch):
            rows.append(
                {"prompt_ids": prompt, "completion_ids": answer, "label": label,
                 "KL_completion_ids": batch[place - 1][1]}
            )  # fmt: skip
    return rows


def _reward(model: Any, tokenizer: Any, plan: PreferencePlan, recipe: TrainRecipe, arguments: Any, _: Any) -> Any:
    config = RewardConfig(**arguments, max_length=None, center_rewards_coefficient=recipe.preference.center or None)
    table = [
        {"chosen_ids": pair.prompt + pair.chosen, "rejected_ids": pair.prompt + pair.rejected} for pair in plan.pairs
    ]
    collator = FromTable(table, DataCollatorForPreference(tokenizer.pad_token_id))
    return TableRewardTrainer(model, _on_one_gpu(config), collator, _rows(plan.schedule), _rows(plan.dev), tokenizer)


def _generating(
    model: Any, tokenizer: Any, plan: PreferencePlan, recipe: TrainRecipe, arguments: Any, learned: Any
) -> Any:
    chosen = recipe.preference
    weights = {name: weight for name, weight in chosen.rewards.model_dump().items() if weight and name in REWARDS}
    functions: list[Callable[..., Any]] = [_reward_function(name, plan.asked) for name in weights]
    if learned is not None and chosen.rewards.model:
        functions.append(_learned_function(learned, plan.asked))
        weights["model"] = chosen.rewards.model
    sizes = {
        "per_device_train_batch_size": chosen.generations, "per_device_eval_batch_size": 2 * chosen.generations,
        "gradient_accumulation_steps": chosen.batch_size, "num_generations": chosen.generations,
        "num_generations_eval": 2, "max_completion_length": chosen.max_new_tokens,
        "temperature": chosen.temperature, "shuffle_dataset": False, "reward_weights": list(weights.values()),
        "beta": chosen.kl,
    }  # fmt: skip
    make: Any = GivenGRPOTrainer if recipe.objective == "grpo" else GivenRLOOTrainer
    config: Any = GRPOConfig if recipe.objective == "grpo" else RLOOConfig
    own = {"loss_type": chosen.group_loss} if recipe.objective == "grpo" else {}
    train, dev = (
        Dataset.from_list([{"row": n, "prompt": plan.asked[n].prompt} for n in numbers]) if numbers else None
        for numbers in (plan.schedule, plan.dev)
    )
    trainer = make(
        model=model, reward_funcs=functions, args=_on_one_gpu(config(**arguments | sizes | own)), train_dataset=train,
        eval_dataset=dev, processing_class=tokenizer,
    )  # fmt: skip
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")  # a copy of an adapter that has learned nothing: without one the model is the same
    return trainer


def _reward_function(name: str, asked: Sequence[Asked]) -> Callable[..., list[float | None]]:
    def reward(completions: list[str], row: list[int], **_: Any) -> list[float | None]:
        replies = zip(completions, row, strict=True)
        return [REWARDS[name](parse_answer(text.strip("\n ")), asked[number].expected) for text, number in replies]

    reward.__name__ = name
    return reward


def _learned_function(learned: Any, asked: Sequence[Asked]) -> Callable[..., list[float]]:
    def model(completions: list[str], row: list[int], **_: Any) -> list[float]:
        scores: list[float] = learned([asked[number] for number in row], completions)
        return scores

    return model
