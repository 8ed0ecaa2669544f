from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.clauses import can_be_asked, opening, whole_answer


def parts(marked):
    """The sentence without the brackets around its answer, where it stands, and the answer's span."""
    before, answer, after = marked.replace("]", "[").split("[")
    text = before + answer + after
    return text, (0, len(text)), (len(before), len(before) + len(answer))


@pytest.mark.parametrize(
    ("marked", "whole"),
    [
        ("The score is taken every [4 hours] at night.", "every 4 hours"),
        ("It is given no more often than every [4 hours].", "no more often than every 4 hours"),
        ("Staff watch for the first [20 minutes] of it.", "the first 20 minutes"),
        ("Stop if it rises by [1.5 degrees] or more.", "1.5 degrees or more"),
        ("A copy costs [8 marns] for each page of it.", "8 marns for each page"),
        ("The fee is [2 marns] for each cubic metre used.", "2 marns for each cubic metre"),
        ("The aim is between [0.5 and 1.5 kg] a day.", "between 0.5 and 1.5 kg"),
        ("A kitchen gets from zero to [four lanterns] then.", "from zero to four lanterns"),
        ("It may be taken up to [8 hours] late.", "8 hours late"),
        ("The letter is answered within [10 days] of it.", "10 days"),
    ],
)
def test_an_amount_is_taken_with_what_belongs_to_it(marked, whole):
    text, sentence, span = parts(marked)
    assert text[slice(*whole_answer(text, sentence, span))] == whole


@pytest.mark.parametrize(
    ("marked", "kind"),
    [
        ("A drug round is begun within [2 hours] of the alarm.", "number"),
        ("Within [four working days] of the payment the Custodian sends a number.", "number"),
        ("[At least 7 days] lie between talk and operation.", "number"),
        ("If the level is high, wait [12 hours] and test again.", "number"),
        ("Give the dose, and call the [Pain Team] at once.", "name"),
        ("Keys are kept with the [ward keys].", "phrase"),
        ("The lease runs until [30 June] of the next year.", "date"),
    ],
)
def test_what_stands_in_a_main_clause_can_be_asked_for(marked, kind):
    assert can_be_asked(*parts(marked), kind)


@pytest.mark.parametrize(
    ("marked", "kind"),
    [
        ("A pump that cannot be found for [14 days] is reported lost.", "number"),
        ("A closure longer than [six days] needs an order.", "number"),
        ("A lease of land for [less than two years] may be signed by hand.", "number"),
        ("If no urine has passed for [5 hours], insert a catheter.", "number"),
        ("Where no bus runs within [1.5 kilometres] of it, the employer must pay.", "number"),
        ("A grant is not cut until the drought has lasted for [20 days].", "number"),
        ("An unplanned return within [28 days] is reviewed by the board.", "number"),
        ("It lies between [14] and 40 days after that.", "number"),
        ("A landlord could take up to [ten weeks]' rent.", "number"),
        ("The patient is escorted by a [nurse] and a doctor.", "phrase"),
        ("Call the [Juniper Unit] registrar if it is high.", "name"),
        ("It is not given except on the advice of the [Pain Team].", "name"),
        ("Patients are seen by the fracture nurse, [Dilys Harkaway].", "name"),
        ("Only weak ampoules are stocked outside the [Juniper Unit].", "name"),
        ("He comes every day, including [Sundays].", "name"),
        ("The site is used in need only, and the line is removed within [48 hours].", "number"),
        ("The nurse is called for any dose of [more than 50 units] given by mistake.", "number"),
        ("It is recorded at the start, at [15 minutes], and at the end.", "number"),
    ],
)
def test_what_a_small_teacher_would_ask_wrongly_is_not_asked_for(marked, kind):
    assert not can_be_asked(*parts(marked), kind)


@pytest.mark.parametrize(
    ("marked", "kind", "asks"),
    [
        ("A round is begun within [2 hours] of the alarm.", "number", "Within how many hours of"),
        ("The test is unreliable for [18 hours] after Voxaclear.", "number", "For how many hours after"),
        ("The clips are taken out [13 days] after the operation.", "number", "How many days after"),
        ("The levels are measured [every 2 months] in all.", "number", "How often"),
        ("A lost plate is replaced for [19 marns].", "number", "For how many marns"),
        ("The fee of the hall is [$1,200] in all.", "number", "How much"),
        ("The rent is raised by [4 per cent] a year.", "number", "By what percentage"),
        ("Tell the surgeon [at least 7 days] before it.", "number", "At least how many days before"),
        ("It is answered within [1 working day] by letter.", "number", "Within how many working days"),
        ("The member of staff takes [1 mg] of it.", "number", "How many mg of"),
        ("The rate must not exceed [40 mg per minute].", "number", "How many mg per minute"),
        ("A copy costs [8 marns for each page].", "number", "How many marns"),
        ("The fee rises by [2 percentage points] for the rest.", "number", "By how many percentage points"),
        ("The hall of the lodge holds [1,000 people] in all.", "number", "How many people"),
        ("The keeper makes [one copy] of it.", "number", "How many copies of"),
        ("De boete voor een boek is [25 euro] per dag.", "number", ""),
        ("The dose is halved in patients [over 75 years].", "number", "Over what age"),
        ("It may be taken [up to 8 hours late].", "number", "Up to how many hours late"),
        ("The rules apply to claims lodged on or after [1 May 2019].", "date", "On or after which date"),
        ("The old tariff was repealed in [1987].", "date", "In which year"),
        ("Keys are kept with the [ward keys].", "phrase", "With what"),
        ("Give the dose and call the [Pain Team] at once.", "name", ""),
        ("A quiet crossing means a [crossing without talk].", "phrase", ""),
        ("Los pedidos se entregan en [10 dias] como máximo.", "number", ""),
    ],
)
def test_a_question_opens_with_the_words_around_its_answer(marked, kind, asks):
    assert opening(*parts(marked), kind) == asks


WORDS = st.sampled_from(
    ["the", "within", "every", "3", "days", "one", "day", "'s", ",", "and", "4 mg", "that", "is", "%"]
)


@given(st.lists(WORDS, min_size=1).map(" ".join) | st.text(min_size=1), st.data())
def test_any_text_is_borne(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    span = (start, data.draw(st.integers(start + 1, len(text))))
    begin, end = whole_answer(text, (0, len(text)), span)
    assert 0 <= begin <= span[0] < span[1] <= end <= len(text)
    for kind in ("number", "date", "name", "phrase"):
        can_be_asked(text, (0, len(text)), span, kind)
        assert "  " not in opening(text, (0, len(text)), span, kind)
