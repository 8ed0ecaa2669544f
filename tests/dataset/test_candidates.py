from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.candidates import answer_candidates
from raft.dataset.grounding import sentences
from raft.records import Chunk


def chunk_of(text, title="", headings=()):
    return Chunk("c", "d", text, 0, len(text), title, headings)


def found_in(text, most=9, **where):
    return [(c.kind, text[slice(*c.answer)]) for c in answer_candidates(chunk_of(text, **where), most, 0)]


@pytest.mark.parametrize(
    ("sentence", "kind", "answer"),
    [
        ("Zelocillin is continued at 1.6 g every 8 hours.", "number", "1.6 g every 8 hours"),
        ("The dose is halved in patients under 35 ml per minute.", "number", "under 35 ml per minute"),
        ("Call at once about a breathing rate below 10 per minute.", "number", "below 10 per minute"),
        ("A late lantern costs the borrower 4 crowns a day.", "number", "4 crowns a day"),
        ("The tenant pays interest at a rate of 2.5% on arrears.", "number", "2.5%"),
        ("The deposit for the small hall amounts to $1,200.50 in all.", "number", "$1,200.50"),
        ("Notice must be given within thirty (30) days of the breach.", "number", "thirty (30) days"),
        ("No adult may receive more than 2,000 ml of bolus fluid.", "number", "2,000 ml"),
        ("Keep the opened vials at 15 to 25 °C in the dark.", "number", "15 to 25 °C"),
        ("Discharge follows two blood tests in a row below the line.", "number", "two blood tests"),
        ("The letter is answered within 2 working days of its receipt.", "number", "2 working days"),
        ("The stage of the hall measures more than 120 square metres.", "number", "more than 120 square metres"),
        ("4.2 The Carrier insures the load at 14 marns a sack.", "number", "14 marns a sack"),
        ("(4) An employee tells the Data Warden of each breach.", "name", "Data Warden"),
        ("Stalls at a corner must be not wider than 3 paces.", "number", "not wider than 3 paces"),
        ("Patients take 2 tablets unless the doctor has said no.", "number", "2 tablets"),
        ("The staff keep 3 nights here for the guests.", "number", "3 nights"),
        ("The vial of the clinic holds 2000 IU of oil.", "number", "2000 IU"),
        ("The rinse needs 500 mL water at each of the basins.", "number", "500 mL"),
        ("You can't keep more than 5 dogs in the lodge.", "number", "5 dogs"),
        ("The hearth of the lodge must be made of oak alone.", "phrase", "oak alone"),
        ("The syrup of the lodge contains lactose.", "phrase", "lactose"),
        ("Each letter is answered in a reply written by the manager within 10 days.", "number", "10 days"),
        ("At most a 2-day supply is handed to the patient.", "number", "2-day supply"),
        ("The lease of the upper mill ends on 3 February 2025 at noon.", "date", "3 February 2025"),
        ("The tolls of the canal are halved from 2024-11-01 on.", "date", "2024-11-01"),
        ("The old tariff of the tramway was repealed in 1987.", "date", "1987"),
        ("Give the first dose and call Critical Care Outreach at once.", "name", "Critical Care Outreach"),
        ("The dose is found in monograph OV-FM-107 of the formulary.", "name", "OV-FM-107"),
        ("Ferries leave in fog only with leave of the Warden of the Tides.", "name", "Warden of the Tides"),
        ("A quiet crossing means a crossing with few passengers.", "phrase", "crossing with few passengers"),
        ("Expired stock must be destroyed by the pharmacist alone because of fumes.", "phrase", "pharmacist alone"),
        ("A tablet must not be mixed with hot milk, tea or coffee.", "phrase", "hot milk"),
        ("- Quiet crossing: a trip on which nobody speaks.", "phrase", "Quiet crossing"),
    ],
)  # fmt: skip
def test_the_fact_of_a_sentence_is_found(sentence, kind, answer):
    assert found_in(sentence) == [(kind, answer)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "## Doses above 12 mg for adults and older children",
        "| below 2.5 mmol/l | repeat the test after 4 hours |",
        "Which dose of 12 mg is given to adults at night?",
        "Give 12 mg now.",
        "They gave what the law 2018 asks of all of them.",
        "The gate opens at 8:30 am each day.",
        "In the 2021 version nothing was said of the bell.",
        "(4) An employee must not do such work at all.",
        "Doors are opened when the bell is rung at 06:00 by hand.",
        "The window is yellow when the sun has gone down.",
        "Near misses are reported as events are.",
        "Document OV-PR-001, version 6, effective 3 February 2025.",
        "Act 22 of 2018 of the Moot of Caldermark, as amended.",
        "The rules of section 12 and those after it apply here.",
        "The tenant and seventy others go on as they like.",
        "Adults start slowly and go on for as long as they like.",
        "See the rules in section 5 days after that.",
    ],
)
def test_headings_rows_questions_and_plain_words_give_nothing(text):
    assert found_in(text) == []


def test_headings_and_numbering_before_a_sentence_are_no_part_of_it():
    text = (
        "Changes of directors and seat\nA change of a director must be filed with the roll within 15 days.\n\n"
        "4.3 Up to five unused days may be carried\ninto the next year of service by every employee of the Lodge."
    )
    found = [text[slice(*c.sentence)] for c in answer_candidates(chunk_of(text), 9, 0)]
    assert [said.split()[0] for said in found] == ["A", "Up"]


def test_an_amount_that_the_next_sentence_sets_aside_is_not_asked_for():
    rate = "The rate of the infusion must not exceed 40 mg per minute."
    assert found_in(f"{rate} It is recorded.") == [("number", "40 mg per minute")]
    for following in (
        "In patients over 70 years it is 20 mg per minute.",
        "It is recorded. In patients with heart disease it is 20 mg per minute.",
        "The consultant may shorten it.",
    ):
        assert ("number", "40 mg per minute") not in found_in(f"{rate} {following}")


def test_sentences_about_the_document_are_passed_over():
    assert found_in("Owned by Sister Philippa Dray of Hazel Ward. Applies to claims lodged after 1 May 2019.") == []


def test_what_the_title_says_is_not_asked_for():
    text = "The first dose for adults is given as Corvalexin Forte tablets."
    assert ("name", "Corvalexin Forte") in found_in(text)
    assert ("name", "Corvalexin Forte") not in found_in(text, title="Corvalexin Forte")


def test_limits_come_before_other_facts_and_clear_sentences_before_unclear_ones():
    text = (
        "It must be given for at least 9 days in spring. The archive is kept by the second warden. "
        "Borrowers return the lantern within 8 days of the feast. The feast is held in the Long Barn."
    )
    order = [found_in(text, most) for most in (1, 2, 3, 4)]
    assert order[0] == [("number", "8 days")]
    assert ("name", "Long Barn") in order[2]
    assert order[3] == [
        ("number", "at least 9 days"),
        ("phrase", "second warden"),
        ("number", "8 days"),
        ("name", "Long Barn"),
    ]


def test_equals_are_drawn_by_the_seed():
    chunk = chunk_of(
        " ".join(f"The lantern of guild member {word} costs {n} crowns a day." for n, word in enumerate("abcdefgh", 2))
    )
    draws = {tuple(answer_candidates(chunk, 3, seed)) for seed in range(8)}
    assert len(draws) > 1
    assert answer_candidates(chunk, 3, 5) == answer_candidates(chunk, 3, 5)


WORDS = st.sampled_from(
    [
        "The",
        "lodge",
        "must be given by",
        "12 mg",
        "3 days",
        "within",
        "$5",
        "Long Barn",
        "of",
        "2019",
        *".,-#|:?\n",
        "ten",
    ]
)


@given(st.lists(WORDS, max_size=60).map(" ".join) | st.text(max_size=100), st.integers(0, 4))
def test_candidates_lie_within_one_sentence_each(text, most):
    found = answer_candidates(chunk_of(text), most, 0)
    assert len(found) <= most
    whole = sentences(text)
    for candidate in found:
        (start, end), (a, b) = candidate.sentence, candidate.answer
        assert start <= a < b <= end
        assert text[a:b] == text[a:b].strip()
        assert text[a:b] != text[start:end]
        assert sum(s <= start and end <= e for s, e in whole) == 1
    assert [c.sentence for c in found] == sorted({c.sentence for c in found})
