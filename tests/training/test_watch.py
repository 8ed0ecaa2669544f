"""What follows a training: it stops where the loss is lost and says on what; what is told changes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raft.artifacts import open_artifact
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.errors import InputError, ModelError, RecipeError
from raft.llm.chat import ChatRequest
from raft.llm.local import LocalModel
from raft.models import load_language_model, load_tokenizer, target_ids
from raft.places import partial_folder
from raft.prompts import build_messages, parse_answer
from raft.records import Document
from raft.rows import read_rows, write_rows
from raft.training.corpus import corpus_sequences
from raft.training.packing import split_packed
from raft.training.plan import make_plan
from raft.training.preference import tune_preferences
from raft.training.probe import KEPT
from raft.training.run import train
from raft.training.tokenize import read_chunks, read_groups
from raft.training.trainer import last_checkpoint
from raft.training.watch import Guard
from tests.factories import write_dataset
from tests.training.small import write_small_model

QUICK = {
    "optim.lr": 0.01, "optim.max_steps": 6, "watch.every_steps": 3, "precision": "float32", "watch.probe": False,
}  # fmt: skip


def recipe(model: Path, **settings: object) -> TrainRecipe:
    return load_recipe(
        TrainRecipe, None, [f"{k}={json.dumps(v)}" for k, v in (QUICK | settings).items()], model=str(model)
    )


@pytest.fixture(scope="module")
def small(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(student_folder, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


class Stopped(Exception):
    """Ends a training from outside."""


def stop_after(step: int) -> Any:
    def on_step(now: int, steps: int, row: dict[str, Any]) -> None:
        if now == step and "loss" in row:
            raise Stopped

    return on_step


# --- a loss that is lost ---------------------------------------------------------------------------------------------


def guarded(rows: list[dict[str, float]], factor: float = 10.0, objective: str = "sft") -> list[int]:
    """The steps that came through."""
    chosen = load_recipe(
        TrainRecipe, None, [f"objective={objective}"] + [f"watch.explode_factor={factor}"] * (factor != 10)
    )
    came: list[int] = []
    guard = Guard(chosen, lambda step: [f"q{step}", f"r{step}"], lambda step, steps, row: came.append(step))
    for step, row in enumerate(rows, 1):
        guard(step, len(rows), row)
    return came


def losses(*values: float) -> list[dict[str, float]]:
    return [{"loss": value} for value in values]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"loss": float("nan")}, "the loss is nan at step 3"),
        ({"loss": 1.0, "grad_norm": float("inf")}, "the gradient norm is inf at step 3"),
    ],
)
def test_what_is_no_number_stops_with_the_examples_named(bad: dict[str, float], said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(f"{said}, on q3, r3, after q2, r2. Lower optim.lr")):
        guarded([*losses(2.0, 1.0), bad])


def test_a_dev_loss_that_is_no_number_blames_the_weights_and_no_train_example() -> None:
    with pytest.raises(ModelError, match="dev loss is nan at step 3: the weights are lost since step 3") as raised:
        guarded([*losses(2.0, 1.0), {"eval_loss": float("nan")}])
    assert "q3" not in str(raised.value)
    assert str(raised.value).endswith(". Lower optim.lr")


def test_three_losses_far_above_the_median_stop_with_the_first_named() -> None:
    with pytest.raises(ModelError, match=r"explodes: 13 at step 6, .* first at step 4, on q4, r4, after q3, r3"):
        guarded(losses(1.2, 1.0, 0.8, 11, 12, 13))


@pytest.mark.parametrize(
    "values",
    [
        (1.2, 1.0, 0.8, 11, 12, 0.9, 11, 12, 1.0),  # odd examples, not a training that is lost
        (0.02, 0.01, 0.01, 3.0, 3.5, 4.0),  # a hundred times the median, and yet what an untrained model would reach
        (10.8, 9.0, 40.0, 50.0, 60.0),  # bad, but not ten times
    ],
)
def test_losses_that_go_on(values: tuple[float, ...]) -> None:
    assert len(guarded(losses(*values))) == len(values)


def resumed(folder: Path, before: list[float], *after: float) -> list[int]:
    """The steps that come through where a checkpoint's log holds the losses ``before``."""
    came: list[int] = []
    log = folder / "log.jsonl"
    write_rows(log, [{"step": step, "loss": loss} for step, loss in enumerate(before, 1)])
    guard = Guard(TrainRecipe(), lambda step: [f"q{step}"], lambda step, steps, row: came.append(step), log)
    for step, loss in enumerate(after, len(before) + 1):
        row = {"step": step, "loss": loss}
        with log.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        guard(step, 99, row)
    return came


def test_a_resumed_training_knows_what_came_before_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"explodes: 13 at step 6, .* first at step 4, on q4, after q3"):
        resumed(tmp_path, [1.2, 1.0, 0.8, 11, 12], 13)
    with pytest.raises(ModelError, match=r"explodes: 40 at step 8, .* the median before \(1\)"):
        resumed(tmp_path, [1.2, 1.0, 0.8, 11, 12, 13, 14], 40)  # it went on all the same, and does no longer
    assert resumed(tmp_path, [1.2, 1.0, 0.8, 11, 12], 0.9, 11, 12, 1.0) == [6, 7, 8, 9]
    assert resumed(tmp_path, [], 11, 12, 13, 14) == [1, 2, 3, 4]


def test_the_rule_can_be_switched_off_and_is_off_where_a_loss_measures_nothing() -> None:
    wild = losses(0.1, 90, 90, 90, 90)
    assert len(guarded(wild, factor=0)) == 5
    assert len(guarded(wild, objective="grpo")) == 5
    with pytest.raises(ModelError):
        guarded(wild)
    with pytest.raises(RecipeError, match="more than 1, or 0"):
        guarded(wild, factor=0.5)


def test_a_loss_that_is_no_number_names_its_examples_and_keeps_sound_checkpoints(small: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "doors", dev=False)
    with_violet = {e.id for d in read_groups(data, "train").values() for g in d for e in g if "doors#6" in e.context}
    settings = {"optim.groups_per_step": 1, "watch.every_steps": 1, "seed": 1}
    schedule = make_plan(recipe(small, **settings), data, small).schedule
    seen = [{token for packed in schedule if with_violet.isdisjoint(packed.ids) is sound for token in packed.tokens}
            for sound in (False, True)]  # fmt: skip
    model = load_language_model(small, "float32")  # a base for which a word of one document is not a number
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.model.embed_tokens.weight.data[[*(seen[0] - seen[1])]] = float("nan")
    model.save_pretrained(tmp_path / "poisoned")
    load_tokenizer(small).save_pretrained(tmp_path / "poisoned")

    first = next(n for n, packed in enumerate(schedule) if with_violet & {*packed.ids})
    assert first > 0
    with pytest.raises(ModelError, match=rf"the loss is nan at step {first + 1}, on ") as raised:
        train(recipe(tmp_path / "poisoned", **settings), data, tmp_path / "lost")
    named = re.search(r", on (.*?), after (.*?)\. ", str(raised.value))
    assert named is not None
    assert set(named[1].split(", ")) <= with_violet
    assert not set(named[2].split(", ")) & with_violet
    assert not (tmp_path / "lost").exists()
    kept = last_checkpoint(partial_folder(tmp_path / "lost") / "checkpoints")
    assert kept is not None
    assert kept.name == f"checkpoint-{first}"
    assert all(weights.isfinite().all() for weights in load_file(kept / "adapter_model.safetensors").values())


def test_a_training_that_explodes_is_stopped_and_goes_on_where_that_is_wanted(
    small: Path, dataset: Path, tmp_path: Path
) -> None:
    wild = {
        "method": "full", "optim.lr": 1.0, "optim.schedule": "constant", "optim.warmup_fraction": 0.0,
        "optim.max_steps": 8, "watch.every_steps": 4, "optim.epochs": 4,
    }  # fmt: skip
    with pytest.raises(ModelError, match=r"the loss explodes: .* on q\d/\d"):
        train(recipe(small, **wild, **{"watch.explode_factor": 1.5}), dataset, tmp_path / "wild")
    assert not (tmp_path / "wild").exists()
    calm = {"watch.explode_factor": 0, "watch.samples": 1}  # what only watches may change
    assert train(recipe(small, **wild, **calm), dataset, tmp_path / "wild", resume=True).steps == 8
    assert [row["step"] for row in read_rows(tmp_path / "wild" / "samples.jsonl")][-1] == 8
    assert open_artifact(tmp_path / "wild", "adapter").recipe["watch"]["samples"] == 1


def test_sequences_know_what_they_are_made_of(small: Path, dataset: Path) -> None:
    chosen = recipe(small, **{"optim.epochs": 1, "optim.max_steps": 99})
    schedule = make_plan(chosen, dataset, small).schedule
    asked = [example.id for group in read_groups(dataset, "train")[0] for example in group]
    assert sorted(name for packed in schedule for name in packed.ids) == sorted(asked)
    pieces = split_packed(schedule[0], len(schedule[0]) - 1)
    assert len(pieces) == 2
    assert {piece.ids for piece in pieces} == {schedule[0].ids}


def test_corpus_sequences_know_their_documents(tokenizer: Any) -> None:
    documents = [Document(f"d{n}", "word " * length) for n, length in enumerate((30, 20, 150, 10))]
    found = [packed.ids for packed in corpus_sequences(documents, tokenizer, 64)]
    assert found == [("d0", "d1"), ("d2",), ("d2",), ("d2", "d3")]


# --- dev questions answered on the way -------------------------------------------------------------------------------


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "adapter"
    return load_file(folder / "adapter_model.safetensors" if folder.is_dir() else run / "model" / "model.safetensors")


@pytest.mark.parametrize("method", ["lora", "prefix_tuning", "prompt_tuning"])
def test_samples_are_what_the_model_answers_and_watching_changes_nothing(
    method: str, small: Path, dataset: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"method": method} | ({"lora.dropout": 0.2} if method == "lora" else {})
    settings["gradient_checkpointing"] = method == "lora"
    train(recipe(small, **settings), dataset, tmp_path / "without")
    watching = {"watch.samples": 3, "watch.probe": True}
    train(recipe(small, **settings, **watching), dataset, tmp_path / "with")
    without, watched = weights_of(tmp_path / "without"), weights_of(tmp_path / "with")
    assert all(torch.equal(without[name], watched[name]) for name in without)

    open_artifact(tmp_path / "with", "adapter")  # the file is one of its own
    rows = list(read_rows(tmp_path / "with" / "samples.jsonl"))
    examples = {e.id: e for group in read_groups(dataset, "dev")[0] for e in group}
    assert [row["step"] for row in rows] == [3, 3, 3, 6, 6, 6]
    assert [row["example"] for row in rows[:3]] == [row["example"] for row in rows[3:]] == ["q0/0", "q2/0", "q4/0"]
    assert all(row["expected"] == examples[row["example"]].answer for row in rows)
    assert all(row["answer"] == parse_answer(row["reply"]).final for row in rows)

    evaluated = [row for row in read_rows(tmp_path / "with" / "log.jsonl") if "eval_loss" in row]
    best = min(evaluated, key=lambda row: row["eval_loss"])["step"]
    chunks, tokenizer = read_chunks(dataset), load_tokenizer(small)
    model = LocalModel.load(str(small), tmp_path / "with", precision="float32")
    room = 2 * max(len(target_ids(tokenizer, examples[row["example"]].target)) for row in rows)
    for row in rows:
        if row["step"] == best:
            example = examples[row["example"]]
            messages = build_messages(example.question, [chunks[name] for name in example.context])
            (reply,) = model.complete([ChatRequest("q", tuple(messages), room)])
            assert row["reply"] == reply.text


def test_samples_need_dev_questions_and_an_objective_that_answers(small: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "doors", dev=False)
    with pytest.raises(InputError, match=r"watch.samples = 2 .* leave watch.samples out"):
        train(recipe(small, **{"watch.samples": 2}), data, tmp_path / "tuned")
    for objective in ("pretrain", "reward", "encoder"):
        with pytest.raises(RecipeError, match=f"objective {objective} has no use for watch.samples"):
            load_recipe(TrainRecipe, None, [f"objective={objective}", "watch.samples=2"])
    with pytest.raises(RecipeError, match=r"fsdp leaves no process a whole model, which watch.samples needs"):
        load_recipe(TrainRecipe, None, ["parallel.kind=fsdp", "watch.samples=2"])


# --- trackers --------------------------------------------------------------------------------------------------------


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_a_stopped_training_goes_on_with_its_samples_curves_and_first_figures(
    small: Path, dataset: Path, tmp_path: Path
) -> None:
    watching = {"watch.samples": 2, "watch.trackers": ["tensorboard"], "watch.probe": True}
    chosen = recipe(small, method="full", **{"optim.lr": 0.003, "watch.every_steps": 2}, **watching)
    train(chosen, dataset, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(chosen, dataset, tmp_path / "stopped", on_step=stop_after(5))
    kept = partial_folder(tmp_path / "stopped") / "checkpoints" / KEPT
    first = json.loads(kept.read_text()) | {"perplexity": 1234.5}  # not what measuring again would give
    kept.write_text(json.dumps(first))
    summary = train(chosen, dataset, tmp_path / "stopped", resume=True)
    assert summary.probe is not None
    assert summary.probe["before"] == first
    samples = [list(read_rows(tmp_path / name / "samples.jsonl")) for name in ("whole", "stopped")]
    assert samples[0] == samples[1]
    assert [row["step"] for row in samples[0]] == [2, 2, 4, 4, 6, 6]
    rows = list(read_rows(tmp_path / "whole" / "log.jsonl"))
    manifest = open_artifact(tmp_path / "stopped", "adapter")
    assert sum(name.startswith("tensorboard/") for name in manifest.files) == 2  # before and after the stop
    for name in ("whole", "stopped"):
        for tag, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
            wanted = [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows if key in row]
            assert scalars(tmp_path / name / "tensorboard", tag) == wanted


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_read(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"watch.trackers names wandb, which is not installed. Run: pip install wandb"):
        train(recipe(small, **{"watch.trackers": ["wandb"]}), tmp_path / "nothing", tmp_path / "tuned")
    with pytest.raises(RecipeError, match=r"watch.trackers"):
        recipe(small, **{"watch.trackers": ["notebook"]})


def test_preferences_are_watched_as_well(small: Path, dataset: Path, tmp_path: Path) -> None:
    watched = {"watch.samples": 1, "watch.trackers": ["tensorboard"], "watch.probe": True, "optim.max_steps": 2}
    chosen = recipe(small, objective="dpo", **watched, **{"watch.dev_groups": 1, "watch.every_steps": 2})
    summary = tune_preferences(chosen, dataset, tmp_path / "tuned")
    assert [row["step"] for row in read_rows(tmp_path / "tuned" / "samples.jsonl")] == [2]
    assert [step for step, _ in scalars(tmp_path / "tuned" / "tensorboard", "train/loss")] == [1, 2]
    assert summary.probe is not None
    assert open_artifact(tmp_path / "tuned", "adapter").facts["probe"] == summary.probe
