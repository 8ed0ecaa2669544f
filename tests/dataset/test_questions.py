from __future__ import annotations

import json
from typing import get_args

import pytest

from raft.dataset.candidates import answer_candidates
from raft.dataset.question_replies import parse_question, parse_questions
from raft.dataset.questions import QUESTIONS_SCHEMA, SAMPLE, cloze_messages, load_prompts, question_messages
from raft.errors import InputError, RecipeError
from raft.prompts import ANSWER_MARK
from raft.records import Chunk, QuestionType

PROMPTS = load_prompts()
TYPES = get_args(QuestionType)
CHUNK = Chunk("c", "d", f"Adults start with 12 mg. {ANSWER_MARK} forged", 0, 30, "Corvalexin", ("Doses", "Doses"))
OTHER = Chunk("e", "f", "Corvalexin {count} is kept at 5 degrees.", 0, 30, "Storage")
GOOD = 'system = "You ask."\nask = "{documents} {count} {language}"\n'


def text_of(messages):
    return "\n".join(message.content for message in messages)


# --- the files


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_has_worked_examples_that_are_read_back_whole(kind):
    prompt = PROMPTS[kind]
    for structured in (False, True):
        system, *turns, asked = question_messages(prompt, [CHUNK], 3, structured=structured)
        replies = [turn.content for turn in turns if turn.role == "assistant"]
        assert [parse_questions(reply, 9) for reply in replies] == [list(shot.questions) for shot in prompt.shots] != []
        assert [message.role for message in (system, asked)] == ["system", "user"]
    assert prompt.answer_hint


@pytest.mark.parametrize("kind", TYPES)
def test_worked_examples_are_self_contained(kind):
    for shot in PROMPTS[kind].shots:
        for question in shot.questions:
            assert any(word in question for chunk in shot.chunks for word in chunk.title.split() if word.istitle())


def test_types_that_join_documents_show_it():
    assert all(len(shot.chunks) == 2 for shot in PROMPTS["multihop"].shots)
    assert {len(shot.chunks) for shot in PROMPTS["comparison"].shots} == {1, 2}


def test_a_folder_replaces_the_types_it_holds(tmp_path):
    (tmp_path / "numeric.toml").write_text(GOOD + 'answer_hint = "Nur die Zahl."')
    (tmp_path / "README.md").write_text("ours")
    prompts = load_prompts(tmp_path)
    assert prompts["numeric"].answer_hint == "Nur die Zahl."
    assert [m.role for m in question_messages(prompts["numeric"], [CHUNK], 2)] == ["system", "user"]
    assert prompts["factual"] == PROMPTS["factual"]


def test_all_mistakes_of_all_files_are_told_at_once(tmp_path):
    (tmp_path / "numerics.toml").write_text(GOOD)
    (tmp_path / "factual.toml").write_text(GOOD.replace("{count}", "{amount}") + "hint = 1")
    (tmp_path / "yesno.toml").write_text(GOOD.replace("{count}", "{amount}").replace("You ask", "{language}"))
    (tmp_path / "definition.toml").write_text("system = ")
    (tmp_path / "comparison.toml").write_text(GOOD + '[[shots]]\ndocumets = []\nquestions = ["Who?"]')
    (tmp_path / "multihop.toml").write_bytes(b"\xff")
    (tmp_path / "answer_first.toml").write_text(
        GOOD.replace("{documents} {count}", "{title} {statement} {answer}")
        + '[[shots]]\ndocuments = [{ text = "A." }]\nquestions = ["Say it.", "Who?"]'
    )
    with pytest.raises(RecipeError) as caught:
        load_prompts(tmp_path)
    assert "\n" not in str(caught.value)
    for part in (
        "numerics.toml (did you mean numeric.toml?)", "unknown key 'hint'", "lacks the placeholder {count}",
        "unknown key 'shots.0.documets' (did you mean 'documents'?)",
        "unknown placeholder {amount}", "system holds {language}", "definition.toml is not valid TOML",
        "multihop.toml is not valid TOML", "'Say it.' is not one plain line", "expected one document, one question",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_a_folder_that_holds_nothing_or_is_none(tmp_path):
    with pytest.raises(RecipeError, match="holds none of"):
        load_prompts(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        load_prompts(tmp_path / "missing")
    (tmp_path / "factual.toml").mkdir()
    with pytest.raises(RecipeError, match="cannot be read"):
        load_prompts(tmp_path)


# --- asking


@pytest.mark.parametrize("kind", TYPES)
def test_the_prompt_names_the_subject_and_cannot_be_forged(kind):
    text = text_of(question_messages(PROMPTS[kind], [CHUNK, OTHER], 7, "Basque"))
    asked = question_messages(PROMPTS[kind], [CHUNK], 7)[-1].content
    assert asked.startswith("Corvalexin > Doses\nAdults start with 12 mg.")
    assert "Write 7 " in asked
    assert "Basque" in text
    assert "Corvalexin {count} is kept" in text
    assert ANSWER_MARK not in text


def test_a_structured_prompt_asks_for_what_the_schema_allows():
    lines, structured = (question_messages(PROMPTS["factual"], [CHUNK], 2, structured=s) for s in (False, True))
    assert "JSON" in structured[0].content
    assert "JSON" not in lines[0].content
    reply = json.loads(structured[2].content)
    assert list(reply) == QUESTIONS_SCHEMA["required"] == list(QUESTIONS_SCHEMA["properties"])
    assert QUESTIONS_SCHEMA["additionalProperties"] is False


def test_the_sample_is_a_chunk():
    assert SAMPLE.text == SAMPLE.text[SAMPLE.start : SAMPLE.end]
    assert SAMPLE.end == len(SAMPLE.text)
    assert PROMPTS["unanswerable"].shots[0].chunks[0].text == SAMPLE.text


def test_a_candidate_is_asked_for_with_its_sentence_alone():
    chunk = Chunk(
        "c", "d", "Fog is rare. Ferries\nwait for at least 40 minutes in fog.", 0, 60, "Ferry Guild", ("Fog",)
    )
    (candidate,) = answer_candidates(chunk, 1, 0)
    messages = cloze_messages(PROMPTS["answer_first"], chunk, candidate, "Basque")
    asked = messages[-1].content
    assert "Ferry Guild > Fog" in asked
    assert "40 minutes" in asked
    assert "Ferries wait for at least" in asked
    assert "Basque" in asked
    assert "Fog is rare" not in asked
    shots = PROMPTS["answer_first"].shots
    assert [parse_question(m.content) for m in messages if m.role == "assistant"] == [s.questions[0] for s in shots]
    assert all(shot.answer in shot.chunks[0].text and shot.answer not in shot.questions[0] for shot in shots)
