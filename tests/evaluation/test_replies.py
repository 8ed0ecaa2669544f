"""Scores of single replies, by hand, and that no metric vanishes without a word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from raft.errors import InputError
from raft.evaluation import replies
from raft.evaluation.cases import SYSTEMS, Case, build_cases
from raft.evaluation.replies import measured, score_answer, score_reply
from raft.prompts import REFUSAL, parse_answer, render_refusal, render_target
from raft.records import Answer, QaItem, Quote
from tests.evaluation import world

RAG = SYSTEMS["rag"]


def cases() -> list[Case]:
    items = [item for item in world.questions() if item.split == "test"]
    return build_cases(world.index(), items, top_k=2, mode="fused", seed=0)


def case_of(name: str) -> Case:
    return next(case for case in cases() if case.item.id == name)


def row(case: Case, text: str, system: str = "rag", error: str | None = None) -> dict:
    return {
        "system": system, "question_id": case.item.id, "model": "m", "text": text, "error": error, "truncated": False,
        "prompt_tokens": 10, "completion_tokens": 5, "seconds": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("question", "text", "error", "em", "f1"),
    [
        ("toll-4", render_target("23 crowns"), None, 1.0, 1.0),
        ("toll-4", "23 crowns", None, 1.0, 1.0),  # without the mark the whole text is the answer
        ("market-4", render_target("6"), None, 1.0, 1.0),  # an alias
        ("toll-4", render_target("23 crowns a day"), None, 0.0, 0.8),  # "a" is no word: P = 2/3, R = 1
        ("toll-4", render_refusal(), None, 0.0, 0.0),  # declines what can be answered
        ("mayor-0", render_refusal(), None, 1.0, 1.0),
        ("mayor-0", render_target("Mr Gallin"), None, 0.0, 0.0),
        ("toll-4", "", None, 0.0, 0.0),
        ("toll-4", "", "EndpointError: 500", 0.0, 0.0),
        ("mayor-0", "", "EndpointError: 500", 0.0, 0.0),  # a failure is no abstention
        ("mayor-0", "", None, 0.0, 0.0),  # and silence is none
        ("mayor-0", render_target(""), None, 0.0, 0.0),
    ],
)
def test_em_and_f1_of_a_reply(question: str, text: str, error: str | None, em: float, f1: float) -> None:
    case = case_of(question)
    result = score_reply(row(case, text, error=error), RAG, case, ())
    assert (result.em, result.f1, result.right, result.error) == (em, pytest.approx(f1), f1 >= 0.5, error)
    if error is not None:
        assert not result.abstained


def test_quotes_are_looked_up_and_placed_in_their_chunk() -> None:
    case = case_of("market-4")
    oracle = next(chunk for chunk in case.with_oracle if chunk.id in case.oracle_ids)
    other = next(chunk for chunk in case.with_oracle if chunk.id not in case.oracle_ids)
    quotes = [Quote(oracle.text[4:20], 1), Quote(other.text, 2), Quote("made up", 1)]
    system = SYSTEMS["rag_oracle"]
    result = score_reply(row(case, render_target("day 6", "", quotes), "rag_oracle"), system, case, ())
    found = [(q.chunk_id, q.oracle) for q in result.quotes]
    assert found == [(oracle.id, True), (other.id, False), (None, False)]
    first = result.quotes[0]
    assert oracle.text[first.start : first.end] == oracle.text[4:20]
    assert result.oracle_given


TOLL = Quote(world.town_text(4).split(". ")[0] + ".", 1)


@pytest.mark.parametrize(
    ("question", "text", "error", "scores"),
    [  # rouge_l, contains, numeric, truthfulness, citation_recall, groundedness
        ("toll-4", render_target("23 crowns", "", [TOLL]), None, (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
        ("toll-4", render_target("23 crowns"), None, (1.0, 1.0, 1.0, 1.0, 0.0, 1.0)),
        ("toll-4", render_target("crowns 23"), None, (0.5, 0.0, 1.0, 1.0, 0.0, 1.0)),
        ("toll-4", render_target("99 crowns"), None, (0.5, 0.0, 0.0, -1.0, 0.0, 0.0)),  # F1 is 0.5, the number another
        ("toll-4", render_target("99"), None, (0.0, 0.0, 0.0, -1.0, 0.0, 0.0)),
        ("toll-4", render_refusal(), None, (0.0, 0.0, 0.0, 0.0, 0.0, None)),
        ("toll-4", "", None, (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),  # an empty answer is not grounded
        ("toll-4", "", "boom", (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
        ("market-4", render_target("6"), None, (1.0, 1.0, 1.0, 1.0, 0.0, 1.0)),  # an alias
        ("mayor-0", render_refusal(), None, (1.0, 1.0, None, 1.0, None, None)),
        ("mayor-0", render_target("Mr Gallin"), None, (0.0, 0.0, None, -1.0, None, 0.0)),
        ("mayor-0", "", "boom", (0.0, 0.0, None, 0.0, None, 0.0)),
    ],
)
def test_the_other_scores_of_a_reply(
    question: str, text: str, error: str | None, scores: tuple[float | None, ...]
) -> None:
    case = case_of(question)
    result = score_reply(row(case, text, error=error), RAG, case, ())
    found = (result.rouge_l, result.contains, result.numeric, result.truthfulness, result.citation_recall,
             result.groundedness)  # fmt: skip
    assert found == scores


@pytest.mark.parametrize("reference", ["the documents", "The"])  # words of the refusal; none, once articles are gone
def test_a_refusal_and_a_failure_match_no_reference(reference: str) -> None:
    item = QaItem("q", "Where does it stand?", reference)
    nothing = {"em": 0.0, "f1": 0.0, "rouge_l": 0.0, "contains": 0.0, "numeric": None, "critical_f1": None}
    assert score_answer(parse_answer(render_refusal()), item) == nothing
    assert score_answer(Answer("", "", well_formed=False), item, failed=True) == nothing
    unanswerable = QaItem("q", "Where does it stand?", "", "unanswerable")
    assert score_answer(Answer("", "", abstained=True), unanswerable, failed=True) == nothing
    assert score_answer(Answer(REFUSAL, REFUSAL, abstained=True), unanswerable)["rouge_l"] == 1.0


def test_without_documents_nothing_can_be_grounded_or_cited() -> None:
    case, system = case_of("toll-4"), SYSTEMS["closed_book"]
    result = score_reply(row(case, render_target("23 crowns"), "closed_book"), system, case, ())
    assert (result.groundedness, result.citation_recall, result.rouge_l) == (None, None, 1.0)
    short = SYSTEMS["rag_short"]
    result = score_reply(row(case, "23 crowns", "rag_short"), short, case, ())
    assert (result.groundedness, result.citation_recall) == (1.0, None)
    nothing_found = replace(case, hits=())
    result = score_reply(row(case, render_target("23 crowns")), RAG, nothing_found, ())
    assert (result.groundedness, result.citation_recall) == (0.0, None)


def test_what_a_title_says_is_given_too() -> None:
    case = case_of("toll-4")
    titled = replace(case, hits=tuple(replace(c, title="Formulary", headings=("Corvalexin",)) for c in case.hits))
    text = render_target("corvalexin, in the formulary")
    assert score_reply(row(case, text), RAG, titled, ()).groundedness == 1.0
    assert score_reply(row(case, text), RAG, case, ()).groundedness == 0.0


@pytest.mark.parametrize(("answer_type", "labels"), [("yesno", ()), ("short", ("yes", "no"))])
def test_yes_and_no_are_not_looked_for_in_documents(answer_type, labels: Sequence[str]) -> None:
    case = replace(case_of("toll-4"), item=QaItem("q", "Is there a toll?", "yes", answer_type))
    result = score_reply(row(case, render_target("yes")), RAG, case, labels)
    assert (result.right, result.truthfulness, result.groundedness) == (True, 1.0, None)


@pytest.mark.parametrize("answer", ["", "  "])
def test_an_empty_reference_is_refused_with_metric_and_question(answer: str) -> None:
    case = replace(case_of("toll-4"), item=QaItem("q7", "What is the toll?", answer))
    for text, error in ((render_target("23 crowns"), None), (render_refusal(), None), ("", "boom")):
        with pytest.raises(InputError, match=r"metric rouge_l failed on question 'q7' \(ValueError: no reference"):
            score_reply(row(case, text, error=error), RAG, case, ())


@pytest.mark.parametrize("name", sorted(replies.AGAINST_REFERENCES))
def test_a_metric_that_raises_or_gives_no_number_ends_the_run_by_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(prediction: str, references: Sequence[str]) -> float:
        return 1.0 / (len(prediction) - len("23 crowns"))

    case = case_of("toll-4")
    monkeypatch.setitem(replies.AGAINST_REFERENCES, name, broken)
    assert score_reply(row(case, render_target("7 crowns")), RAG, case, ()).error is None
    with pytest.raises(InputError, match=rf"metric {name} failed on question 'toll-4' \(ZeroDivisionError: "):
        score_reply(row(case, render_target("23 crowns")), RAG, case, ())
    monkeypatch.setitem(replies.AGAINST_REFERENCES, name, lambda prediction, references: math.nan)
    with pytest.raises(InputError, match=rf"metric {name} failed on question 'toll-4' \(ValueError: it gave nan"):
        score_reply(row(case, render_target("23 crowns")), RAG, case, ())


def test_a_value_passes_and_nothing_stays_nothing() -> None:
    assert measured("m", "q", lambda: 0.5) == 0.5
    assert measured("m", "q", lambda: None) is None


def test_a_failed_reply_has_no_label() -> None:
    item = QaItem("q", "Which of A to D?", "A")
    case = replace(case_of("toll-4"), item=item)
    failed = score_reply(row(case, "", error="boom"), RAG, case, ("A", "B", "C", "D"))
    assert (failed.label, failed.right, failed.truthfulness) == (None, False, 0.0)
    said = score_reply(row(case, render_target("A")), RAG, case, ("A", "B", "C", "D"))
    assert (said.label, said.right) == ("A", True)


def test_words_of_one_reference_and_numbers_of_another_are_not_right() -> None:
    item = QaItem("q", "What is the toll?", "23 crowns", aliases=("twenty-three crowns",))
    case = replace(case_of("toll-4"), item=item)
    wrong = score_reply(row(case, render_target("99 crowns")), RAG, case, ())
    assert wrong.f1 == 0.5
    assert (wrong.right, wrong.truthfulness) == (False, -1.0)
    assert score_reply(row(case, render_target("23 crowns")), RAG, case, ()).right


def test_a_yes_or_no_has_no_critical_facts() -> None:
    item = QaItem("q", "Is it open?", "no", answer_type="yesno")
    case = replace(case_of("toll-4"), item=item)
    assert score_reply(row(case, render_target("yes")), RAG, case, ()).critical_f1 is None
