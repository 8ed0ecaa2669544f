"""General ability before and after a tuning: measured as models loaded one by one measure it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raft.artifacts import open_artifact, writing
from raft.config import load_recipe
from raft.config_evaluate import EvaluateGeneralRecipe
from raft.config_train import TrainRecipe
from raft.errors import InputError, ModelError, RecipeError, UsageError
from raft.evaluation import general
from raft.evaluation.general import (
    CHAT,
    Reply,
    compare_chat,
    compare_choices,
    compare_perplexity,
    declines,
    evaluate_general,
    leaks,
    share_interval,
    sides,
)
from raft.evaluation.general_report import to_markdown, verdict
from raft.evaluation.statistics import Interval
from raft.llm.chat import ChatRequest
from raft.llm.local import LocalModel, find_weights, load_weights
from raft.models import load_language_model, load_tokenizer
from raft.prompts import Message, render_refusal, render_target
from raft.records import Quote
from raft.rows import read_rows
from raft.training.probe import Probed, measure
from raft.training.run import train
from tests.factories import write_dataset
from tests.training.small import write_small_model

TRAINED = ("optim.lr=0.02", "optim.max_steps=6", "watch.every_steps=3", 'precision="float32"', "watch.probe=true")


@pytest.fixture(scope="module")
def small(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(student_folder, tmp_path_factory.mktemp("small"), spread=0.2)


@pytest.fixture(scope="module")
def adapters(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind: added to the base, all weights, before the prompt."""
    folder = tmp_path_factory.mktemp("adapters")
    dataset = write_dataset(folder / "doors")
    for method in ("lora", "full", "prompt_tuning"):
        recipe = load_recipe(TrainRecipe, None, [f'method="{method}"', *TRAINED], model=str(small))
        train(recipe, dataset, folder / method)
    return {path.name: path for path in folder.iterdir() if path.name in ("lora", "full", "prompt_tuning")}


def recipe(adapter: Path, *settings: str, **given: Any) -> EvaluateGeneralRecipe:
    return load_recipe(EvaluateGeneralRecipe, None, ["resamples=100", "max_new_tokens=6", *settings],
                       adapter=adapter, **given)  # fmt: skip


def replies_of(model: LocalModel) -> dict[str, str]:
    asked = [ChatRequest(row["question"], (Message("user", row["question"]),), 6) for row in read_rows(CHAT)]
    return {reply.key: reply.text for reply in model.complete(asked)}


@pytest.mark.parametrize("method", ["lora", "full", "prompt_tuning"])
def test_both_sides_are_what_they_are_alone(
    method: str, small: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    turns: list[str] = []
    report = evaluate_general(recipe(adapters[method]), tmp_path / "report", on_side=turns.append)
    assert turns == ["base", "tuned"]
    base = measure(load_language_model(small), load_tokenizer(small))
    trained = open_artifact(adapters[method], "adapter").facts["probe"]["after"]
    assert report.perplexity.base == pytest.approx(base["perplexity"], rel=1e-4)
    assert report.perplexity.tuned == pytest.approx(trained["perplexity"], rel=1e-4)
    assert report.perplexity.tuned != pytest.approx(report.perplexity.base, rel=1e-3)
    assert report.perplexity.ratio.mean == pytest.approx(report.perplexity.tuned / report.perplexity.base)
    assert (report.choices.base.mean, report.choices.tuned.mean) == (base["choices_right"], trained["choices_right"])
    alone = replies_of(LocalModel.load(str(small))), replies_of(LocalModel.load(str(small), adapters[method]))
    assert alone == tuple({r.question: getattr(r, side) for r in report.chat.replies} for side in ("base", "tuned"))
    assert alone[0] != alone[1]
    done = open_artifact(tmp_path / "report", "general")
    kept = json.loads((tmp_path / "report/report.json").read_text())["settings"]
    assert kept == {
        "tasks": [], "limit": None, "batch_size": 8, "max_new_tokens": 6, "seed": 0, "resamples": 100,
        "confidence": 0.95, "inputs": dict(done.inputs),
    }  # fmt: skip
    assert done.facts["verdict"] == verdict(report)
    assert json.loads((tmp_path / "report/report.json").read_text())["choices"]["n"] == 40
    huge = replace(report, perplexity=replace(report.perplexity, ratio=Interval(1e300, 1e299, 1e304)))
    assert max(map(len, to_markdown(huge).splitlines())) < 500
    shown = (tmp_path / "report/report.md").read_text()
    assert all(line in shown for line in verdict(report))


@given(holds=st.lists(st.booleans(), min_size=1, max_size=60), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_a_share_has_the_exact_interval(holds: list[bool], confidence: float) -> None:
    from scipy.stats import binomtest

    found = share_interval(holds, confidence)
    expected = binomtest(sum(holds), len(holds)).proportion_ci(confidence, method="exact")
    assert found.mean == sum(holds) / len(holds)
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=1e-9), pytest.approx(expected.high, abs=1e-9))


def test_none_of_many_is_no_proof_of_none() -> None:
    found = share_interval([False] * 24, 0.95)
    assert (found.mean, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 24))  # by hand: the p at which 0 of 24 has a chance of 2.5 %
    with pytest.raises(ValueError, match="no items"):
        share_interval([], 0.95)


def test_the_ratio_of_perplexities_is_that_of_all_tokens() -> None:
    base = Probed(((-1.0, -3.0), (-2.0,)), (True,))
    tuned = Probed(((-2.0, -3.0), (-4.0,)), (True,))
    how: Any = {"confidence": 0.95, "resamples": 500, "seed": 0}
    found = compare_perplexity(base, tuned, **how)
    assert (found.texts, found.base, found.tuned) == (2, math.exp(2.0), math.exp(3.0))
    assert found.ratio.mean == pytest.approx(math.e)
    # whole paragraphs are drawn: the first alone differs by 1/2 nat a token, the second alone by 2
    assert (found.ratio.low, found.ratio.high) == (pytest.approx(math.exp(0.5)), pytest.approx(math.exp(2.0)))
    same = compare_perplexity(base, base, **how).ratio
    assert (same.mean, same.low, same.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_model_that_gives_no_number_is_named(wrong: float) -> None:
    sound, broken = Probed(((-1.0, -3.0), (-2.0,)), (True,)), Probed(((-1.0, wrong), (-2.0,)), (True,))
    how: Any = {"confidence": 0.95, "resamples": 100, "seed": 0}
    with pytest.raises(ModelError, match=rf"the tuned model gives .* {wrong}; expected a finite number"):
        compare_perplexity(sound, broken, **how)
    with pytest.raises(ModelError, match="the base model gives"):
        compare_perplexity(broken, sound, **how)


def test_a_tuned_model_of_broken_weights_ends_the_run(
    small: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = find_weights(str(small), adapters["lora"])

    def broken(_: Any) -> Iterator[general.Side]:
        for side in sides(weights):
            if side.which == "tuned":
                with torch.no_grad():
                    next(iter(side.chats.parameters())).fill_(math.nan)
            yield side

    monkeypatch.setattr(general, "sides", broken)
    with pytest.raises(ModelError, match=r"the tuned model gives .* nan"):
        evaluate_general(recipe(adapters["lora"]), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_ratio_without_bounds_is_a_large_number() -> None:
    base, tuned = Probed(((-1.0,), (-2.0,)), (True,)), Probed(((-900.0,), (-2000.0,)), (True,))
    found = compare_perplexity(base, tuned, confidence=0.95, resamples=100, seed=0)
    most = math.exp(700.0)
    assert (found.tuned, found.ratio) == (most, Interval(most, most, most))


def test_choices_say_what_was_lost_and_gained() -> None:
    base, tuned = [True] * 6 + [False] * 4, [False] * 6 + [False] * 3 + [True]
    found = compare_choices(base, tuned, 0.95)
    assert (found.n, found.base.mean, found.tuned.mean, found.lost, found.gained) == (10, 0.6, 0.1, 6, 1)
    assert found.p == pytest.approx(2 * (1 + 7) / 2**7)
    with pytest.raises(ValueError):
        compare_choices([True], [True, False], 0.95)


@given(answer=st.text(max_size=20), quoted=st.text(max_size=20), before=st.text(max_size=20))
def test_every_answer_of_raft_leaks_and_common_text_does_not(answer: str, quoted: str, before: str) -> None:
    assert leaks(before + render_target(answer, "", [Quote(quoted, 1)]))
    assert not leaks(before.replace("<", "").replace("#", ""))


def test_leaks_and_refusals_are_counted_for_each_side() -> None:
    replies = [
        Reply("Who are you?", "A helper.", render_refusal()),
        Reply("What is 7 plus 5?", "12", "<ANSWER>: 12"),
        Reply("Tell me a joke.", "", "not in the documents"),
        Reply("Hello!", "Hi! The answer: fine.", "Hi!"),
    ]
    found = compare_chat(replies, 0.95)
    assert (found.n, found.base_leaked.mean, found.tuned_leaked.mean) == (4, 0.0, 0.5)
    assert (found.base_declined.mean, found.tuned_declined.mean) == (0.0, 0.5)  # an empty reply declines nothing


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (render_refusal(), True), ("not in the documents", True), ("I don't know.", True), ("I do not know who.", True),
        ("I'm sorry, but I don't know. Ask somebody else!", True), ("Sorry! That is not in the documents.", True),
        ("Unfortunately, the documents do not mention pancakes.", True), ("<ANSWER>: I do not know", True),
        ("", False), ("  \n", False), ("<ANSWER>:", False), ("Sorry.", False), ("12", False),
        ("It is 12. I do not know why you ask.", False), ("7 plus 5 is 12, which is not in the documents.", False),
        ("I don't know him, but Shakespeare wrote it.", False), ("I don't know if it helps: mix flour.", False),
        ("Mix flour and milk. I'm sorry, I don't know more.", False), ("Not in the documents.\n<ANSWER>: 12", False),
    ],
)  # fmt: skip
def test_only_an_answer_that_begins_with_a_refusal_declines(text: str, is_one: bool) -> None:
    assert declines(text) is is_one


@pytest.mark.parametrize("before", ["Paris. ", "It is blue.\n", "Bees make honey! "])
@pytest.mark.parametrize("refusal", ["I don't know.", "It is not in the documents."])
def test_a_refusal_after_an_answer_declines_nothing(before: str, refusal: str) -> None:
    assert declines(refusal)
    assert not declines(before + refusal)


# --- tasks of lm-evaluation-harness ----------------------------------------------------------------------------------

WARDS = [
    {"question": "What colour is the door of ward 1?", "choices": [" blue", " a colour of no door"], "right": 0},
    {"question": "What colour is the door of ward 2?", "choices": [" violet", " green", " grey"], "right": 1},
    {"question": "The door of ward 0 is", "choices": [" red", " white door"], "right": 0},
    {"question": "The door of ward 5 is", "choices": [" a door", " amber"], "right": 1},
    {"question": "Document [1] says", "choices": [" black", " blue is the door of ward 7"], "right": 1},
]


def write_task(folder: Path, path: str = "json", name: str = "wards") -> Path:
    folder.mkdir(exist_ok=True)
    data = folder / "wards.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in WARDS))
    files = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    task = {
        "task": name, "dataset_path": path, **({"dataset_kwargs": files} if path == "json" else {}),
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{right}}", "target_delimiter": "", "metric_list": metrics,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return folder


def accuracy(model: Any, tokenizer: Any, by_length: bool) -> float:
    """Share of the wards' questions whose right choice is the likeliest: one plain forward pass a choice."""
    right = []
    for row in WARDS:
        scores = []
        for choice in row["choices"]:
            start = len(tokenizer(row["question"])["input_ids"])
            ids = torch.tensor([tokenizer(row["question"] + choice)["input_ids"]])
            with torch.no_grad():
                found = torch.log_softmax(model(input_ids=ids).logits[0, start - 1 : -1].float(), -1)
            total = float(found.gather(1, ids[0, start:, None]).sum())
            scores.append(total / len(choice) if by_length else total)
        right.append(scores.index(max(scores)) == row["right"])
    return sum(right) / len(right)


def errors(shares: Sequence[float]) -> list[float]:
    return [math.sqrt(share * (1 - share) / (len(WARDS) - 1)) for share in shares]


def test_a_task_of_ones_own_is_scored_for_both(small: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    folder = write_task(tmp_path / "tasks")
    chosen = recipe(adapters["lora"], tasks=["wards"], task_folder=folder)
    report = evaluate_general(chosen, tmp_path / "report")
    tokenizer, weights = load_tokenizer(small), find_weights(str(small), adapters["lora"])
    models = [load_language_model(small), load_weights(weights)]
    assert [(score.task, score.metric) for score in report.tasks] == [("wards", "acc"), ("wards", "acc_norm")]
    for score, by_length in zip(report.tasks, (False, True), strict=True):
        expected = [accuracy(model, tokenizer, by_length) for model in models]
        assert [score.base, score.tuned] == pytest.approx(expected)
        assert [score.base_error, score.tuned_error] == pytest.approx(errors(expected))
    assert "| wards | acc " in (tmp_path / "report/report.md").read_text()
    assert str(folder) not in json.dumps(json.loads((tmp_path / "report/report.json").read_text())["settings"])
    assert set(open_artifact(tmp_path / "report", "general").inputs) >= {"adapter", "model", "task_folder"}


def test_tasks_that_cannot_be_asked_are_refused_before_any_model(
    adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(general, "sides", None)  # whoever opens a model fails
    folder = write_task(tmp_path / "tasks", "nobody/nothing", "far")
    for chosen, error, message in (
        ({"tasks": ["far"], "task_folder": folder}, InputError, r"tasks \['far'\] cannot be loaded .*nobody/nothing"),
        ({"tasks": ["far"], "task_folder": tmp_path / "none"}, UsageError, "is no folder"),
    ):
        with pytest.raises(error, match=message):
            evaluate_general(recipe(adapters["lora"], **chosen), tmp_path / "report")
    with pytest.raises(UsageError, match="prompt_tuning"):
        evaluate_general(recipe(adapters["prompt_tuning"], tasks=["far"]), tmp_path / "report")
    with monkeypatch.context() as without, pytest.raises(ModelError, match=r"pip install 'raft-tune\[lm-eval\]'"):
        without.setitem(__import__("sys").modules, "lm_eval", None)
        evaluate_general(recipe(adapters["lora"], tasks=["far"]), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_what_does_not_fit_is_said(adapters: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="adapter is not set"):
        evaluate_general(EvaluateGeneralRecipe(), tmp_path / "report")
    with pytest.raises(InputError, match="was trained on"):
        evaluate_general(recipe(adapters["lora"], model=str(tiny_folder)), tmp_path / "report")
    with pytest.raises(RecipeError, match="tasks names none"):
        recipe(adapters["lora"], task_folder=tmp_path)
    with writing(tmp_path / "scorer", "adapter", {}, {}) as draft:
        draft.facts |= {"objective": "reward", "method": "lora", "base_model": "x"}
    with pytest.raises(UsageError, match="objective reward and writes no text"):
        evaluate_general(recipe(tmp_path / "scorer"), tmp_path / "report")
