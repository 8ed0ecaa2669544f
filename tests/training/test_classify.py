"""Classification: a head in the place of the language model's, on texts and on questions over documents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from raft.artifacts import hash_file, open_artifact
from raft.cli import app
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.errors import ArtifactError, InputError, RecipeError, UsageError
from raft.models import load_tokenizer, prompt_ids
from raft.prompts import build_messages, render_refusal
from raft.rows import read_rows, write_rows
from raft.training.classes import Labelled, _mixed, make_class_plan, text_ids
from raft.training.classify import (
    class_logits,
    f1_of,
    load_classifier,
    put_head,
    take_head,
    train_classifier,
)
from raft.training.student import load_student
from raft.training.tokenize import read_chunks
from tests.factories import colour_chunks, colour_examples, write_dataset

KINDS = {"dose": "Take {} mg of Corvalexin by mouth.", "door": "The door of ward {} is red and open."}


def recipe(model: Path, **settings: object) -> TrainRecipe:
    given = {
        "objective": "classify", "optim.groups_per_step": 8, "optim.epochs": 3, "optim.lr": 0.01, "max_tokens": 512,
        "watch.every_steps": 4, "precision": "float32",
    }  # fmt: skip
    text = [f"{key}={json.dumps(value)}" for key, value in (given | settings).items()]
    return load_recipe(TrainRecipe, None, text, model=str(model))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": text.format(n), "label": label} for label, text in KINDS.items() for n in range(24)]
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    write_rows(path, rows)
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Doors whose colour the documents tell, and every second time do not."""
    chunks = [chunk.id for chunk in colour_chunks()]
    examples = []
    for n, example in enumerate(colour_examples()):
        if n % 2:
            example = replace(example, oracle_present=False, target=render_refusal())
            example = replace(example, context=tuple(c for c in chunks if c not in example.oracle_ids)[:3])
        examples.append(replace(example, group=f"{example.group}/{n % 2}"))
    return write_dataset(tmp_path_factory.mktemp("data") / "doors", examples)


def dev_loss(classifier, planned) -> float:
    """Cross-entropy of a loaded classifier on the dev sequences, as training reports it."""
    losses = [
        cross_entropy(class_logits(classifier._model, each), torch.tensor(each.labels)) for each in planned.plan.dev
    ]
    return float(sum(losses) / len(losses))


def test_texts_are_told_apart_and_the_artefact_does_what_was_trained(
    tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    chosen = recipe(tiny_folder)
    summary = train_classifier(chosen, texts, tmp_path / "tuned")
    assert summary.classes == ("door", "dose")
    assert summary.dev_examples >= 2
    assert summary.accuracy == summary.macro_f1 == 1.0
    assert summary.majority_accuracy < 1.0
    manifest = open_artifact(tmp_path / "tuned", "classifier")
    assert manifest.inputs["data"] == hash_file(texts)
    assert sum(manifest.facts["class_counts"].values()) == manifest.facts["examples"] == 48 - summary.dev_examples
    assert manifest.facts["accuracy"] == 1.0
    losses = [row["loss"] for row in read_rows(tmp_path / "tuned" / "log.jsonl") if "loss" in row]
    assert losses[-1] < losses[0] / 2

    loaded = load_classifier(tmp_path / "tuned", "float32")
    assert dev_loss(loaded, make_class_plan(chosen, texts, tiny_folder)) == pytest.approx(
        summary.best_dev_loss, abs=1e-5
    )
    said = loaded.classify([KINDS["door"].format(99), KINDS["dose"].format(77), KINDS["door"].format(5)])
    assert [name for name, _ in said] == ["door", "dose", "door"]
    assert all(0.5 < probability <= 1 for _, probability in said)
    assert loaded.classify([]) == []
    with pytest.raises(UsageError, match="reads texts"):
        loaded.classify_questions([("What colour?", [])])


def test_the_logits_are_those_of_transformers_own_classifier(tiny_folder: Path, texts: Path, tmp_path: Path) -> None:
    train_classifier(recipe(tiny_folder, method="full", **{"optim.max_steps": 3}), texts, tmp_path / "tuned")
    weights = load_file(tmp_path / "tuned" / "head.safetensors")["weight"]
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned" / "model", num_labels=2).eval()
    theirs.score.weight.data.copy_(weights)
    tokenizer = load_tokenizer(tiny_folder)
    told = ["The door of ward 5 is red and open.", "Take 3 mg.", "Neither of them"]
    loaded = load_classifier(tmp_path / "tuned", "float32")
    for text, (name, probability) in zip(told, loaded.classify(told), strict=True):
        ids = torch.tensor([text_ids(tokenizer, text)])
        expected = theirs(input_ids=ids).logits[0].softmax(-1)
        assert name == ("door", "dose")[int(expected.argmax())]
        assert probability == pytest.approx(float(expected.max()), abs=1e-5)


@pytest.mark.parametrize("method", ["freeze", "qlora", "p_tuning"])
def test_every_kind_of_method_can_be_loaded_again(method: str, tiny_folder: Path, texts: Path, tmp_path: Path) -> None:
    own = {"freeze": {"layers.top": 1}, "p_tuning": {"soft_prompt.encoder_hidden": 16}}.get(method, {})
    chosen = recipe(tiny_folder, method=method, **{"optim.max_steps": 3, "watch.every_steps": 3}, **own)
    summary = train_classifier(chosen, texts, tmp_path / "tuned")
    loaded = load_classifier(tmp_path / "tuned", "float32")
    assert dev_loss(loaded, make_class_plan(chosen, texts, tiny_folder)) == pytest.approx(
        summary.best_dev_loss, abs=1e-4
    )


def test_questions_are_answerable_where_their_documents_hold_the_answer(
    tiny_folder: Path, questions: Path, tmp_path: Path
) -> None:
    chosen = recipe(tiny_folder, **{"optim.groups_per_step": 2, "optim.max_steps": 2, "watch.every_steps": 2})
    planned = make_class_plan(chosen, questions, tiny_folder)
    assert planned.counts == {"answerable": 8, "unanswerable": 8}
    said = {name: label for each in planned.plan.schedule for name, label in zip(each.ids, each.labels, strict=True)}
    expected = {row["id"]: int(not row["oracle_present"]) for row in read_rows(questions / "train.jsonl")}
    assert said == {name: expected[name] for name in said}
    summary = train_classifier(chosen, questions, tmp_path / "tuned")
    assert (summary.dev_examples, summary.majority_accuracy) == (8, 0.5)
    assert open_artifact(tmp_path / "tuned", "classifier").inputs["dataset"]
    assert json.loads((tmp_path / "tuned" / "seen.json").read_text())["questions"]
    loaded = load_classifier(tmp_path / "tuned", "float32")
    rows, chunks = list(read_rows(questions / "dev.jsonl")), read_chunks(questions)
    asked = [(row["question"], [chunks[name] for name in row["context"]]) for row in rows]
    right = ["answerable" if row["oracle_present"] else "unanswerable" for row in rows]
    found = [name for name, _ in loaded.classify_questions(asked)]
    assert sum(map(str.__eq__, right, found)) / 8 == summary.accuracy
    with pytest.raises(UsageError, match="Call classify_questions"):
        loaded.classify(["What colour?"])


def test_questions_over_the_same_documents_share_them(tiny_folder: Path, tmp_path: Path) -> None:
    examples = [replace(e, target=render_refusal()) if n % 2 else e for n, e in enumerate(colour_examples(draws=1))]
    dataset = write_dataset(tmp_path / "doors", examples)
    plan = make_class_plan(recipe(tiny_folder, pack_unrelated=False), dataset, tiny_folder).plan
    tokenizer, chunks = load_tokenizer(tiny_folder), read_chunks(dataset)
    prompts = {
        e.id: prompt_ids(tokenizer, build_messages(e.question, [chunks[c] for c in e.context])) for e in examples
    }
    assert all(len(each.labels) == 2 for each in plan.schedule)
    assert plan.tokens < 0.7 * 3 * sum(map(len, prompts.values()))
    student = load_student(recipe(tiny_folder), tiny_folder).eval()
    torch.nn.init.normal_(put_head(student, 2).weight)
    for packed in plan.schedule[:4]:
        apart = [student(input_ids=torch.tensor([prompts[name]])).logits[0, -1] for name in packed.ids]
        torch.testing.assert_close(class_logits(student, packed), torch.stack(apart).detach(), atol=1e-5, rtol=1e-4)


def test_a_head_that_is_taken_leaves_the_model_as_it_was(tiny_folder: Path) -> None:
    student = load_student(recipe(tiny_folder), tiny_folder).eval()
    ids = torch.tensor([[5, 6, 7]])
    before = student(input_ids=ids).logits
    head = put_head(student, 3)
    assert student(input_ids=ids).logits.shape == (1, 3, 3)
    assert take_head(student) is head
    assert torch.equal(student(input_ids=ids).logits, before)


def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(
    tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    chosen = recipe(tiny_folder, **{"lora.dropout": 0.1, "watch.every_steps": 2, "optim.max_steps": 6})
    train_classifier(chosen, texts, tmp_path / "whole")

    def stop(step: int, *_: object) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(chosen, texts, tmp_path / "stopped", on_step=stop)
    with pytest.raises(ArtifactError, match="Go on with --resume"):
        train_classifier(chosen, texts, tmp_path / "stopped")
    train_classifier(chosen, texts, tmp_path / "stopped", resume=True)
    for name in ("head.safetensors", "adapter/adapter_model.safetensors"):
        whole, resumed = (load_file(tmp_path / out / name) for out in ("whole", "stopped"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_balanced_classes_weigh_alike_in_training_and_never_on_dev(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": n % 4 == 0} for n in range(40)]
    write_rows(tmp_path / "texts.jsonl", rows)
    planned = make_class_plan(
        recipe(tiny_folder, **{"classify.balance": True, "optim.epochs": 1}), tmp_path / "texts.jsonl", tiny_folder
    )
    assert planned.classes == ("false", "true")
    weight = [0.0, 0.0]
    for packed in planned.plan.schedule:
        for label, each in zip(packed.labels, packed.weights, strict=True):
            weight[label] += each
    assert weight[0] == pytest.approx(weight[1])
    assert sum(weight) == pytest.approx(planned.plan.examples)
    assert all(packed.weights is None for packed in planned.dev)
    assert {label for packed in planned.dev for label in packed.labels} == {0, 1}


def test_the_dev_loss_is_of_every_class_in_a_file_sorted_by_label(tiny_folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "texts.jsonl", [{"text": f"text {n}", "label": "abc"[n // 60]} for n in range(180)])
    planned = make_class_plan(recipe(tiny_folder, **{"watch.dev_groups": 3}), tmp_path / "texts.jsonl", tiny_folder)
    assert len(planned.dev) > 3
    assert sorted(label for packed in planned.plan.dev for label in packed.labels) == [0, 1, 2]


def test_the_beginning_of_the_dev_groups_has_the_proportions_of_all() -> None:
    groups = [[Labelled(str(n), [n], "a" if n < 12 else "b")] for n in range(16)]
    mixed = _mixed(groups, seed=0)
    assert sorted(mixed, key=lambda group: group[0].prompt) == groups
    assert [sum(group[0].label == "b" for group in mixed[:count]) for count in (2, 8, 16)] == [1, 2, 4]
    assert mixed == _mixed(groups, seed=0) != _mixed(groups, seed=1)


def test_f1_of_a_class() -> None:
    right, said = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]
    assert [f1_of(number, right, said) for number in range(3)] == pytest.approx([4 / 5, 1 / 2, 2 / 3])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], r"are not of two classes \(x\)"),
        ([{"text": "a", "label": "x"}, {"text": "a", "label": "y"}], r"rows 1 and 2 are the same text of two classes"),
        ([{"text": "a", "label": "x"}, {"text": "", "label": None}], r"has 1 bad row: row 2: text is ''"),
        ([{"text": "a", "label": []}], r"row 1: label is \[\], expected some text"),
        (
            [{"text": f"{n} " + "word " * 600, "label": str(n)} for n in range(3)],
            r"the 0 train examples .* max_tokens = 512",
        ),
    ],
)
def test_texts_that_cannot_be_learned_are_one_clear_line(
    rows: list[dict], says: str, tiny_folder: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "texts.jsonl", rows)
    with pytest.raises(InputError, match=says) as caught:
        make_class_plan(recipe(tiny_folder), tmp_path / "texts.jsonl", tiny_folder)
    assert "\n" not in str(caught.value)


def test_settings_that_mean_nothing_here_are_refused() -> None:
    for setting, says in (("token_weights.quote=2", "no answer is written"), ("labels=['a']", "only pretrain")):
        with pytest.raises(RecipeError, match=says):
            load_recipe(TrainRecipe, None, ["objective=classify", setting])
    with pytest.raises(RecipeError, match="only the objective classify reads it"):
        load_recipe(TrainRecipe, None, ["classify.balance=true"])
    with pytest.raises(RecipeError, match="objective classify makes no model that could go on learning"):
        load_recipe(TrainRecipe, None, stages=[{"objective": "classify"}])
    assert load_recipe(TrainRecipe, None, ["objective=classify", "method=full"]).optim.lr == pytest.approx(1e-5)


def test_the_command_says_how_well_the_classes_are_told(
    tiny_folder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["objective=classify", "optim.max_steps=2", "optim.groups_per_step=8", "precision=float32"]
    words = ["train", "--data", str(texts), "--model", str(tiny_folder), "--out", str(tmp_path / "tuned")]
    result = CliRunner().invoke(app, [*words, *(word for each in settings for word in ("--set", each))])
    assert result.exit_code == 0, result.output
    assert "dev examples of 2 classes: accuracy" in result.output
    assert "load_classifier" in result.output
