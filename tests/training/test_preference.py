"""raft train with objective = dpo, kto, orpo, reward, grpo and rloo on small real models: what they learn, what stays,
that TRL computes the same, and kill -9."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from raft.artifacts import open_artifact
from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.config_tune import read_settings
from raft.errors import ArtifactError, InputError, ModelError, RecipeError
from raft.models import load_language_model, load_tokenizer, prompt_ids, target_ids
from raft.places import partial_folder
from raft.prompts import build_messages, render_target
from raft.records import RaftExample, question_key
from raft.rows import read_rows
from raft.training.preference import prepare, tune_preferences
from raft.training.preference_rows import TokenPair, make_preference_plan, order
from raft.training.preferences import make_pairs
from raft.training.reward_model import RewardModel, with_reward_head
from raft.training.run import train
from raft.training.tokenize import read_chunks, read_groups, tokenize_example
from raft.training.trainer import last_checkpoint
from tests.factories import colour_chunks, colour_examples, write_dataset
from tests.training.small import same_runs, write_small_model

QUICK = {
    "optim.lr": 0.01, "optim.max_steps": 6, "preference.batch_size": 4, "watch.every_steps": 3, "precision": "float32",
    "preference.max_new_tokens": 8, "watch.probe": False,
}  # fmt: skip


def recipe(model: Path, objective: str, **settings: object) -> TrainRecipe:
    usual = read_settings(TrainRecipe(objective=objective), QUICK)
    text = [f"{key}={json.dumps(value)}" for key, value in (usual | settings).items()]
    return load_recipe(TrainRecipe, None, [f"objective={objective}", *text], model=str(model))


def plain_examples() -> list[RaftExample]:
    """The colours without quotes: replies of a few tokens."""
    return [replace(example, target=render_target(example.answer)) for example in colour_examples()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


@pytest.fixture(scope="module")
def plain_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "plain", plain_examples(), dev=False)


@pytest.fixture(scope="module")
def base(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(student_folder, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def speaker(base: Path, plain_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model after it has learned to answer with the right colour or its neighbour's."""
    out = tmp_path_factory.mktemp("sft") / "run"
    settings = ["method=full", "optim.lr=0.003", "optim.max_steps=50", "optim.epochs=60", "precision=float32"]
    settings += ["optim.schedule=constant", "optim.warmup_fraction=0", "watch.every_steps=500"]
    train(load_recipe(TrainRecipe, None, settings, model=str(base)), plain_dataset, out)
    return out / "model"


def quiet(*_: object) -> None:
    """Nothing is shown."""


def pieces(chosen: TrainRecipe, data: Path, folder: Path) -> tuple[Any, Any]:
    model = Path(chosen.model)
    folder.mkdir(exist_ok=True)
    return prepare(chosen, make_preference_plan(chosen, data, model), model, folder, quiet)


# --- what is learned, and what stays ---------------------------------------------------------------------------------


def test_the_reward_rises(speaker: Path, tmp_path: Path) -> None:
    """Two questions over the same documents, both paid for the first one's colour."""
    first, second = plain_examples()[:2]
    data = write_dataset(tmp_path / "data", [first, replace(second, answer=first.answer, target=first.target)])
    settings = {
        "optim.max_steps": 10, "optim.epochs": 30, "optim.lr": 0.006, "optim.schedule": "constant",
        "preference.generations": 16, "preference.batch_size": 2, "preference.kl": 0.001, "watch.every_steps": 10,
    }  # fmt: skip
    summary = tune_preferences(recipe(speaker, "grpo", **settings), data, tmp_path / "tuned")
    rows = list(read_rows(tmp_path / "tuned" / "log.jsonl"))
    rewards = [row["reward"] for row in rows if "reward" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15
    assert any(row.get("kl", 0) > 0 for row in rows)
    facts = open_artifact(tmp_path / "tuned", "adapter").facts
    assert summary.best_dev_loss is None
    assert facts["best_dev_reward"] == pytest.approx(max(row["eval_reward"] for row in rows if "eval_reward" in row))
    assert not (tmp_path / "tuned" / "adapter" / "ref").exists()


def test_the_artefact_is_whole_and_served_as_it_was_trained(base: Path, dataset: Path, tmp_path: Path) -> None:
    from raft.llm.local import LocalModel

    chosen = recipe(base, "dpo")
    student, trainer = pieces(chosen, dataset, tmp_path / "pieces")
    trainer.train()
    summary = tune_preferences(chosen, dataset, tmp_path / "tuned")
    tuned = LocalModel.load(str(base), tmp_path / "tuned", precision="float32").model
    tokens = torch.tensor([make_preference_plan(chosen, dataset, base).pairs[0].prompt])
    with torch.no_grad():
        assert torch.allclose(tuned(tokens).logits, student.eval()(input_ids=tokens).logits, atol=1e-5)
    rows = list(read_rows(tmp_path / "tuned" / "log.jsonl"))
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 7))
    assert summary.best_dev_loss == pytest.approx(min(row["eval_loss"] for row in rows if "eval_loss" in row))
    facts = open_artifact(tmp_path / "tuned", "adapter").facts
    assert (facts["objective"], facts["method"], facts["examples"]) == ("dpo", "lora", 16)
    assert sum(facts["kinds"].values()) == 16
    assert set(facts["kinds"]) <= {"distractor", "invented_quote", "refusal"}
    assert set(json.loads((tmp_path / "tuned" / "seen.json").read_text())) == {"questions", "documents"}
    assert not partial_folder(tmp_path / "tuned").exists()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_saved_reward_model_scores_as_the_trained_one(method: str, base: Path, dataset: Path, tmp_path: Path) -> None:
    chosen = recipe(base, "reward", method=method)
    tune_preferences(chosen, dataset, tmp_path / "judge")
    _, trainer = pieces(chosen, dataset, tmp_path / "pieces")
    trainer.train()
    pairs = make_pairs(colour_examples(), {c.id: c for c in colour_chunks()}, chosen.preference.rejected.model_dump())
    asked = [(pair.question, pair.documents, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    scores = RewardModel.load(tmp_path / "judge", "float32").scores(asked)
    tokenizer, model = load_tokenizer(base), trainer.model.eval()
    for (question, documents, text), score in zip(asked[:4], scores, strict=False):
        ids = prompt_ids(tokenizer, build_messages(question, documents)) + target_ids(tokenizer, text)
        with torch.no_grad():
            assert model(input_ids=torch.tensor([ids])).logits.item() == pytest.approx(score, abs=1e-4)
    with pytest.raises(ArtifactError, match="is a reward_model, not a adapter"):
        open_artifact(tmp_path / "judge", "adapter")


def test_a_reply_is_scored_by_its_last_token_whatever_pads_it(base: Path) -> None:
    """This model pads with the token that ends a turn, as many do."""
    model, tokenizer = load_language_model(base, "float32"), load_tokenizer(base)
    ranker = with_reward_head(model, tokenizer.pad_token_id).eval()
    replies = [[*range(20, 30), tokenizer.eos_token_id], [*range(40, 44), tokenizer.eos_token_id]]
    wanted = []
    for reply in replies:
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([reply])).last_hidden_state[0, -1]
        wanted.append(float(hidden @ ranker.score.weight[0]))
    empty = [tokenizer.pad_token_id] * 6
    for rows, mask in (
        ([replies[0], replies[1] + empty], [[1] * 11, [1] * 5 + [0] * 6]),
        ([replies[0], empty + replies[1]], [[1] * 11, [0] * 6 + [1] * 5]),
    ):
        with torch.no_grad():
            scores = ranker(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask)).logits[:, 0]
        assert scores.tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_reward_head_takes_small_steps_where_the_model_computes_in_bfloat16(
    base: Path, dataset: Path, tmp_path: Path
) -> None:
    settings = {"precision": "bfloat16", "optim.lr": 1e-5, "optim.max_steps": 2, "optim.warmup_fraction": 0.0}
    student, trainer = pieces(recipe(base, "reward", **settings), dataset, tmp_path)
    before = trainer.model.score.weight.detach().clone()
    trainer.train()
    after = trainer.model.score.weight.detach()
    assert (student.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    assert (before != after).float().mean() > 0.9
    assert (before.bfloat16() != after.bfloat16()).float().mean() < 0.5  # what would have been lost


def test_a_learned_reward_is_paid_too(base: Path, speaker: Path, plain_dataset: Path, tmp_path: Path) -> None:
    tune_preferences(recipe(base, "reward", **{"optim.max_steps": 2}), plain_dataset, tmp_path / "judge")
    only = {f"preference.rewards.{name}": 0 for name in ("format", "answer", "quote", "oracle", "abstention")}
    settings = only | {"preference.reward_model": str(tmp_path / "judge"), "optim.max_steps": 2}
    tune_preferences(recipe(speaker, "grpo", **settings), plain_dataset, tmp_path / "tuned")
    assert [row for row in read_rows(tmp_path / "tuned" / "log.jsonl") if row.get("reward")]
    assert set(open_artifact(tmp_path / "tuned", "adapter").inputs) == {"dataset", "model", "reward_model"}
    with pytest.raises(ArtifactError, match="is a dataset, not a reward_model"):
        wrong = recipe(speaker, "grpo", **settings | {"preference.reward_model": str(plain_dataset)})
        tune_preferences(wrong, plain_dataset, tmp_path / "other")


# --- what the model sees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto", "reward", "grpo", "rloo"])
def test_trainers_take_one_gpu_and_warm_up_to_a_constant_rate(
    objective: str, base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = TrainingArguments.__post_init__

    def with_two_gpus(arguments: TrainingArguments) -> None:
        usual(arguments)
        arguments._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", with_two_gpus)
    chosen = recipe(base, objective, **{"optim.schedule": "constant", "optim.warmup_fraction": 0.5})
    _, trainer = pieces(chosen, dataset, tmp_path)
    assert trainer.args.n_gpu == 1
    trainer.create_optimizer_and_scheduler(6)
    assert [rate(step) for rate in trainer.lr_scheduler.lr_lambdas[:1] for step in (0, 3, 6)] == [0, 1, 1]


def test_prompts_and_answers_are_those_of_sft_and_serving(base: Path, dataset: Path) -> None:
    tokenizer, chunks = load_tokenizer(base), read_chunks(dataset)
    examples = {e.id: e for groups in read_groups(dataset, "train").values() for group in groups for e in group}
    paired = make_preference_plan(recipe(base, "dpo"), dataset, base)
    asked = make_preference_plan(recipe(base, "grpo"), dataset, base)
    assert len(paired.pairs) == len(asked.asked) == 24  # 16 train examples, 8 dev ones
    for pair in paired.pairs:
        example = examples[pair.id.split(":")[0]]
        same = tokenize_example(tokenizer, example, chunks)
        documents = [chunks[name] for name in example.context]
        assert pair.prompt == same.prompt == prompt_ids(tokenizer, build_messages(example.question, documents))
        assert pair.chosen == same.target == target_ids(tokenizer, example.target)
        assert pair.rejected[-1] == tokenizer.eos_token_id
    assert {tuple(item.prompt) for item in asked.asked} == {tuple(pair.prompt) for pair in paired.pairs}


def test_generation_reads_the_prompts_as_they_are(speaker: Path, plain_dataset: Path, tmp_path: Path) -> None:
    """Prompts of several lengths in one batch, padded on the left: each reply is what its prompt alone would get."""
    chosen = recipe(speaker, "grpo", **{"preference.temperature": 1e-4, "preference.batch_size": 2})
    _, trainer = pieces(chosen, plain_dataset, tmp_path)
    prompts = [[7] * 5 + trainer.train_dataset[0]["prompt"], trainer.train_dataset[1]["prompt"]]
    together = trainer._generate_single_turn(prompts, None, {}, 1)[0]
    alone = [trainer._generate_single_turn([prompt], None, {}, 1)[0][0] for prompt in prompts]
    assert together == alone


# --- TRL's own numbers -----------------------------------------------------------------------------------------------


def trl_rows(pairs: list[TokenPair]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in pairs]
    )


def disturb(model: torch.nn.Module) -> None:
    """The same small change to whatever moves."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))


def gradients(trainer: Any, batches: list[Any]) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    for batch in batches:
        (trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)) / len(batches)).backward()
    return {name: w.grad.clone() for name, w in trainer.model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {}),
        ("full", {}),
        ("full", {"preference.loss": "ipo"}),
        ("full", {"preference.loss": "robust", "preference.label_smoothing": 0.1, "preference.sft_weight": 0.5}),
    ],
)
def test_the_dpo_loss_is_that_of_trl(method: str, settings: dict, base: Path, dataset: Path, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    from raft.training.preference import use_plain_attention
    from raft.training.student import load_student

    class Plain(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    chosen = recipe(base, "dpo", method=method, **settings)
    plan = make_preference_plan(chosen, dataset, base)
    pairs = [plan.pairs[number] for number in plan.dev]
    _, ours = pieces(chosen, dataset, tmp_path)
    torch.manual_seed(chosen.seed)  # the adapter's first values
    student = load_student(chosen, base)
    use_plain_attention(student)
    preference = chosen.preference
    config = DPOConfig(
        output_dir=str(tmp_path / "trl"), bf16=False, gradient_checkpointing=False, max_length=None, report_to=[],
        per_device_eval_batch_size=1, beta=preference.beta, label_smoothing=preference.label_smoothing, use_cpu=True,
        disable_tqdm=True, loss_type=[preference.loss, "sft"] if preference.sft_weight else [preference.loss],
        loss_weights=[1.0, preference.sft_weight] if preference.sft_weight else None, remove_unused_columns=False,
    )  # fmt: skip
    theirs = Plain(student, None, config, None, trl_rows(pairs), trl_rows(pairs), load_tokenizer(base))
    for trainer in (ours, theirs):
        disturb(trainer.model)
    losses = [trainer.evaluate()["eval_loss"] for trainer in (ours, theirs)]
    assert abs(losses[0] - 0.6931) > 0.005
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    both = [gradients(trainer, list(trainer.get_eval_dataloader())) for trainer in (ours, theirs)]
    assert both[0].keys() == both[1].keys()
    assert all(torch.allclose(both[0][name], both[1][name], atol=1e-5) for name in both[0])


def test_the_kto_loss_is_that_of_trl(base: Path, dataset: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    from raft.training.preference_trainer import kto_rows

    class Plain(KTOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    chosen = recipe(base, "kto", method="full")
    plan = make_preference_plan(chosen, dataset, base)
    _, ours = pieces(chosen, dataset, tmp_path)
    rows = kto_rows([plan.pairs[number] for number in plan.dev], 2)
    config = KTOConfig(
        output_dir=str(tmp_path / "trl"), bf16=False, gradient_checkpointing=False, max_length=None, report_to=[],
        per_device_train_batch_size=4, per_device_eval_batch_size=4, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    table = Dataset.from_list(rows)
    theirs = Plain(load_language_model(base, "float32"), None, config, None, table, table, load_tokenizer(base))
    for trainer in (ours, theirs):
        disturb(trainer.model)
    losses = [trainer.evaluate()["eval_loss"] for trainer in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert abs(losses[0] - 0.5) > 0.002  # what an untuned model would give


def test_kto_compares_with_the_answers_to_other_questions() -> None:
    from raft.training.preference_trainer import kto_rows

    pairs = [TokenPair(f"p{n}", [n], [10 + n], [20 + n]) for n in range(6)]
    for row in kto_rows(pairs, 3):
        assert row["completion_ids"][0] % 10 == row["prompt_ids"][0] != row["KL_completion_ids"][0] % 10
        assert row["label"] == (row["completion_ids"][0] < 20)


def test_the_orpo_loss_is_that_of_the_paper(base: Path, dataset: Path, tmp_path: Path) -> None:
    """NLL of the chosen answer - beta log sigmoid(log odds ratio), odds of the mean log-probability a token."""
    chosen = recipe(base, "orpo", **{"method": "full", "preference.beta": 0.3})
    plan = make_preference_plan(chosen, dataset, base)
    _, trainer = pieces(chosen, dataset, tmp_path)
    model = load_language_model(base, "float32")
    losses = []
    for number in plan.dev:
        pair, means = plan.pairs[number], []
        for answer in (pair.chosen, pair.rejected):
            with torch.no_grad():
                logits = model(torch.tensor([pair.prompt + answer])).logits[0, len(pair.prompt) - 1 : -1]
            means.append(-torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))
        odds = [mean - torch.log1p(-mean.exp()) for mean in means]
        losses.append(-means[0] - 0.3 * torch.nn.functional.logsigmoid(odds[0] - odds[1]))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)


# --- stopped and resumed ---------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from pathlib import Path
from tests.training.test_preference import recipe
from raft.training.preference import tune_preferences
model, dataset, out = map(Path, sys.argv[1:4])
tune_preferences(recipe(model, "dpo", **{"lora.dropout": 0.1, "watch.every_steps": 2}), dataset, out,
                 on_step=lambda *_: time.sleep(0.4))
"""


def test_kill_9_and_resume_give_the_weights_of_an_uninterrupted_run(base: Path, dataset: Path, tmp_path: Path) -> None:
    chosen = recipe(base, "dpo", **{"lora.dropout": 0.1, "watch.every_steps": 2})
    tune_preferences(chosen, dataset, tmp_path / "whole")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.Popen([sys.executable, "-c", SLOW, str(base), str(dataset), str(tmp_path / "killed")], env=env)
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
        tune_preferences(chosen, dataset, tmp_path / "killed")
    with pytest.raises(ArtifactError, match=r"recipe.preference.beta: was 0.1, now 0.2"):
        changed = recipe(base, "dpo", **{"lora.dropout": 0.1, "watch.every_steps": 2, "preference.beta": 0.2})
        tune_preferences(changed, dataset, tmp_path / "killed", resume=True)
    tune_preferences(chosen, dataset, tmp_path / "killed", resume=True)
    same_runs(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(("objective", "method"), [("kto", "full"), ("reward", "lora"), ("rloo", "lora")])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    objective: str, method: str, speaker: Path, plain_dataset: Path, tmp_path: Path
) -> None:
    chosen = recipe(speaker, objective, **{"method": method, "watch.every_steps": 2, "optim.max_steps": 3})
    tune_preferences(chosen, plain_dataset, tmp_path / "whole")

    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_preferences(chosen, plain_dataset, tmp_path / "stopped", on_step=stop)
    tune_preferences(chosen, plain_dataset, tmp_path / "stopped", resume=True)
    same_runs(tmp_path / "whole", tmp_path / "stopped")


# --- pairs of a file, and what is refused ----------------------------------------------------------------------------


def test_pairs_of_a_file_take_the_place_of_those_made_by_rules(base: Path, dataset: Path, tmp_path: Path) -> None:
    rows = [
        {"question": f"Who has key {n}?", "documents": ["doors#0", {"title": "Keys", "text": f"Ann has key {n}."}],
         "chosen": "<ANSWER>: Ann", "rejected": "<ANSWER>: Bob", "split": "dev" if n == 3 else "train"}
        for n in range(4)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = recipe(base, "dpo", **{"preference.pairs": str(tmp_path / "pairs.jsonl"), "optim.max_steps": 3})
    plan = make_preference_plan(chosen, dataset, base)
    assert (plan.examples, plan.dev, plan.kinds) == (3, [3], {"given": 3})
    tune_preferences(chosen, dataset, tmp_path / "tuned")
    seen = json.loads((tmp_path / "tuned" / "seen.json").read_text())
    assert question_key("Who has key 1?") in seen["questions"]
    assert question_key("What colour is the door of ward 2?") in seen["questions"]
    assert seen["documents"] == ["Keys", "doors"]
    assert "pairs" in open_artifact(tmp_path / "tuned", "adapter").inputs


def test_epochs_take_the_draws_in_turn_and_steps_are_whole() -> None:
    schedule = order([[0, 1, 2], [3, 4, 5]], 2, seed=1, per_step=4)
    assert len(schedule) == 8
    assert sorted(schedule[:3]) == [0, 1, 2]
    assert sorted(schedule[3:6]) == [3, 4, 5]
    assert schedule[6:] == schedule[:2]
    assert order([[0, 1, 2]], 1, seed=1, per_step=8) == (schedule[:3] * 3)[:8]
    assert order([[2, 1, 0]], 1, seed=1, per_step=1, most_steps=2) == schedule[:2]


def test_without_a_dev_split_the_last_weights_are_kept(base: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", dev=False)
    summary = tune_preferences(recipe(base, "orpo", **{"optim.max_steps": 1}), data, tmp_path / "tuned")
    assert (summary.steps, summary.best_dev_loss) == (1, None)
    with pytest.raises(ArtifactError, match="exists already"):
        tune_preferences(recipe(base, "orpo", **{"optim.max_steps": 1}), data, tmp_path / "tuned")


def test_what_does_not_fit_is_refused_with_its_number(base: Path, dataset: Path) -> None:
    with pytest.raises(InputError, match=r"no train pair .* fits max_tokens = 64 \(24 are longer\)"):
        make_preference_plan(recipe(base, "dpo", max_tokens=64), dataset, base)
    with pytest.raises(InputError, match=r"no train example .* fits max_tokens = 64 \(24 are longer\)"):
        make_preference_plan(recipe(base, "rloo", max_tokens=64), dataset, base)
    with pytest.raises(InputError, match=r"holds no train pair\. Check its splits and preference.rejected"):
        off = {f"preference.rejected.{kind}": 0 for kind in ("distractor", "invented_quote", "refusal")}
        make_preference_plan(recipe(base, "dpo", **off), dataset, base)


@pytest.mark.parametrize(
    ("objective", "settings", "says"),
    [
        ("kto", {"preference.pairs_at_once": 1}, "kto compares answers of different questions"),
        ("reward", {"preference.pairs_at_once": 3}, "pairs_at_once = 3 does not divide preference.batch_size = 4"),
        ("dpo", {"preference.label_smoothing": 0.1}, "label_smoothing belongs to loss robust, not sigmoid"),
        ("dpo", {"preference.generations": 1}, "preference.generations = 1"),
        ("dpo", {f"preference.rejected.{kind}": 0 for kind in ("distractor", "invented_quote", "refusal", "invented")},
         "no pair can be made"),
        ("grpo", {f"preference.rewards.{n}": 0 for n in ("format", "answer", "quote", "oracle", "abstention")},
         "nothing is paid for"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(
    objective: str, settings: dict, says: str, base: Path, dataset: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        make_preference_plan(recipe(base, objective, **settings), dataset, base)
    assert says in str(caught.value)


def test_without_trl_it_is_said_what_to_install(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs TRL, which is not installed. Run: pip install 'raft-tune\[pref"):
        tune_preferences(recipe(base, "dpo"), dataset, tmp_path / "tuned")
