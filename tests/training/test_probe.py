"""What a training forgets: measured as the slow obvious way measures it, without a trace in what is learned."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from raft.artifacts import open_artifact
from raft.cli.train import _adapter_lines
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.models import load_language_model, load_tokenizer
from raft.rows import read_rows
from raft.training.attention import use_packed_attention
from raft.training.probe import ITEMS, measure, probe_after, probe_before, probe_line
from raft.training.run import train
from tests.factories import write_dataset
from tests.training.small import write_small_model

QUICK = {"optim.lr": 0.01, "optim.max_steps": 4, "watch.every_steps": 2, "precision": "float32"}


def recipe(model: Path, **settings: object) -> TrainRecipe:
    return load_recipe(
        TrainRecipe, None, [f"{k}={json.dumps(v)}" for k, v in (QUICK | settings).items()], model=str(model)
    )


@pytest.fixture(scope="module")
def small(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(student_folder, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


def test_the_items_are_whole() -> None:
    rows = list(read_rows(ITEMS))
    asked = [row for row in rows if "question" in row]
    texts = [row["text"] for row in rows if "text" in row]
    assert (len(asked), len(texts)) == (40, 12)
    assert len({row["question"] for row in asked}) == 40
    assert all(len(set(row["choices"])) == 4 and 0 <= row["right"] < 4 for row in asked)
    assert [sum(row["right"] == n for row in asked) for n in range(4)] == [10, 10, 10, 10]
    assert all(60 <= len(text.split()) <= 90 for text in texts)


def log_likelihood(model: Any, tokenizer: Any, prompt: str, text: str) -> tuple[float, int]:
    """Of the text behind the prompt, and its tokens: one plain forward pass."""
    start, ids = len(tokenizer(prompt)["input_ids"]), torch.tensor([tokenizer(prompt + text)["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    first = max(start, 1)  # nothing predicts the first token
    return -float(cross_entropy(logits[first - 1 : -1], ids[0, first:], reduction="sum")), ids.shape[1] - first


@pytest.mark.parametrize("packed", [True, False])
def test_it_measures_what_separate_passes_measure(packed: bool, small: Path) -> None:
    model, tokenizer = load_language_model(small, "float32"), load_tokenizer(small)
    found = [log_likelihood(model, tokenizer, "", row["text"]) for row in read_rows(ITEMS) if "text" in row]
    right = []
    for row in (row for row in read_rows(ITEMS) if "choices" in row):
        prompt = f"Question: {row['question']}\nAnswer:"
        scores = [log_likelihood(model, tokenizer, prompt, f" {c}")[0] / len(c) for c in row["choices"]]
        right.append(scores.index(max(scores)) == row["right"])
    if packed:
        use_packed_attention(model)
    model.train()
    state = torch.get_rng_state()
    measured = measure(model, tokenizer)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    perplexity = math.exp(-sum(total for total, _ in found) / sum(count for _, count in found))
    assert measured["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert measured["choices_right"] == sum(right) / 40


def test_a_model_that_can_read_knows_more_than_one_that_cannot(student_folder: Path) -> None:
    model = load_language_model(student_folder, "float32")
    use_packed_attention(model)
    measured = measure(model, load_tokenizer(student_folder))
    assert 20 < measured["perplexity"] < 80
    assert measured["choices_right"] > 0.5


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_the_base_and_the_trained_student_are_measured(method: str, small: Path, dataset: Path, tmp_path: Path) -> None:
    summary = train(recipe(small, method=method), dataset, tmp_path / "tuned")
    base = measure(load_language_model(small, "float32"), load_tokenizer(small))
    assert summary.probe is not None
    assert summary.probe["before"] == pytest.approx(base, rel=1e-4)  # without the soft prompt
    assert summary.probe["after"]["perplexity"] != pytest.approx(base["perplexity"], rel=1e-4)
    assert open_artifact(tmp_path / "tuned", "adapter").facts["probe"] == summary.probe
    assert probe_line(summary.probe) in _adapter_lines(summary, "sft")
    plain = _adapter_lines(replace(summary, probe=None), "sft")
    assert not any(line.startswith("general knowledge") for line in plain)


def test_the_line_says_both_figures_before_and_after() -> None:
    found = {
        "before": {"perplexity": 18.2041, "choices_right": 0.55},
        "after": {"perplexity": 19.0, "choices_right": 0.5},
    }
    assert probe_line(found) == "general knowledge: perplexity 18.2 -> 19, choices right 0.550 -> 0.500"


@pytest.mark.parametrize("settings", [["objective=reward"], ["objective=encoder"], ["parallel.kind=fsdp"]])
def test_what_writes_no_text_or_is_nowhere_whole_is_not_measured(settings: list[str], tmp_path: Path) -> None:
    chosen = load_recipe(TrainRecipe, None, settings)
    probe_before(chosen, None, tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert probe_after(chosen, None, tmp_path, tmp_path) is None
