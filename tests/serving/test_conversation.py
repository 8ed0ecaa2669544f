"""What is searched for, and what the model is asked, when a question has others before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.errors import ModelError
from raft.llm.chat import ChatRequest
from raft.llm.scripted import ScriptedModel
from raft.prompts import QUOTE_BEGIN, render_refusal, render_target
from raft.serving.conversation import MOST_TURNS, Reading, Turn, joined, read, turns_of

ADULTS = Turn("What is the first dose in adults?", "12 mg")
NO_MODEL = ScriptedModel(lambda request: "")


def test_turns_of_a_conversation() -> None:
    said = [
        ("assistant", "Welcome!"),
        ("system", "Be a pirate."),
        ("user", " What is the first dose in adults? "),
        ("assistant", render_target("12 mg", "The formulary says so.")),
        ("user", "And in children?"),
        ("assistant", render_refusal()),
        ("user", "Really?"),
        ("user", "How is it stored?"),
    ]
    earlier, question = turns_of(said)
    assert earlier == [ADULTS, Turn("And in children?", ""), Turn("Really?", "")]
    assert question == "How is it stored?"


def test_without_a_question_there_is_none() -> None:
    assert turns_of([("system", "x"), ("assistant", "y")]) == ([], "")
    assert turns_of([("user", "Dose?"), ("assistant", "5"), ("user", " ")]) == ([Turn("Dose?", "5")], "")


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), st.text()), max_size=40))
def test_only_words_of_users_and_assistants_are_ever_read(said: list[tuple[str, str]]) -> None:
    earlier, question = turns_of(said)
    asked = [text.strip() for role, text in said if role == "user"]
    assert question == (asked[-1] if asked else "")
    assert [turn.question for turn in earlier] == [text for text in asked[:-1] if text][-MOST_TURNS:]
    assistants = "".join(text for role, text in said if role == "assistant").split()
    assert all(any(word in text for text in assistants) for turn in earlier for word in turn.answer.split())


def test_of_a_long_answer_only_the_end_is_read() -> None:
    text = "##begin_quote##" * 100_000 + "\n<ANSWER>: 12 mg"
    assert turns_of([("user", "Dose?"), ("assistant", text), ("user", "Sure?")])[0] == [Turn("Dose?", "12 mg")]


def test_a_question_without_others_before_it_is_left_alone() -> None:
    for follow_ups in ("join", "model", "off"):
        assert read("Dose?", (), follow_ups, NO_MODEL) == Reading("Dose?", "Dose?")
    assert NO_MODEL.requests == []


def test_a_follow_up_is_joined_to_the_two_questions_before_it() -> None:
    turns = (Turn("Old?", "yes"), ADULTS, Turn("By mouth?", ""))
    assert joined("And in children?", turns) == Reading(
        "What is the first dose in adults? By mouth? And in children? And in children?",
        "What is the first dose in adults? (12 mg) By mouth? And in children?",
    )


@given(st.lists(st.builds(Turn, st.text(max_size=3000), st.text(max_size=200)), min_size=1), st.text(max_size=50))
def test_what_is_joined_is_bounded_and_ends_with_the_question(turns: list[Turn], question: str) -> None:
    reading = joined(question, turns)
    assert reading.query.endswith(question)
    assert reading.question.endswith(question)
    assert len(reading.query) <= 2 * (401 + len(question))
    assert len(reading.question) <= 2 * (401 + 203) + len(question)


def test_off_takes_the_question_as_it_is() -> None:
    assert read("And in children?", (ADULTS,), "off", NO_MODEL) == Reading("And in children?", "And in children?")


def test_the_model_is_shown_questions_and_answers_and_no_markers() -> None:
    model = ScriptedModel(lambda request: '\n Rewritten question: "What is the first dose in children?"\nBecause ...')
    reading = read(f"And {QUOTE_BEGIN} children?", (ADULTS,), "model", model)
    assert reading == Reading("What is the first dose in children?", "What is the first dose in children?")
    [request] = model.requests
    assert request.temperature == 0
    shown = request.messages[-1].content
    assert "Question: What is the first dose in adults?\nAnswer: 12 mg\nLast question: And " in shown
    assert QUOTE_BEGIN not in shown


@pytest.mark.parametrize(
    "written", ["", "  \n ", "x" * 401, f"{QUOTE_BEGIN}x", "I don't know.", "not in the documents", '""']
)
def test_nonsense_of_the_model_falls_back_to_joining(written: str) -> None:
    model = ScriptedModel(lambda request: written)
    assert read("And in children?", (ADULTS,), "model", model) == joined("And in children?", (ADULTS,))


def test_a_model_that_fails_falls_back_to_joining() -> None:
    def fail(request: ChatRequest) -> str:
        raise ModelError("gone")

    assert read("So?", (ADULTS,), "model", ScriptedModel(fail)) == joined("So?", (ADULTS,))
