"""raft evaluate retrieval from the command line, over a small real index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from raft.artifacts import open_artifact
from raft.cli.evaluate_retrieval import evaluate_retrieval
from raft.config import EvaluateRetrievalRecipe, load_recipe
from raft.errors import UsageError
from tests.evaluation import world

SHIPPED = Path(__file__).parents[2] / "configs" / "evaluate" / "retrieval.toml"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from raft.indexing.build import build_index

    folder = tmp_path_factory.mktemp("sources")
    build_index(world.write_documents(folder / "documents"), folder / "index")
    questions = world.write_questions(folder / "questions.jsonl", world.questions())
    return ["--index", str(folder / "index"), "--questions", str(questions), "--set", "resamples=100"]


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(evaluate_retrieval)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_all_modes_are_measured_by_document_and_passage(sources: list[str]) -> None:
    done = call(*sources)
    assert done.exit_code == 0
    assert "14 questions in 7 clusters" in done.stdout
    assert done.stdout.count("| bm25 ") == 2
    assert "2 questions without a gold document are left out" in done.stdout
    assert done.stdout.rstrip().endswith("Give --out FOLDER to keep this and the misses")


def test_options_choose_modes_depths_split_and_limit(sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = call(
        str(SHIPPED), *sources, "--mode", "bm25", "--k", "2", "--k", "4", "--split", "all", "--limit", "6",
        "--json", "--out", str(out),
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert list(said["scores"][0]["figures"]) == ["recall@2", "recall@4", "mrr@10", "ndcg@10"]
    assert {row["retriever"] for row in said["scores"]} == {"bm25"}
    assert said["question_set"]["n"] == 6
    assert said["differences"] == []
    assert open_artifact(out, "retrieval").recipe["split"] == "all"


def test_without_an_index_the_flag_is_named(sources: list[str]) -> None:
    with pytest.raises(UsageError, match="--index DIR"):
        call(*sources[2:])


def test_the_shipped_recipe_is_valid() -> None:
    assert load_recipe(EvaluateRetrievalRecipe, SHIPPED).modes == ("fused", "dense", "bm25")
