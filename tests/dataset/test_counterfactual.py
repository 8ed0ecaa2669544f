from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from raft.corpus.spans import find_span, normalize
from raft.dataset.counterfactual import (
    LEAST_ALIKE,
    edit_of,
    edits_of,
    likeness,
    names,
    speaks_of,
    subjects_of,
    vocabulary_of,
)
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.records import Chunk

DRUGS = ["Alvoran", "Bentrazol", "Corvalexin", "Dunamil", "Estradek", "Fennolid"]
OPENING = "is an older medicine of the Sorrel Hospital that is kept at room temperature on every ward of the house."


def chunk_of(title, text, name=None):
    name = name or f"formulary/{title.lower()}.md"
    return Chunk(f"{name}#0", name, text, 0, len(text), title, ("Dose",))


def item_of(chunk, question, answer, quote, kind="short", **more):
    assert quote in chunk.text
    return GroundedQuestion(
        f"q-{chunk.id}-{answer}",
        question,
        answer,
        kind,
        (Passage(chunk.id, quote),),
        (chunk.document_id,),
        "qa",
        **more,
    )


@st.composite
def oracles(draw):
    """A chunk about a drug, and a question that one of its sentences answers: a number, a name, yes or no, words."""
    drug, dose, days = draw(st.sampled_from(DRUGS)), draw(st.integers(1, 3000)), draw(st.integers(2, 99))
    who = draw(st.sampled_from(["Ward Manager Hask", "Doctor Tamberlane", "Night Sister Ruel"]))
    number = f"{dose:,}" if draw(st.booleans()) else str(dose)
    sentences = {
        "number": (f"Adults start {drug} with {number} mg.", f"What is the first dose of {drug}?", f"{number} mg"),
        "days": (f"A course of {drug} lasts {days} days.", f"How long is a course of {drug}?", f"{days} days"),
        "short": (f"The key for {drug} is held by {who}.", f"Who holds the key for {drug}?", who),
        "yesno": (f"Relatives may not give {drug} at home.", f"May relatives give {drug} at home?", "no"),
    }  # fmt: skip
    kind = draw(st.sampled_from(sorted(sentences)))
    order = draw(st.permutations(sorted(sentences)))
    text = " ".join([f"{drug} {OPENING}", *(sentences[name][0] for name in order)])
    quote, question, answer = sentences[kind]
    chunk = chunk_of(drug, text)
    return chunk, item_of(chunk, question, answer, quote, "number" if kind == "days" else kind)


PIECES = (
    "The",
    "Corvalexin",
    "adult",
    "12",
    "mg",
    "No. 3:",
    "(a)",
    "2,000",
    "ml's",
    "Act 2019",
    "not",
    "ü",
    "##",
    "\n",
)
CORPUS = [chunk_of(drug, f"{drug} {OPENING} It is checked by Doctor Vane or Night Sister Elm.") for drug in DRUGS]
VOCABULARY = vocabulary_of(CORPUS)


@limits(max_examples=200, deadline=None)
@given(oracles(), st.integers(0, 50), st.integers(0, 3))
def test_an_edit_looks_like_its_oracle_and_answers_nothing(oracle, seed, n):
    chunk, item = oracle
    edit = edit_of(chunk, item, VOCABULARY, seed=seed, n=n)
    assert edit is not None
    shown = "\n".join((edit.title, *edit.headings, edit.text))
    if item.answer_type != "yesno":
        assert find_span(shown, item.answer) is None
    assert all(normalize(quote.text) not in normalize(edit.text) for quote in item.quotes)
    subject = subjects_of(item, chunk, VOCABULARY)[0]
    assert subject == chunk.title
    assert find_span(shown, subject) is None
    assert edit.text != chunk.text
    assert likeness(chunk.text, edit.text) >= LEAST_ALIKE
    assert (edit.id, edit.document_id) == (f"{chunk.id}~edit{n}", chunk.document_id)
    assert edit.title in DRUGS
    assert not speaks_of(item.question, edit)
    assert edit == edit_of(chunk, item, VOCABULARY, seed=seed, n=n)


@limits(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=30), st.data())
def test_whatever_the_text_there_is_a_sound_edit_or_none(parts, data):
    chunk = chunk_of("Corvalexin", " ".join(parts))
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(parts)), st.integers(0, len(parts)))))
    answer = " ".join(parts[start:end]).strip()
    item = GroundedQuestion(
        "q", "Is Corvalexin for an adult?", answer, data.draw(st.sampled_from(["short", "number", "list"])),
        (Passage(chunk.id, chunk.text),), (chunk.document_id,), "qa",
    )  # fmt: skip
    edit = edit_of(chunk, item, VOCABULARY, seed=0)
    if edit is not None:
        assert find_span(edit.text, answer) is None
        assert normalize(chunk.text) not in normalize(edit.text)
        assert likeness(chunk.text, edit.text) >= LEAST_ALIKE


def test_title_headings_articles_and_capitals_follow():
    text = "ALVORAN is an Alvoran tablet. An alvoran tablet of 12 mg is given to every one of the patients of the ward."
    chunk = replace(chunk_of("Alvoran", text), headings=("Alvoran doses",))
    item = item_of(chunk, "What does an Alvoran tablet hold?", "12 mg", "An alvoran tablet of 12 mg")
    vocabulary = vocabulary_of([chunk, chunk_of("Bentrazol", "Bentrazol is old.")])
    edit = edit_of(chunk, item, vocabulary, seed=0)
    assert (edit.title, edit.headings) == ("Bentrazol", ("Bentrazol doses",))
    assert edit.text.startswith("BENTRAZOL is a Bentrazol tablet. A bentrazol tablet of ")


def test_a_scope_is_turned_into_its_other_half():
    chunk = chunk_of("Sepsis in Adults", "Adults get 500 ml of fluid over 15 minutes when their pressure is low.")
    item = item_of(chunk, "How much fluid does an adult get?", "500 ml", "Adults get 500 ml of fluid")
    edit = edit_of(chunk, item, vocabulary_of([chunk]), seed=0)
    assert edit.title == "Sepsis in Children"
    assert edit.text.startswith("Children get ")
    assert "500 ml" not in edit.text


def test_words_become_another_answer_of_the_same_type():
    chunk = chunk_of("Alvoran", "Alvoran is kept in the lower cold room. It is brought up by the porter every morning.")
    item = item_of(chunk, "Where is Alvoran kept?", "the lower cold room", "Alvoran is kept in the lower cold room.")
    other = replace(item, id="o", answer="a locked steel cupboard")
    edit = edit_of(chunk, item, vocabulary_of([chunk, *CORPUS], [item, other]), seed=0)
    assert edit.text.split(". ")[0].endswith("is kept in the locked steel cupboard")
    assert edit_of(chunk, item, vocabulary_of([chunk, *CORPUS], [item]), seed=0) is None  # nothing to put there


@pytest.mark.parametrize(
    ("question", "answer", "text"),
    [
        ("How many beds are there?", "12", "Alvoran ward has 12 beds and more."),  # names no subject
        (
            "Who rang on Sorrel Street?",
            "12",
            "There are 12 bells. Sorrel Street is somewhere else.",
        ),  # not in the quote
        ("What is the dose of Alvoran?", "24 mg", "Alvoran is given as 12 mg twice."),  # the answer is worked out
    ],
)
def test_where_no_rule_is_sound_there_is_no_edit(question, answer, text):
    chunk = chunk_of("Doses", text)
    item = item_of(chunk, question, answer, text.split(". ")[0], "number")
    assert edit_of(chunk, item, VOCABULARY, seed=0) is None


def test_several_edits_differ_and_are_numbered():
    chunk = chunk_of("Alvoran", f"Alvoran {OPENING} It is given at 50 mg.")
    item = item_of(chunk, "How is Alvoran given?", "50 mg", "It is given at 50 mg.", "number")
    edits = edits_of(chunk, item, VOCABULARY, seed=0, most=4)
    assert [edit.id for edit in edits] == [f"{chunk.id}~edit{n}" for n in range(4)]
    assert len({edit.text for edit in edits}) == 4


def test_an_edit_speaks_of_the_question_about_its_new_subject():
    chunk = chunk_of("Alvoran", f"Alvoran {OPENING} The first dose is 50 mg.")
    assert speaks_of("What is the first dose of Alvoran?", chunk)
    assert not speaks_of("What is the first dose of Bentrazol?", chunk)
    assert not speaks_of("What does a lost Alvoran key cost?", chunk)


def test_names_are_runs_of_capitals_and_no_sentence_starts():
    text = "Patients of the Sorrel Hospital, under the Companies Act 2016, see Dr Hask. Monday is free.\nBeds are not."
    assert names(text) == ["Sorrel Hospital", "Companies Act 2016", "Dr Hask"]
