"""The steps of an encoder or reranker: sentence-transformers' own trainers over batches laid out beforehand.

    trainer = make_tuning_trainer(model, batches, dev_batches, texts, objective="encoder", ...)
    trainer.train()

The batches stand in the order in which they are trained on, the whole training as one epoch, so that a resumed run
skips exactly those it has done, and no two rows of a batch answer one another (retrieval_batches.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from raft.errors import ModelError
from raft.training.retrieval_batches import Row
from raft.training.run import Progress
from raft.training.trainer import Patience, schedule_name

CURVE = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "examples_per_second")


class TuningLog(TrainerCallback):
    """log.jsonl: one row a logged step. On resume it is rewritten from the checkpoint, so that no row stands twice."""

    def __init__(self, path: Path, sizes: Sequence[int], on_step: Progress) -> None:
        self.path = path
        self._sizes = sizes
        self._on_step = on_step
        self._began = time.monotonic()
        self._examples = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rows = [row for row in map(_curve_row, state.log_history) if row]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._examples += self._sizes[state.global_step - 1]

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = state.log_history[-1]
        if "loss" in row:
            row["examples_per_second"] = round(self._examples / (time.monotonic() - self._began), 2)
        if kept := _curve_row(row):
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(kept) + "\n")
            self._on_step(state.global_step, state.max_steps, kept)


def _curve_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in CURVE if key in row} if "loss" in row or "eval_loss" in row else {}


class _InOrder(torch.utils.data.Sampler[list[int]]):
    """The positions of each batch's rows in a dataset that lists all rows, batch after batch."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = list(sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for size in self._sizes:
            yield list(range(start, start + size))
            start += size


class _Plain:
    """Before one of sentence-transformers' trainers: batches in the order given, and no model card, which would spend
    seconds on a README with rows of the dataset in it."""

    def add_model_card_callback(self, defaults: dict[str, Any]) -> None:
        """None."""

    def get_batch_sampler(self, dataset: Any, **_: Any) -> _InOrder:
        return _InOrder(dataset.sizes)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.model.save_pretrained(output_dir, create_model_card=False)  # type: ignore[attr-defined]


def make_tuning_trainer(
    model: Any, batches: Sequence[Sequence[Row]], dev_batches: Sequence[Sequence[Row]], texts: Mapping[str, str],
    log: TuningLog, *, objective: str, folder: Path, optim: Mapping[str, Any], watch: Mapping[str, Any],
    retrieval: Mapping[str, Any], seed: int, bfloat16: bool,
) -> Any:  # fmt: skip
    """The trainer of one objective, with early stopping when there is a dev set; ``optim``, ``watch`` and
    ``retrieval`` hold the recipe's fields of those names. Raises ModelError when training lacks a package."""
    columns = _encoder_columns if objective == "encoder" else _reranker_columns
    train = columns(batches, texts, retrieval["negatives"])
    dev = columns(dev_batches, texts, retrieval["negatives"]) if dev_batches else None
    settings = _arguments(folder, len(batches), optim, watch, bool(dev_batches), seed, bfloat16)
    make = _encoder_trainer if objective == "encoder" else _reranker_trainer
    trainer = make(model, settings, train, dev, retrieval)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(log)
    if dev is not None:
        trainer.add_callback(Patience(watch["patience"]))
    return trainer


def _arguments(
    folder: Path,
    steps: int,
    optim: Mapping[str, Any],
    watch: Mapping[str, Any],
    has_dev: bool,
    seed: int,
    bfloat16: bool,
) -> dict[str, Any]:
    """What both trainers' arguments share."""
    return {
        "output_dir": str(folder), "max_steps": steps, "learning_rate": optim["lr"],
        "warmup_steps": round(steps * optim["warmup_fraction"]), "lr_scheduler_type": schedule_name(optim["schedule"]),
        "weight_decay": optim["weight_decay"], "max_grad_norm": optim["max_grad_norm"], "optim": "adamw_torch",
        "bf16": bfloat16, "logging_steps": 1, "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if has_dev else "no", "eval_steps": watch["every_steps"],
        "save_strategy": "steps", "save_steps": watch["every_steps"], "save_total_limit": 2,
        "load_best_model_at_end": has_dev, "metric_for_best_model": "eval_loss", "greater_is_better": False,
        "report_to": [], "disable_tqdm": True, "dataloader_num_workers": 0, "dataloader_pin_memory": False,
        "seed": seed, "data_seed": seed, "log_level": "error", "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip


def _on_one_gpu(arguments: Any) -> Any:
    """The arguments, of however many GPUs there are for one: DataParallel would cut up what is laid out."""
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _encoder_columns(batches: Sequence[Sequence[Row]], texts: Mapping[str, str], negatives: int) -> Any:
    rows = [row for batch in batches for row in batch]
    columns = {"question": [row.question for row in rows], "positive": [texts[row.positive] for row in rows]}
    for n in range(negatives):
        columns[f"negative_{n + 1}"] = [texts[row.negatives[n]] for row in rows]
    return _table(columns, [len(batch) for batch in batches])


def _reranker_columns(batches: Sequence[Sequence[Row]], texts: Mapping[str, str], negatives: int) -> Any:
    pairs = [(row, chunk) for batch in batches for row in batch for chunk in row.chunks]
    columns: dict[str, list[Any]] = {
        "question": [row.question for row, _ in pairs],
        "passage": [texts[chunk] for _, chunk in pairs],
        "label": [float(chunk == row.positive) for row, chunk in pairs],
    }
    return _table(columns, [(1 + negatives) * len(batch) for batch in batches])


def _table(columns: Mapping[str, list[Any]], sizes: list[int]) -> Any:
    """The rows of all batches in order; ``sizes`` says how many rows each batch has."""
    try:
        from datasets import Dataset
    except ImportError:
        raise ModelError(
            "sentence-transformers trains with the package datasets, which is not installed",
            "Run: pip install datasets",
        ) from None
    table = Dataset.from_dict(columns)
    table.sizes = sizes
    return table


def _encoder_trainer(model: Any, settings: dict[str, Any], train: Any, dev: Any, retrieval: Mapping[str, Any]) -> Any:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer import losses

    class EncoderTrainer(_Plain, SentenceTransformerTrainer):  # type: ignore[misc]
        pass

    passages = [name for name in train.column_names if name != "question"]
    prompts = {"question": retrieval["query_prompt"], **dict.fromkeys(passages, retrieval["document_prompt"])}
    arguments = SentenceTransformerTrainingArguments(
        **settings, prompts={name: prompt for name, prompt in prompts.items() if prompt}
    )
    scale, at_once = 1 / retrieval["temperature"], retrieval["texts_at_once"]
    loss: Any
    if at_once is None:
        loss = losses.MultipleNegativesRankingLoss(model, scale=scale)
    else:  # the same loss with cached gradients: Gao et al. 2021, arXiv 2101.06983
        loss = losses.CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=at_once)
    return EncoderTrainer(model=model, args=_on_one_gpu(arguments), train_dataset=train, eval_dataset=dev, loss=loss)


def _reranker_trainer(model: Any, settings: dict[str, Any], train: Any, dev: Any, retrieval: Mapping[str, Any]) -> Any:
    from sentence_transformers import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    class RerankerTrainer(_Plain, CrossEncoderTrainer):  # type: ignore[misc]
        pass

    weight = torch.tensor(float(retrieval["negatives"]))  # one positive pair stands against so many
    arguments = _on_one_gpu(CrossEncoderTrainingArguments(**settings))
    return RerankerTrainer(
        model=model, args=arguments, train_dataset=train, eval_dataset=dev,
        loss=BinaryCrossEntropyLoss(model, pos_weight=weight),
    )  # fmt: skip
