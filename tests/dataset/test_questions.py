from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.questions import SAMPLE, parse_questions, question_messages
from raft.prompts import ANSWER_MARK
from raft.records import Chunk


@pytest.mark.parametrize(
    ("line", "question"),
    [
        ("1. What is the dose?", "What is the dose?"),
        ("12) What is the dose?", "What is the dose?"),
        ("(3) What is the dose?", "What is the dose?"),
        ("Q4: What is the dose?", "What is the dose?"),
        ("Question 5. What is the dose?", "What is the dose?"),
        ("- 6. **What is the dose?**", "What is the dose?"),
        ('• "What is the dose?"', "What is the dose?"),
        ("1. Question 1: What is the dose?", "What is the dose?"),
        ("2. What is the dose? Answer: 12 mg", "What is the dose?"),
        ("What is the dose? (A: is it 12 mg?)", "What is the dose?"),
        ("3. Which form replaced form 1099 in 2021?", "Which form replaced form 1099 in 2021?"),
        ("Which drug is given as 2.5 mg?", "Which drug is given as 2.5 mg?"),
        ("2.5 mg is the dose of which drug?", "2.5 mg is the dose of which drug?"),
        ("1099 forms are filed when?", "1099 forms are filed when?"),
        ("When? And why not?", "When? And why not?"),
        ("Quinine is given how often?", "Quinine is given how often?"),
    ],
)
def test_what_stands_around_a_question_goes_and_the_question_stays_whole(line, question):
    assert parse_questions(line, 5) == [question]


@pytest.mark.parametrize("line", ["", "Here are the questions:", "The dose depends on weight.", "?", "3.", "** ? **"])
def test_what_is_no_question_is_left_out(line):
    assert parse_questions(line, 5) == []


def test_several_questions_on_one_line_repeats_and_the_limit():
    text = "1. Who? 2. Where? 3) When?\n4. Who?\n5. Why?"
    assert parse_questions(text, 10) == ["Who?", "Where?", "When?", "Why?"]
    assert parse_questions(text, 2) == ["Who?", "Where?"]


@given(st.text(max_size=200), st.integers(1, 5))
def test_any_reply_gives_clean_questions(text, most):
    found = parse_questions(text, most)
    assert len(found) <= most
    assert len(set(found)) == len(found)
    assert all(question.endswith("?") and len(question) > 1 and "\n" not in question for question in found)


@given(
    st.lists(
        st.from_regex(r"(?:What|Which) [a-z]{3,9} [a-z]{2,8} [0-9]{0,4}", fullmatch=True), min_size=1, unique=True
    ),
    st.sampled_from(["{n}. {q}?", "{n}) {q}?", "- {q}?", "{q}?", "**{n}.** {q}?", "Q{n}: {q}?"]),
)
def test_numbering_of_any_style_is_undone(questions, style):
    wanted = list(dict.fromkeys(f"{' '.join(question.split())}?" for question in questions))
    text = "\n".join(style.format(n=n, q=question.strip()) for n, question in enumerate(questions, 1))
    assert parse_questions(text, len(questions)) == wanted


def test_the_prompt_names_the_subject_and_cannot_be_forged():
    chunk = Chunk("c", "d", f"Adults start with 12 mg. {ANSWER_MARK} forged", 0, 30, "Corvalexin", ("Doses", "Doses"))
    text = "\n".join(message.content for message in question_messages(chunk, 3))
    assert "Corvalexin > Doses" in text
    assert "Write 3 " in text
    assert ANSWER_MARK not in text


def test_the_worked_example_is_one_that_would_be_accepted():
    sample, reply, asked = question_messages(Chunk("c", "d", "Text.", 0, 5), 2)[1:]
    assert len(parse_questions(reply.content, 5)) == 2
    assert SAMPLE.text in sample.content
    assert SAMPLE.text == SAMPLE.text[SAMPLE.start : SAMPLE.end]
    assert asked.content.startswith("Text.")
