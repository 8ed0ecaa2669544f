"""Trainings in sequence: on the corpus, then on examples; each goes on from the weights of the one before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from raft.artifacts import open_artifact
from raft.config import load_recipe
from raft.config_train import TrainRecipe, stages_of
from raft.errors import ArtifactError, InputError, ModelError, RecipeError
from raft.indexing.build import build_index
from raft.llm.local import LocalModel, find_weights, inherited_labels, resolve_base
from raft.llm.openvino import OpenVinoModel
from raft.llm.openvino_network import NotConvertible
from raft.models import load_tokenizer
from raft.records import Document
from raft.rows import read_rows
from raft.training.corpus import corpus_sequences, is_held_out, join
from raft.training.objectives import run_stages
from raft.training.plan import make_plan
from raft.training.run import train
from tests.factories import write_dataset
from tests.training.small import write_small_model
from tests.training.test_methods import recipe


@pytest.fixture(scope="module")
def tiny_folder(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(student_folder, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(24):
        text = f"# Lodge {number}\n\nThe warden of lodge {number} keeps the key. Guests leave before ten o'clock.\n"
        label = "---\nlabels: [staff]\n---\n" if number == 7 else ""
        (folder / f"lodge-{number}.md").write_text(label + text, encoding="utf-8")
    build_index(folder, folder.parent / "lodges")
    return folder.parent / "lodges"


def test_documents_are_packed_whole_and_every_token_but_the_first_is_predicted(tokenizer) -> None:
    documents = [Document(f"d{n}", f"Title {n}", "word " * 40 * (n + 1), "here") for n in range(5)]
    sequences = list(corpus_sequences(documents, tokenizer, 100))
    assert all(len(sequence) <= 100 for sequence in sequences)
    whole = [tokenizer(f"{d.title}\n{d.text}")["input_ids"] + [tokenizer.eos_token_id] for d in documents]
    assert sum(len(sequence.labels) for sequence in sequences) == sum(len(ids) - 1 for ids in whole)
    predicted = [label for sequence in sequences for label in sequence.labels]
    assert predicted == [token for ids in whole for token in ids[1:]]
    for sequence in sequences:
        starts = [at for at, position in enumerate(sequence.positions) if position == 0]
        assert [sequence.branches[at] for at in starts] == list(range(1, len(starts) + 1))


def test_texts_in_one_sequence_do_not_see_each_other(tiny_folder: Path) -> None:
    from raft.models import load_language_model
    from raft.training.attention import forward, use_packed_attention
    from raft.training.packing import to_batch

    pieces = [[5, 6, 7, 8], [9, 10, 11]]
    model = load_language_model(tiny_folder, "float32")
    use_packed_attention(model)
    together = forward(model, to_batch(join(pieces))).logits[0]
    apart = [forward(model, to_batch(join([piece]))).logits[0] for piece in pieces]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-4)


def test_a_document_is_kept_back_whatever_others_there_are() -> None:
    held = [n for n in range(1000) if is_held_out(f"d{n}", 0.2, seed=3)]
    assert 150 < len(held) < 250
    assert held != [n for n in range(1000) if is_held_out(f"d{n}", 0.2, seed=4)]


def test_reading_on_in_a_corpus_lowers_its_loss_and_keeps_to_the_labels_held(
    tiny_folder: Path, index: Path, tmp_path: Path
) -> None:
    settings = {"objective": "pretrain", "optim.epochs": 3, "max_tokens": 128}
    train(recipe(tiny_folder, "lora", **settings), index, tmp_path / "open")
    losses = [row["loss"] for row in read_rows(tmp_path / "open" / "log.jsonl") if "loss" in row]
    assert losses[-1] < losses[0] - 0.1
    manifest = open_artifact(tmp_path / "open", "adapter")
    assert manifest.facts["labels"] == []
    assert json.loads((tmp_path / "open" / "seen.json").read_text()) == {"documents": [], "questions": []}
    held = recipe(tiny_folder, "lora", labels=["staff"], **settings)
    train(held, index, tmp_path / "held")
    assert open_artifact(tmp_path / "held", "adapter").facts["labels"] == ["staff"]
    assert inherited_labels(str(tmp_path / "held")) == {"staff"}
    for chosen, seen in ((held, True), (recipe(tiny_folder, "lora", **settings), False)):
        plan = make_plan(chosen, index, tiny_folder)
        labels = [token for packed in (*plan.schedule, *plan.dev) for token in packed.labels]
        assert ("lodge 7 " in load_tokenizer(tiny_folder).decode(labels)) == seen


def test_an_index_that_shows_nothing_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.md").write_text("---\nlabels: [staff]\n---\n# A\n\nThe key is under the mat.\n")
    build_index(tmp_path / "secret", tmp_path / "closed")
    with pytest.raises(InputError, match=r"shows no document to train on \(labels held: none\)"):
        make_plan(recipe(tiny_folder, "lora", objective="pretrain"), tmp_path / "closed", tiny_folder)


def staged(model: Path, index: Path, dataset: Path, *more: dict) -> TrainRecipe:
    stages = [
        {"name": "corpus", "objective": "pretrain", "dataset": str(index), "max_tokens": 128},
        {"name": "raft", "dataset": str(dataset), "optim": {"epochs": 2}},
        *more,
    ]
    stages[0]["labels"] = ["staff"]
    data = {
        "model": str(model), "method": "lora", "precision": "float32", "stages": stages,
        "optim": {"lr": 0.01, "epochs": 1, "groups_per_step": 2}, "watch": {"every_steps": 4, "probe": False},
    }  # fmt: skip
    return TrainRecipe.model_validate(data)


def test_each_stage_goes_on_from_the_weights_of_the_one_before(
    tiny_folder: Path, index: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFT_HOME", str(tmp_path / "home"))
    chosen = staged(tiny_folder, index, dataset)
    first, second = run_stages(chosen, tmp_path / "out")
    assert [first.name, second.name] == ["1-corpus", "2-raft"]
    base = LocalModel.load(str(tiny_folder), first, precision="float32").model.state_dict()
    start = LocalModel.load(str(first), precision="float32").model.state_dict()
    assert all(torch.allclose(base[name], start[name], atol=1e-6) for name in base)
    tuned = LocalModel.load(str(first), second, precision="float32").model.state_dict()
    assert not torch.equal(tuned["model.layers.0.mlp.up_proj.weight"], start["model.layers.0.mlp.up_proj.weight"])
    assert open_artifact(second, "adapter").facts["base_model"] == str(first)
    assert open_artifact(second, "adapter").facts["labels"] == ["staff"]
    assert {inherited_labels(str(each)) == {"staff"} for each in (first, second, resolve_base(str(first)))} == {True}
    with pytest.raises(ArtifactError, match="was trained on"):
        find_weights(str(tiny_folder), second)

    assert inherited_labels(str(first / "exported.gguf")) == inherited_labels(str(first / "model")) == {"staff"}
    third = train(recipe(second, "lora", **{"optim.max_steps": 1}), dataset, tmp_path / "third").out
    seen = [json.loads((folder / "seen.json").read_text()) for folder in (second, resolve_base(str(second)), third)]
    assert seen[0]["questions"]
    assert seen[0] == seen[1] == seen[2]

    made = [(folder / "manifest.json").stat().st_mtime_ns for folder in (first, second)]
    assert run_stages(chosen, tmp_path / "out", resume=True) == [first, second]
    assert made == [(folder / "manifest.json").stat().st_mtime_ns for folder in (first, second)]
    other = chosen.model_copy(update={"seed": 9})
    with pytest.raises(ArtifactError, match=r"1-corpus was made of something else \(they differ in seed\)"):
        run_stages(other, tmp_path / "out", resume=True)
    shutil.rmtree(first)
    shorter = chosen.model_copy(update={"stages": ({**chosen.stages[0], "max_tokens": 96}, chosen.stages[1])})
    with pytest.raises(ArtifactError, match=r"2-raft was made of something else \(they differ in model\)"):
        run_stages(shorter, tmp_path / "out", resume=True)


def test_stages_take_what_they_do_not_say_from_the_recipe(tiny_folder: Path, index: Path, dataset: Path) -> None:
    (one, corpus), (two, raft) = stages_of(staged(tiny_folder, index, dataset))
    assert (one, two) == ("corpus", "raft")
    assert (corpus.optim.lr, corpus.optim.epochs, raft.optim.lr, raft.optim.epochs) == (0.01, 1.0, 0.01, 2.0)
    assert (corpus.method, raft.objective, corpus.max_tokens, raft.max_tokens) == ("lora", "sft", 128, 2048)


def test_stages_leave_out_what_they_have_no_use_for_unless_they_say_it_themselves() -> None:
    above = {"lora": {"r": 4}, "layers": {"top": 1}, "labels": ["staff"], "token_weights": {"quote": 2.0}}
    stages = [{"name": "corpus", "objective": "pretrain", "method": "freeze"}, {"name": "raft"}]
    (_, corpus), (_, raft) = stages_of(TrainRecipe.model_validate(above | {"stages": stages}))
    assert (corpus.layers.top, corpus.labels, corpus.lora.r, corpus.token_weights.quote) == (1, ("staff",), 16, 1.0)
    assert (raft.layers.top, raft.labels, raft.lora.r, raft.token_weights.quote) == (2, (), 4, 2.0)
    with pytest.raises(RecipeError, match=r"stage corpus: method freeze has no use for lora\.r"):
        load_recipe(TrainRecipe, None, stages=[stages[0] | {"lora": {"r": 8}}, stages[1]])
    with pytest.raises(RecipeError, match=r"no stage has use for ia3\.target_modules"):
        load_recipe(TrainRecipe, None, stages=stages, ia3={"target_modules": ["q_proj"]})


def test_stages_go_on_from_any_folder_that_names_the_same_place(
    tiny_folder: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    data = {
        "model": str(tiny_folder), "precision": "float32", "dataset": str(dataset), "watch": {"every_steps": 1},
        "optim": {"max_steps": 2}, "stages": [{"name": "one", "watch": {"probe": False}}, {"name": "two"}],
    }  # fmt: skip
    chosen = TrainRecipe.model_validate(data | {"watch": {"every_steps": 1, "probe": False}})
    seen: list[int] = []

    def stop(step: int, *_: object) -> None:
        seen.append(step)
        if seen.count(2) == 3:  # loss and dev loss of the first stage, then the second stage's
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(chosen, Path("out"), on_step=stop)
    assert (tmp_path / "out" / "1-one").is_dir()
    first, second = run_stages(chosen, tmp_path / "out", resume=True)
    assert open_artifact(second, "adapter").facts["base_model"] == str(first)
    assert run_stages(chosen, Path("out"), resume=True) == [Path("out/1-one"), Path("out/2-two")]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"name": "a", "optim": {"lrr": 1}}], r"stage a: unknown key 'optim.lrr' \(did you mean 'lr'\?\)"),
        ([{"name": "a/b"}], "stage 1 is named 'a/b'"),
        ([{"name": "a", "model": "b"}], "stage 1 sets model: say model and out above the stages"),
        ([{"method": "p_tuning"}, {"name": "b"}], "stage sft: what p_tuning learns is no part of the weights"),
        ([{"objective": "encoder", "method": "full"}], "objective encoder makes no model that could go on learning"),
    ],
)
def test_stages_that_cannot_be_are_one_clear_line(stages: list[dict], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(TrainRecipe, None, stages=stages)
    assert "\n" not in str(caught.value)


def test_nothing_goes_on_from_a_soft_prompt(tiny_folder: Path, dataset: Path, tmp_path: Path) -> None:
    train(recipe(tiny_folder, "prompt_tuning", **{"optim.max_steps": 1}), dataset, tmp_path / "soft")
    with pytest.raises(ModelError, match="is no part of the weights, so that nothing can go on from it"):
        resolve_base(str(tmp_path / "soft"))
    with pytest.raises(NotConvertible, match=r"is no part of its weights.*Set engine"):
        OpenVinoModel.load(str(tiny_folder), tmp_path / "soft")
