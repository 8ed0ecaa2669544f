from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.grounding import (
    MOST_QUOTE_WORDS,
    best_sentence,
    chunk_of,
    content_words,
    ground,
    locate,
    quote_around,
    sentences,
    shorten,
    words,
)
from raft.records import Chunk, Document, Evidence, QaItem

PROSE = st.lists(st.sampled_from(["Dose", "is", "12", "mg.", "Why?", "(a)", "\n\n", "\n- item", "e.g.", '"so."'])).map(
    " ".join
)


def cut(text, *edges):
    return [Chunk(f"d#{n}", "d", text[a:b], a, b) for n, (a, b) in enumerate(edges)]


def grounded(item, text, chunks=None):
    chunks = chunks or cut(text, (0, len(text)))
    return ground(item, {"d": Document("d", text)}, {"d": chunks})


def qa(**given):
    return QaItem(**({"id": "1", "question": "How much?", "answer": "12 mg", "gold_document_ids": ("d",)} | given))


def test_sentences_end_where_readers_see_an_end():
    text = (
        '# Doses\n\nGive 2.5 mg, e.g. Corvalexin by mouth. Dr. Voss agreed. Is it\nsafe? "It is." Then:\n'
        "- first item\n- second item\n(a) a clause"
    )
    found = [text[start:end] for start, end in sentences(text)]
    assert found == [
        "# Doses", "Give 2.5 mg, e.g. Corvalexin by mouth.", "Dr. Voss agreed.", "Is it\nsafe?", '"It is."', "Then:",
        "- first item", "- second item", "(a) a clause",
    ]  # fmt: skip


@given(PROSE)
def test_sentences_cover_every_word_once_and_in_order(text):
    spans = sentences(text)
    assert [word for start, end in spans for word in text[start:end].split()] == text.split()
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


@given(PROSE, st.integers(0, 200), st.integers(1, 60))
def test_a_quote_is_a_short_slice_of_the_text(text, start, length):
    quote = quote_around(text, (start, start + length), "12")
    assert quote in text
    assert len(quote.split()) <= MOST_QUOTE_WORDS


def test_long_evidence_is_cut_to_what_proves_the_answer():
    filler = "The committee of the hospital met and talked about many other things for a long time. " * 4
    text = f"{filler}The first dose is 12 mg. {filler}".strip()
    assert quote_around(text, (0, len(text)), "12 mg") == "The first dose is 12 mg."
    endless = " ".join(["word"] * 50 + ["12 mg"] + ["word"] * 50)
    quote = quote_around(endless, (0, len(endless)), "12 mg")
    assert "12 mg" in quote
    assert len(quote.split()) == MOST_QUOTE_WORDS


def test_words_keep_numbers_whole():
    assert words("Give 2.5 mg, or 1,000 ml.") == ["give", "2.5", "mg", "or", "1,000", "ml"]
    assert content_words("What is the dose of it?") == {"dose"}
    assert content_words("Is it?") == {"is", "it"}


def test_shorten_keeps_whole_sentences_and_always_the_first():
    assert shorten("One two. Three four. Five.", 4) == "One two. Three four."
    assert shorten("One two three\nfour five. Six.", 3) == "One two three four five."
    assert shorten("") == ""


def test_the_sentence_with_the_answer_goes_before_the_one_with_more_shared_words():
    text = "What is the dose of Corvalexin in adults, many ask. It is 12 mg. Nothing else is known."
    start, end = best_sentence(text, "12 mg", "What is the dose of Corvalexin in adults?")
    assert text[start:end] == "It is 12 mg."
    assert best_sentence("", "12 mg", "dose") is None


def test_offsets_are_taken_when_they_fit_and_the_words_sought_when_not():
    document = Document("d", "Adults start with 12 mg. Children start with 5 mg.")
    assert locate(document, Evidence("d", "", 18, 23)) == (18, 23)
    assert locate(document, Evidence("d", "5 mg", 0, 6)) == (45, 49)
    assert locate(document, Evidence("d", "", 18, 999)) is None
    assert locate(document, Evidence("d", "7 mg")) is None


def test_evidence_that_straddles_chunks_is_quoted_from_the_one_that_holds_most():
    text = "Adults of the ward start with twelve mg of Corvalexin by mouth every day."
    chunks = cut(text, (0, 30), (18, len(text)))
    item = grounded(qa(answer="twelve mg", evidence=(Evidence("d", text),)), text, chunks)
    assert item.oracle_ids == ("d#1",)
    assert item.quotes[0].text == text[19:]
    assert chunk_of(chunks, (100, 120)) is None


def test_of_chunks_that_hold_all_of_it_the_one_with_most_room_around_is_taken():
    text = "a" * 100
    assert chunk_of(cut(text, (0, 60), (40, 100)), (50, 58)).id == "d#1"


def test_two_pieces_of_evidence_give_two_oracles_and_a_third_is_not_used():
    text = "First is 12 mg.\n\nSecond is 5 mg.\n\nThird is 3 mg."
    chunks = cut(text, (0, 15), (17, 32), (34, 48))
    evidence = tuple(Evidence("d", part) for part in ("First is 12 mg.", "Second is 5 mg.", "Third is 3 mg."))
    assert grounded(qa(evidence=evidence), text, chunks).oracle_ids == ("d#0", "d#1")


@pytest.mark.parametrize(
    ("long_answer", "reasoning"),
    [
        ("The formulary sets twelve. It is old.", "The formulary sets twelve. It is old."),
        ("", ""),
        ("Adults start with 12 mg.", ""),
        ("12 mg", ""),
    ],
)
def test_reasoning_is_the_long_answer_unless_that_says_nothing_new(long_answer, reasoning):
    item = grounded(qa(long_answer=long_answer), "Adults start with 12 mg. Children do not.")
    assert item.reasoning == reasoning
    assert item.reasoning_source == ("long_answer" if reasoning else "none")
    assert item.quotes[0].text == "Adults start with 12 mg."


def test_a_no_is_not_looked_for_among_the_words_of_the_document():
    text = "There is no swimming pool. The drug lowers the pressure of adults."
    item = qa(question="Does the drug raise the pressure?", answer="no", answer_type="yesno")
    assert grounded(item, text).quotes[0].text == "The drug lowers the pressure of adults."


def test_evidence_that_is_nowhere_gives_no_quote():
    assert grounded(qa(evidence=(Evidence("d", "Adults start with 99 mg."),)), "Adults start with 12 mg.").quotes == ()
    assert ground(qa(), {}, {}).quotes == ()


@given(st.integers(0, 30), st.integers(2, 40), st.integers(20, 60))
def test_every_quote_stands_verbatim_in_its_chunk(start, length, size):
    text = "Adults start with 12 mg by mouth. Children weigh less, so they start with 5 mg. Nobody takes more."
    chunks = cut(text, *((a, min(len(text), a + size)) for a in range(0, len(text), size - 10)))
    item = grounded(qa(evidence=(Evidence("d", "", start, start + length),)), text, chunks)
    by_id = {chunk.id: chunk.text for chunk in chunks}
    assert item.quotes
    assert all(quote.text in by_id[quote.chunk_id] for quote in item.quotes)
