"""Estimates of raft train --dry-run against what real models count, compute and hold."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from raft.config_train_rules import SOFT
from raft.training.attention import dense_mask, forward
from raft.training.estimate import Work, _kept, _operations, _outline, _peak, _size_of, estimate
from raft.training.methods import count_parameters
from raft.training.packing import Packed, merge, pack, to_batch
from raft.training.student import load_student
from raft.training.tokenize import Tokenized
from tests.training.test_run import recipe

METHODS = [
    "lora", "qlora", "rslora", "dora", "ia3", "prompt_tuning", "p_tuning", "prefix_tuning", "full", "freeze",
    "unfreeze",
]  # fmt: skip


def sequence(prefix: int = 400, branches: int = 4, answers: int = 10) -> Packed:
    documents = [5 + n % 900 for n in range(prefix)]
    return pack([Tokenized(str(n), [*documents, 2000 + n, *range(30, 50)], [7 + n] * answers) for n in range(branches)])


@pytest.mark.parametrize("method", METHODS)
def test_parameters_are_those_of_the_student_that_would_be_loaded(method: str, tiny_folder: Path) -> None:
    chosen = recipe(tiny_folder, method=method, **{"layers.top": 1} if method in ("freeze", "unfreeze") else {})
    found = estimate(chosen, tiny_folder, None)
    assert (found.trainable_parameters, found.parameters) == count_parameters(load_student(chosen, tiny_folder))


def test_a_reward_model_counts_its_head(tiny_folder: Path) -> None:
    chosen = [recipe(tiny_folder, objective=name, **{"watch.probe": True}) for name in ("sft", "reward")]
    plain, reward = (estimate(each, tiny_folder, None) for each in chosen)
    assert reward.trainable_parameters == plain.trainable_parameters + 64


def step(model, packed: Packed) -> None:
    batch = to_batch(packed)
    cross_entropy(forward(model, batch).logits[0], batch["labels"][0], reduction="sum").backward()


@pytest.mark.parametrize("answers", [1, 12])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora"},
        {"method": "full"},
        {"method": "freeze", "layers.top": 1},
        {"method": "prompt_tuning"},
        {"method": "lora", "gradient_checkpointing": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_operations_are_those_that_torch_counts(settings: dict, answers: int, tiny_folder: Path) -> None:
    chosen = recipe(tiny_folder, **settings)
    packed = sequence(answers=answers)
    size = replace(_size_of(_outline(chosen, tiny_folder), chosen, 1), attention=0)  # torch counts none on a CPU
    model = load_student(chosen, tiny_folder).train()
    with FlopCounterMode(display=False) as counter:
        step(model, packed)
    again = chosen.gradient_checkpointing  # torch leaves out each layer's last product then
    assert _operations(size, packed, True) == pytest.approx(counter.get_total_flops(), rel=0.15 if again else 0.1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(model, to_batch(packed))
    assert _operations(size, packed, False) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("packed", [sequence(), merge([sequence(50), sequence(20, 1), sequence(90, 2)])])
def test_attention_counts_the_pairs_that_see_each_other(packed: Packed, tiny_folder: Path) -> None:
    chosen = recipe(tiny_folder)
    size = _size_of(_outline(chosen, tiny_folder), chosen, 1)
    alone = replace(size, layers=0, moving=0, head=0, moving_head=0)
    seen = int(dense_mask(packed.segments, parents=packed.parents).sum())
    assert _operations(alone, packed, False) == pytest.approx(4 * seen * 2 * 64, rel=0.01)


def peak_of_allocations(model, packed: Packed) -> int:
    """Most bytes that torch's CPU allocator had given out at one time in a step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        step(model, packed)
    events = [event for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora"},
        {"method": "full"},
        {"method": "freeze", "layers.top": 1},
        {"method": "prefix_tuning"},
        {"method": "lora", "gradient_checkpointing": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_memory_is_what_the_allocator_gives_out(settings: dict, tiny_folder: Path) -> None:
    chosen = recipe(tiny_folder, **settings)
    packed = sequence(branches=2, answers=80)
    found = _peak(chosen, tiny_folder, Work([packed], [], 1, accumulates=False))
    model = load_student(chosen, tiny_folder).train()
    gradients = sum(weight.numel() * 4 for weight in model.parameters() if weight.requires_grad)
    assert found.weights == sum(weight.numel() * 4 for weight in model.parameters())
    assert found.activations / _kept(chosen) + gradients == pytest.approx(peak_of_allocations(model, packed), rel=0.05)


def deeper(tiny_folder: Path, folder: Path, **changes: int) -> Path:
    """The tiny model's config with other sizes, and its tokenizer; no weights."""
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    LlamaConfig(**json.loads((tiny_folder / "config.json").read_text()) | changes).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_few_layers_tell_what_all_of_them_take(
    method: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = deeper(tiny_folder, tmp_path / "deep", num_hidden_layers=5)
    chosen, work = recipe(base, method=method), Work([sequence(60, 1, 2)], [], 1, accumulates=True)
    few = _peak(chosen, base, work)
    monkeypatch.setattr("raft.training.estimate._fewer_layers", lambda _, layers: (layers,))
    assert _peak(chosen, base, work).activations == pytest.approx(few.activations, rel=0.01)


def test_what_does_not_fit_names_what_would_help(tiny_folder: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 98304, "intermediate_size": 98304, "head_dim": 24576, "num_hidden_layers": 1}
    base = deeper(tiny_folder, tmp_path / "huge", **sizes)
    chosen = recipe(base, method="full")
    found = estimate(chosen, base, Work([sequence(60, 1)], [], 1, accumulates=False))
    assert found.fits is False
    assert {'method = "lora"', 'method = "qlora"', 'precision = "bfloat16"', "max_tokens below 2048"} <= {
        *found.instead
    }
    assert all(total < found.memory.total for total in found.instead.values() if total is not None)
    assert found.instead['method = "qlora"'] < found.instead['method = "lora"'] / 2


def test_bfloat16_halves_the_weights(tiny_folder: Path) -> None:
    work = Work([sequence(60, 1)], [], 1, accumulates=False)
    whole, half = (_peak(recipe(tiny_folder, precision=name), tiny_folder, work) for name in ("float32", "bfloat16"))
    assert half.weights < 0.6 * whole.weights
    assert half.optimizer == whole.optimizer  # adapters stay in float32
    assert half.activations < whole.activations


def test_what_is_small_takes_little_time_and_fits(tiny_folder: Path) -> None:
    found = estimate(
        recipe(tiny_folder), tiny_folder, Work([sequence(60, 1)] * 3, [sequence(60, 2)], 3, accumulates=False)
    )
    assert 0 < found.seconds < 60
    assert found.fits
    assert found.instead == {}


def test_soft_prompts_lengthen_every_sequence(tiny_folder: Path) -> None:
    sizes = [_size_of(_outline(recipe(tiny_folder, method=name), tiny_folder), recipe(tiny_folder), 1) for name in SOFT]
    assert [size.soft for size in sizes] == [20, 20, 20]
