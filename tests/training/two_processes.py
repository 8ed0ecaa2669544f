"""What each of two processes runs in test_distributed.py, one training after the other:

torchrun --standalone --nproc-per-node 2 -m tests.training.two_processes MODEL DATASET FOLDER
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.errors import InputError
from raft.places import partial_folder

SETTINGS = (
    "optim.lr=0.01", "optim.epochs=2.75", "optim.groups_per_step=4", "watch.every_steps=2", "watch.dev_groups=3",
    "watch.probe=false", "pack_unrelated=false", 'precision="float32"',
)  # fmt: skip
BY_METHOD = {"lora": ["method=lora"], "full": ["method=full", "pack_unrelated=true"]}


def recipe(model: Path, *more: str) -> TrainRecipe:
    """Three optimizer steps, the last of three sequences; three dev sequences: nothing that two can share evenly."""
    return load_recipe(TrainRecipe, None, [*SETTINGS, *more], model=str(model))


class Stopped(Exception):
    """Ends a training in all processes at once."""


def main(model: Path, dataset: Path, folder: Path) -> None:
    from raft.cli import app
    from raft.training import run

    words = ["train", "--model", str(model), "--data", str(dataset), "--out", str(folder / "ddp")]
    app([*words, *(word for setting in SETTINGS for word in ("--set", setting))], standalone_mode=False)

    divide_among_cpus()
    fsdp = recipe(model, "parallel.kind=fsdp")
    run.train(recipe(model, "parallel.kind=fsdp", *BY_METHOD["full"]), dataset, folder / "fsdp-full")
    gather, run.whole_weights = run.whole_weights, stop
    try:
        run.train(fsdp, dataset, folder / "fsdp")
    except Stopped:
        run.whole_weights = gather
    if os.environ["RANK"] == "0":
        shutil.rmtree(partial_folder(folder / "fsdp") / "checkpoints" / "checkpoint-3")
    run.train(fsdp, dataset, folder / "fsdp", resume=True)

    if os.environ["RANK"] == "1":
        run.make_plan = fail
    run.train(recipe(model), dataset, folder / "failed")


def divide_among_cpus() -> None:
    """Let accelerate take the CPU for an accelerator: it divides a model among nothing else."""
    from accelerate import DistributedType, PartialState

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


def stop(trainer: object) -> None:
    raise Stopped


def fail(*_: object) -> None:
    raise InputError("process 1 fails")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
