"""What a training will run: its data as packed sequences in order.

sft       dataset artefact -> groups -> ids -> packed sequences -> schedule
pretrain  index artefact -> documents -> ids -> packed sequences -> schedule
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.artifacts import hash_file, open_artifact, write_json
from raft.config_train import TrainRecipe
from raft.errors import InputError
from raft.llm.local import SEEN as SEEN
from raft.llm.local import inherited_labels, run_of
from raft.models import load_tokenizer
from raft.records import question_key
from raft.rows import read_rows
from raft.training.packing import Packed, fits, pack_group
from raft.training.tokenize import read_chunks, read_groups, tokenize_groups

DEV_SHARE = 0.05  # of the documents, kept back from pretraining for the dev loss


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training will run: sequences in order, dev sequences, and counts for the reader."""

    schedule: list[Packed]
    dev: list[Packed]
    steps: int
    examples: int
    dropped: int

    @property
    def tokens(self) -> int:
        """Tokens read over the whole training, shared prefixes once."""
        return sum(map(len, self.schedule))


def make_plan(recipe: TrainRecipe, data: Path, base: Path) -> Plan:
    """Tokenize, pack and order the data. Raises InputError when nothing of it can be trained on."""
    return (_corpus_plan if recipe.objective == "pretrain" else _dataset_plan)(recipe, data, base)


def data_facts(recipe: TrainRecipe, data: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """(inputs, facts) of the manifest of what is trained on ``data``, and on what the recipe names besides. Raises
    ArtifactError when that is missing, damaged or of the wrong kind."""
    if recipe.objective == "pretrain":
        from raft.retrieval.index import open_index

        index = open_index(data, labels=recipe.labels)
        read = {label for document in index.documents for label in document.metadata.get("labels", ())}
        return {"index": index.fingerprint}, {"index_fingerprint": index.fingerprint, "labels": sorted(read)}
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


def write_seen(dataset: Path | None, folder: Path, *models: str) -> None:
    """seen.json: which questions and documents the weights were tuned on, so that evaluation can leave them out; those
    of the runs among ``models`` belong to them. Whoever has only read on in a corpus (None) has seen no question::

    {"questions": ["0f3c9a1d2b4e5f60", ...], "documents": ["protocols/sepsis-adult.md", ...]}
    """
    rows = [] if dataset is None else [row for row in read_rows(dataset / "questions.jsonl") if row["split"] != "test"]
    seen = {
        "questions": {question_key(row["question"]) for row in rows},
        "documents": {name for row in rows for name in row["document_ids"]},
    }
    for before in (run_of(model) / SEEN for model in models):
        if before.is_file():
            for name, values in json.loads(before.read_text(encoding="utf-8")).items():
                seen[name].update(values)
    write_json(folder / SEEN, {name: sorted(values) for name, values in seen.items()})


def _dataset_plan(recipe: TrainRecipe, dataset: Path, base: Path) -> Plan:
    tokenizer = load_tokenizer(base)
    chunks = read_chunks(dataset)
    dropped = examples = 0
    packed_draws: list[list[list[Packed]]] = []
    for _, groups in sorted(read_groups(dataset, "train").items()):
        tokenized = tokenize_groups(tokenizer, groups, chunks, recipe.token_weights)
        examples += sum(map(len, tokenized))
        dropped += sum(not fits(example, recipe.max_tokens) for group in tokenized for example in group)
        packed_draws.append([list(pack_group(group, recipe.max_tokens, recipe.share_prefixes)) for group in tokenized])
    if not examples:
        raise InputError(f"{dataset} holds no train examples", "Check the splits of its questions: raft show DATASET")
    if examples == dropped:
        raise InputError(
            f"no train example of {dataset} fits max_tokens = {recipe.max_tokens} ({dropped} are longer)",
            "Raise max_tokens, or generate with fewer or shorter documents",
        )
    dev_groups = read_groups(dataset, "dev").get(0, [])[: recipe.watch.dev_groups]
    dev = [p for group in tokenize_groups(tokenizer, dev_groups, chunks) for p in pack_group(group, recipe.max_tokens)]
    return _in_order(recipe, packed_draws, dev, examples, dropped)


def _corpus_plan(recipe: TrainRecipe, data: Path, base: Path) -> Plan:
    from raft.retrieval.index import open_index
    from raft.training.corpus import corpus_sequences, is_held_out

    tokenizer = load_tokenizer(base)
    documents = open_index(data, labels=recipe.labels).documents
    names = [document.id for document in documents]
    held = {name for name in names if is_held_out(name, DEV_SHARE, recipe.seed)} or set(names[:1] if names[1:] else ())
    train = (document for document in documents if document.id not in held)
    sequences = list(corpus_sequences(train, tokenizer, recipe.max_tokens))
    if not sequences:
        raise InputError(
            f"{data} shows no document to train on (labels held: {', '.join(recipe.labels) or 'none'})",
            "Give the labels of its documents: --set 'labels=[\"NAME\"]'",
        )
    kept_back = (document for document in documents if document.id in held)
    dev = list(corpus_sequences(kept_back, tokenizer, recipe.max_tokens))[: recipe.watch.dev_groups]
    return _in_order(recipe, [[[sequence] for sequence in sequences]], dev, len(documents) - len(held), 0)


def _in_order(
    recipe: TrainRecipe, draws: list[list[list[Packed]]], dev: list[Packed], examples: int, dropped: int
) -> Plan:
    from raft.training.trainer import make_schedule

    schedule = make_schedule(draws, recipe.optim.epochs, recipe.seed)
    steps = math.ceil(len(schedule) / recipe.optim.groups_per_step)
    if recipe.optim.max_steps is not None and recipe.optim.max_steps < steps:
        steps = recipe.optim.max_steps
        schedule = schedule[: steps * recipe.optim.groups_per_step]
    return Plan(schedule, dev, steps, examples, dropped)
