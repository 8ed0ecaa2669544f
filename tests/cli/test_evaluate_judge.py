"""raft evaluate judge from the command line, with a small local model for a judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from raft.cli.evaluate_judge import evaluate_judge
from raft.config import EvaluateRecipe
from raft.errors import UsageError
from raft.evaluation.compare import evaluate
from raft.evaluation.judged import NO_BETTER_THAN_CHANCE
from raft.llm.scripted import ScriptedModel
from tests.evaluation import world
from tests.evaluation.test_judged import write_labels


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(evaluate_judge)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from raft.indexing.build import build_index

    folder = tmp_path_factory.mktemp("judged")
    build_index(world.write_documents(folder / "documents"), folder / "index")
    questions = world.write_questions(folder / "questions.jsonl", world.questions()[6:10])
    recipe = EvaluateRecipe(search="bm25", index=folder / "index", questions=questions, top_k=2, resamples=100,
                            systems=("rag",))  # fmt: skip
    evaluate(recipe, folder / "report", base=lambda: ScriptedModel(world.good_reader))
    return folder / "report"


def test_a_judge_that_cannot_read_is_shown_for_what_it_is(report: Path, tiny_folder: Path, tmp_path: Path) -> None:
    labels, out = write_labels(tmp_path / "labels.jsonl", 0, 100), tmp_path / "out"
    words = [str(report), "--labels", str(labels), "--model", str(tiny_folder), "--out", str(out), "--set",
             "resamples=100", "--set", "max_new_tokens=4"]  # fmt: skip
    done = call(*words)
    lines = done.stdout.splitlines()
    assert done.exit_code == 0
    assert any(line.startswith("| RAG ") and "100 without verdict" in line for line in lines)
    assert any(line.startswith("faithfulness: no figures, for it takes 100") for line in lines)
    assert lines[-1] == f"report: {out / 'report.md'}"
    said = json.loads(call(*words, "--overwrite", "--json").stdout)
    assert said["agreement"][1] == {
        "metric": "correctness", "n": 100, "failures": 100, "agree": 0.0, "kappa": 0.0, "kappa_low": 0.0,
        "kappa_high": 0.0, "withheld": None, "doubt": NO_BETTER_THAN_CHANCE,
    }  # fmt: skip
    assert any(line.startswith("| RAG ") and NO_BETTER_THAN_CHANCE in line for line in lines)
    assert [(score["n"], score["failures"], score["holds"]["mean"]) for score in said["scores"]] == [(4, 4, 0.0)]


def test_without_labels_the_flag_is_named(report: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--labels FILE"):
        call(str(report), "--out", str(tmp_path / "out"))
