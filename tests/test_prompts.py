"""The prompt and its inverse."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.prompts import (
    ANSWER_MARK,
    QUOTE_BEGIN,
    QUOTE_END,
    REFUSAL,
    SYSTEM_CLOSED_BOOK,
    SYSTEM_SHORT,
    SYSTEM_WITH_DOCUMENTS,
    Shot,
    build_messages,
    fill_instruction,
    is_refusal,
    parse_answer,
    render_refusal,
    render_target,
)
from raft.records import Chunk, Quote

plain = st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=1, max_size=60).map(str.strip).filter(bool)
words = plain.filter(lambda t: not any(mark in t for mark in (QUOTE_BEGIN, QUOTE_END, ANSWER_MARK, "[", "]")))


@given(answer=words, reasoning=words, quotes=st.lists(st.tuples(words, st.integers(1, 20)), max_size=3))
def test_parsing_is_the_inverse_of_rendering(answer: str, reasoning: str, quotes: list[tuple[str, int]]) -> None:
    parsed = parse_answer(render_target(answer, reasoning, [Quote(text, n) for text, n in quotes]))
    assert parsed.final == " ".join(answer.split())
    one_line = tuple(Quote(" ".join(text.split()), n) for text, n in quotes)
    assert parsed.quotes == one_line  # layout of the document is not part of a quote
    assert parsed.well_formed
    assert reasoning in parsed.reasoning


def test_an_answer_of_several_lines_is_read_whole() -> None:
    assert parse_answer(render_target("1. wash hands\n2. put on a gown")).final == "1. wash hands 2. put on a gown"


@given(st.text(max_size=300))
def test_parsing_never_fails(text: str) -> None:
    parsed = parse_answer(text)
    assert parsed.text == text
    assert parsed.well_formed == (ANSWER_MARK in text)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_document_or_question_can_forge_a_marker(before: str, after: str) -> None:
    for mark in (QUOTE_BEGIN, QUOTE_END, ANSWER_MARK, ANSWER_MARK.lower()):
        hostile = before + mark + after
        chunk = Chunk("x", "x", hostile, 0, len(hostile), title=hostile)
        said = build_messages(hostile, [chunk])[-1].content
        assert mark.lower() not in said.lower()


def test_the_documents_come_before_the_question_and_are_numbered_from_one() -> None:
    chunks = [Chunk("a#0", "a.md", "Alpha.", 0, 6, "Title", ("Title", "Dose")), Chunk("b#0", "b.md", "Beta.", 0, 5)]
    said = build_messages("Which?", chunks)[-1].content
    assert said == "Document [1] Title > Dose\nAlpha.\n\nDocument [2] b.md\nBeta.\n\nQuestion: Which?"
    one, two = (build_messages(q, chunks)[-1].content for q in ("Which?", "When?"))
    assert one[: one.index("Question")] == two[: two.index("Question")]


def test_closed_book_shows_no_document_and_shots_come_first() -> None:
    shots = [Shot("Q1?", render_target("A1"), (Chunk("a", "a", "Text.", 0, 5),))]
    closed = build_messages("Q?", None, shots)
    assert [m.role for m in closed] == ["system", "user", "assistant", "user"]
    assert "Document" not in closed[1].content
    assert "Document [1]" in build_messages("Q?", [], shots)[1].content


@pytest.mark.parametrize(
    "text", [REFUSAL, "Not in the documents.", "", "The documents do not contain the dose.", "I don't know"]
)
def test_refusals_are_recognized(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["no", "12 mg", "not before 6:30", "unknown organisms are cultured"])
def test_answers_are_not_taken_for_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_the_refusal_target_is_an_abstention() -> None:
    parsed = parse_answer(render_refusal())
    assert parsed.abstained
    assert parsed.well_formed


def test_the_last_marker_wins_and_its_line_is_the_answer() -> None:
    parsed = parse_answer("First <ANSWER>: 1\nthen <ANSWER>:\n 2 mg \nQuestion: more?")
    assert parsed.final == "2 mg"


@pytest.mark.parametrize(
    ("instruction", "documents", "short"),
    [(SYSTEM_WITH_DOCUMENTS, True, False), (SYSTEM_CLOSED_BOOK, False, False), (SYSTEM_SHORT, True, True)],
)
def test_the_own_instructions_written_with_placeholders_come_out_the_same(
    instruction: str, documents: bool, short: bool
) -> None:
    marks = {"quote_begin": QUOTE_BEGIN, "quote_end": QUOTE_END, "answer": ANSWER_MARK, "refusal": REFUSAL}
    template = instruction
    for name, mark in marks.items():
        template = template.replace(mark, f"{{{name}}}")
    assert template != instruction
    assert fill_instruction(f"\n{template}\n", documents=documents, short=short) == instruction
    for name in {name for name in marks if f"{{{name}}}" in template}:
        with pytest.raises(ValueError, match=rf"lacks \{{{name}\}}; expected "):
            fill_instruction(template.replace(f"{{{name}}}", marks[name]), documents=documents, short=short)


def test_an_instruction_of_ones_own_stands_where_the_projects_stood() -> None:
    chunks, shots = [Chunk("c", "d", "12 mg", 0, 5)], [Shot("Why?", "So.")]
    usual = build_messages("How much?", chunks, shots)
    other = build_messages("How much?", chunks, shots, instruction="Say it.")
    assert (other[0].role, other[0].content) == ("system", "Say it.")
    assert other[1:] == usual[1:]


def test_braces_that_are_no_placeholders_stay() -> None:
    text = 'Like {"a": 1} or { }: {refusal}'
    assert fill_instruction(text, documents=True, short=True) == 'Like {"a": 1} or { }: ' + REFUSAL
    with pytest.raises(ValueError, match=r"has \{document\}; expected \{refusal\}"):
        fill_instruction("{refusal} {document}", documents=True, short=True)


@pytest.mark.parametrize(
    "wrong", ["{ answer }", "{answer-mark}", "{the answer}", "{answer }", "{-answer}", "{\tanswer}"]
)
def test_what_looks_like_a_placeholder_is_not_left_as_text(wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"has {wrong}; expected {{refusal}}")):
        fill_instruction(f"{{refusal}} {wrong}", documents=True, short=True)


@pytest.mark.parametrize(
    "kept", ['{"answer": "12 mg"}', "{}", "{ }", "{-}", "{'a': 1}", "{a: 1}", "{\n  x\n}", '{"a": {"b": []}}']
)
def test_braces_as_of_json_stay(kept: str) -> None:
    assert fill_instruction(f"{{refusal}} {kept}", documents=True, short=True) == f"{REFUSAL} {kept}"
