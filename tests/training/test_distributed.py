"""Two processes train what one trains: the same losses, the same weights, one artefact."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raft.artifacts import open_artifact
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.errors import ModelError, RecipeError, UsageError
from raft.places import partial_folder
from raft.rows import read_rows
from raft.training.distributed import check_processes, even_out, is_main, parallel_arguments, processes
from raft.training.packing import Packed
from raft.training.run import train
from tests.factories import write_dataset
from tests.training.two_processes import BY_METHOD, recipe

ROOT = Path(__file__).parents[2]


@dataclass
class Run:
    folder: Path
    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


@pytest.fixture(scope="module")
def two(tiny_folder: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.training.two_processes", str(tiny_folder), str(dataset), str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    return Run(folder, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def one(tiny_folder: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What one process makes, by method."""
    made = {method: tmp_path_factory.mktemp("one") / method for method in BY_METHOD}
    for method, folder in made.items():
        train(recipe(tiny_folder, *BY_METHOD[method]), dataset, folder)
    return made


@pytest.fixture(params=["ddp", "fsdp", "fsdp-full"])
def pair(request, one: dict[str, Path], two: Run) -> tuple[Path, Path, str]:
    """(artefact of one process, artefact of two, method)"""
    method = "full" if request.param == "fsdp-full" else "lora"
    assert (two.folder / request.param).is_dir(), two.stderr[-3000:]
    return one[method], two.folder / request.param, method


def test_two_processes_log_the_losses_of_one(pair: tuple[Path, Path, str]) -> None:
    alone, together, _ = pair
    one, two = (list(read_rows(folder / "log.jsonl")) for folder in (alone, together))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 2, 3, 3]
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for key, off in (("loss", 1e-5), ("eval_loss", 1e-5), ("grad_norm", 1e-4), ("learning_rate", 1e-9)):
            if key in ours:
                assert theirs[key] == pytest.approx(ours[key], rel=off), (ours["step"], key)


def test_two_processes_save_the_weights_of_one(pair: tuple[Path, Path, str], tiny_folder: Path) -> None:
    alone, together, method = pair
    name = "model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors"
    one, two = load_file(alone / name), load_file(together / name)
    assert one.keys() == two.keys()
    for key in one:  # by norm: where a gradient is next to nothing, Adam makes much of its rounding
        assert (one[key] - two[key]).norm() <= 1e-3 * one[key].norm(), key
    before = load_file(tiny_folder / "model.safetensors") if method == "full" else {}
    assert all(not torch.equal(two[key], before[key]) for key in two if "proj" in key and key in before)
    config = "model/config.json" if method == "full" else "adapter/adapter_config.json"
    ours, theirs = (json.loads((folder / config).read_text()) for folder in (alone, together))
    for each in (ours, theirs):
        each["target_modules"] = sorted(each.get("target_modules", ()))  # PEFT writes a set
    assert ours == theirs


def test_the_artefact_is_whole_and_says_how_many_made_it(pair: tuple[Path, Path, str]) -> None:
    alone, together, _ = pair
    one, two = open_artifact(alone, "adapter"), open_artifact(together, "adapter")
    assert one.files.keys() == two.files.keys()
    same = ("steps", "trainable_parameters", "parameters", "tokens", "examples")
    assert {name: two.facts[name] for name in same} == {name: one.facts[name] for name in same}
    assert (one.facts["processes"], two.facts["processes"]) == (1, 2)
    assert not partial_folder(together).exists()


def test_one_process_speaks(two: Run) -> None:
    assert two.stdout.count("3 steps, best dev loss") == 1


def test_a_process_that_fails_ends_the_others_and_leaves_no_artefact(two: Run) -> None:
    assert two.code != 0
    assert "process 1 fails" in two.stderr
    assert not (two.folder / "failed").exists()


def many(monkeypatch: pytest.MonkeyPatch, count: int, rank: int = 0) -> None:
    for name, value in (("WORLD_SIZE", count), ("RANK", rank), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))


def test_what_several_processes_cannot_train_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(*settings: str) -> TrainRecipe:
        return load_recipe(TrainRecipe, None, settings)

    with pytest.raises(UsageError, match=r"fsdp divides a model among processes.*torchrun"):
        check_processes(of("parallel.kind=fsdp"))
    many(monkeypatch, 4, rank=1)
    assert (processes(), is_main()) == (4, False)
    check_processes(of("optim.groups_per_step=8"))
    with pytest.raises(RecipeError, match=r"groups_per_step is 6, which 4 processes .* multiple of 4, e\.g\. 8"):
        check_processes(of("optim.groups_per_step=6"))
    with pytest.raises(UsageError, match="objective dpo trains in one process, and these are 4"):
        check_processes(of("objective=dpo"))
    with pytest.raises(UsageError, match="method prompt_tuning trains in one process"):
        check_processes(of("method=prompt_tuning"))
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="fsdp needs a GPU for each process"):
            check_processes(of("parallel.kind=fsdp"))


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_is_asked_for_by_name() -> None:
    with pytest.raises(ModelError, match=r"pip install 'raft-tune\[deepspeed\]'"):
        check_processes(load_recipe(TrainRecipe, None, ["parallel.kind=deepspeed"]))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["parallel.cpu_offload=true"], "kind ddp divides nothing and has no use for cpu_offload"),
        (["parallel.deepspeed_config=ds.json"], "deepspeed_config belongs to kind deepspeed, not ddp"),
        (["parallel.kind=fsdp", "method=qlora"], "fsdp cannot divide what method qlora trains"),
        (["objective=dpo", "parallel.kind=fsdp"], "several processes train sft and pretrain alone"),
        (["objective=encoder", "liger=true"], "no language model is tuned"),
        (["attention=flash"], "flash knows no shared prefix"),
        (["attention=flash", "share_prefixes=false", "precision=float32"], "bfloat16 alone"),
    ],
)
def test_settings_that_cannot_be_had_together_are_refused(settings: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(TrainRecipe, None, settings)


def test_the_recipe_says_what_deepspeed_gets() -> None:
    offloaded = load_recipe(TrainRecipe, ROOT / "configs" / "train" / "deepspeed.toml")
    config = parallel_arguments(offloaded)["deepspeed"]
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    kept = load_recipe(TrainRecipe, None, ["parallel.kind=deepspeed", "parallel.shard_weights=false"])
    assert parallel_arguments(kept)["deepspeed"]["zero_optimization"]["stage"] == 2
    own = load_recipe(TrainRecipe, None, ["parallel.kind=deepspeed", "parallel.deepspeed_config=ds.json"])
    assert parallel_arguments(own)["deepspeed"] == "ds.json"


def test_a_schedule_is_filled_up_with_what_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = [Packed([5], [0], [1], [0], [6])] * 5
    assert even_out(schedule) == schedule
    many(monkeypatch, 4)
    filled = even_out(schedule)
    assert filled[:5] == schedule
    assert len(filled) == 8
    assert all(label == -100 for packed in filled[5:] for label in packed.labels)
