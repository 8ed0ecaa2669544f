"""raft evaluate general from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from raft.cli.evaluate_general import evaluate_general
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from tests.evaluation.test_general import write_task
from tests.factories import write_dataset
from tests.training.small import write_small_model


@pytest.fixture(scope="module")
def adapter(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from raft.training.run import train

    folder = tmp_path_factory.mktemp("tuned")
    base = write_small_model(student_folder, folder / "base")
    settings = ["optim.max_steps=2", "watch.every_steps=2", "watch.probe=false", 'precision="float32"']
    recipe = load_recipe(TrainRecipe, None, settings, model=str(base))
    train(recipe, write_dataset(folder / "doors"), folder / "adapter")
    return folder / "adapter"


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(evaluate_general)
    return CliRunner().invoke(app, [*arguments, "--set", "resamples=100", "--set", "max_new_tokens=4"],
                              catch_exceptions=False)  # fmt: skip


def test_it_says_what_has_changed_and_where_the_report_lies(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = call("--adapter", str(adapter), "--out", str(out))
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "General text", "Multiple choice", "Everyday questions", "report"
    ]  # fmt: skip
    assert Path(lines[-1].removeprefix("report: ")) == out / "report.md"
    said = json.loads(call("--adapter", str(adapter), "--out", str(out), "--overwrite", "--json").stdout)
    assert said["choices"]["n"] == 40
    assert len(said["chat"]["replies"]) == 24
    assert said["report"] == str(out / "report.md")


def test_without_a_network_a_task_of_the_hub_is_refused_in_one_line(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    folder = write_task(tmp_path / "tasks", "nobody/nothing", "far")
    words = ["evaluate", "general", "--adapter", str(adapter), "--task", "far", "--task-folder", str(folder)]
    nowhere = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-m", "raft", *words, "--out", str(tmp_path / "report")], text=True,
                          capture_output=True, check=False, env=os.environ | nowhere)  # fmt: skip
    assert done.returncode == 4
    (line,) = done.stderr.strip().splitlines()
    assert "the questions of far lie on the hub (nobody/nothing), which cannot be reached" in line
    assert "--task-folder" in line
