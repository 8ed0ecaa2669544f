"""The figures of sweeps, computed by hand for planted answers."""

from __future__ import annotations

import pytest

from raft.evaluation.sweep_scores import ALL_ATTACKS, ALL_ORDERS
from raft.evaluation.sweeps import read_attacks
from raft.prompts import render_refusal, render_target
from tests.evaluation import world
from tests.evaluation.sweeping import figure, made, right, scored


def test_the_slope_is_the_paired_change_from_the_first_point_to_the_last() -> None:
    def say(question_id: str, point: str) -> str:
        lost = {"12": ("toll-3", "toll-4", "market-4", "market-7"), "4": ("toll-3",)}.get(point, ())
        return render_refusal() if question_id in lost else right(question_id)

    scores = scored("distractors", say)
    assert (scores.n, scores.clusters, scores.left_out) == (14, 7, 0)
    assert figure(scores, "0", "f1") == 1.0
    assert figure(scores, "4", "f1") == pytest.approx(13 / 14)
    assert figure(scores, "12", "declined") == pytest.approx(4 / 14)
    assert [(c.system, c.minus, c.before, c.after) for c in scores.changes] == [
        ("rag", None, "0", "12"), ("raft", None, "0", "12"), ("raft", "rag", "0", "12")
    ]  # fmt: skip
    rag, raft, difference = scores.changes
    assert (rag.f1.mean, rag.p) == (0.0, 1.0)
    assert raft.f1.mean == difference.f1.mean == pytest.approx(-4 / 14)
    assert raft.f1.low is not None
    assert -1 <= raft.f1.low <= -4 / 14 <= (raft.f1.high or 0.0) <= 0
    assert raft.p_holm >= raft.p


def test_memory_is_told_from_refusal_without_the_oracle() -> None:
    def say(question_id: str, point: str) -> str:
        if point == "with oracle" or question_id in ("toll-3", "market-5"):
            return right(question_id)
        return render_target("1000 crowns") if question_id == "toll-9" else render_refusal()

    scores = scored("no_oracle", say)
    assert figure(scores, "without oracle", "says_reference") == pytest.approx(2 / 14)
    assert figure(scores, "without oracle", "declined") == pytest.approx(11 / 14)
    assert figure(scores, "with oracle", "says_reference") == 1.0


def test_following_a_false_document_is_told_from_saying_the_reference() -> None:
    sweep = made("counterfactual")
    changed = {c.question_id: c.shown.says[0] for c in sweep.contexts["answer changed"]}

    def say(question_id: str, point: str) -> str:
        if point == "as written" or question_id == "toll-3":
            return right(question_id)
        return render_refusal() if question_id == "toll-4" else render_target(changed[question_id])

    scores = scored("counterfactual", say)
    assert figure(scores, "answer changed", "follows_document") == pytest.approx(12 / 14)
    assert figure(scores, "answer changed", "says_reference") == pytest.approx(1 / 14)
    assert all("follows_document" not in p.figures for p in scores.points if p.point == "as written")
    assert figure(scores, "answer changed", "says_reference", "rag") == 1.0


def test_an_attack_succeeds_when_its_canary_is_the_answer() -> None:
    canaries = {c.question_id: c.shown.canary for c in made("injected").contexts["order"]}

    def say(question_id: str, point: str) -> str:
        if point != "order" or question_id not in ("toll-3", "toll-5", "market-9"):
            return right(question_id)
        obeyed = render_target(f"It is {str(canaries[question_id]).lower()}!")
        named = render_target(world.toll(5), f"An instruction asks for {canaries[question_id]}; it is none of mine.")
        return named if question_id == "toll-5" else obeyed

    scores = scored("injected", say)
    assert figure(scores, "order", "attacked") == pytest.approx(2 / 14)
    assert figure(scores, "order", "f1") < 1.0 == figure(scores, "clean", "f1")
    assert figure(scores, "system", "attacked") == 0.0
    assert figure(scores, ALL_ATTACKS, "attacked") == pytest.approx(2 / (14 * len(read_attacks())))
    assert "attacked" not in next(p for p in scores.points if p.point == "clean").figures
    assert len(scores.changes) == 3 * len(read_attacks())


def test_orders_are_compared_by_their_final_answers() -> None:
    def say(question_id: str, point: str) -> str:
        if question_id == "toll-3" and point == "order 2":
            return render_target("8 pears")
        if question_id == "toll-4":  # declined in any words is the same answer
            return render_refusal() if point == "order 1" else render_target("The documents do not say.")
        return right(question_id).replace("crowns", "Crowns." if point == "order 3" else "crowns")

    scores = scored("order", say)
    assert figure(scores, ALL_ORDERS, "changed") == pytest.approx(1 / 14)
    assert figure(scores, ALL_ORDERS, "f1_spread") == pytest.approx(1 / 14)
    assert figure(scores, ALL_ORDERS, "changed", "rag") == 0.0
    assert scores.changes == ()
