from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.question_replies import parse_question, parse_questions

MARKS = "?？؟\u037e"


@pytest.mark.parametrize(
    ("line", "question"),
    [
        ("1. What is the dose?", "What is the dose?"),
        ("12) What is the dose?", "What is the dose?"),
        ("(3) What is the dose?", "What is the dose?"),
        ("[4] What is the dose?", "What is the dose?"),
        ("#5: What is the dose?", "What is the dose?"),
        ("6\\. What is the dose?", "What is the dose?"),
        ("7 - What is the dose?", "What is the dose?"),
        ("8 What is the dose?", "What is the dose?"),
        ("9 . What is the dose?", "What is the dose?"),
        ("b) What is the dose?", "What is the dose?"),
        ("(iv) What is the dose?", "What is the dose?"),
        ("Q4: What is the dose?", "What is the dose?"),
        ("Question 5. What is the dose?", "What is the dose?"),
        ("Question #5 - What is the dose?", "What is the dose?"),
        ("### Question 2 of 3: What is the dose?", "What is the dose?"),
        ("**Q:** What is the dose? **A:** 12 mg", "What is the dose?"),
        ("- 6. **What is the dose?**", "What is the dose?"),
        ('• "What is the dose?"', "What is the dose?"),
        ('"What is the dose?",', "What is the dose?"),
        ("| 1 | What is the dose? | 12 mg |", "What is the dose?"),
        ("1. Question 1: What is the dose?", "What is the dose?"),
        ("2. What is the dose? Answer: 12 mg", "What is the dose?"),
        ("2. What is the dose? (section 4)", "What is the dose?"),
        ("2. What is the dose? [Answer: 12 mg]", "What is the dose?"),
        ("2. What is the dose? - 12 mg", "What is the dose?"),
        ("What is the dose? (A: is it 12 mg?)", "What is the dose?"),
        ('What is a "quiet crossing"?', 'What is a "quiet crossing"?'),
        ("What is the nurses'?", "What is the nurses'?"),
        ("3. Which form replaced form 1099 in 2021?", "Which form replaced form 1099 in 2021?"),
        ("Which drug is given as 2.5 mg?", "Which drug is given as 2.5 mg?"),
        ("What changed on page 3, section 12?", "What changed on page 3, section 12?"),
        ("2.5 mg is the dose of which drug?", "2.5 mg is the dose of which drug?"),
        ("5 - 10 mg is the dose of what?", "5 - 10 mg is the dose of what?"),
        ("12 months is the term of which lease?", "12 months is the term of which lease?"),
        ("1099 forms are filed when?", "1099 forms are filed when?"),
        ("When? And why not?", "When? And why not?"),
        ("Quinine is given how often?", "Quinine is given how often?"),
        ("1. 剂量是多少？", "剂量是多少？"),
        ("2、剂量是多少？答案", None),
        ("1. ما هي الجرعة؟", "ما هي الجرعة؟"),
        ("Should I take more than 2 tablets?", "Should I take more than 2 tablets?"),
    ],
)
def test_what_stands_around_a_question_goes_and_the_question_stays_whole(line, question):
    assert parse_questions(line, 5) == ([question] if question else [])


@pytest.mark.parametrize(
    "line",
    ["", "Here are the questions:", "The dose depends on weight.", "?", "3.", "** ? **", "A: Is it 12 mg?",
     "**Answer 2:** is it 12 mg?", "Would you like more questions?", "Define the dose.",
     "<think>What is the dose?", "<think>\n1. Who?\n</think>\n", "{}", '{"questions": []}', '{"questions": ["Who i'],
)  # fmt: skip
def test_what_is_no_question_is_left_out(line):
    assert parse_questions(line, 5) == []


def test_several_questions_on_one_line_repeats_and_the_limit():
    text = "1. Who? 2. Where? 3) When?\n4. Who?\n5. Why?"
    assert parse_questions(text, 10) == ["Who?", "Where?", "When?", "Why?"]
    assert parse_questions(text, 2) == ["Who?", "Where?"]


@pytest.mark.parametrize(
    "text",
    [
        '{"questions": ["What is \\"x\\"?", "Define it."]}',
        '```json\n{\n  "questions": [\n    "1. What is \\"x\\"?",\n    "2) Define it."\n  ]\n}\n```\nSo, "what"?',
        'Sure! Here they are: ["What is \\"x\\"?", "Define it.",]',
        "{'questions': ['What is \"x\"?', 'Define it.']}",
        '{"questions": ["What is "x"?", "Define it."], "note": "Two of them?"}',
        '{"questions": ["What is \\"x\\"?", "Define it.", "Which is the thi',
        '{"questions": ["What is \\"x\\"?", "Define it.", "What is the "',
        '[{"question": "What is \\"x\\"?", "answer": "Is it y?"}, {"question": "Define it.", "answer": "no idea"}]',
        '{"question": "What is \\"x\\"?"}\n{"question": "Define it."}',
        '{"question_1": "What is \\"x\\"?", "answer_1": "Is it y?", "question_2": "Define it."}',
        '{"1": "What is \\"x\\"?", "2": "Define it."}',
        '<think>["Who?"]</think>["What is \\u0022x\\u0022?", "Define it."]',
        '[“What is "x"?”, “Define it.”]',
    ],
)
def test_json_is_read_however_it_is_broken(text):
    assert parse_questions(text, 5) == ['What is "x"?', "Define it."]


@pytest.mark.parametrize("opening", ["Here: ", "```json\n", "Sure!\n\n", ""])
@given(st.lists(st.from_regex(r"(?:What|Which) [a-z \"'\\\[\]{}:,]{3,40}[a-z]\?", fullmatch=True), min_size=1))
def test_valid_json_is_read_as_a_json_reader_would(opening, questions):
    wanted = list(dict.fromkeys(" ".join(question.split()) for question in questions))
    text = opening + json.dumps({"questions": questions}, indent=2)
    assert parse_questions(text, len(questions)) == wanted


@given(st.lists(st.from_regex(r"(?:What|Which) [a-z]{3,9} [a-z']{2,8}[a-z]\?", fullmatch=True), min_size=1), st.data())
def test_a_reply_cut_anywhere_gives_the_questions_that_were_whole(questions, data):
    text = json.dumps({"questions": questions})
    cut = text[: data.draw(st.integers(0, len(text)))]
    found = parse_questions(cut, len(questions))
    whole = list(dict.fromkeys(questions))
    assert found == whole[: len(found)]
    assert len(found) >= len([question for question in whole if f'"{question}",' in cut])


@given(st.text(max_size=200) | st.text("[]{}\"':,?\\ aQ1.|\n", max_size=60), st.integers(1, 5))
def test_any_reply_gives_clean_questions(text, most):
    found = parse_questions(text, most)
    assert len(found) <= most
    assert len(set(found)) == len(found)
    assert all(len(question) > 1 and question == " ".join(question.split()) for question in found)
    if not set("[{") & set(text):
        assert all(question[-1] in MARKS for question in found)
    one = parse_question(text)
    assert one == (found[0] if found else one)


@given(
    st.lists(
        st.from_regex(r"(?:What|Which) [a-z]{3,9} [a-z]{2,8} [0-9]{0,4}", fullmatch=True), min_size=1, unique=True
    ),
    st.sampled_from(
        ["{n}. {q}?", "{n}) {q}?", "- {q}?", "{q}?", "**{n}.** {q}?", "Q{n}: {q}?", "{n} {q}？", "| {n} | {q}؟ |"]
    ),
)
def test_numbering_of_any_style_is_undone(questions, style):
    mark = next(mark for mark in MARKS if mark in style)
    wanted = list(dict.fromkeys(f"{' '.join(question.split())}{mark}" for question in questions))
    text = "\n".join(style.format(n=n, q=question.strip()) for n, question in enumerate(questions, 1))
    assert parse_questions(text, len(questions)) == wanted


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("What is the dose?\nIt is 12 mg.", "What is the dose?"),
        ("\n1. What is the dose", "What is the dose?"),
        ('"How many nurses count the stock."', "How many nurses count the stock?"),
        ("The dose is 12 mg.", None),
        ("What?", "What?"),
        ("", None),
    ],
)
def test_one_question_is_read_with_or_without_its_mark(text, question):
    assert parse_question(text) == question
