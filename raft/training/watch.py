"""Watching a training: a loss that is lost stops it, dev questions are answered on the way, trackers follow it.

on_step = Guard(recipe, names_of_packed(plan.schedule, per_step), on_step, folder / "log.jsonl")   # for the log
watch(trainer, recipe, model, base, folder)   # samples.jsonl, tensorboard/, and what the base knows (probe.py)
trainer.train()
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from raft.config_train import TrainRecipe
from raft.errors import InputError, ModelError
from raft.models import load_tokenizer
from raft.prompts import parse_answer
from raft.recipe import require
from raft.records import RaftExample
from raft.rows import Journal, read_rows, write_rows
from raft.training.attention import resting
from raft.training.packing import Packed, fits
from raft.training.probe import probe_before
from raft.training.run import Progress
from raft.training.soft_prompts import is_soft
from raft.training.tokenize import Tokenized, read_chunks, read_groups, tokenize_groups
from raft.training.trackers import TENSORBOARD, make_tracker

SAMPLES = "samples.jsonl"
Names = Callable[[int], Sequence[str]]
"""Optimizer step, counted from 1 -> the examples that its gradients come from."""


# --- a loss that is lost ---------------------------------------------------------------------------------------------

_WINDOW = 50  # losses whose median is what is usual
_IN_A_ROW = 3  # losses above the limit: one alone may be of an odd example, and the gradient is clipped
_HARMLESS = 5.0  # nats a token: learned answers cost less than 1, a model that knows nothing guesses at about 10
_MOST_NAMED = 8


class Guard:
    """What follows the steps of a training, and stops it once its loss is lost: not a number, or three steps in a row
    above 5 nats and ``watch.explode_factor`` times the median of the last 50 losses before them. What grpo and rloo
    log as their loss is no measure of anything: there it only has to be a number.

    ``log`` is the log.jsonl that holds the rows, each before it comes here: a training that goes on from a checkpoint
    finds there what came before it.
    """

    def __init__(self, recipe: TrainRecipe, names: Names, on_step: Progress, log: Path | None = None) -> None:
        self._factor = 0.0 if recipe.objective in ("grpo", "rloo") else recipe.watch.explode_factor
        self._names = names
        self._on_step = on_step
        self._log = log
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._above = 0

    def __call__(self, step: int, steps: int, row: dict[str, Any]) -> None:
        """Raises ModelError where a loss or its gradient is lost, naming the step's examples where it is theirs."""
        for key, name in (("loss", "loss"), ("grad_norm", "gradient norm")):
            if not math.isfinite(row.get(key, 0.0)):
                raise ModelError(f"the {name} is {row[key]} at step {step}, {self._examples(step)}", _REMEDY)
        if not math.isfinite(row.get("eval_loss", 0.0)):
            raise ModelError(
                f"the dev loss is {row['eval_loss']} at step {step}: the weights are lost since step {step}, whose "
                "loss was still a number",
                "Lower optim.lr",
            )
        if self._log is not None:
            self._look_back(self._log, step)
            self._log = None
        if "loss" in row and self._factor:
            self._check_size(step, row["loss"])
        self._on_step(step, steps, row)

    def _look_back(self, log: Path, step: int) -> None:
        """Take up what the rows before this step say."""
        for row in read_rows(log):
            if "loss" in row and row["step"] < step:
                self._weigh(row["loss"])
        self._above = min(self._above, _IN_A_ROW - 1)  # one that went on all the same stops at its next such loss

    def _weigh(self, loss: float) -> float:
        """Count a loss among the usual ones or, far above them, in a row; comes back with the median before it."""
        usual = statistics.median(self._recent or [loss])
        if loss <= max(self._factor * usual, _HARMLESS):
            self._recent.append(loss)
            self._above = 0
        else:
            self._above += 1
        return usual

    def _check_size(self, step: int, loss: float) -> None:
        usual = self._weigh(loss)
        if self._above == _IN_A_ROW:
            first = step - _IN_A_ROW + 1
            raise ModelError(
                f"the loss explodes: {loss:.3g} at step {step}, for the third time more than {self._factor:g} times "
                f"the median before ({usual:.3g}), first at step {first}, {self._examples(first)}",
                f"{_REMEDY} (--resume with watch.explode_factor = 0 goes on all the same)",
            )

    def _examples(self, step: int) -> str:
        """The step's examples and those of the step before it, whose update may be what is felt."""
        before = f", after {_listed(self._names(step - 1))}" if step > 1 else ""
        return f"on {_listed(self._names(step))}{before}"


_REMEDY = "Lower optim.lr, or mend these examples"


def _listed(names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - _MOST_NAMED} more" if len(shown) > _MOST_NAMED else ""
    return ", ".join(shown[:_MOST_NAMED]) + more if shown else "unnamed examples"


def names_of_packed(schedule: Sequence[Packed], per_step: int) -> Names:
    """The examples (pretrain: documents) of each step of a training that takes ``per_step`` sequences a step."""
    return lambda step: [name for packed in schedule[(step - 1) * per_step : step * per_step] for name in packed.ids]


# --- dev questions answered on the way -------------------------------------------------------------------------------


class Samples(TrainerCallback):
    """samples.jsonl: what the student answers to the same few dev questions at every dev loss::

        {"step": 20, "example": "q7/0", "question": "What colour is the door of ward 7?", "expected": "grey",
         "answer": "grey", "reply": "Document [2] says ##begin_quote##The door of ward 7 is grey. ..."}

    On resume, rows behind the checkpoint are written anew. Decoding is greedy and draws nothing: what is learned is
    the same, bit for bit, with and without it.
    """

    def __init__(
        self, path: Path, student: Any, tokenizer: Any, examples: Sequence[RaftExample], prompts: Sequence[Tokenized]
    ) -> None:
        self._path = path
        self._student = student
        self._tokenizer = tokenizer
        self._examples = examples
        self._prompts = [prompt.prompt for prompt in prompts]
        self._room = 2 * max(len(prompt.target) for prompt in prompts)  # tokens: twice the longest expected answer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        journal = Journal(self._path)
        journal.close()
        anew = self._path.with_name(SAMPLES + ".tmp")
        write_rows(anew, (row for row in journal.rows if row["step"] <= state.global_step))
        anew.replace(self._path)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        replies = reply(self._student, self._tokenizer, self._prompts, self._room)  # by all processes of a training
        if not state.is_world_process_zero:
            return
        journal = Journal(self._path)
        for example, text in zip(self._examples, replies, strict=True):
            journal.append(
                {"step": state.global_step, "example": example.id, "question": example.question,
                 "expected": parse_answer(example.target).final, "answer": parse_answer(text).final, "reply": text}
            )  # fmt: skip
        journal.close()


def make_samples(recipe: TrainRecipe, student: Any, base: Path, path: Path) -> Samples:
    """What answers the first questions of as many dev groups as there are. Raises InputError when no dev example fits
    ``max_tokens``."""
    dataset = Path(require(recipe.dataset, "dataset", "--data"))
    tokenizer, chunks = load_tokenizer(base), read_chunks(dataset)
    turns = zip_longest(*read_groups(dataset, "dev").get(0, []))
    examples = [example for example in chain.from_iterable(turns) if example is not None]
    picked: list[tuple[RaftExample, Tokenized]] = []
    for example in examples:
        if len(picked) < recipe.watch.samples:
            (tokenized,) = tokenize_groups(tokenizer, [[example]], chunks, documents=recipe.documents)
            picked += [(example, one) for one in tokenized if fits(one, recipe.max_tokens)]
    if not picked:
        raise InputError(
            f"watch.samples = {recipe.watch.samples} has dev questions answered, and {dataset} has none that fits "
            f"max_tokens = {recipe.max_tokens}",
            "Generate it with a share for dev (split.dev = 0.1), or leave watch.samples out",
        )
    return Samples(path, student, tokenizer, [one for one, _ in picked], [other for _, other in picked])


def reply(student: Any, tokenizer: Any, prompts: Sequence[list[int]], max_tokens: int) -> list[str]:
    """What a model in training says to the prompts (token ids), greedily, in at most ``max_tokens`` tokens each."""
    from raft.llm.decode import Row, decode

    rows = [Row(number, prompt, max_tokens) for number, prompt in enumerate(prompts)]
    said: list[list[int]] = [[] for _ in rows]
    with as_served(student) as model:
        ends = model.generation_config.eos_token_id
        end_ids = frozenset({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
        for step in decode(model, rows, end_ids):
            for row, token in step:
                said[row.index].append(token)
    return [str(tokenizer.decode(tokens, skip_special_tokens=True)).strip("\n ") for tokens in said]


@contextmanager
def as_served(student: Any) -> Iterator[Any]:
    """The model inside a student as decode.py takes it: its soft prompt, if it has one, is its ``soft_prefix``."""
    from raft.llm.local import soft_prefix

    with resting(student) as model:
        try:
            if is_soft(student):
                model.soft_prefix = soft_prefix(student)
            yield model
        finally:
            model.__dict__.pop("soft_prefix", None)


def watch(trainer: Any, recipe: TrainRecipe, student: Any, base: Path, folder: Path) -> None:
    """Let the recipe's trackers follow the trainer, and dev questions of ``recipe.dataset`` be answered into
    ``folder``; measure what the base knows. Raises InputError when there is no question to answer."""
    trainer.args.run_name, trainer.args.project = folder.name.removesuffix(".partial"), "raft"
    for name in recipe.watch.trackers:
        trainer.add_callback(make_tracker(name, folder / TENSORBOARD))
    if recipe.watch.samples:
        trainer.add_callback(make_samples(recipe, student, base, folder / SAMPLES))
    probe_before(recipe, student, base, Path(trainer.args.output_dir))
