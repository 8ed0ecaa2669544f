"""raft evaluate sweep from the command line, with a small real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from raft.artifacts import open_artifact
from raft.cli.evaluate_sweep import evaluate_sweep
from raft.config import EvaluateSweepRecipe, load_recipe
from raft.errors import UsageError
from tests.evaluation import world

SHIPPED = Path(__file__).parents[2] / "configs" / "evaluate" / "sweep.toml"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from raft.indexing.build import build_index

    folder = tmp_path_factory.mktemp("sources")
    build_index(world.write_documents(folder / "documents"), folder / "index")
    questions = world.write_questions(folder / "questions.jsonl", world.questions())
    return ["--index", str(folder / "index"), "--questions", str(questions)]


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(evaluate_sweep)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def small(*more: str) -> list[str]:
    settings = ["limit=3", "top_k=2", "max_new_tokens=4", "resamples=100", "distractors=[0, 2]", *more]
    return [part for setting in settings for part in ("--set", setting)]


def test_a_real_model_is_asked_and_the_tables_printed(sources: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    named = ["--sweep", "distractors", "--sweep", "no_oracle"]
    done = call(str(SHIPPED), *sources, *small(), *named, "--model", str(tiny_folder), "--out", str(out))
    assert done.exit_code == 0
    assert done.stdout.startswith("# Sweeps: sweep\n\n## distractors\n")
    assert "| system | no_oracle " in done.stdout
    assert done.stdout.rstrip().endswith(f"report: {out / 'sweep.html'}")
    assert "no adapter is given, so that raft cannot run" in done.stderr
    assert open_artifact(out, "sweep").recipe["sweeps"] == ["distractors", "no_oracle"]


def test_json_is_one_object_with_the_figures(sources: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    done = call(
        *sources,
        *small('systems=["rag"]'),
        "--sweep",
        "order",
        "--model",
        str(tiny_folder),
        "--out",
        str(out),
        "--json",
    )
    said = json.loads(done.stdout)
    assert said["report"] == str(out / "sweep.html")
    assert [scores["name"] for scores in said["sweeps"]] == ["order"]
    assert {p["point"] for p in said["sweeps"][0]["points"]} == {"order 1", "order 2", "all orders"}


def test_mistakes_name_the_flag(sources: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--questions FILE"):
        call(*sources[:2], "--model", str(tiny_folder), "--out", str(tmp_path / "sweep"))
    with pytest.raises(UsageError, match="--set paraphrases=FILE"):
        call(*sources, "--sweep", "paraphrase", "--out", str(tmp_path / "sweep"))


def test_the_shipped_recipe_is_valid() -> None:
    assert load_recipe(EvaluateSweepRecipe, SHIPPED).sweeps is None
