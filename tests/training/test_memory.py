"""Sequences in pieces, and a training that runs out of memory: the failures are real ones, under a limit of the
operating system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from raft.artifacts import open_artifact
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.errors import RecipeError
from raft.models import load_language_model
from raft.rows import read_rows
from raft.training.attention import forward, use_packed_attention
from raft.training.memory import available_memory, is_out_of_memory, memory_knobs
from raft.training.packing import pack, split_packed, to_batch
from raft.training.plan import make_plan
from raft.training.student import load_student
from raft.training.tokenize import Tokenized
from raft.training.trainer import make_trainer, training_arguments
from tests.factories import colour_examples, write_dataset
from tests.training.test_packing import groups
from tests.training.test_run import recipe


@given(groups(), st.integers(2, 60))
@settings(max_examples=60, deadline=None)
def test_pieces_hold_every_branch_once_and_are_no_longer_than_they_have_to_be(
    examples: list[Tokenized], limit: int
) -> None:
    packed = pack(examples)
    pieces = split_packed(packed, limit)
    rows = []
    for piece in pieces:
        assert len(piece) <= limit or len(piece.segments) == 2
        assert len(piece.keep) == len(piece.labels)
        for branch in range(1, len(piece.segments)):
            seen = [n for n, owner in enumerate(piece.branches) if owner in (0, branch)]
            assert [piece.positions[n] for n in seen] == list(range(len(seen)))
            answers = [
                label for at, label in zip(piece.keep, piece.labels, strict=True) if piece.branches[at] == branch
            ]
            rows.append(([piece.tokens[n] for n in seen], answers))
    assert rows == [((each.prompt + each.target)[:-1], each.target) for each in examples]
    assert [label for piece in pieces for label in piece.labels] == packed.labels
    for one, other in pairwise(pieces):
        assert len(one) + other.segments[1] > limit  # the next branch would not have fitted


def test_weights_go_with_their_answers() -> None:
    examples = [Tokenized("a", [5, 6, 7], [8, 9], [0.5, 1.5]), Tokenized("b", [5, 6, 4], [8], None)]
    first, second = split_packed(pack(examples), 4)
    assert (first.weights, second.weights) == ([0.5, 1.5], [1.0])


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path):
    model = load_language_model(tiny_folder, "float32").train()
    use_packed_attention(model)
    return model


@given(examples=groups(), limit=st.integers(2, 40))
@settings(max_examples=15, deadline=None)
def test_pieces_have_the_loss_and_the_gradients_of_the_whole(tiny, examples: list[Tokenized], limit: int) -> None:
    packed = pack(examples)
    losses, gradients = [], []
    for parts in ([packed], split_packed(packed, limit)):
        tiny.zero_grad()
        total = 0.0
        for part in parts:
            batch = to_batch(part)
            summed = cross_entropy(forward(tiny, batch).logits[0], batch["labels"][0], reduction="sum")
            loss = summed / len(packed.labels)
            loss.backward()
            total += loss.item()
        losses.append(total)
        gradients.append(torch.cat([p.grad.flatten() for p in tiny.parameters()]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[0].norm()


def test_the_trainer_takes_the_same_steps_in_pieces(tiny_folder: Path, tmp_path: Path) -> None:
    crowded = write_dataset(tmp_path / "crowded", colour_examples(draws=1, per_group=4))
    chosen = recipe(tiny_folder, **{"optim.groups_per_step": 2, "optim.max_steps": 2})
    plan = make_plan(chosen, crowded, tiny_folder)
    longest = max(map(len, plan.schedule))
    histories, weights = [], []
    for pieces in (None, longest // 3):
        torch.manual_seed(0)
        model = load_student(chosen, tiny_folder)
        arguments = training_arguments(
            tmp_path / str(pieces), steps=2, groups_per_step=2, optim=chosen.optim.model_dump(), every_steps=2,
            has_dev=True, seed=0,
        )  # fmt: skip
        trainer = make_trainer(model, plan.schedule, plan.dev, arguments, 3, [], pieces)
        lengths = []
        inner = model.get_base_model().model
        inner.register_forward_pre_hook(
            lambda _, args, given, lengths=lengths: lengths.append(given["position_ids"].shape[1]), with_kwargs=True
        )
        trainer.train()
        assert (max(lengths) < longest) == (pieces is not None)
        histories.append([row.get("loss", row.get("eval_loss")) for row in trainer.state.log_history[:3]])
        weights.append(torch.cat([w.detach().flatten() for w in model.parameters() if w.requires_grad]))
    assert histories[0] == pytest.approx(histories[1], abs=1e-4)
    assert (weights[0] - weights[1]).norm() <= 1e-3 * weights[0].norm()


# One process trains several times: imports take longer than the tiny trainings. Memory is limited to what the process
# holds after its first step, so that libraries have all they need, and the room given. The activations of a sequence
# (mostly logits: 49152 for each of its answer tokens) are several times that, those of one of its branches a part.
LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
from raft.errors import ModelError
from raft.training.run import train
from tests.training.test_run import recipe

model, data, single, out = map(Path, sys.argv[1:5])
NONE = resource.RLIM_INFINITY
settings = {"optim.max_steps": 3, "optim.groups_per_step": 1, "watch.every_steps": 2, "watch.probe": False}

def held():
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows["VmData"].split()[0]) * 1024

def limit(room, after):
    def on_step(step, steps, row):
        if step == after and resource.getrlimit(resource.RLIMIT_DATA)[0] == NONE:
            resource.setrlimit(resource.RLIMIT_DATA, (held() + room, NONE))
    return on_step

def run(name, room, after, data=data, **more):
    room = room * 2**20
    try:
        train(recipe(model, **settings, **more), data, out / name, on_step=limit(room, after))
        return None
    except ModelError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (NONE, NONE))

torch.set_num_threads(1)
print(json.dumps({
    "whole": run("whole", 0, 0),
    "again": run("again", 120, 1),
    "checkpoint": run("checkpoint", 120, 2),
    "forbidden": run("forbidden", 120, 1, retry_out_of_memory=False),
    "single": run("single", 60, 1, data=single),
}))
"""


@pytest.fixture(scope="module")
def limited(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, list]:
    """(folder of the trainings, what they raised, lines on stderr)"""
    out = tmp_path_factory.mktemp("limited")
    crowded = write_dataset(out / "eight", colour_examples(per_group=8), dev=False)
    long = [replace(each, target=each.target + " red" * 250) for each in colour_examples(draws=1, per_group=1)]
    single = write_dataset(out / "one", long, dev=False)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    arguments = [str(each) for each in (tiny_folder, crowded, single, out)]
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], env=env, capture_output=True, text=True, timeout=300, check=True
    )
    return out, json.loads(ran.stdout), [line for line in ran.stderr.splitlines() if line.startswith("raft:")]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize(("name", "way"), [("again", "begins again"), ("checkpoint", "goes on from checkpoint-2")])
def test_a_training_out_of_memory_goes_on_in_smaller_pieces_to_the_same_weights(name: str, way: str, limited) -> None:
    out, raised, lines = limited
    assert raised["whole"] is None
    assert raised[name] is None
    assert any(f"training {way} with pieces of at most " in line for line in lines)
    facts = open_artifact(out / name, "adapter").facts
    assert facts["out_of_memory_retries"] >= 1
    assert facts["piece_tokens"] < max(facts["tokens"] // facts["steps"], 1)
    whole, pieces = (load_file(out / each / "adapter" / "adapter_model.safetensors") for each in ("whole", name))
    assert all(torch.allclose(whole[key], pieces[key], atol=2e-3) for key in whole)
    curves = [[row["loss"] for row in read_rows(out / each / "log.jsonl") if "loss" in row] for each in ("whole", name)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)
    assert open_artifact(out / "whole", "adapter").facts["out_of_memory_retries"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("name", ["forbidden", "single"])
def test_where_nothing_smaller_may_be_tried_the_settings_that_help_are_named(name: str, limited) -> None:
    said = limited[1][name]
    assert said.startswith("out of memory with ")
    assert "gradient_checkpointing = true" in said
    assert "max_tokens below 2048" in said


PROBE = {"watch.probe": True}  # as by default; reward knows none


def test_only_settings_that_change_something_are_named(tiny_folder: Path) -> None:
    small = recipe(tiny_folder, method="qlora", precision="bfloat16", gradient_checkpointing=True)
    assert list(memory_knobs(small)) == ["max_tokens below 2048"]
    assert 'method = "lora"' in memory_knobs(recipe(tiny_folder, method="full"))
    assert "preference.pairs_at_once below 2" in memory_knobs(recipe(tiny_folder, objective="reward", **PROBE))


def test_errors_of_memory_are_told_from_others() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert available_memory() > 0


@pytest.mark.parametrize("objective", ["dpo", "encoder"])
def test_objectives_that_run_nothing_in_pieces_refuse_the_setting(objective: str) -> None:
    with pytest.raises(RecipeError, match=f"objective {objective} has no use for retry_out_of_memory"):
        load_recipe(TrainRecipe, None, [f"objective={objective}", "retry_out_of_memory=false"])
