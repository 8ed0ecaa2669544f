"""What a training forgets: the same general questions and texts before it and after it.

    probe_before(recipe, student, base, checkpoints)
    trainer.train()
    probe_after(recipe, student, base, checkpoints)
    # {"before": {"perplexity": 21.4, "choices_right": 0.6}, "after": {"perplexity": 23.0, "choices_right": 0.575}}

Fine-tuning on one thing costs others (Luo et al. 2023, arXiv 2308.08747). ``probe.jsonl`` holds 40 questions with four
choices and 12 paragraphs, written for this project, so that they stand in no training data::

    {"question": "What do bees make?", "choices": ["honey", "silk", "milk", "wool"], "right": 0}
    {"text": "The kettle had been on the stove for some minutes before ..."}

They are few: the share of right choices has a standard error of about 0.08, and only large changes of it mean anything;
perplexity is the finer measure. Both compare a model with itself, not with others: neither is a benchmark.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from raft.artifacts import write_json
from raft.config_train import TrainRecipe
from raft.models import load_tokenizer
from raft.rows import read_rows
from raft.training.attention import forward, resting
from raft.training.corpus import join
from raft.training.distributed import is_main
from raft.training.packing import Packed, merge, pack, to_batch
from raft.training.tokenize import Tokenized

ITEMS = Path(__file__).with_name("probe.jsonl")
KEPT = "probe.json"
Measured = dict[str, float]
_MOST_NATS = 700.0  # a token; more would overflow
_TEXTS_AT_ONCE, _QUESTIONS_AT_ONCE = 2, 8  # about 200 tokens each


def probe_before(recipe: TrainRecipe, student: Any, base: Path, checkpoints: Path) -> None:
    """Measure the base that ``student``, not trained yet, begins from, where ``watch.probe`` is on. The figures are
    kept beside the checkpoints, so that a resumed training states those of its first start."""
    if not _applies(recipe) or (checkpoints / KEPT).is_file():
        return
    # without a soft prompt, of which the base has none; low-rank matrices and factors change nothing yet
    untuned = student.get_base_model() if hasattr(student, "get_base_model") else student
    measured = measure(untuned, load_tokenizer(base))
    if is_main():
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(checkpoints / KEPT, measured)


def probe_after(recipe: TrainRecipe, student: Any, base: Path, checkpoints: Path) -> dict[str, Measured] | None:
    """The figures of base and trained student; None where nothing is measured."""
    if not _applies(recipe):
        return None
    after = measure(student, load_tokenizer(base))
    return {"before": json.loads((checkpoints / KEPT).read_text(encoding="utf-8")), "after": after}


def _applies(recipe: TrainRecipe) -> bool:
    """Not where what is tuned writes no text, nor where no process has the whole model."""
    writes = recipe.objective not in ("reward", "classify", "encoder", "reranker")
    return recipe.watch.probe and writes and recipe.parallel.kind == "ddp"


def probe_line(found: dict[str, Measured]) -> str:
    """The figures for people."""
    before, after = found["before"], found["after"]
    return (
        f"general knowledge: perplexity {before['perplexity']:.4g} -> {after['perplexity']:.4g}, "
        f"choices right {before['choices_right']:.3f} -> {after['choices_right']:.3f}"
    )


@dataclass(frozen=True, slots=True)
class Probed:
    """``texts``: the log-likelihood of each token of each paragraph, in nats; ``right``: whether the right choice of
    each question is the likeliest."""

    texts: tuple[tuple[float, ...], ...]
    right: tuple[bool, ...]


def measure(model: Any, tokenizer: Any) -> Measured:
    """``perplexity``: of the paragraphs, exp of the mean negative log-likelihood of their tokens (Jelinek et al. 1977);
    it depends on the tokenizer. ``choices_right``: share of the questions whose right choice is the likeliest per
    character (``acc_norm`` of lm-evaluation-harness, Gao et al. 2021). The model is left as it was; nothing is drawn.
    """
    found = ask(model, tokenizer)
    share = sum(found.right) / len(found.right)
    return {"perplexity": round(perplexity(found), 4), "choices_right": round(share, 4)}


def perplexity(found: Probed) -> float:
    """exp of the mean negative log-likelihood of all tokens."""
    nats = -sum(map(math.fsum, found.texts)) / sum(map(len, found.texts))
    return math.exp(min(nats, _MOST_NATS))


def ask(model: Any, tokenizer: Any) -> Probed:
    """What ``measure`` sums up, item by item."""
    rows = list(read_rows(ITEMS))
    texts = [join([_ids(tokenizer, row["text"])]) for row in rows if "text" in row]
    asked = [row for row in rows if "choices" in row]
    questions = [_question(tokenizer, row) for row in asked]
    with resting(model):
        found = _log_likelihoods(model, texts, _TEXTS_AT_ONCE)
        answers = _log_likelihoods(model, questions, _QUESTIONS_AT_ONCE)
    right = (_likeliest(*each) == each[0]["right"] for each in zip(asked, questions, answers, strict=True))
    return Probed(tuple(tuple(each.tolist()) for each in found), tuple(right))


def _question(tokenizer: Any, row: dict[str, Any]) -> Packed:
    """The question with its choices as branches."""
    prompt = f"Question: {row['question']}\nAnswer:"
    start = len(_ids(tokenizer, prompt))
    texts = [_ids(tokenizer, f"{prompt} {choice}") for choice in row["choices"]]
    return pack([Tokenized(str(number), ids[:start], ids[start:]) for number, ids in enumerate(texts)])


def _likeliest(row: dict[str, Any], packed: Packed, found: torch.Tensor) -> int:
    """The number of the choice with the highest log-likelihood per character, the first of equals."""
    choices = torch.tensor([packed.branches[place] - 1 for place in packed.keep])  # [N]
    totals = torch.zeros(len(row["choices"])).index_add(0, choices, found)
    per_character = totals / torch.tensor([len(choice) for choice in row["choices"]])
    return int(per_character.argmax())


def _ids(tokenizer: Any, text: str) -> list[int]:
    """With the token that texts of this model begin with, if any, and no end."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids


def _log_likelihoods(model: Any, sequences: Sequence[Packed], at_once: int) -> list[torch.Tensor]:
    """Of each label of each sequence, in nats: [N] a sequence. So many are computed as one: a short sequence takes as
    long as it takes to read all weights."""
    found: list[torch.Tensor] = []
    for start in range(0, len(sequences), at_once):
        part = sequences[start : start + at_once]
        batch = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in to_batch(merge(part)).items()
        }
        with torch.no_grad():
            logits = forward(model, batch).logits[0].float()  # [N, vocabulary]
            losses = cross_entropy(logits, batch["labels"][0], reduction="none").cpu()
        found += (-losses).split([len(each.labels) for each in part])
    return found
