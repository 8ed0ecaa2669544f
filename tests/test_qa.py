"""Asking through any ChatModel, and checking quotes against what was given."""

from __future__ import annotations

from raft.prompts import parse_answer
from raft.qa import check_quotes, read_answer
from raft.records import Chunk

CHUNKS = (
    Chunk("a#1", "a", "The first dose is 12 mg.\nThe second\u00a0dose is \u201c8 mg\u201d.", 100, 152),
    Chunk("b#0", "b", "Ward 7 closes at 22:00.", 0, 23),
)


def said(quote: str, document: int) -> str:
    return f"Document [{document}] says ##begin_quote##{quote}##end_quote##\n<ANSWER>: x"


def test_a_verbatim_quote_is_found_with_its_place_in_the_document() -> None:
    (quote,) = check_quotes(parse_answer(said('the second dose is "8 mg"', 1)), CHUNKS)
    assert quote.verbatim
    assert not quote.misnamed
    assert quote.chunk is CHUNKS[0]
    assert CHUNKS[0].text[quote.start - 100 : quote.end - 100] == "The second\u00a0dose is \u201c8 mg\u201d"


def test_a_quote_of_another_document_than_named_is_misnamed_and_a_forged_one_is_not_verbatim() -> None:
    (misnamed,) = check_quotes(parse_answer(said("closes at 22:00", 1)), CHUNKS)
    assert misnamed.verbatim
    assert misnamed.misnamed
    (forged,) = check_quotes(parse_answer(said("closes at 23:00", 2)), CHUNKS)
    assert not forged.verbatim
    (outside,) = check_quotes(parse_answer(said("closes at 22:00", 9)), CHUNKS)
    assert outside.misnamed


def test_words_cut_from_inside_a_word_are_not_a_quote() -> None:
    (quote,) = check_quotes(parse_answer(said("2 mg", 1)), CHUNKS)
    assert not quote.verbatim


def test_a_short_answer_is_its_first_line() -> None:
    short = read_answer("12 mg\nbecause", short=True)
    assert (short.final, short.well_formed) == ("12 mg", True)


def test_a_short_answer_may_still_carry_the_marker() -> None:
    assert read_answer("Reasoning.\n<ANSWER>: 12 mg", short=True).final == "12 mg"
