"""Scores of single replies and of systems, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raft.evaluation.cases import SYSTEMS, Case, build_cases
from raft.evaluation.scoring import (
    Result,
    Sampling,
    score_differences,
    score_reply,
    score_retrieval,
    score_system,
)
from raft.prompts import render_refusal, render_target
from raft.records import QaItem, Quote
from tests.evaluation import world

DRAW = Sampling(0.95, 200, 0)
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


def test_figures_of_a_system_by_hand() -> None:
    chosen = [case_of(name) for name in ("toll-4", "market-4", "mayor-0", "mayor-1", "toll-5")]
    quoted = render_target("23 crowns", "", [Quote(world.town_text(4).split(". ")[0] + ".", 1), Quote("made up", 1)])
    texts = [quoted, "day nine", render_refusal(), render_target("Mr Ivrea"), render_refusal()]
    results = [score_reply(row(c, text), RAG, c, ()) for c, text in zip(chosen, texts, strict=True)]
    results.append(score_reply(row(chosen[0], "", error="boom"), RAG, chosen[0], ()))
    results[-1] = replace(results[-1], question_id="extra")
    chosen.append(replace(chosen[0], item=replace(chosen[0].item, id="extra")))
    scores = score_system(RAG, "m", results, chosen, (), DRAW)
    assert (scores.n, scores.failures) == (6, 1)
    assert scores.em.mean == pytest.approx(2 / 6)  # toll-4 and mayor-0; the failure counts
    assert scores.f1.mean == pytest.approx((1 + 0.5 + 1 + 0 + 0 + 0) / 6)
    assert (scores.quotes, scores.quote_validity, scores.quotes_in_oracle) == (2, 0.5, 0.5)
    assert scores.quoted_answers == pytest.approx(1 / 4)  # of the four that did not decline, the failure included
    assert (scores.abstention_precision, scores.abstention_recall) == (0.5, 0.5)
    assert scores.false_abstention_rate == pytest.approx(1 / 4)
    assert scores.well_formed == pytest.approx(4 / 6)
    assert (scores.prompt_tokens, scores.completion_tokens, scores.seconds) == (10, 5, 3.0)


def test_a_system_that_is_not_asked_to_quote_has_no_quote_figures() -> None:
    case = case_of("toll-4")
    short = SYSTEMS["rag_short"]
    scores = score_system(
        short, "m", [score_reply(row(case, "23 crowns", "rag_short"), short, case, ())], [case], (), DRAW
    )
    assert (scores.quote_validity, scores.quoted_answers, scores.well_formed) == (None, None, None)
    assert scores.em.mean == 1.0


def test_labels_count_only_label_questions_and_no_label_is_wrong() -> None:
    base = case_of("toll-4")
    answers = [("yes", "Yes."), ("yes", "no"), ("no", "perhaps"), ("no", "No, it is not"), ("12 mg", "12 mg")]
    chosen, results = [], []
    for n, (gold, said) in enumerate(answers):
        case = replace(base, item=QaItem(f"q{n}", "?", gold))
        chosen.append(case)
        results.append(score_reply(row(case, render_target(said)), RAG, case, ("yes", "no")))
    labels = score_system(RAG, "m", results, chosen, ("yes", "no"), DRAW).labels
    assert labels is not None
    assert (labels.n, labels.accuracy.mean) == (4, 0.5)
    assert labels.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 2)  # yes: P = 1, R = 1/2; no: P = R = 1/2
    assert labels.confusion == {"yes": {"yes": 1, "no": 1, "(no label)": 0}, "no": {"yes": 0, "no": 1, "(no label)": 1}}
    assert [r.right for r in results] == [True, False, False, True, True]


def test_swapped_or_missing_results_are_refused() -> None:
    chosen = [case_of("toll-4"), case_of("toll-5")]
    results = [score_reply(row(case, "x"), RAG, case, ()) for case in chosen]
    for wrong in (results[::-1], results[:1], [*results, results[0]], [replace(r, system="raft") for r in results]):
        with pytest.raises(ValueError, match="not those of the questions"):
            score_system(RAG, "m", wrong, chosen, (), DRAW)


def test_differences_are_paired_and_corrected_together() -> None:
    chosen = cases()

    def results(system: str, right: float) -> list[Result]:
        texts = [render_target(c.item.answer if n < right * len(chosen) else "wrong") for n, c in enumerate(chosen)]
        return [score_reply(row(c, t, system), SYSTEMS[system], c, ()) for c, t in zip(chosen, texts, strict=True)]

    by_system = {"rag": results("rag", 0.3), "rag_short": results("rag_short", 1.0), "raft": results("raft", 1.0)}
    found = score_differences("raft", by_system, chosen, DRAW)
    assert [d.minus for d in found] == ["rag", "rag_short"]
    assert found[0].f1.mean == pytest.approx(
        sum(a.f1 - b.f1 for a, b in zip(by_system["raft"], by_system["rag"], strict=True)) / len(chosen)
    )
    assert found[0].p < found[0].p_holm < 0.1
    assert (found[1].f1.mean, found[1].p, found[1].p_holm) == (0.0, 1.0, 1.0)
    assert score_differences("raft", {"rag": by_system["rag"]}, chosen, DRAW) == []


def test_retrieval_is_scored_by_document_and_by_evidence() -> None:
    document, evidence = score_retrieval(cases(), top_k=2)
    assert (document.unit, document.n, evidence.unit, evidence.n) == ("document", 14, "evidence", 14)
    assert sorted(document.recall) == [1, 2, 3, 5, 10]
    for k in document.recall:
        held = [
            any(c.document_id in case.item.gold_document_ids for c in case.ranked[:k])
            for case in cases() if not case.unanswerable
        ]  # fmt: skip
        assert document.recall[k] == pytest.approx(sum(held) / 14)
        assert evidence.recall[k] <= document.recall[k]
    ranks = [case.oracle_rank for case in cases() if not case.unanswerable]
    assert evidence.mrr == pytest.approx(sum(1 / rank for rank in ranks if rank) / 14)
