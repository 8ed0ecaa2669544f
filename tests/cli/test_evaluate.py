"""raft evaluate from the command line, with a small real model and shipped recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from raft.artifacts import open_artifact
from raft.cli.evaluate import evaluate
from raft.config import EvaluateRecipe, load_recipe
from raft.errors import CheckFailed, RecipeError, UsageError
from tests.evaluation import world
from tests.evaluation.adapters import make_adapter

FOLDER = Path(__file__).parents[2] / "configs" / "evaluate"
RECIPES = sorted(set(FOLDER.glob("*.toml")) - {FOLDER / "retrieval.toml"})  # of raft evaluate retrieval


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from raft.indexing.build import build_index

    folder = tmp_path_factory.mktemp("sources")
    build_index(world.write_documents(folder / "documents"), folder / "index")
    questions = world.write_questions(folder / "questions.jsonl", world.questions())
    return ["--index", str(folder / "index"), "--questions", str(questions)]


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(evaluate)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def small(*systems: str) -> list[str]:
    named = "systems=[" + ",".join(f'"{name}"' for name in systems) + "]"
    settings = [named, "limit=3", "top_k=2", "max_new_tokens=4", "resamples=100"]
    return [part for setting in settings for part in ("--set", setting)]


def test_a_real_model_is_evaluated_and_the_table_printed(sources: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = call(*sources, *small("closed_book", "rag", "raft"), "--model", str(tiny_folder), "--out", str(out))
    assert done.exit_code == 0
    assert "| Closed book " in done.stdout
    assert "No tuned model was evaluated." in done.stdout
    assert done.stdout.rstrip().endswith(f"report: {out / 'report.html'}")
    assert "no adapter" not in done.stdout
    assert "no adapter is given, so that raft cannot run" in done.stderr
    assert open_artifact(out, "report").recipe["limit"] == 3


def test_json_is_one_object_with_the_figures(sources: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = call(*sources, *small("rag"), "--model", str(tiny_folder), "--out", str(out), "--json")
    said = json.loads(done.stdout)
    assert [row["system"] for row in said["systems"]] == ["rag"]
    assert said["report"] == str(out / "report.html")
    assert "results" not in said


def test_the_gate_is_checked_after_the_report_is_written(sources: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    words = [*sources, *small("closed_book", "rag"), "--model", str(tiny_folder), "--out", str(out)]
    with pytest.raises(CheckFailed, match="1 of 2 conditions"):
        call(*words, "--fail-under", "rag.f1=0", "--fail-under", "rag.f1=1.5")
    assert open_artifact(out, "report").recipe["limit"] == 3
    again = tmp_path / "again"
    done = call(*words[:-1], str(again), "--fail-under", "rag.f1=0", "--json")
    assert [row["met"] for row in json.loads(done.stdout)["fail_under"]] == [True]


@pytest.mark.parametrize(
    ("condition", "said"),
    [("rag.f1>0", "cannot be read"), ("rag.f1+0.02", "no system leads"), ("raft.f1=rag.f1", "'raft' does not run")],
)
def test_a_gate_that_cannot_be_met_is_refused_before_any_model(
    sources: list[str], tmp_path: Path, condition: str, said: str
) -> None:
    words = [*sources, *small("rag", "raft"), "--model", str(tmp_path / "no-model"), "--out", str(tmp_path / "report")]
    with pytest.raises(UsageError, match=said):
        call(*words, "--fail-under", condition)
    assert not (tmp_path / "report").exists()


def test_adapters_are_named_on_the_command_line(sources: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    first, second = (make_adapter(tmp_path / name, tiny_folder, seed=n) for n, name in enumerate(("a", "b")))
    out = tmp_path / "report"
    done = call(
        *sources, *small("rag"), "--model", str(tiny_folder), "--out", str(out), "--json",
        "--contender", f"plain={first}", "--contender", f"other={second}", "--set", "lead=other",
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert [(row["system"], row["tuned"]) for row in said["systems"]] == [
        ("rag", False), ("plain", True), ("other", True)
    ]  # fmt: skip
    assert [row["model"] for row in said["systems"]][1:] == [f"{tiny_folder}+a", f"{tiny_folder}+b"]
    assert [(d["system"], d["minus"]) for d in said["differences"]] == [("other", "rag"), ("other", "plain")]


def test_a_contender_that_is_not_name_and_folder_is_refused(sources: list[str], tmp_path: Path) -> None:
    for text in ("plain", "=runs/x", "plain="):
        with pytest.raises(UsageError, match=f"--contender '{text}' is not NAME=DIR"):
            call(*sources, "--contender", text)
    with pytest.raises(RecipeError, match="name = 'My Model'"):
        call(*sources, "--contender", "My Model=runs/x")
    with pytest.raises(UsageError, match="contender 'rag' has the name of a built-in system"):
        call(*sources, "--contender", "rag=runs/x", "--out", str(tmp_path / "report"))


def test_without_questions_the_flag_is_named(sources: list[str]) -> None:
    with pytest.raises(UsageError, match="--questions FILE"):
        call(*sources[:2])


def test_shipped_recipes_are_valid() -> None:
    assert {"cpu", "gpu", "tiny"} <= {path.stem for path in RECIPES}
    for path in RECIPES:
        assert load_recipe(EvaluateRecipe, path).systems
