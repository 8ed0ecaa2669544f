"""raft train from the command line: what it prints for each objective, and the plans of the shipped recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from raft.artifacts import open_artifact
from raft.cli.train import train
from tests.factories import write_dataset

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "train").glob("*er*.toml"))  # encoder and reranker
FEW = ["retrieval.negatives=1", "retrieval.batch_size=4", "optim.max_steps=1", "retrieval.max_tokens=16"]


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def few(*more: str) -> list[str]:
    return [part for setting in (*FEW, *more) for part in ("--set", setting)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_of_encoder_and_reranker_plan(path: Path, dataset: Path) -> None:
    said = call(str(path), "--data", str(dataset), "--dry-run").stdout
    assert said.startswith("8 questions (0 without an oracle left out), ")
    assert said.endswith("8 dev questions, 8 chunks, 0 oracles with twins\n")


def test_a_tuned_encoder_says_how_it_did_and_what_to_type_next(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "doors-encoder"
    prompt = "retrieval.query_prompt=query: "
    said = call("--data", str(dataset), "--out", str(out), *few("objective=encoder", prompt)).stdout.splitlines()
    assert said[0].startswith(f"{out}: 1 steps on 8 questions, best dev loss ")
    assert said[1].startswith("8 dev questions among all chunks of the dataset: recall@1 ")
    assert said[2] == f"next: raft index SOURCE --set encoder.model={out} --out AFTER"
    assert said[3].startswith("then: raft evaluate retrieval --index BEFORE --index AFTER")
    assert (
        json.loads((out / "model" / "config_sentence_transformers.json").read_text())["prompts"]["query"] == "query: "
    )


def test_a_tuned_reranker_as_json(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "doors-reranker"
    said = json.loads(call("--data", str(dataset), "--out", str(out), "--json", *few("objective=reranker")).stdout)
    assert (said["objective"], said["steps"], said["dev_questions"]) == ("reranker", 1, 8)
    assert set(said["after"]) == {"recall@1", "recall@5", "recall@10", "mrr@10"}
    assert open_artifact(out, "reranker").facts["after"] == said["after"]


def test_an_adapter_is_planned_as_before(dataset: Path, student_folder: Path) -> None:
    said = call("--data", str(dataset), "--dry-run").stdout
    assert "16 examples (0 too long), " in said
    assert "dev sequences" in said
