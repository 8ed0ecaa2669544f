"""Texts and their classes -> a classifier: what ``raft train`` does with ``objective = "classify"``.

    raft train --data labelled.jsonl --set objective=classify --out runs/classifiers/topics
    load_classifier(Path("runs/classifiers/topics")).classify(["When is the rent due?"])    [("leases", 0.97)]

Data: JSON lines of {"text": ..., "label": ...}, of which some are kept back for the dev loss; or a RAFT dataset, whose
examples are "answerable" where their documents hold the answer, else "unanswerable".

The student reads the prompt as if it were to reply, and a linear head on the last token's hidden state stands where its
language-model head stood (as in transformers' sequence classifiers). A class is then what an answer of one token is to
sft: questions over the same documents share them, every method trains, and the steps are those of trainer.py. The
artefact holds what every tuned model does (``adapter/`` or ``model/``) and ``head.safetensors``, [classes, width].
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import set_seed

from raft.artifacts import Draft, check_free, open_artifact, writing
from raft.config_train import MAY_CHANGE_ON_RESUME, TrainRecipe
from raft.errors import ModelError, UsageError
from raft.llm.local import inherited_labels, resolve_base
from raft.models import Precision, model_fingerprint, prompt_ids, quiet_libraries
from raft.prompts import build_messages
from raft.records import Chunk
from raft.rows import read_rows
from raft.training.attention import forward, use_packed_attention
from raft.training.classes import ClassPlan, make_class_plan, text_ids
from raft.training.distributed import LEARNED
from raft.training.instructions import is_rows_file
from raft.training.memory import train_within_memory
from raft.training.methods import count_parameters
from raft.training.moved import load_moved, save_moved
from raft.training.packing import Packed, merge, pack, to_batch
from raft.training.plan import data_facts, write_seen
from raft.training.plot import plot_loss
from raft.training.reward_model import load_tuned
from raft.training.run import Progress, TrainSummary, peak_memory_mb
from raft.training.student import load_student, save_student
from raft.training.tokenize import Tokenized
from raft.training.trackers import check_trackers
from raft.training.trainer import LogFile, PackedTrainer, Unfreezing, make_trainer, training_arguments
from raft.training.watch import Guard, names_of_packed, watch

KIND = "classifier"
_HEAD = "head.safetensors"
_AT_ONCE = 8  # texts classified together


@dataclass(frozen=True, slots=True)
class ClassSummary(TrainSummary):
    """``accuracy``, ``macro_f1`` and ``f1`` (of each class) are those of the dev examples; ``majority_accuracy`` is
    what the commonest train class would reach there. None without a dev split."""

    classes: tuple[str, ...] = ()
    dev_examples: int = 0
    accuracy: float | None = None
    macro_f1: float | None = None
    majority_accuracy: float | None = None
    f1: Mapping[str, float] | None = None


# --- the head --------------------------------------------------------------------------------------------------------


class Head(torch.nn.Linear):
    """Logits [..., classes] of hidden states [..., width], in float32 whatever the model computes in: bfloat16 would
    lose the small steps that the head takes."""

    replaced: tuple[Any, ...] = ()  # the language-model head; in a tuple, where torch does not take it for a part

    def __init__(self, width: int, classes: int, device: Any) -> None:
        super().__init__(width, classes, bias=False, device=device, dtype=torch.float32)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden.float())


def put_head(model: Any, classes: int) -> Head:
    """Put a new head in the place of the model's language-model head. Raises ModelError where it has none."""
    inner = _inner(model)
    language_head, embedded = inner.get_output_embeddings(), inner.get_input_embeddings().weight
    if language_head is None:
        raise ModelError(f"{type(inner).__name__} has no head that could be replaced", "Take another base model")
    head = Head(embedded.shape[1], classes, embedded.device)
    torch.nn.init.zeros_(head.weight)  # no class is likelier to begin with, whatever the size of the hidden states
    head.replaced = (language_head,)
    inner.set_output_embeddings(head)
    return head


def take_head(model: Any) -> Head:
    """The inverse of ``put_head``: the model has its own head again."""
    head: Head = _inner(model).get_output_embeddings()
    _inner(model).set_output_embeddings(*head.replaced)
    return head


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


# --- training --------------------------------------------------------------------------------------------------------


class ClassTrainer(PackedTrainer):
    """The same steps; checkpoints hold the head too."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_moved(self, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_moved(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_moved(self.model, Path(str(self.state.best_model_checkpoint)))


def train_classifier(
    recipe: TrainRecipe,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Progress | None = None,
) -> ClassSummary:
    """Tune ``recipe.model`` to tell the classes of the data apart and write the artefact ``out``.

    Raises ArtifactError when the dataset is missing or damaged, ``out`` is taken or partial work differs, InputError
    as ``make_class_plan`` does, ModelError when the model cannot be loaded, or the loss is lost.
    """
    quiet_libraries()
    check_free(out, overwrite)
    check_trackers(recipe.watch.trackers)
    inputs, facts = data_facts(recipe, data)
    base = resolve_base(recipe.model)
    inputs["model"] = model_fingerprint(base)
    facts |= {
        "objective": recipe.objective, "method": recipe.method, "base_model": recipe.model,
        "base_fingerprint": inputs["model"], "labels": sorted({*facts["labels"], *inherited_labels(recipe.model)}),
        "reads": "texts" if is_rows_file(data) else "questions",
    }  # fmt: skip
    settings = recipe.model_dump(mode="json", exclude={"out", "dataset"})
    with writing(
        out, KIND, settings, inputs, overwrite=overwrite, resume=resume, may_change=MAY_CHANGE_ON_RESUME,
        worth_keeping=LEARNED,
    ) as draft:  # fmt: skip
        planned = make_class_plan(recipe, data, base)
        write_seen(None if is_rows_file(data) else data, draft.folder, recipe.model)
        draft.facts |= facts | {"class_counts": planned.counts}
        return _run(recipe, planned, base, draft, out, on_step or (lambda *_: None))


def _run(
    recipe: TrainRecipe, planned: ClassPlan, base: Path, draft: Draft, out: Path, on_step: Progress
) -> ClassSummary:
    began, log, checkpoints = time.monotonic(), draft.folder / "log.jsonl", draft.folder / "checkpoints"
    trainer, pieces = train_within_memory(
        partial(_make_trainer, recipe, planned, base, draft.folder, on_step), checkpoints, recipe
    )
    model: Any = trainer.model
    trainable, total = count_parameters(model)
    measured = measure(model, planned)
    save_file({"weight": take_head(model).weight.detach()}, draft.folder / _HEAD)
    save_student(model, base, recipe, draft.folder)
    rows = list(read_rows(log))
    plot_loss(rows, draft.folder / "loss.svg", "loss per example (nats)")
    draft.scratch.append(checkpoints)
    rates = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    summary = ClassSummary(
        out, trainer.state.global_step, trainer.state.best_metric, trainable, total,
        round(time.monotonic() - began, 1), rates[-1] if rates else 0.0, peak_memory_mb(),
        classes=planned.classes, dev_examples=sum(len(sequence.labels) for sequence in planned.dev), **measured,
    )  # fmt: skip
    plan = planned.plan
    draft.facts |= {"examples": plan.examples, "dropped": plan.dropped, "tokens": plan.tokens} | pieces
    draft.facts |= {k: v for k, v in asdict(summary).items() if k != "out"} | {"device": str(model.device)}
    return summary


def _make_trainer(
    recipe: TrainRecipe, planned: ClassPlan, base: Path, folder: Path, on_step: Progress, piece_tokens: int | None
) -> PackedTrainer:
    """What trains a newly loaded student with a head of classes."""
    set_seed(recipe.seed)
    plan, model = planned.plan, load_student(recipe, base)
    put_head(model, len(planned.classes))
    arguments = training_arguments(
        folder / "checkpoints", steps=plan.steps, groups_per_step=plan.per_step, optim=recipe.optim.model_dump(),
        every_steps=recipe.watch.every_steps, has_dev=bool(plan.dev), seed=recipe.seed,
    )  # fmt: skip
    path = folder / "log.jsonl"
    guard = Guard(recipe, names_of_packed(plan.schedule, plan.per_step), on_step, path)
    log = LogFile(path, [len(p) for p in plan.schedule], plan.per_step, guard)
    callbacks = [log, *([Unfreezing(recipe.layers)] if recipe.method == "unfreeze" else [])]
    trainer = make_trainer(
        model, plan.schedule, plan.dev, arguments, recipe.watch.patience, callbacks, piece_tokens, ClassTrainer
    )
    watch(trainer, recipe, model, base, folder)
    return trainer


# --- how well it tells -----------------------------------------------------------------------------------------------


def measure(model: Any, planned: ClassPlan) -> dict[str, Any]:
    """The figures of ``ClassSummary`` on all dev examples; nothing without any."""
    right = [label for sequence in planned.dev for label in sequence.labels]
    if not right:
        return {}
    said = [int(row.argmax()) for sequence in planned.dev for row in class_logits(model, sequence)]
    commonest = max(range(len(planned.classes)), key=lambda number: planned.counts[planned.classes[number]])
    f1 = {planned.classes[number]: f1_of(number, right, said) for number in sorted({*right, *said})}
    return {
        "accuracy": round(sum(map(int.__eq__, right, said)) / len(right), 4),
        "macro_f1": round(sum(f1.values()) / len(f1), 4),
        "majority_accuracy": round(right.count(commonest) / len(right), 4),
        "f1": {name: round(value, 4) for name, value in f1.items()},
    }


def f1_of(number: int, right: Sequence[int], said: Sequence[int]) -> float:
    """F1 of one class: twice the hits, divided by how often it was right and how often it was said."""
    hits = sum(one == other == number for one, other in zip(right, said, strict=True))
    return 2 * hits / (right.count(number) + said.count(number))


def class_logits(model: Any, sequence: Packed) -> torch.Tensor:
    """Logits [examples, classes] of a packed sequence, on the CPU."""
    model.eval()
    device = _inner(model).get_input_embeddings().weight.device
    batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value
             for key, value in to_batch(sequence).items()}  # fmt: skip
    with torch.inference_mode():
        logits: torch.Tensor = forward(model, batch).logits[0]
    return logits.float().cpu()


# --- using it --------------------------------------------------------------------------------------------------------


class Classifier:
    """A trained classifier, ready to use."""

    def __init__(self, model: Any, tokenizer: Any, classes: Sequence[str], reads: str) -> None:
        self.classes = tuple(classes)
        self._model = model
        self._tokenizer = tokenizer
        self._reads = reads

    def classify(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """(class, its probability) of each text. Raises UsageError when it was trained on questions."""
        if self._reads != "texts":
            raise UsageError("this classifier reads questions over documents", "Call classify_questions")
        return list(self._classified([text_ids(self._tokenizer, text.strip()) for text in texts]))

    def classify_questions(self, asked: Sequence[tuple[str, Sequence[Chunk]]]) -> list[tuple[str, float]]:
        """(class, its probability) of each question over its documents. Raises UsageError when it was trained on
        texts."""
        if self._reads != "questions":
            raise UsageError("this classifier reads texts", "Call classify")
        prompts = [prompt_ids(self._tokenizer, build_messages(question, chunks)) for question, chunks in asked]
        return list(self._classified(prompts))

    def _classified(self, prompts: Sequence[list[int]]) -> Iterator[tuple[str, float]]:
        sequences = [pack([Tokenized("", prompt, [0])]) for prompt in prompts]
        for start in range(0, len(sequences), _AT_ONCE):
            logits = class_logits(self._model, merge(sequences[start : start + _AT_ONCE]))
            for row in logits.softmax(-1):
                best = int(row.argmax())
                yield self.classes[best], float(row[best])


def load_classifier(folder: Path, precision: Precision = "auto") -> Classifier:
    """The classifier of an artefact. Raises ArtifactError when that is missing, damaged or was trained on another base,
    ModelError when its base cannot be loaded."""
    facts = open_artifact(folder, KIND).facts
    model, tokenizer = load_tuned(folder, facts, precision)
    use_packed_attention(_inner(model))
    put_head(model, len(facts["classes"])).load_state_dict(load_file(folder / _HEAD))
    return Classifier(model.eval(), tokenizer, facts["classes"], facts["reads"])
