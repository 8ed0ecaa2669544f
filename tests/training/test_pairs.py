"""Every objective by every method that goes with it, trained for a few steps through the function that raft train
calls: the loss falls, what is frozen stays bit for bit, and what is saved says what the trained model said.

The pairs come from the table itself: one that is added is tried here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import Trainer

from raft.artifacts import open_artifact
from raft.config_train import TrainRecipe
from raft.config_train_parts import Method, Objective
from raft.config_train_rules import impossible
from raft.config_tune import read_settings, with_settings
from raft.indexing.build import build_index
from raft.llm.local import LocalModel
from raft.models import load_tokenizer, prompt_ids, target_ids
from raft.prompts import build_messages, render_target
from raft.records import RaftExample
from raft.retrieval.encoder import Encoder
from raft.retrieval.rerank import Reranker
from raft.rows import read_rows
from raft.training.objectives import run_objective, run_stages
from raft.training.preference import use_plain_attention
from raft.training.preference_rows import GENERATING
from raft.training.reward_model import RewardModel
from tests.factories import colour_chunks, colour_examples, write_dataset
from tests.training.small import write_small_encoder, write_small_model

PAIRS = [(o, m) for o in get_args(Objective) for m in get_args(Method) if impossible(o, m) is None]
STEPS = 4
WHOLE = ("full", "freeze", "unfreeze")
# every step trains on the same rows, all there are, so that its loss can be held against the first one's
SETTINGS = {
    "precision": "float32", "optim.max_steps": STEPS, "optim.epochs": 9, "optim.schedule": "constant",
    "optim.warmup_fraction": 0.0, "optim.groups_per_step": 1, "watch.every_steps": 99, "watch.probe": False,
    "layers.top": 1, "layers.one_more_every_steps": 2, "soft_prompt.tokens": 4, "soft_prompt.encoder_hidden": 16,
    "preference.batch_size": 2, "preference.pairs_at_once": 2, "preference.beta": 0.5, "preference.generations": 8,
    "preference.max_new_tokens": 8, "preference.kl": 0.0, "retrieval.batch_size": 2, "retrieval.negatives": 2,
}  # fmt: skip
LR = {"rslora": 0.002, "ia3": 0.1, "prompt_tuning": 0.3, "p_tuning": 0.03, "prefix_tuning": 0.3} | dict.fromkeys(
    WHOLE, 0.003
)
QUESTIONS = [(f"What colour is the door of ward {n}?", tuple(colour_chunks()[n : n + 2])) for n in range(3)]
TEXTS = ["The tenant pays the rent.", "Adults start with 12 mg.", "The roof leaks."]
REPLIES = ["<ANSWER>: red", "<ANSWER>: blue", "I do not know."]


@dataclass
class Training:
    """What was seen of one training: its parameters before and after, which of them may move, what the trained model
    said; ``measured`` before and after, where that was asked for."""

    before: dict[str, torch.Tensor] = field(default_factory=dict)
    after: dict[str, torch.Tensor] = field(default_factory=dict)
    movable: set[str] = field(default_factory=set)
    said: Any = None
    measured: tuple[Any, Any] = (None, None)

    @property
    def moved(self) -> set[str]:
        return {name for name, weight in self.after.items() if not torch.equal(weight, self.before[name])}


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Training]]:
    """Looks at the model right before and behind the steps of each training from now on; they run as ever."""

    def watch(ask: Callable[[Any], Any], measure: Callable[[Any], Any] = lambda _: None) -> list[Training]:
        seen: list[Training] = []
        train = Trainer.train

        def looked_at(self: Any, *args: Any, **kwargs: Any) -> Any:
            movable = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
            training, before = Training(weights_of(self.model), movable=movable), measure(self.model)
            result = train(self, *args, **kwargs)
            training.after, training.said = weights_of(self.model), ask(self.model)
            training.measured = before, measure(self.model)
            seen.append(training)
            return result

        monkeypatch.setattr(Trainer, "train", looked_at)
        return seen

    return watch


# --- the models and the data of each objective -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random language model, one that answers with either of two colours, and a random encoder."""
    folder = tmp_path_factory.mktemp("bases")
    random = write_small_model(student_folder, folder / "random", 32, 0.1)
    pair = [replace(example, target=render_target(example.answer)) for example in colour_examples(draws=1)[:2]]
    told = [replace(e, id=f"{e.id}{o.answer}", target=o.target) for e in pair for o in pair]
    settings = {"optim.max_steps": 40, "optim.epochs": 40, "optim.lr": 0.01}
    chosen = recipe_of("sft", "full", random, settings)
    run_objective(chosen, write_dataset(folder / "told", told, dev=False), folder / "speaker")
    return {"random": random, "speaker": folder / "speaker" / "model", "encoder": write_small_encoder(folder)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset of one context group, one of a single question, one in which two questions are paid for the colour of
    the first, an index of three documents, and texts of two classes."""
    folder = tmp_path_factory.mktemp("data")
    for number, text in enumerate(TEXTS):
        (folder / "documents").mkdir(exist_ok=True)
        (folder / "documents" / f"{number}.md").write_text(f"# Note {number}\n\n{text}\n", encoding="utf-8")
    build_index(folder / "documents", folder / "index")
    rows = [{"text": text, "label": "leases" if number % 2 else "doses"} for number, text in enumerate(TEXTS * 2)]
    rows = [row | {"text": f"{row['text']} {number}"} for number, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "examples": write_dataset(folder / "examples", colour_examples(draws=1)[:2], dev=False),
        "one": write_dataset(folder / "one", colour_examples(draws=1)[:1], dev=False),
        "paid": write_dataset(folder / "paid", paid_examples(), dev=False),
        "index": folder / "index",
        "rows": folder / "rows.jsonl",
    }


def paid_examples() -> list[RaftExample]:
    first, second = (replace(e, target=render_target(e.answer)) for e in colour_examples(draws=1)[:2])
    return [first, replace(second, answer=first.answer, target=first.target)]


BASE_OF = {"encoder": "encoder", "reranker": "encoder"} | dict.fromkeys(GENERATING, "speaker")
DATA_OF = {"pretrain": "index", "classify": "rows", "encoder": "one", "reranker": "one"} | dict.fromkeys(
    GENERATING, "paid"
)


# some losses change more with the same step
GENTLER = {"dpo": 0.05, "kto": 0.4, "orpo": 0.4, "reward": 0.1, "grpo": 0.2, "rloo": 0.2, "classify": 0.1}


def recipe_of(objective: str, method: str, base: Path, settings: dict[str, Any] | None = None) -> TrainRecipe:
    start = TrainRecipe(objective=objective, method=method, model=str(base))
    lr = LR.get(method, 0.01) * GENTLER.get(objective, 1.0)
    wanted = SETTINGS | {"optim.lr": lr} | ({"optim.groups_per_step": 4} if objective == "classify" else {})
    return with_settings(start, read_settings(start, wanted | (settings or {})))


# --- asking the trained model, and what was saved of it --------------------------------------------------------------


def ask_language_model(model: Any) -> torch.Tensor:
    """Logits of the model that was trained, [tokens, vocabulary]; a soft prompt's own are left out."""
    use_plain_attention(model)
    tokens = torch.arange(20, 40)[None]
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits[0, -tokens.shape[1] :]


def ask_saved_language_model(out: Path, base: Path) -> torch.Tensor:
    model = LocalModel.load(str(base), out, precision="float32").model
    soft = {} if getattr(model, "soft_prefix", None) is None else {"past_key_values": deepcopy(model.soft_prefix)}
    with torch.no_grad():
        return model(input_ids=torch.arange(20, 40)[None], **soft).logits[0]


def replies() -> list[tuple[str, Sequence[Any], str]]:
    return [(question, chunks, reply) for (question, chunks), reply in zip(QUESTIONS, REPLIES, strict=True)]


def ask_reward_model(base: Path) -> Callable[[Any], torch.Tensor]:
    """Scores of replies one by one, without padding."""

    def ask(ranker: Any) -> torch.Tensor:
        tokenizer = load_tokenizer(base)
        rows = [prompt_ids(tokenizer, build_messages(q, c)) + target_ids(tokenizer, reply) for q, c, reply in replies()]
        with torch.no_grad():
            return torch.cat([ranker.eval()(input_ids=torch.tensor([row])).logits[0] for row in rows])

    return ask


def ask_encoder(model: Any) -> torch.Tensor:
    return torch.nn.functional.normalize(model.eval().encode(TEXTS, convert_to_tensor=True), dim=-1)


def ask_reranker(model: Any) -> torch.Tensor:
    return torch.tensor(Reranker("trained", model.eval()).scores(QUESTIONS[0][0], TEXTS))


def ask_classifier(base: Path) -> Callable[[Any], torch.Tensor]:
    """The probability of each text's likeliest class."""
    from raft.training.classify import class_logits, text_ids
    from raft.training.packing import pack
    from raft.training.tokenize import Tokenized

    def ask(model: Any) -> torch.Tensor:
        rows = [pack([Tokenized("", text_ids(load_tokenizer(base), text), [0])]) for text in TEXTS]
        return torch.cat([class_logits(model, row).softmax(-1).max(-1).values for row in rows])

    return ask


def ask_saved_classifier(out: Path, base: Path) -> torch.Tensor:
    from raft.training.classify import load_classifier

    return torch.tensor([probability for _, probability in load_classifier(out, "float32").classify(TEXTS)])


def asked(objective: str, base: Path) -> tuple[Callable[[Any], Any], Callable[[Path, Path], Any]]:
    """How a trained model is asked, and how what was saved of it is; an objective without an entry of its own makes a
    language model."""
    if objective == "reward":
        return ask_reward_model(base), lambda out, _: torch.tensor(RewardModel.load(out, "float32").scores(replies()))
    if objective == "encoder":
        return ask_encoder, lambda out, _: torch.tensor(Encoder.load(str(out), backend="torch").encode_queries(TEXTS))
    if objective == "reranker":
        return ask_reranker, lambda out, _: torch.tensor(Reranker.load(str(out)).scores(QUESTIONS[0][0], TEXTS))
    if objective == "classify":
        return ask_classifier(base), ask_saved_classifier
    return ask_language_model, ask_saved_language_model


# --- the proof -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "method"), PAIRS)
def test_a_pair_learns_keeps_what_is_frozen_and_saves_what_it_learned(
    objective: str, method: str, bases: dict[str, Path], data: dict[str, Path], watched: Any, tmp_path: Path
) -> None:
    base = bases[BASE_OF.get(objective, "random")]
    ask, ask_saved = asked(objective, base)
    seen = watched(ask, *([partial(paid_likelihood, base)] if objective in GENERATING else []))
    out = tmp_path / "tuned"
    summary = run_objective(recipe_of(objective, method, base), data[DATA_OF.get(objective, "examples")], out)
    training = seen[-1]
    assert summary.steps == STEPS
    assert training.movable
    assert training.moved <= training.movable
    # what no gradient reaches (a pooler beside the vectors that are taken) stays too
    assert len(training.moved) > 0.9 * len(training.movable)
    assert (method == "full") == (training.movable == set(training.before))
    torch.testing.assert_close(ask_saved(out, base), training.said, atol=2e-5, rtol=1e-4)
    if objective in GENERATING:
        before, after = training.measured
        assert after > before + 0.005
    else:
        losses = [row["loss"] for row in read_rows(out / "log.jsonl") if "loss" in row]
        assert losses[-1] < losses[0] - 0.001


def paid_likelihood(base: Path, model: Any) -> float:
    """Log-probability a token of the replies that earn most. What grpo and rloo log as their loss measures nothing, and
    the rewards of a few sampled replies go up and down; this is what they are to raise."""
    tokenizer, chunks = load_tokenizer(base), {chunk.id: chunk for chunk in colour_chunks()}
    found = []
    for example in paid_examples():
        prompt = prompt_ids(tokenizer, build_messages(example.question, [chunks[name] for name in example.context]))
        target = target_ids(tokenizer, example.target)
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        found.append(-torch.nn.functional.cross_entropy(logits, torch.tensor(target)))
    return float(torch.stack(found).mean())


def test_every_stage_begins_as_the_one_before_has_ended(
    bases: dict[str, Path], data: dict[str, Path], watched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFT_HOME", str(tmp_path / "home"))
    stages = [
        {"name": "corpus", "objective": "pretrain", "method": "full", "dataset": str(data["index"])},
        {"name": "answers", "objective": "sft", "method": "lora", "dataset": str(data["examples"])},
        {"name": "choices", "objective": "dpo", "method": "ia3", "dataset": str(data["examples"])},
        {"name": "again", "objective": "sft", "method": "prompt_tuning", "dataset": str(data["examples"])},
    ]
    common = {"optim": {"lr": 0.01, "max_steps": 2, "groups_per_step": 1}, "watch": {"probe": False}}
    chosen = TrainRecipe.model_validate(
        {"model": str(bases["random"]), "precision": "float32", "stages": stages, "lora": {"r": 2}} | common
    )
    seen = watched(ask_language_model, ask_language_model)
    made = run_stages(chosen, tmp_path / "out")
    assert [folder.name for folder in made] == ["1-corpus", "2-answers", "3-choices", "4-again"]
    for before, after in pairwise(seen[:3]):
        torch.testing.assert_close(after.measured[0], before.said, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(after.said, after.measured[0], atol=1e-3)
    start = LocalModel.load(str(made[2]), precision="float32").model  # behind a soft prompt nothing is said the same
    torch.testing.assert_close(ask_language_model(start), seen[2].said, atol=1e-5, rtol=1e-4)
    assert open_artifact(made[3], "adapter").facts["base_model"] == str(made[2])
