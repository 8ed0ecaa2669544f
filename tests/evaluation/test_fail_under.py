"""Conditions on a report: their grammar, what is refused before any work, and that no missing figure passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.errors import CheckFailed, UsageError
from raft.evaluation.fail_under import (
    METRICS,
    Condition,
    Figure,
    check_systems,
    outcomes,
    parse_conditions,
    require,
)
from raft.evaluation.scoring import SystemScores
from raft.records import to_row
from tests.evaluation.reported import make_report


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


SYSTEMS: dict[str, dict[str, Any]] = {
    "rag": {"f1": interval(0.42), "quote_validity": None, "labels": None},
    "raft": {"f1": interval(0.44), "quote_validity": 0.9, "labels": {"accuracy": interval(0.7), "macro_f1": 0.6}},
}


def met(text: str, lead: str | None = "raft") -> bool:
    return outcomes(parse_conditions([text]), SYSTEMS, lead)[0].met


@pytest.mark.parametrize(
    ("text", "left", "right", "shift"),
    [
        ("rag.f1+0.02", Figure(None, "f1"), Figure("rag", "f1"), 0.02),
        ("rag.f1-.5", Figure(None, "f1"), Figure("rag", "f1"), -0.5),
        ("rag.f1", Figure(None, "f1"), Figure("rag", "f1"), 0.0),
        (" raft.f1 = 0.6 ", Figure("raft", "f1"), None, 0.6),
        ("raft.truthfulness=-0.1", Figure("raft", "truthfulness"), None, -0.1),
        ("raft.f1\t=\n0.6", Figure("raft", "f1"), None, 0.6),
        ("raft.truthfulness = - 0.1", Figure("raft", "truthfulness"), None, -0.1),
        ("my_own.em=rag.f1 + 1", Figure("my_own", "em"), Figure("rag", "f1"), 1.0),
    ],
)
def test_the_grammar(text: str, left: Figure, right: Figure | None, shift: float) -> None:
    assert parse_conditions([text]) == [Condition(text, left, right, shift)]


@pytest.mark.parametrize(
    "text",
    ["", "f1", "0.6", "f1=0.6", "rag.f1+", "rag.f1*2", "rag.f1+0.02+0.03", "raft.f1>=0.6", "raft.f1==0.6", "=rag.f1",
     "raft.f1=", "raft.f1=nan", "raft.f1=inf", "raft.f1=1e3", "rag.f1+0,02", "rag.f1+-0.02", "RAG.f1",
     "raft.f1=0.6 5", "raft.f1=0. 65", "raft .f1=0.6", "ra ft.f1=0.6", "rag.f 1", "rag.f1 0.02", "rag.f1+0.0 2"],
)  # fmt: skip
def test_what_is_no_condition_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(UsageError, match=r"SYSTEM\.METRIC"):
        parse_conditions(["rag.f1", text])


@pytest.mark.parametrize("text", ["rag.seconds", "raft.failures=0", "raft.f1=rag.f2", "rag.false_abstention_rate"])
def test_only_figures_that_are_better_when_higher_can_be_asked_for(text: str) -> None:
    with pytest.raises(UsageError, match=r"no figure .* Known are em, f1"):
        parse_conditions([text])


def test_every_known_figure_is_one_of_a_report() -> None:
    of_labels = {"accuracy", "macro_f1"}
    assert set(METRICS) - of_labels <= set(SystemScores.__dataclass_fields__)
    rows = {s.system: to_row(s) for s in make_report(answer_labels=["27 crowns", "31 crowns"]).systems}
    found = {m: outcomes(parse_conditions([f"raft.{m}=-1"]), rows, "raft")[0] for m in METRICS}
    assert {name for name, outcome in found.items() if not outcome.met} <= {
        "relevance", "nli_groundedness",
    }  # fmt: skip # nobody asked for these
    assert found["accuracy"].met
    assert found["f1"].found == rows["raft"]["f1"]["mean"]


def test_what_is_met_and_what_is_not() -> None:
    assert met("rag.f1+0.02")  # 0.42 + 0.02 is 0.44, whatever floating point says
    assert not met("rag.f1+0.03")
    assert met("raft.f1=0.44")
    assert not met("raft.f1=0.45")
    assert met("rag.f1=raft.f1-0.02")
    assert not met("rag.f1=raft.f1")
    assert met("rag.f1", lead="rag")
    assert met("raft.accuracy=0.7")
    assert met("raft.macro_f1=0.6")


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1))
def test_a_condition_is_the_comparison_that_it_says(left: float, right: float, shift: float) -> None:
    systems = {"a": {"em": left}, "b": {"em": right}}
    outcome = outcomes(parse_conditions([f"a.em=b.em{shift:+.6f}"]), systems, None)[0]
    gap = left - (right + round(shift, 6))
    if abs(gap) > 1e-6:
        assert outcome.met == (gap > 0)
    assert outcome.found == left
    assert outcome.needed == pytest.approx(right + shift, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    ["rag.quote_validity", "rag.quote_validity-1", "rag.quote_validity=-1", "rag.quote_validity=raft.quote_validity-1",
     "rag.accuracy=-1", "gone.f1", "gone.f1=-1", "raft.relevance=-1"],
)  # fmt: skip
def test_a_figure_with_nothing_to_count_never_passes(text: str) -> None:
    outcome = outcomes(parse_conditions([text]), SYSTEMS, "raft")[0]
    assert not outcome.met
    assert "no value" in outcome.said


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "0.9", {"mean": None}])
def test_what_is_no_number_never_passes(value: Any) -> None:
    assert not outcomes(parse_conditions(["raft.em=-1"]), {"raft": {"em": value}}, "raft")[0].met


def said(text: str, **figures: Any) -> str:
    systems = {"rag": {"n": 20, "f1": 0.42}, "raft": {"n": 20, **figures}}
    return outcomes(parse_conditions([text]), systems, "raft")[0].said


@pytest.mark.parametrize(
    ("found", "text", "expected"),
    [
        (0.41996, "rag.f1", "raft.f1 is 0.419960; expected at least rag.f1 = 0.420000"),
        (0.41999996, "rag.f1", "raft.f1 is 0.419999960; expected at least rag.f1 = 0.420000000"),
        (0.5999999, "raft.f1=0.6", "raft.f1 is 0.599999900; expected at least 0.6"),
        (0.6, "raft.f1=0.60000123", "raft.f1 is 0.600000; expected at least 0.600001"),
        (0.42, "rag.f1", "raft.f1 is 0.4200; expected at least rag.f1 = 0.4200"),
        (0.4, "rag.f1", "raft.f1 is 0.4000; expected at least rag.f1 = 0.4200"),
    ],
)
def test_figures_that_differ_never_look_equal(found: float, text: str, expected: str) -> None:
    assert said(text, f1=found) == expected


def test_a_figure_over_fewer_questions_says_over_how_many() -> None:
    counted: dict[str, Any] = {"counts": {"numeric": 1, "f1": 20}, "f1": 0.42, "numeric": 1.0}
    assert said("raft.numeric=0.5", **counted) == "raft.numeric is 1.0000 (n = 1); expected at least 0.5"
    assert said("rag.f1=raft.numeric", **counted).endswith("expected at least raft.numeric = 1.0000 (n = 1)")
    assert "(n = " not in said("rag.f1", **counted)
    rows = {s.system: to_row(s) for s in make_report().systems}
    declined = outcomes(parse_conditions(["raft.abstention_recall=0"]), rows, "raft")[0]
    assert "(n = 2)" in declined.said  # two of its questions cannot be answered


def test_without_a_lead_the_left_must_be_named() -> None:
    conditions = parse_conditions(["rag.f1+0.02"])
    with pytest.raises(UsageError, match=r"no system leads.*Put SYSTEM.f1= before it"):
        check_systems(conditions, ["rag", "rag_short"], None)
    check_systems(parse_conditions(["rag_short.f1=rag.f1"]), ["rag", "rag_short"], None)
    with pytest.raises(UsageError, match=r"'gone' does not run\. Name one of rag, raft"):
        check_systems(parse_conditions(["gone.f1"]), ["rag", "raft"], "raft")


def test_each_failed_condition_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    found = outcomes(parse_conditions(["rag.f1+0.05", "raft.f1=0.1", "rag.quote_validity"]), SYSTEMS, "raft")
    with pytest.raises(CheckFailed, match="2 of 3 conditions of --fail-under are not met"):
        require(found)
    assert capsys.readouterr().err.splitlines() == [
        "raft: --fail-under rag.f1+0.05: raft.f1 is 0.4400; expected at least rag.f1 + 0.05 = 0.4700",
        "raft: --fail-under rag.quote_validity: raft.quote_validity is 0.9000; expected at least rag.quote_validity, "
        "and rag.quote_validity has no value",
    ]
    require(found[1:2])
    require([])
