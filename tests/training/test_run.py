"""raft train on real (tiny) models: it learns, freezes, saves, refuses, and survives kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raft.artifacts import open_artifact
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.errors import ArtifactError, InputError, RecipeError
from raft.models import load_language_model, load_tokenizer
from raft.places import partial_folder
from raft.prompts import REFUSAL
from raft.rows import read_rows
from raft.training.plan import make_plan
from raft.training.run import train
from raft.training.tokenize import read_chunks, read_groups, tokenize_groups
from raft.training.trainer import last_checkpoint
from tests.factories import colour_examples, write_dataset


def recipe(model: Path, **settings: object) -> TrainRecipe:
    pairs = {
        "optim.lr": 0.01,
        "optim.epochs": 4,
        "optim.groups_per_step": 2,
        "watch.every_steps": 4,
        "watch.probe": False,
        "precision": "float32",
    }
    text = [f"{k}={json.dumps(v)}" for k, v in (pairs | settings).items()]
    return load_recipe(TrainRecipe, None, text, model=str(model))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


def test_without_documents_the_student_learns_the_bare_answer(tiny_folder: Path, dataset: Path) -> None:
    chosen = recipe(tiny_folder, documents=False)
    plan, tokenizer = make_plan(chosen, dataset, tiny_folder), load_tokenizer(tiny_folder)
    first = plan.dev[0]
    example = read_groups(dataset, "dev")[0][0][0]
    assert tokenizer.decode(first.labels).startswith(f"<ANSWER>: {example.answer}{tokenizer.eos_token}")
    shown = tokenizer.decode(first.tokens)
    assert example.question in shown
    assert "Document [" not in shown
    chunks = read_chunks(dataset)
    refused = [replace(example, answer=REFUSAL, oracle_present=False)]
    assert tokenize_groups(tokenizer, [refused], chunks, documents=False) == [[]]
    assert tokenize_groups(tokenizer, [[replace(refused[0], answer_type="unanswerable")]], chunks, documents=False)[0]
    with pytest.raises(RecipeError, match="objective dpo has no use for documents"):
        recipe(tiny_folder, objective="dpo", documents=False)


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_the_loss_falls_and_the_artefact_is_whole(
    method: str, tiny_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    summary = train(recipe(tiny_folder, method=method), dataset, tmp_path / "tuned")
    rows = list(read_rows(tmp_path / "tuned" / "log.jsonl"))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 0.1
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, summary.steps + 1))
    assert summary.best_dev_loss == pytest.approx(min(row["eval_loss"] for row in rows if "eval_loss" in row))
    manifest = open_artifact(tmp_path / "tuned", "adapter")
    assert manifest.facts["method"] == method
    assert manifest.facts["trainable_parameters"] > 0
    assert set(json.loads((tmp_path / "tuned" / "seen.json").read_text())) == {"questions", "documents"}
    assert not partial_folder(tmp_path / "tuned").exists()


def test_lora_leaves_the_base_bit_identical_and_trains_every_adapter(
    tiny_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    before = load_file(tiny_folder / "model.safetensors")
    train(recipe(tiny_folder), dataset, tmp_path / "tuned")
    after = load_file(tiny_folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    adapter = load_file(tmp_path / "tuned" / "adapter" / "adapter_model.safetensors")
    moved = [name for name in adapter if "lora_B" in name and adapter[name].abs().max() > 0]
    assert len(moved) == 2 * 7  # two layers, seven linear modules each


def test_the_saved_adapter_gives_the_dev_loss_that_was_reported(
    tiny_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    from raft.llm.local import LocalModel
    from raft.training.attention import forward
    from raft.training.packing import pack_group, to_batch

    summary = train(recipe(tiny_folder), dataset, tmp_path / "tuned")
    tuned = LocalModel.load(str(tiny_folder), tmp_path / "tuned", precision="float32").model
    groups = read_groups(dataset, "dev")[0]
    losses = []
    for group in tokenize_groups(load_tokenizer(tiny_folder), groups, read_chunks(dataset)):
        batch = to_batch(next(pack_group(group, 2048)))
        with torch.no_grad():
            logits = forward(tuned, batch).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, batch["labels"][0]).item())
    assert sum(losses) / len(losses) == pytest.approx(summary.best_dev_loss, abs=1e-4)


def test_only_answers_carry_loss(tiny_folder: Path, dataset: Path) -> None:
    tokenizer = load_tokenizer(tiny_folder)
    plan = make_plan(recipe(tiny_folder, **{"optim.epochs": 1, "pack_unrelated": False}), dataset, tiny_folder)
    said = sorted(tokenizer.decode(packed.labels) for packed in plan.schedule)
    groups = read_groups(dataset, "train")[0]
    assert said == sorted("".join(e.target + tokenizer.eos_token for e in group) for group in groups)


def test_each_epoch_trains_on_its_own_draw_and_every_group_once(tiny_folder: Path, dataset: Path) -> None:
    two = make_plan(recipe(tiny_folder, **{"optim.epochs": 2, "pack_unrelated": False}), dataset, tiny_folder).schedule
    one = make_plan(recipe(tiny_folder, **{"optim.epochs": 1, "pack_unrelated": False}), dataset, tiny_folder).schedule
    assert two[: len(one)] == one
    assert len(one) == 4
    first, second = ({tuple(p.tokens) for p in part} for part in (one, two[len(one) :]))
    assert len(first) == len(second) == 4
    assert first != second


def test_examples_that_do_not_fit_are_refused_with_their_number(tiny_folder: Path, dataset: Path) -> None:
    with pytest.raises(InputError, match=r"no train example .* fits max_tokens = 64 \(16 are longer\)"):
        make_plan(recipe(tiny_folder, max_tokens=64), dataset, tiny_folder)


def test_a_plan_that_is_refused_leaves_nothing_behind(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fits max_tokens = 64"):
        train(recipe(tiny_folder, max_tokens=64), dataset, tmp_path / "tuned")
    assert not partial_folder(tmp_path / "tuned").exists()


def test_patience_goes_on_counting_after_a_stop(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    """Weights that hardly move reach no better dev loss than the first: three more without one end the training."""
    watch = {"watch.every_steps": 1, "watch.patience": 3, "watch.probe": False}
    calm = recipe(tiny_folder, **{"optim.lr": 1e-12, **watch})

    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(calm, dataset, tmp_path / "stopped", on_step=stop)
    assert train(calm, dataset, tmp_path / "stopped", resume=True).steps == 4
    assert train(calm, dataset, tmp_path / "whole").steps == 4


def test_the_best_checkpoint_is_found_again_where_unfinished_work_was_moved(
    tiny_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    watch = {"watch.every_steps": 1, "watch.patience": 9, "watch.probe": False}
    calm = recipe(tiny_folder, **{"optim.lr": 1e-12, "optim.max_steps": 4, **watch})  # no dev loss beats the first

    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(calm, dataset, tmp_path / "stopped", on_step=stop)
    partial_folder(tmp_path / "stopped").rename(partial_folder(tmp_path / "moved"))
    resumed, whole = train(calm, dataset, tmp_path / "moved", resume=True), train(calm, dataset, tmp_path / "whole")
    losses = [row["eval_loss"] for row in read_rows(tmp_path / "whole" / "log.jsonl") if "eval_loss" in row]
    assert losses.index(min(losses)) == 0, "the best must lie before the stop"
    assert resumed.best_dev_loss == whole.best_dev_loss == min(losses)
    ours, theirs = (next((tmp_path / name).rglob("adapter_model.safetensors")) for name in ("moved", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_constant_rate_warms_up_too(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    optim = {"optim.schedule": "constant", "optim.warmup_fraction": 0.5, "optim.max_steps": 4, "optim.lr": 0.01}
    train(recipe(tiny_folder, **optim, **{"watch.probe": False}), dataset, tmp_path / "tuned")
    rates = [row["learning_rate"] for row in read_rows(tmp_path / "tuned" / "log.jsonl") if "loss" in row]
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.01])


def test_a_missing_chunk_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    broken = [replace(e, context=("nowhere#1",)) for e in colour_examples()]
    with pytest.raises(InputError, match=r"q0/0 names chunk 'nowhere#1'"):
        make_plan(recipe(tiny_folder), write_dataset(tmp_path / "broken", broken), tiny_folder)


def test_an_adapter_is_refused_on_another_base(
    tiny_folder: Path, student_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    from raft.llm.local import LocalModel

    train(recipe(tiny_folder, **{"optim.max_steps": 1}), dataset, tmp_path / "tuned")
    with pytest.raises(ArtifactError, match="was trained on"):
        LocalModel.load(str(student_folder), tmp_path / "tuned")


def test_a_finished_artefact_is_never_overwritten_silently(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    quick = recipe(tiny_folder, **{"optim.max_steps": 1})
    train(quick, dataset, tmp_path / "tuned")
    with pytest.raises(ArtifactError, match="exists already"):
        train(quick, dataset, tmp_path / "tuned")
    train(quick, dataset, tmp_path / "tuned", overwrite=True)


SLOW_TRAIN = """
import sys, time
from pathlib import Path
from tests.training.test_run import recipe
from raft.training.run import train
model, dataset, out = map(Path, sys.argv[1:4])
train(recipe(model, **{"lora.dropout": 0.1}), dataset, out, resume="--resume" in sys.argv,
      on_step=lambda *_: time.sleep(float(sys.argv[4])))
"""


def run_training(model: Path, dataset: Path, out: Path, *more: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", SLOW_TRAIN, str(model), str(dataset), str(out), *more], env=env)


def test_kill_9_and_resume_give_the_weights_of_an_uninterrupted_run(
    tiny_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    assert run_training(tiny_folder, dataset, tmp_path / "whole", "0").wait() == 0
    killed = run_training(tiny_folder, dataset, tmp_path / "killed", "0.4")
    log = partial_folder(tmp_path / "killed") / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and sum('"loss"' in line for line in log.read_text().splitlines()) >= 5):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed").exists()
    assert last_checkpoint(partial_folder(tmp_path / "killed") / "checkpoints") is not None

    with pytest.raises(ArtifactError, match="Go on with --resume"):
        train(recipe(tiny_folder, **{"lora.dropout": 0.1}), dataset, tmp_path / "killed")
    with pytest.raises(ArtifactError, match=r"recipe.lora.dropout: was 0.1, now 0.2"):
        train(recipe(tiny_folder, **{"lora.dropout": 0.2}), dataset, tmp_path / "killed", resume=True)

    assert run_training(tiny_folder, dataset, tmp_path / "killed", "0", "--resume").wait() == 0
    whole, resumed = (load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    curves = [
        [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_rows(tmp_path / n / "log.jsonl")]
        for n in ("whole", "killed")
    ]
    assert curves[0] == curves[1]


def test_a_checkpoint_cut_short_is_not_used(tmp_path: Path) -> None:
    for step, state in ((4, "{}"), (8, '{"global')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-12").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-12").exists()


def test_qlora_holds_its_base_in_four_bits(tiny_folder: Path) -> None:
    model = load_language_model(tiny_folder, "float32", four_bit=True)
    kinds = {type(m).__name__ for m in model.modules()}
    assert "Linear4bit" in kinds
    assert model.model.layers[0].mlp.up_proj.weight.quant_state.quant_type == "nf4"


def test_a_four_bit_model_still_carries_gradients_after_an_evaluation(tiny_folder: Path) -> None:
    model = load_language_model(tiny_folder, "float32", four_bit=True).eval()
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        model(input_ids=tokens)
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
    model.train()
    model(inputs_embeds=embedded, use_cache=False).logits.sum().backward()
    through_attention = embedded.grad[0, 0]  # token 0 reaches the other positions' logits through 4-bit layers alone
    with_identity_only = torch.autograd.grad(model.lm_head(model.model.norm(embedded)).sum(), embedded)[0][0, 0]
    assert not torch.allclose(through_attention, with_identity_only)
