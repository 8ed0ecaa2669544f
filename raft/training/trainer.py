"""The steps: transformers.Trainer over an explicit schedule of packed sequences.

The schedule is the whole training in order (draw e of the dataset in epoch e, shuffled by the seed), so that a
resumed run sees the very sequences an uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from raft.config_train_parts import LayersRecipe
from raft.training.attention import forward
from raft.training.distributed import even_out, has_accelerator, mean_count, share_of_step
from raft.training.methods import decoder_layers, set_unfrozen, unfrozen_layers
from raft.training.packing import Packed, split_packed, to_batch
from raft.training.soft_prompts import is_soft, load_encoder, save_encoder

CURVE = ("step", "epoch", "loss", "eval_loss", "grad_norm", "learning_rate", "tokens_per_second")


class PackedTrainer(Trainer):
    """A Trainer whose sequences carry their own mask and answer positions, taken in the order given."""

    held: tuple[int, ...] = ()  # segments of the sequence, or piece of one, that is being computed

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """The loss of a sequence, its gradients added to those there are. A sequence in pieces holds the activations
        of one at a time."""
        pieces = inputs.pop("pieces", None)
        if pieces is None or num_items_in_batch is None:  # without the count each piece would weigh like a whole
            pieces = [inputs]
        total: Any = 0.0
        for piece in pieces:
            self.held = piece["segments"]
            total = total + super().training_step(model, piece, num_items_in_batch)
        self.held = ()
        return total

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """(loss, None, None): the mean over the sequence's answer tokens, in pieces as they are trained."""
        labels, total = inputs["labels"].numel(), 0.0
        for piece in inputs.pop("pieces", [inputs]):
            self.held = piece["segments"]
            loss, _, _ = super().prediction_step(model, piece, True, ignore_keys)
            total = total + loss * (piece["labels"].numel() / labels)
        self.held = ()
        return total, None, None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """This process's sequences of an optimizer step, and the answer tokens that their losses are divided by."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, mean_count(self.accelerator, count)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and is_soft(self.model):
            save_encoder(self.model, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if is_soft(self.model):
            load_encoder(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if is_soft(self.model) and self.state.best_model_checkpoint:
            load_encoder(self.model, Path(self.state.best_model_checkpoint))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy summed over answer tokens, each by its weight (1 on average over an example), divided by the
        answer tokens of the whole optimizer step."""
        labels = inputs["labels"][0]  # [N]
        outputs = forward(model, inputs)
        logits = outputs.logits[0].float()  # [N, vocabulary]
        weights = inputs.get("weights")
        losses = cross_entropy(logits, labels, reduction="sum" if weights is None else "none")
        total = losses if weights is None else (losses * weights).sum()
        loss = total / (num_items_in_batch or len(labels))
        return (loss, outputs) if return_outputs else loss


class LogFile(TrainerCallback):
    """log.jsonl: one row a logged step. On resume it is rewritten from the checkpoint, so that no row stands twice."""

    def __init__(self, path: Path, lengths: Sequence[int], groups_per_step: int, on_step: Callable[..., None]) -> None:
        self._path = path
        self._lengths = lengths
        self._per_step = groups_per_step
        self._on_step = on_step
        self._began = time.monotonic()
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rows = [row for row in map(_curve_row, state.log_history) if row]
        self._path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        start = (state.global_step - 1) * self._per_step
        self._tokens += sum(self._lengths[start : start + self._per_step])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = state.log_history[-1]
        if "loss" in row:
            row["tokens_per_second"] = round(self._tokens / (time.monotonic() - self._began), 1)
        if kept := _curve_row(row):
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(kept) + "\n")
            self._on_step(state.global_step, state.max_steps, kept)


class Patience(EarlyStoppingCallback):
    """Early stopping that goes on counting where a resumed run goes on; transformers would begin at 0 again."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        best, waited, sign = math.inf, 0, -1 if args.greater_is_better else 1
        for row in state.log_history:
            if (metric := row.get(args.metric_for_best_model)) is not None:
                waited = 0 if sign * metric < best else waited + 1
                best = min(best, sign * metric)
        self.early_stopping_patience_counter = waited
        control.should_training_stop = waited >= self.early_stopping_patience


class Unfreezing(TrainerCallback):
    """Lets one layer more move every few steps (methods.unfrozen_layers)."""

    def __init__(self, layers: LayersRecipe) -> None:
        self._layers = layers

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        set_unfrozen(model, unfrozen_layers(self._layers, len(decoder_layers(model)), state.global_step))


def _curve_row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in CURVE if key in row} if "loss" in row or "eval_loss" in row else {}


def make_schedule(draws: Sequence[Sequence[Sequence[Packed]]], epochs: float, seed: int) -> list[Packed]:
    """All sequences of the training in order. ``draws[d]`` lists the groups of draw d, each a list of sequences;
    epoch e takes draw e modulo the number of draws, shuffled by seed and epoch."""
    schedule: list[Packed] = []
    for epoch in range(math.ceil(epochs)):
        groups = [sequence for group in draws[epoch % len(draws)] for sequence in group]
        random.Random(f"{seed}:{epoch}").shuffle(groups)
        share = min(1.0, epochs - epoch)
        schedule += groups[: math.ceil(len(groups) * share)]
    return schedule


def schedule_name(schedule: str) -> str:
    """The recipe's schedule as transformers calls it: its "constant" leaves out the warm-up."""
    return "constant_with_warmup" if schedule == "constant" else schedule


def training_arguments(
    folder: Path, *, steps: int, groups_per_step: int, optim: dict[str, Any], every_steps: int, has_dev: bool,
    seed: int, parallel: Mapping[str, Any] | None = None,
) -> TrainingArguments:  # fmt: skip
    """Trainer settings; ``optim`` holds lr, warmup_fraction, schedule, weight_decay and max_grad_norm, ``parallel``
    what several processes need (distributed.py). Raises RecipeError where these cannot share a step evenly."""
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=1, per_device_eval_batch_size=1,
        gradient_accumulation_steps=share_of_step(groups_per_step), max_steps=steps, learning_rate=optim["lr"],
        warmup_steps=round(steps * optim["warmup_fraction"]), lr_scheduler_type=schedule_name(optim["schedule"]),
        weight_decay=optim["weight_decay"], max_grad_norm=optim["max_grad_norm"], optim="adamw_torch",
        logging_steps=1, logging_nan_inf_filter=False, eval_strategy="steps" if has_dev else "no",
        eval_steps=every_steps, save_strategy="steps", save_steps=every_steps, save_total_limit=2,
        load_best_model_at_end=has_dev, metric_for_best_model="eval_loss", greater_is_better=False,
        prediction_loss_only=True, remove_unused_columns=False, label_names=["labels"], report_to=[],
        disable_tqdm=True, dataloader_num_workers=0, dataloader_pin_memory=False, seed=seed, data_seed=seed,
        log_level="error", log_level_replica="error", use_cpu=not has_accelerator(),
        average_tokens_across_devices=False, **(parallel or {}),  # PackedTrainer counts the tokens of all processes
    )  # fmt: skip
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would take several sequences at once, and lose them
    return arguments


def make_trainer(
    model: Any,
    schedule: list[Packed],
    dev: list[Packed],
    arguments: TrainingArguments,
    patience: int,
    callbacks: list[TrainerCallback],
    piece_tokens: int | None = None,
    kind: type[PackedTrainer] = PackedTrainer,
) -> PackedTrainer:
    """The trainer, with early stopping when there is a dev set. Sequences of more than ``piece_tokens`` tokens run as
    several pieces."""
    if dev:
        callbacks = [*callbacks, Patience(patience)]
    trainer = kind(
        model=model, args=arguments, train_dataset=even_out(schedule), eval_dataset=dev or None,
        data_collator=partial(_collate, piece_tokens=piece_tokens), callbacks=callbacks,
    )  # fmt: skip
    trainer.remove_callback(_printer())
    return trainer


def _collate(rows: Sequence[Packed], piece_tokens: int | None) -> dict[str, Any]:
    """The batch of one sequence, and where it is too long those of its pieces."""
    pieces = [rows[0]] if piece_tokens is None else split_packed(rows[0], piece_tokens)
    return to_batch(rows[0]) | ({"pieces": [to_batch(piece) for piece in pieces]} if len(pieces) > 1 else {})


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; ones cut short by a crash (trainer_state.json is written last) are deleted."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
