"""What a training by preferences will run: pairs or prompts as token ids, in order.

dpo, kto, orpo, reward   examples (preferences.py) or a file (preference_file.py) -> pairs -> ids -> schedule
grpo, rloo               examples -> prompts and what a right reply says (rewards.py) -> ids -> schedule
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from raft.config_train import TrainRecipe
from raft.errors import InputError, RecipeError
from raft.models import load_tokenizer, prompt_ids, target_ids
from raft.prompts import build_messages
from raft.records import Chunk, RaftExample
from raft.rows import read_rows
from raft.training.preference_file import read_pairs
from raft.training.preferences import PreferencePair, make_pairs
from raft.training.rewards import Expected, expected_of
from raft.training.tokenize import read_chunks, read_groups

GENERATING = ("grpo", "rloo")
PACKED = ("dpo", "orpo")


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A preference pair as ids; both answers end with the end-of-turn token."""

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt to reply to, as words and as ids, and what a right reply says."""

    id: str
    question: str
    documents: tuple[Chunk, ...]
    prompt: list[int]
    expected: Expected


@dataclass(frozen=True, slots=True)
class PreferencePlan:
    """What a training will run: ``schedule`` and ``dev`` number the ``pairs`` (grpo, rloo: the ``asked``), ``steps``
    whole optimizer steps long; ``dropped`` were too long, ``kinds`` counts the pairs by kind; ``given`` are those of a
    file."""

    pairs: list[TokenPair]
    asked: list[Asked]
    schedule: list[int]
    dev: list[int]
    steps: int
    dropped: int
    kinds: Mapping[str, int] = field(default_factory=dict)
    given: Sequence[PreferencePair] = ()

    @property
    def examples(self) -> int:
        """Pairs or prompts to train on, dev ones not among them."""
        return len(set(self.schedule))


def make_preference_plan(recipe: TrainRecipe, dataset: Path, base: Path) -> PreferencePlan:
    """Read, tokenize and order what ``recipe.objective`` trains on. Raises InputError when there is nothing, or
    nothing that fits ``max_tokens``, or a file of pairs is damaged; RecipeError when batches do not come out whole."""
    _check_sizes(recipe)
    tokenizer = load_tokenizer(base)
    chunks = read_chunks(dataset)
    if recipe.objective in GENERATING:
        return _asked_plan(recipe, dataset, chunks, tokenizer)
    found = _find_pairs(recipe, dataset, chunks)
    tokenized = [_tokenize_pair(tokenizer, pair) for pair in found]
    fitting = [n for n, pair in enumerate(tokenized) if pair_length(pair, recipe.objective) <= recipe.max_tokens]
    train = [number for number in fitting if found[number].split == "train"]
    if not train:
        longer = len(tokenized) - len(fitting)
        raise _nothing(dataset if recipe.preference.pairs is None else recipe.preference.pairs, "pair", longer, recipe)
    draws = [[n for n in train if found[n].draw == draw] for draw in sorted({found[n].draw for n in train})]
    schedule = order(draws, recipe.optim.epochs, recipe.seed, recipe.preference.batch_size, recipe.optim.max_steps)
    dev = [number for number in fitting if found[number].split == "dev"]
    if recipe.objective == "kto":
        dev = whole_batches(dev, recipe.preference.pairs_at_once)
    return PreferencePlan(
        tokenized, [], schedule, dev, len(schedule) // recipe.preference.batch_size, len(tokenized) - len(fitting),
        dict(Counter(found[number].kind for number in train)), found if recipe.preference.pairs else (),
    )  # fmt: skip


def _check_sizes(recipe: TrainRecipe) -> None:
    size, at_once = recipe.preference.batch_size, recipe.preference.pairs_at_once
    if recipe.objective not in ("kto", "reward"):
        return
    if size % at_once:
        raise RecipeError(f"preference.pairs_at_once = {at_once} does not divide preference.batch_size = {size}")
    if recipe.objective == "kto" and at_once < 2:
        raise RecipeError("kto compares answers of different questions", "Set preference.pairs_at_once to 2 or more")


def _find_pairs(recipe: TrainRecipe, dataset: Path, chunks: Mapping[str, Chunk]) -> list[PreferencePair]:
    chosen = recipe.preference
    if chosen.pairs is not None:
        return read_pairs(chosen.pairs, chunks)
    shares, count = chosen.rejected.model_dump(), chosen.pairs_per_example
    train, dev = _examples(dataset, recipe.watch.dev_groups)
    known = _known_answers(dataset)
    pairs = make_pairs(train, chunks, shares, known=known, per_example=count, seed=recipe.seed)
    return pairs + make_pairs(dev, chunks, shares, known=known, per_example=count, seed=recipe.seed, split="dev")


def _known_answers(dataset: Path) -> dict[str, tuple[str, ...]]:
    """The right answers to each question, the reference first, then its aliases."""
    rows = read_rows(dataset / "questions.jsonl")
    return {row["id"]: (row.get("answer", ""), *row.get("aliases", ())) for row in rows if "id" in row}


def _examples(dataset: Path, dev_groups: int) -> tuple[list[RaftExample], list[RaftExample]]:
    """Train examples of all draws, and those of the first dev groups of draw 0."""
    train = [e for _, groups in sorted(read_groups(dataset, "train").items()) for group in groups for e in group]
    dev = [e for group in read_groups(dataset, "dev").get(0, [])[:dev_groups] for e in group]
    return train, dev


def _tokenize_pair(tokenizer: Any, pair: PreferencePair) -> TokenPair:
    prompt = prompt_ids(tokenizer, build_messages(pair.question, pair.documents))
    return TokenPair(pair.id, prompt, target_ids(tokenizer, pair.chosen), target_ids(tokenizer, pair.rejected))


def pair_length(pair: TokenPair, objective: str) -> int:
    """Tokens of the longest sequence that the pair makes: both answers behind one prompt, whose last token each of
    them repeats, or the longer answer behind its own."""
    if objective in PACKED:
        return len(pair.prompt) - 1 + len(pair.chosen) + len(pair.rejected)
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def _asked_plan(recipe: TrainRecipe, dataset: Path, chunks: Mapping[str, Chunk], tokenizer: Any) -> PreferencePlan:
    known = _known_answers(dataset)
    train, dev = _examples(dataset, recipe.watch.dev_groups)
    examples = [*train, *dev]
    asked = [_ask(tokenizer, example, chunks, known.get(example.question_id, ())[1:]) for example in examples]
    room = recipe.max_tokens - recipe.preference.max_new_tokens
    fitting = [number for number, item in enumerate(asked) if len(item.prompt) <= room]
    kept = [number for number in fitting if number < len(train)]
    if not kept:
        raise _nothing(dataset, "example", len(asked) - len(fitting), recipe)
    draws = [[n for n in kept if examples[n].draw == draw] for draw in sorted({examples[n].draw for n in kept})]
    schedule = order(draws, recipe.optim.epochs, recipe.seed, recipe.preference.batch_size, recipe.optim.max_steps)
    dev_numbers = [number for number in fitting if number >= len(train)]
    steps = len(schedule) // recipe.preference.batch_size
    return PreferencePlan([], asked, schedule, dev_numbers, steps, len(asked) - len(fitting))


def _ask(tokenizer: Any, example: RaftExample, chunks: Mapping[str, Chunk], aliases: Sequence[str]) -> Asked:
    try:
        documents = tuple(chunks[name] for name in example.context)
    except KeyError as missing:
        raise InputError(f"example {example.id} names chunk {missing}, which chunks.jsonl lacks") from None
    prompt = prompt_ids(tokenizer, build_messages(example.question, documents))
    return Asked(example.id, example.question, documents, prompt, expected_of(example, chunks, aliases))


def _nothing(where: Path, what: str, longer: int, recipe: TrainRecipe) -> InputError:
    if longer:
        return InputError(
            f"no train {what} of {where} fits max_tokens = {recipe.max_tokens} ({longer} are longer)",
            "Raise max_tokens, or generate with fewer or shorter documents",
        )
    return InputError(f"{where} holds no train {what}", "Check its splits and preference.rejected: raft show DATASET")


def order(
    draws: Sequence[Sequence[int]], epochs: float, seed: int, per_step: int, most_steps: int | None = None
) -> list[int]:
    """The numbers of all draws in the order of training: epoch e takes draw e modulo their number, shuffled by seed
    and epoch. Steps are whole: the last one is filled from the beginning."""
    schedule: list[int] = []
    for epoch in range(math.ceil(epochs)):
        numbers = sorted(draws[epoch % len(draws)])
        random.Random(f"{seed}:{epoch}").shuffle(numbers)
        schedule += numbers[: math.ceil(len(numbers) * min(1.0, epochs - epoch))]
    schedule = whole_batches(schedule, per_step)
    return schedule if most_steps is None else schedule[: most_steps * per_step]


def whole_batches(numbers: Sequence[int], size: int) -> list[int]:
    """The numbers, and as many again from their beginning as make the last batch of ``size`` whole."""
    return list(islice(cycle(numbers), math.ceil(len(numbers) / size) * size))
