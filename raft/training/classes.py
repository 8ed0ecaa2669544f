"""What a classifier learns from: texts and questions with their classes, as token ids in order.

file of {"text", "label"}   each text a group of its own, some kept back for the dev loss
dataset artefact            its context groups, each question answerable from its documents or not
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.artifacts import digest
from raft.config_train import TrainRecipe
from raft.errors import InputError
from raft.models import load_tokenizer, prompt_ids
from raft.prompts import Message, parse_answer
from raft.records import Chunk, RaftExample
from raft.training.instructions import is_rows_file, parse_rows, words_of
from raft.training.packing import Packed, pack_group
from raft.training.plan import Plan, held_back, in_order, pack_draws
from raft.training.tokenize import Tokenized, read_chunks, read_groups, tokenize_example

ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"
_FORM = 'A row is {"text": "...", "label": "..."}'


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prompt as ids, and the class that the text is of."""

    id: str
    prompt: list[int]
    label: str


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """What a training will run; ``counts`` are the train examples of each of the ``classes``, ``dev`` are all dev
    sequences (``plan.dev`` those of each evaluation). A label is the number of its class."""

    plan: Plan
    classes: tuple[str, ...]
    counts: dict[str, int]
    dev: list[Packed]


Groups = list[list[Labelled]]


def make_class_plan(recipe: TrainRecipe, data: Path, base: Path) -> ClassPlan:
    """Tokenize, pack and order the data. Raises InputError when a row is bad, nothing fits ``max_tokens``, or there are
    not two classes to tell apart."""
    tokenizer = load_tokenizer(base)
    draws, dev = (_texts if is_rows_file(data) else _questions)(recipe, data, tokenizer)
    every = [row for groups in draws for group in groups for row in group]
    counts = Counter(row.label for row in every if len(row.prompt) <= recipe.max_tokens)
    if len(counts) < 2:
        raise InputError(
            f"the {counts.total()} train examples of {data} that fit max_tokens = {recipe.max_tokens} are not of two "
            f"classes ({', '.join(counts) or 'none'})",
            "Raise max_tokens, or give examples of more classes (a dataset: generate with context.oracle_fraction < 1)",
        )
    classes = {name: number for number, name in enumerate(sorted(counts))}
    weights = {name: counts.total() / (len(counts) * count) for name, count in counts.items()}
    balance = weights if recipe.classify.balance else {}
    train = [[_tokenized(group, classes, balance) for group in groups] for groups in draws]
    packed, examples, dropped = pack_draws(recipe, train, data, "Raise max_tokens, or shorten the texts")
    known = ([row for row in group if row.label in classes] for group in dev)
    mixed = _mixed((group for group in known if group), recipe.seed)
    dev_groups = [list(pack_group(_tokenized(group, classes, {}), recipe.max_tokens)) for group in mixed]
    used = [sequence for group in dev_groups[: recipe.watch.dev_groups] for sequence in group]
    plan = in_order(recipe, packed, used, examples, dropped, tokenizer)
    all_dev = [sequence for group in dev_groups for sequence in group]
    return ClassPlan(plan, tuple(classes), dict(sorted(counts.items())), all_dev)


def _mixed(groups: Iterable[list[Labelled]], seed: int) -> Groups:
    """The groups in an order of which every beginning is like the whole: one of each class (that of a group's first
    row), then all in their proportions. A file may be sorted by its labels."""
    of_class: defaultdict[str, Groups] = defaultdict(list)
    for group in groups:
        of_class[group[0].label].append(group)
    places = []
    for label, members in sorted(of_class.items()):
        random.Random(f"{seed}:{label}").shuffle(members)
        places += [(number / len(members), group) for number, group in enumerate(members)]
    return [group for _, group in sorted(places, key=lambda placed: placed[0])]


def _tokenized(rows: Sequence[Labelled], classes: Mapping[str, int], weights: Mapping[str, float]) -> list[Tokenized]:
    """The rows, the class in the place of an answer. Of classes that have no number all are too long."""
    return [
        Tokenized(row.id, row.prompt, [classes.get(row.label, -1)], [weights.get(row.label, 1.0)] if weights else None)
        for row in rows
    ]


def _questions(recipe: TrainRecipe, dataset: Path, tokenizer: Any) -> tuple[list[Groups], Groups]:
    """(train groups of each draw, dev groups) of a RAFT dataset."""
    chunks = read_chunks(dataset)

    def labelled(groups: Sequence[Sequence[RaftExample]]) -> Groups:
        return [[_question(tokenizer, example, chunks) for example in group] for group in groups]

    draws = [labelled(groups) for _, groups in sorted(read_groups(dataset, "train").items())]
    return draws, labelled(read_groups(dataset, "dev").get(0, []))


def _question(tokenizer: Any, example: RaftExample, chunks: Mapping[str, Chunk]) -> Labelled:
    holds = example.oracle_present and not parse_answer(example.target).abstained
    prompt = tokenize_example(tokenizer, example, chunks).prompt
    return Labelled(example.id, prompt, ANSWERABLE if holds else UNANSWERABLE)


def _texts(recipe: TrainRecipe, data: Path, tokenizer: Any) -> tuple[list[Groups], Groups]:
    """The same of a file of texts, each a group of its own. Of every class DEV_SHARE of the texts are kept back, one at
    least where it has two."""
    rows = parse_rows(data, _text_row, _FORM)
    _check_contradictions(rows, data)
    labels = {label for _, label in rows}
    held = {name for each in labels for name in held_back((t for t, label in rows if label == each), recipe.seed)}
    train, dev = ([[_text(tokenizer, *row)] for row in rows if (row[0] in held) == kept] for kept in (False, True))
    return [train], dev


def _text_row(row: Mapping[str, Any]) -> tuple[str, str]:
    label = row.get("label")
    if isinstance(label, int):  # True and False too
        label = str(label).lower()
    return words_of(row, "text"), words_of({"label": label}, "label")


def _check_contradictions(rows: Sequence[tuple[str, str]], data: Path) -> None:
    first: dict[str, tuple[int, str]] = {}
    for number, (text, label) in enumerate(rows, 1):
        before, other = first.setdefault(text, (number, label))
        if other != label:
            raise InputError(
                f"{data} rows {before} and {number} are the same text of two classes ({other!r}, {label!r})",
                "Leave one of them out",
            )


def _text(tokenizer: Any, text: str, label: str) -> Labelled:
    return Labelled(digest(text)[:16], text_ids(tokenizer, text), label)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """A text as a user would say it, up to where the assistant replies."""
    return prompt_ids(tokenizer, [Message("user", text)])
