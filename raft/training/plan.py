"""What a training will run: its data as packed sequences in order.

sft       dataset artefact -> groups -> ids -> packed sequences -> schedule
          file of instructions -> conversations -> ids -> packed sequences -> schedule
pretrain  index artefact -> documents -> ids -> packed sequences -> schedule
classify  dataset artefact or file of texts (classes.py) -> ids -> packed sequences -> schedule

Replayed instructions are mixed into the schedule of sft and pretrain; short sequences of a step are put together.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raft.artifacts import hash_file, open_artifact, write_json
from raft.config_train import TrainRecipe
from raft.errors import InputError, RecipeError
from raft.llm.local import SEEN as SEEN
from raft.llm.local import inherited_labels, run_of
from raft.models import load_tokenizer
from raft.records import question_key
from raft.rows import read_rows
from raft.training.corpus import is_held_out
from raft.training.distributed import processes
from raft.training.instructions import is_rows_file, mix_in, read_instructions, tokenize_instruction
from raft.training.packing import Packed, fits, merge, pack_group
from raft.training.tokenize import EVEN, Tokenized, read_chunks, read_groups, tokenize_groups

DEV_SHARE = 0.05  # of the documents of an index, or the rows of a file, kept back for the dev loss


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training will run: sequences in order, ``per_step`` of them an optimizer step, dev sequences, and counts
    for the reader: train ``examples``, those ``dropped`` as too long, ``replayed`` conversations (drawn again in every
    epoch), and dev examples ``dev_dropped`` as too long."""

    schedule: list[Packed]
    dev: list[Packed]
    steps: int
    examples: int
    dropped: int
    per_step: int
    replayed: int = 0
    dev_dropped: int = 0

    @property
    def tokens(self) -> int:
        """Tokens read over the whole training, shared prefixes once."""
        return sum(map(len, self.schedule))


def make_plan(recipe: TrainRecipe, data: Path, base: Path) -> Plan:
    """Tokenize, pack and order the data. Raises InputError when nothing of it can be trained on, or a row of a file is
    bad."""
    if recipe.objective == "classify":
        from raft.training.classes import make_class_plan

        return make_class_plan(recipe, data, base).plan
    if recipe.objective == "pretrain":
        return _corpus_plan(recipe, data, base)
    return (_instruction_plan if is_rows_file(data) else _dataset_plan)(recipe, data, base)


def data_facts(recipe: TrainRecipe, data: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """(inputs, facts) of the manifest of what is trained on ``data``, and on what the recipe names besides. Raises
    ArtifactError when that is missing, damaged or of the wrong kind, InputError when a file cannot be read."""
    inputs, facts = _own_facts(recipe, data)
    if recipe.replay.data is not None:
        inputs["replay"] = hash_file(recipe.replay.data)
    return inputs, facts


def _own_facts(recipe: TrainRecipe, data: Path) -> tuple[dict[str, str], dict[str, Any]]:
    if recipe.objective == "pretrain":
        from raft.retrieval.index import open_index

        index = open_index(data, labels=recipe.labels)
        read = {label for document in index.documents for label in document.metadata.get("labels", ())}
        return {"index": index.fingerprint}, {"index_fingerprint": index.fingerprint, "labels": sorted(read)}
    if recipe.objective in ("sft", "classify") and is_rows_file(data):
        return {"data": hash_file(data)}, {"labels": []}
    manifest, judge = open_artifact(data, "dataset"), recipe.preference.reward_model
    labels = {*manifest.facts.get("labels", ()), *(inherited_labels(str(judge)) if judge else ())}
    facts = {
        "dataset_fingerprint": manifest.fingerprint, "index_fingerprint": manifest.facts.get("index_fingerprint"),
        "labels": sorted(labels),
    }  # fmt: skip
    inputs = {"dataset": manifest.fingerprint}
    if recipe.preference.pairs is not None:
        inputs["pairs"] = hash_file(recipe.preference.pairs)
    if judge is not None:
        inputs["reward_model"] = open_artifact(judge, "reward_model").fingerprint
    return inputs, facts


def write_seen(data: Path | None, folder: Path, *models: str, replayed: Path | None = None) -> None:
    """seen.json: which questions and documents the weights were tuned on, so that evaluation can leave them out; those
    of the runs among ``models`` belong to them, and so does what users say in a file of instructions. Whoever has only
    read on in a corpus (None) has seen no question::

    {"questions": ["0f3c9a1d2b4e5f60", ...], "documents": ["protocols/sepsis-adult.md", ...]}
    """
    files = [each for each in (data, replayed) if each is not None and is_rows_file(each)]
    dataset = None if data in files else data
    rows = [] if dataset is None else [row for row in read_rows(dataset / "questions.jsonl") if row["split"] != "test"]
    seen = {
        "questions": {question_key(row["question"]) for row in rows},
        "documents": {name for row in rows for name in row["document_ids"]},
    }
    for file in files:
        said = (turn for row in read_instructions(file) for turn in row.turns if turn.role == "user")
        seen["questions"].update(question_key(turn.content) for turn in said)
    for before in (run_of(model) / SEEN for model in models):
        if before.is_file():
            for name, values in json.loads(before.read_text(encoding="utf-8")).items():
                seen[name].update(values)
    write_json(folder / SEEN, {name: sorted(values) for name, values in seen.items()})


def held_back(names: Iterable[str], seed: int) -> set[str]:
    """Those of the names that are kept for the dev loss: DEV_SHARE of them by their hash, but never all, and one at
    least where there are two."""
    distinct = list(dict.fromkeys(names))
    found = {name for name in distinct if is_held_out(name, DEV_SHARE, seed)}
    return found if 0 < len(found) < len(distinct) else set(distinct[:1] if distinct[1:] else ())


def _dataset_plan(recipe: TrainRecipe, dataset: Path, base: Path) -> Plan:
    tokenizer = load_tokenizer(base)
    chunks = read_chunks(dataset)
    draws = [
        tokenize_groups(tokenizer, groups, chunks, recipe.token_weights, recipe.documents)
        for _, groups in sorted(read_groups(dataset, "train").items())
    ]
    if not any(map(any, draws)):
        raise InputError(f"{dataset} holds no train examples", "Check the splits of its questions: raft show DATASET")
    remedy = "Raise max_tokens, or generate with fewer or shorter documents"
    packed, examples, dropped = pack_draws(recipe, draws, dataset, remedy)
    dev_groups = read_groups(dataset, "dev").get(0, [])[: recipe.watch.dev_groups]
    asked = tokenize_groups(tokenizer, dev_groups, chunks, documents=recipe.documents)
    dev, dev_dropped = _pack_dev(recipe, asked)
    return replace(in_order(recipe, packed, dev, examples, dropped, tokenizer), dev_dropped=dev_dropped)


def _instruction_plan(recipe: TrainRecipe, data: Path, base: Path) -> Plan:
    settings = {
        "token_weights": recipe.token_weights != EVEN, "watch.samples": recipe.watch.samples > 0,
        "documents": not recipe.documents,
    }  # fmt: skip
    if idle := [name for name, given in settings.items() if given]:
        raise RecipeError(f"{data} holds instructions, for which {', '.join(idle)} would do nothing", "Leave it out")
    tokenizer = load_tokenizer(base)
    rows = read_instructions(data)
    held = held_back((row.id for row in rows), recipe.seed)
    draw = [tokenize_instruction(tokenizer, row) for row in rows if row.id not in held]
    packed, examples, dropped = pack_draws(recipe, [draw], data, "Raise max_tokens, or shorten its rows")
    kept_back = [row for row in rows if row.id in held]
    random.Random(recipe.seed).shuffle(kept_back)  # a file may be sorted by what it speaks of
    used = kept_back[: recipe.watch.dev_groups]
    dev, dev_dropped = _pack_dev(recipe, [tokenize_instruction(tokenizer, row) for row in used])
    return replace(in_order(recipe, packed, dev, examples, dropped, tokenizer), dev_dropped=dev_dropped)


def _pack_dev(recipe: TrainRecipe, groups: Sequence[Sequence[Tokenized]]) -> tuple[list[Packed], int]:
    """The packed sequences of dev groups, and how many of their examples are too long."""
    shared = recipe.attention != "flash"  # which knows no shared prefix
    packed = [sequence for group in groups for sequence in pack_group(group, recipe.max_tokens, shared)]
    return packed, sum(not fits(example, recipe.max_tokens) for group in groups for example in group)


def pack_draws(
    recipe: TrainRecipe, draws: Sequence[Sequence[Sequence[Tokenized]]], where: Path, remedy: str
) -> tuple[list[list[list[Packed]]], int, int]:
    """(the groups of each draw as packed sequences, how many examples there are, and how many of them are too long).
    Raises InputError where all are."""
    every = [example for groups in draws for group in groups for example in group]
    dropped = sum(not fits(example, recipe.max_tokens) for example in every)
    if len(every) == dropped:
        raise InputError(
            f"no train example of {where} fits max_tokens = {recipe.max_tokens} ({dropped} are longer)", remedy
        )
    packed = [[list(pack_group(group, recipe.max_tokens, recipe.share_prefixes)) for group in groups]
              for groups in draws]  # fmt: skip
    return packed, len(every), dropped


def _corpus_plan(recipe: TrainRecipe, data: Path, base: Path) -> Plan:
    from raft.retrieval.index import open_index
    from raft.training.corpus import corpus_sequences

    tokenizer = load_tokenizer(base)
    documents = open_index(data, labels=recipe.labels).documents
    held = held_back((document.id for document in documents), recipe.seed)
    train = (document for document in documents if document.id not in held)
    sequences = list(corpus_sequences(train, tokenizer, recipe.max_tokens))
    if not sequences:
        raise InputError(
            f"{data} shows no document to train on (labels held: {', '.join(recipe.labels) or 'none'})",
            "Give the labels of its documents: --set 'labels=[\"NAME\"]'",
        )
    kept_back = (document for document in documents if document.id in held)
    dev = list(corpus_sequences(kept_back, tokenizer, recipe.max_tokens))[: recipe.watch.dev_groups]
    draws = [[[sequence] for sequence in sequences]]
    return in_order(recipe, draws, dev, len(documents) - len(held), 0, tokenizer)


def in_order(
    recipe: TrainRecipe, draws: list[list[list[Packed]]], dev: list[Packed], examples: int, dropped: int, tokenizer: Any
) -> Plan:
    """The plan of so many epochs or steps as the recipe says, with what it replays. Raises InputError when nothing of
    that can be."""
    from raft.training.trainer import make_schedule

    schedule, per_step = make_schedule(draws, recipe.optim.epochs, recipe.seed), recipe.optim.groups_per_step
    pool = _replayed(recipe, tokenizer)
    if pool:
        schedule = mix_in(schedule, pool, recipe.replay.share, recipe.seed)
    steps = math.ceil(len(schedule) / per_step)
    if recipe.optim.max_steps is not None and recipe.optim.max_steps < steps:
        steps = recipe.optim.max_steps
        schedule = schedule[: steps * per_step]
    if recipe.pack_unrelated:
        schedule, per_step = merge_steps(schedule, per_step, recipe.max_tokens)
    return Plan(schedule, dev, steps, examples, dropped, per_step, len(pool))


def _replayed(recipe: TrainRecipe, tokenizer: Any) -> list[list[Packed]]:
    """The conversations to be replayed, without those turns that are too long."""
    if recipe.replay.data is None:
        return []
    rows = (tokenize_instruction(tokenizer, row) for row in read_instructions(recipe.replay.data))
    shared = recipe.share_prefixes and recipe.attention != "flash"
    packed = (list(pack_group(row, recipe.max_tokens, shared)) for row in rows)
    found = [sequences for sequences in packed if sequences]
    if not found:
        raise InputError(
            f"no row of {recipe.replay.data} fits max_tokens = {recipe.max_tokens}", "Raise it, or replay shorter ones"
        )
    return found


# --- several sequences as one ----------------------------------------------------------------------------------------


def merge_steps(schedule: Sequence[Packed], per_step: int, max_tokens: int) -> tuple[list[Packed], int]:
    """The schedule with the sequences of each optimizer step merged into as few as every step can do with, and how many
    these are. A step learns from the same examples as before: its loss and its gradients stay the same."""
    steps = [schedule[start : start + per_step] for start in range(0, len(schedule), per_step)]
    for count in range(processes(), per_step, processes()):
        merged = [_parts(step, count) for step in steps]
        if all(sum(map(len, part)) <= max_tokens for parts in merged for part in parts):
            return [merge(part) for parts in merged for part in parts], count
    return list(schedule), per_step


def _parts(step: Sequence[Packed], count: int) -> list[list[Packed]]:
    """The sequences as ``count`` parts of like length (the longest first, each to the part that is shortest so far)."""
    parts: list[list[int]] = [[] for _ in range(min(count, len(step)))]
    lengths = [0] * len(parts)
    for number in sorted(range(len(step)), key=lambda number: -len(step[number])):
        shortest = lengths.index(min(lengths))
        parts[shortest].append(number)
        lengths[shortest] += len(step[number])
    return [[step[number] for number in sorted(part)] for part in sorted(parts, key=min)]
