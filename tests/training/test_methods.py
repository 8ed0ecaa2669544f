"""What methods do beside moving their own weights (test_pairs.py): soft prompts before packed sequences, layers that
are let go one by one, stopping and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.config_train_parts import LayersRecipe
from raft.config_tune import read_settings
from raft.errors import ModelError, RecipeError
from raft.llm.chat import ChatRequest
from raft.llm.local import LocalModel
from raft.models import load_language_model, load_tokenizer, prompt_ids
from raft.places import partial_folder
from raft.prompts import build_messages
from raft.training.attention import forward
from raft.training.methods import decoder_layers, unfrozen_layers
from raft.training.packing import pack_group, to_batch
from raft.training.plan import make_plan
from raft.training.run import train
from raft.training.student import load_student
from raft.training.tokenize import read_chunks, read_groups, tokenize_groups
from raft.training.trainer import LogFile, Unfreezing, last_checkpoint, make_trainer, training_arguments
from tests.factories import write_dataset
from tests.training.small import same_runs, write_small_model
from tests.training.test_packing import separate_loss

SOFT = ("prompt_tuning", "p_tuning", "prefix_tuning")
LR = {"ia3": 0.3, "prompt_tuning": 0.3, "p_tuning": 0.03, "prefix_tuning": 0.3, "full": 0.003}


def recipe(model: Path, method: str, **settings: object) -> TrainRecipe:
    usual = {
        "method": method, "optim.lr": LR.get(method, 0.01), "optim.epochs": 4, "optim.groups_per_step": 2,
        "watch.every_steps": 4, "watch.probe": False, "precision": "float32", "layers.top": 1,
        "layers.one_more_every_steps": 3, "soft_prompt.tokens": 5, "soft_prompt.encoder_hidden": 16,
    }  # fmt: skip
    read = read_settings(TrainRecipe(objective=settings.get("objective", "sft"), method=method), usual)
    text = [f"{k}={json.dumps(v)}" for k, v in (read | settings).items()]
    return load_recipe(TrainRecipe, None, text, model=str(model))


@pytest.fixture(scope="module")
def tiny_folder(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(student_folder, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


def run_steps(chosen: TrainRecipe, dataset: Path, base: Path, folder: Path, steps: int) -> tuple[Any, dict, set]:
    """The model after so many steps, its parameters before, and the names of those that may move."""
    torch.manual_seed(0)
    model = load_student(chosen, base)
    before = {name: weights.detach().clone() for name, weights in model.named_parameters()}
    movable = {name for name, weights in model.named_parameters() if weights.requires_grad}
    plan = make_plan(chosen, dataset, base)
    arguments = training_arguments(
        folder / "checkpoints", steps=steps, groups_per_step=2, optim=chosen.optim.model_dump(), every_steps=99,
        has_dev=False, seed=0,
    )  # fmt: skip
    log = LogFile(folder / "log.jsonl", [len(p) for p in plan.schedule], 2, lambda *_: None)
    callbacks = [log, *([Unfreezing(chosen.layers)] if chosen.method == "unfreeze" else [])]
    make_trainer(model, plan.schedule, [], arguments, 3, callbacks).train()
    return model, before, movable


@pytest.mark.parametrize("method", ["dora", "p_tuning"])
def test_what_is_saved_gives_the_reported_dev_loss(
    method: str, tiny_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    summary = train(recipe(tiny_folder, method), dataset, tmp_path / "tuned")
    tuned = LocalModel.load(str(tiny_folder), tmp_path / "tuned", precision="float32").model
    assert dev_loss(tuned, tiny_folder, dataset) == pytest.approx(summary.best_dev_loss, abs=1e-4)


@pytest.mark.parametrize("method", ["p_tuning", "prefix_tuning", "unfreeze"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    method: str, tiny_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    chosen = recipe(tiny_folder, method, **{"watch.every_steps": 2, "optim.max_steps": 5})

    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    train(chosen, dataset, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(chosen, dataset, tmp_path / "stopped", on_step=stop)
    assert last_checkpoint(partial_folder(tmp_path / "stopped") / "checkpoints") is not None
    train(chosen, dataset, tmp_path / "stopped", resume=True)
    same_runs(tmp_path / "whole", tmp_path / "stopped")


def dev_loss(model: Any, folder: Path, dataset: Path) -> float:
    losses = []
    for group in tokenize_groups(load_tokenizer(folder), read_groups(dataset, "dev")[0], read_chunks(dataset)):
        with torch.no_grad():
            losses.append(float(loss_behind_soft_prefix(model, group)))
    return sum(losses) / len(losses)


def loss_behind_soft_prefix(model: Any, group: list) -> torch.Tensor:
    """The loss of separate examples, behind the cache that a soft prompt has left."""
    soft = getattr(model, "soft_prefix", None)
    if soft is None:
        return separate_loss(model, group)
    from copy import deepcopy

    total, count = torch.tensor(0.0), 0
    for example in group:
        tokens = torch.tensor([example.prompt + example.target])
        logits = model(input_ids=tokens, past_key_values=deepcopy(soft)).logits[0, len(example.prompt) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(example.target), reduction="sum")
        count += len(example.target)
    return total / count


@pytest.mark.parametrize("method", SOFT)
def test_a_packed_group_behind_a_soft_prompt_reads_as_separate_examples_do_in_peft(
    method: str, tiny_folder: Path, dataset: Path
) -> None:
    torch.manual_seed(1)
    model = load_student(recipe(tiny_folder, method), tiny_folder)
    (group, *_) = tokenize_groups(load_tokenizer(tiny_folder), read_groups(dataset, "train")[0], read_chunks(dataset))
    batch = to_batch(next(pack_group(group, 2048)))
    packed = forward(model, batch).logits[0]
    model.base_model.set_attn_implementation("sdpa")  # packed attention knows no masks but its own
    apart = []
    for example in group:
        logits = model(input_ids=torch.tensor([(example.prompt + example.target)[:-1]])).logits[0]
        apart.append(logits[-len(example.target) :])
    torch.testing.assert_close(packed, torch.cat(apart), atol=2e-5, rtol=1e-4)

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        moving = [weights for weights in model.parameters() if weights.requires_grad]
        return list(torch.autograd.grad(loss, moving))

    labels = batch["labels"][0]
    for one, other in zip(
        gradients(torch.nn.functional.cross_entropy(packed, labels)),
        gradients(torch.nn.functional.cross_entropy(torch.cat(apart), labels)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", SOFT)
def test_replies_behind_a_soft_prompt_are_those_of_peft(
    method: str, tiny_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    train(recipe(tiny_folder, method), dataset, tmp_path / "tuned")
    chunks = list(read_chunks(dataset).values())
    asked = [build_messages(f"What colour is door {n}?", chunks[:n]) for n in (1, 2, 2, 3)]
    local = LocalModel.load(str(tiny_folder), tmp_path / "tuned", precision="float32")
    requests = [ChatRequest(str(n), tuple(messages), max_tokens=12) for n, messages in enumerate(asked)]
    replies = {reply.key: reply.text for reply in local.complete(requests)}
    peft = PeftModel.from_pretrained(load_language_model(tiny_folder, "float32"), tmp_path / "tuned" / "adapter").eval()
    tokenizer = load_tokenizer(tiny_folder)
    for number, messages in enumerate(asked):
        ids = torch.tensor([prompt_ids(tokenizer, messages)])
        written = peft.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        said = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip("\n ")
        assert replies[str(number)] == said


def test_layers_move_one_more_at_a_time(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    chosen = recipe(tiny_folder, "unfreeze")
    for steps, lower_moves in ((3, False), (5, True)):
        model, before, _ = run_steps(chosen, dataset, tiny_folder, tmp_path / str(steps), steps)
        lower = [name for name, _ in model.named_parameters() if ".layers.0." in name]
        moved = [not torch.equal(before[name], model.get_parameter(name)) for name in lower]
        assert all(moved) if lower_moves else not any(moved)
    assert [unfrozen_layers(LayersRecipe(top=2, one_more_every_steps=3), 4, step) for step in (0, 2, 3, 6, 99)] == [
        2, 2, 3, 4, 4,
    ]  # fmt: skip


def test_what_a_method_cannot_do_is_one_clear_line(tiny_folder: Path) -> None:
    model = load_language_model(tiny_folder, "float32")
    count = len(decoder_layers(model))
    with pytest.raises(ModelError, match=f"layers.top is {count + 1}, and the model has {count} layers"):
        load_student(recipe(tiny_folder, "freeze", **{"layers.top": count + 1}), tiny_folder)
    with pytest.raises(ModelError, match=r"ia3\.target_modules .* q_proj"):
        load_student(recipe(tiny_folder, "ia3", **{"ia3.target_modules": ["nothing"]}), tiny_folder)
    with pytest.raises(RecipeError, match="prefix_tuning"):
        recipe(tiny_folder, "prefix_tuning", gradient_checkpointing=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["method=ia3", "lora.r=8"], "method ia3 has no use for lora.r (it belongs to lora, qlora, rslora, dora)"),
        (["method=full", "layers.top=1", "soft_prompt.tokens=3"], "method full has no use for soft_prompt.tokens (it"),
        (
            ["method=prompt_tuning", "soft_prompt.encoder_hidden=3"],
            "soft_prompt.encoder_hidden (it belongs to p_tuning)",
        ),
        (["method=freeze", "layers.one_more_every_steps=3"], "layers.one_more_every_steps (it belongs to unfreeze)"),
        (["objective=encoder", "lora.r=8"], "objective encoder has no use for lora (all weights move)"),
    ],
)
def test_settings_of_another_method_are_refused(settings: list[str], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(TrainRecipe, None, settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
