"""The baseline that reads nothing: what it says, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.config import EvaluateRecipe
from raft.errors import InputError
from raft.evaluation.compare import evaluate
from raft.evaluation.constant import Always, commonest_answer
from raft.llm.chat import ChatModel, ChatRequest
from raft.prompts import REFUSAL, Message
from raft.records import QaItem
from tests.evaluation import world

LABELS = ("yes", "no", "maybe")


def items_of(answers: list[str], split: str | None = "train") -> list[QaItem]:
    return [QaItem(f"{split}-{n}", "?", answer, split=split) for n, answer in enumerate(answers)]  # type: ignore[arg-type]


@given(st.lists(st.sampled_from(["yes", "Yes.", "no", "maybe", "12 mg"]), min_size=1))
def test_the_commonest_label_is_that_of_a_count(answers: list[str]) -> None:
    counts = {label: sum(answer.lower().strip(".") == label for answer in answers) for label in sorted(LABELS)}
    items = items_of(answers)
    if not any(counts.values()):
        with pytest.raises(InputError, match="has a label"):
            commonest_answer(items, [], LABELS)
        return
    assert commonest_answer(items, [], LABELS) == max(counts, key=counts.__getitem__)


def test_without_labels_it_is_the_commonest_reference_as_first_written() -> None:
    assert commonest_answer(items_of(["Day 6", "9 crowns", "the day 6"]), [], ()) == "Day 6"
    assert commonest_answer(items_of(["b", "a"]), [], ()) == "a"  # of equals the first in the alphabet
    unanswerable = [QaItem(f"u{n}", "?", "", "unanswerable", split="train") for n in range(3)]
    assert commonest_answer([*items_of(["a", "a"]), *unanswerable], [], ()) == REFUSAL


def test_it_learns_nothing_from_what_is_asked_or_kept_for_testing() -> None:
    train, test, free = items_of(["no"]), items_of(["yes"] * 5, "test"), items_of(["maybe"] * 3, None)
    assert commonest_answer([*train, *test], test, LABELS) == "no"
    assert commonest_answer([*train, *test, *free], test, LABELS) == "maybe"
    assert commonest_answer([*train, *test, *free], [*test, *free], LABELS) == "no"
    with pytest.raises(InputError, match=r"none of 0 questions of the train split has an answer.*Leave constant out"):
        commonest_answer(test, test, ())


def test_the_model_that_always_says_the_same() -> None:
    model: ChatModel = Always("yes")
    request = ChatRequest("q", (Message("user", "Is it?"),))
    model.check(request)
    (reply,) = model.complete([request])
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.error) == ("yes", 0, 0, None)
    assert list(model.stream(request)) == ["yes"]


def test_it_stands_in_the_table_and_no_model_is_opened_for_it(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    def closed() -> ChatModel:
        raise AssertionError("opened")

    recipe = world_recipe.model_copy(update={"systems": ("constant",)})
    report = evaluate(recipe, tmp_path / "report", base=closed)
    (scores,) = report.systems
    said = commonest_answer(world.questions(), [], ())
    assert scores.model == f"always {said!r}"
    assert {row.final for row in report.results} == {said}
    right = [item.id for item in world.questions() if item.split == "test" and said in (item.answer, *item.aliases)]
    assert {row.question_id for row in report.results if row.em} == set(right)
    assert (scores.n, scores.failures, scores.prompt_tokens, scores.completion_tokens) == (16, 0, 0.0, 0.0)
    assert scores.well_formed is None


def test_a_constant_label_reaches_the_share_of_that_label(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    train = [QaItem(f"t{n}", f"Is {n} prime?", "no" if n else "yes", "yesno", split="train") for n in range(3)]
    test = [QaItem(f"q{n}", f"Is {n} even?", "yes" if n % 3 else "no", "yesno", split="test") for n in range(6)]
    recipe = world_recipe.model_copy(update={
        "questions": world.write_questions(tmp_path / "q.jsonl", [*train, *test]), "systems": ("constant",),
        "answer_labels": ("yes", "no"),
    })  # fmt: skip
    (scores,) = evaluate(recipe, tmp_path / "report").systems
    assert scores.model == "always 'no'"
    assert scores.labels is not None
    assert scores.labels.accuracy.mean == pytest.approx(2 / 6)
