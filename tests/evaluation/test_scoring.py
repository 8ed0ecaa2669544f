"""Scores of systems, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy.stats import binomtest

from raft.config import SystemName
from raft.evaluation.cases import SYSTEMS
from raft.evaluation.replies import Result, score_reply
from raft.evaluation.scoring import (
    Sampling,
    calibrate,
    score_differences,
    score_retrieval,
    score_system,
    score_systems,
)
from raft.evaluation.statistics import bootstrap_interval
from raft.prompts import render_refusal, render_target
from raft.records import QaItem, Quote
from tests.evaluation import world
from tests.evaluation.test_replies import RAG, case_of, cases, row

DRAW = Sampling(0.95, 200, 0)


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
    assert (scores.rouge_l, scores.contains) == (scores.f1, scores.em)  # here each answer is right, half right or wrong
    assert scores.numeric is not None
    assert scores.numeric.mean == pytest.approx(1 / 4)  # the mayors have no number; refusal and failure count
    assert scores.truthfulness is not None
    assert scores.truthfulness.mean == pytest.approx((1 - 1 + 1 - 1 + 0 + 0) / 6)
    assert scores.citation_recall == pytest.approx(1 / 4)  # one oracle of four is quoted, whoever declined or failed
    assert scores.groundedness is not None
    assert scores.groundedness.mean == pytest.approx((1 + 0 + 0 + 0) / 4)  # without the two that declined


@pytest.mark.parametrize("name", ["closed_book", "rag", "rag_short", "raft_oracle"])
def test_every_figure_is_the_mean_of_what_its_results_have(name: SystemName) -> None:
    chosen, system = cases(), SYSTEMS[name]
    texts = ["", render_refusal(), render_target("23 crowns"), "day 6 it is", render_target("the 9th mayor")]
    rows = [row(c, texts[n % 5], name, "boom" if n % 7 == 6 else None) for n, c in enumerate(chosen)]
    results = [score_reply(each, system, c, ()) for each, c in zip(rows, chosen, strict=True)]
    scores = score_system(system, "m", results, chosen, (), DRAW)
    figures = ("em", "f1", "rouge_l", "contains", "numeric", "truthfulness", "groundedness", "citation_recall")
    for figure in (*figures, "critical_f1"):
        values = [value for r in results if (value := getattr(r, figure)) is not None]
        found = getattr(scores, figure)
        found = getattr(found, "mean", found)
        assert found == (pytest.approx(sum(values) / len(values)) if values else None)
        assert bool(values) or (figure, name) in {
            ("groundedness", "closed_book"), ("citation_recall", "closed_book"), ("citation_recall", "rag_short"),
        }  # fmt: skip
    assert scores.failures == 2
    assert scores.n == 16


def test_nothing_is_grounded_where_every_reply_fails() -> None:
    chosen = cases()
    results = [score_reply(row(c, "", error="boom"), RAG, c, ()) for c in chosen]
    scores = score_system(RAG, "m", results, chosen, (), DRAW)
    figures = (scores.em, scores.f1, scores.rouge_l, scores.contains, scores.numeric, scores.truthfulness)
    assert [figure.mean for figure in (*figures, scores.groundedness) if figure] == [0.0] * 7
    assert (scores.citation_recall, scores.failures) == (0.0, 16)


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


def test_systems_scored_together_have_the_figures_that_each_has_alone() -> None:
    chosen, names = cases(), ("closed_book", "rag", "rag_short", "raft_oracle")
    texts = ["", render_refusal(), render_target("23 crowns"), "day 6 it is", render_target("the 9th mayor")]
    results = {
        SYSTEMS[name]: [
            score_reply(row(c, texts[(n + at) % 5], name, "boom" if n % 7 == 6 else None), SYSTEMS[name], c, ("day 6",))
            for n, c in enumerate(chosen)
        ]
        for at, name in enumerate(names)
    }
    models = dict.fromkeys(names, "m")
    found = score_systems(results, models, chosen, ("day 6",), DRAW)
    assert [scores.system for scores in found] == list(names)
    for scores, rows in zip(found, results.values(), strict=True):
        for name in ("em", "f1", "rouge_l", "contains", "numeric", "truthfulness", "groundedness", "critical_f1"):
            known = [(v, c.cluster) for r, c in zip(rows, chosen, strict=True) if (v := getattr(r, name)) is not None]
            interval = getattr(scores, name)
            if not known:
                assert interval is None
                continue
            values, clusters = zip(*known, strict=True)
            alone = bootstrap_interval(values, clusters, confidence=0.95, resamples=200, seed=0)
            assert (interval.mean, interval.low, interval.high) == pytest.approx(
                (alone.mean, alone.low, alone.high), abs=1e-12
            )
            assert scores.counts.get(name, scores.n) == len(known)
        assert scores.labels is not None
        assert scores.counts["accuracy"] == scores.labels.n == 1
        assert scores.counts.get("abstention_recall") == 2
        assert scores.counts.get("abstention_precision") == sum(r.abstained for r in rows)


def test_swapped_or_missing_results_are_refused() -> None:
    chosen = [case_of("toll-4"), case_of("toll-5")]
    results = [score_reply(row(case, "x"), RAG, case, ()) for case in chosen]
    for wrong in (results[::-1], results[:1], [*results, results[0]], [replace(r, system="raft") for r in results]):
        with pytest.raises(ValueError, match="not those of the questions"):
            score_system(RAG, "m", wrong, chosen, (), DRAW)


def test_a_question_that_is_asked_twice_is_refused() -> None:
    chosen = [case_of("toll-4"), case_of("toll-5"), case_of("toll-4")]
    results = [score_reply(row(case, "x"), RAG, case, ()) for case in chosen]
    with pytest.raises(ValueError, match="'toll-4' stands among the cases more than once"):
        score_system(RAG, "m", results, chosen, (), DRAW)


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


def test_who_is_right_is_compared_by_mcnemars_test() -> None:
    chosen = cases()
    right = {"raft": range(12), "rag": range(3), "rag_short": range(1, 13), "closed_book": range(0)}
    by_system = {
        name: [
            score_reply(row(c, render_target(c.item.answer if n in those else "wrong"), name), SYSTEMS[name], c, ())
            for n, c in enumerate(chosen)
        ]
        for name, those in right.items()
    }
    found = {d.minus: d for d in score_differences("raft", by_system, chosen, DRAW)}
    pairs = {name: [(n in right["raft"], n in those) for n in range(len(chosen))] for name, those in right.items()}
    for name, difference in found.items():
        ahead, behind = pairs[name].count((True, False)), pairs[name].count((False, True))
        assert difference.p_right == pytest.approx(binomtest(min(ahead, behind), ahead + behind).pvalue)
    ordered = sorted(found.values(), key=lambda d: d.p_right or 0.0)
    first, second, third = (d.p_right or 0.0 for d in ordered)
    expected = [min(1.0, 3 * first), max(3 * first, 2 * second), max(3 * first, 2 * second, third)]
    assert [d.p_right_holm for d in ordered] == pytest.approx([min(1.0, p) for p in expected])


def test_confidence_is_held_against_being_right_and_who_has_none_is_counted() -> None:
    chosen = [case_of(name) for name in ("toll-4", "toll-5", "toll-6", "toll-7", "mayor-0")]
    texts = [render_target(chosen[0].item.answer), render_target(chosen[1].item.answer), render_target("wrong")]
    rows = [
        row(chosen[0], texts[0]) | {"confidence": 0.9}, row(chosen[1], texts[1]) | {"confidence": 0.8},
        row(chosen[2], texts[2]) | {"confidence": 0.8}, row(chosen[3], "", error="boom") | {"confidence": None},
        row(chosen[4], render_target("Mr Gallin")) | {"confidence": 0.3},
    ]  # fmt: skip
    results = [score_reply(each, RAG, c, ()) for each, c in zip(rows, chosen, strict=True)]
    assert [r.confidence for r in results] == [0.9, 0.8, 0.8, None, 0.3]
    found = score_system(RAG, "m", results, chosen, (), DRAW).calibration
    assert found is not None
    assert (found.n, found.without) == (4, 1)
    assert found.error == pytest.approx((abs(1 - 0.9) + abs(1 - 1.6) + abs(0 - 0.3)) / 4)  # bins of 0.9, 0.8 and 0.3
    assert found.brier == pytest.approx((0.01 + 0.04 + 0.64 + 0.09) / 4)
    assert found.auroc == pytest.approx((2 + 1.5) / 4)  # 0.9 above both, 0.8 above one and beside the other
    assert found.curve == ((0.9, 0.25, 0.0), (0.8, 0.75, pytest.approx(1 / 3)), (0.3, 1.0, 0.5))
    assert found.risk_coverage_area == pytest.approx((0 + 0.25 + 1 / 3 + 0.5) / 4)  # the middle of both orders of a tie
    assert calibrate([replace(r, confidence=None) for r in results]) is None
    assert calibrate(results[:2]) == replace(calibrate(results[:2]), auroc=None)  # all are right
    many = [replace(results[0], confidence=n / 200, right=n > 90) for n in range(200)]
    (whole,) = [calibrate(many)]
    assert whole is not None
    assert (len(whole.curve), whole.curve[0][1], whole.curve[-1][1], whole.auroc) == (50, 1 / 200, 1.0, 1.0)


def test_rows_of_before_there_were_log_probabilities_have_no_confidence() -> None:
    case = case_of("toll-4")
    result = score_reply(row(case, render_target("23 crowns")), RAG, case, ())
    assert (result.confidence, result.relevance, result.nli_groundedness) == (None, None, None)
    assert score_system(RAG, "m", [result], [case], (), DRAW).calibration is None


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
