"""Confidence, relevance and entailment in a whole comparison: asked for, kept, and never dropped in silence."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from raft.config import EvaluateRecipe, EvaluateSweepRecipe
from raft.dataset.entailment import load_entailment
from raft.errors import ArtifactError, ModelError
from raft.evaluation.cases import SYSTEMS
from raft.evaluation.compare import evaluate
from raft.evaluation.groundedness import answer_relevance, entailed
from raft.evaluation.measures import Measures, open_measures, with_entailment, with_relevance
from raft.evaluation.replies import claim_of, score_reply
from raft.evaluation.report import Report
from raft.llm.chat import ChatRequest
from raft.llm.scripted import ScriptedModel
from raft.prompts import render_refusal, render_target
from tests.dataset.test_entailment import write_classifier
from tests.evaluation import world
from tests.evaluation.test_replies import RAG, cases, row


def sure(request: ChatRequest) -> float:
    """The log-probability of each word: surer of markets than of tolls."""
    return -0.1 if "market" in world.asked(request) else -0.7


@pytest.fixture
def recipe(world_recipe: EvaluateRecipe) -> EvaluateRecipe:
    return world_recipe.model_copy(update={"systems": ("rag", "rag_short")})


def run(recipe: EvaluateRecipe, out: Path, model: ScriptedModel, **options: bool) -> Report:
    return evaluate(recipe, out, base=lambda: model, **options)


def test_confidence_comes_from_the_model_to_the_report(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    report = run(recipe, tmp_path / "report", ScriptedModel(world.poor_reader, logprob=sure))
    assert report.settings["logprobs"] is True
    by_name = {scores.system: scores for scores in report.systems}
    for result in report.results:
        expected = math.exp(-0.1) if result.question_id.startswith("market") else math.exp(-0.7)
        assert result.confidence == pytest.approx(expected)
    found = by_name["rag"].calibration
    assert found is not None
    assert (found.n, found.without) == (16, 0)
    assert [point[1] for point in found.curve] == [pytest.approx(7 / 16), 1.0]
    saved = json.loads((tmp_path / "report/report.json").read_text())
    assert saved["systems"][0]["calibration"]["curve"][-1][1] == 1.0
    assert not [note for note in report.notes if "log-probabilities" in note]


def test_a_model_without_log_probabilities_is_told_and_one_that_is_not_asked_is_not(
    recipe: EvaluateRecipe, tmp_path: Path
) -> None:
    report = run(recipe, tmp_path / "report", ScriptedModel(world.poor_reader))
    assert [scores.calibration for scores in report.systems] == [None, None]
    assert [note for note in report.notes if "of rag gave no token log-probabilities for 16 of 16 answers" in note]
    model = ScriptedModel(world.poor_reader, logprob=sure)
    report = run(recipe.model_copy(update={"logprobs": False}), tmp_path / "other", model)
    assert not any(request.logprobs for request in model.requests)
    assert [scores.calibration for scores in report.systems] == [None, None]
    assert not [note for note in report.notes if "log-probabilities" in note]


def test_a_reply_that_fails_has_no_confidence_and_is_counted(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    def sometimes(request: ChatRequest) -> str:
        if request.key == "toll-4":
            raise TimeoutError("no answer after 120 s")
        return world.poor_reader(request)

    report = run(recipe, tmp_path / "report", ScriptedModel(sometimes, logprob=sure))
    for scores in report.systems:
        assert scores.calibration is not None
        assert (scores.failures, scores.calibration.n, scores.calibration.without) == (1, 15, 1)
    assert not [note for note in report.notes if "log-probabilities" in note]  # the failure is told as one


def test_replies_with_and_without_confidence_are_not_mixed_when_a_run_goes_on(
    recipe: EvaluateRecipe, tmp_path: Path
) -> None:
    def outage() -> Iterator[str]:
        yield from ["3 crowns"] * 20
        raise KeyboardInterrupt

    answers = outage()
    without = recipe.model_copy(update={"logprobs": False})
    with pytest.raises(KeyboardInterrupt):
        run(without, tmp_path / "report", ScriptedModel(lambda request: next(answers)))
    with pytest.raises(ArtifactError, match="logprobs"):
        run(recipe, tmp_path / "report", ScriptedModel(world.poor_reader, logprob=sure), resume=True)


def test_what_takes_a_model_is_measured_when_the_recipe_asks(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    write_classifier(tmp_path / "nli", ["contradiction", "entailment"])
    asked = recipe.model_copy(update={"relevance": True, "nli": str(tmp_path / "nli")})
    report = run(asked, tmp_path / "report", ScriptedModel(world.good_reader))
    plain = run(recipe, tmp_path / "plain", ScriptedModel(world.good_reader))
    assert {r.relevance for r in plain.results} == {r.nli_groundedness for r in plain.results} == {None}
    assert all((r.nli_groundedness is None) == (r.groundedness is None) for r in report.results)
    assert any(r.nli_groundedness is not None for r in report.results)
    for scores in report.systems:
        values = [r.relevance for r in report.results if r.system == scores.system and r.relevance is not None]
        assert scores.relevance is not None
        assert scores.relevance.mean == pytest.approx(sum(values) / len(values))
        assert scores.nli_groundedness is not None
        assert 0.0 <= scores.nli_groundedness.mean <= 1.0
    assert (report.settings["relevance"], report.settings["nli"]) == (True, str(tmp_path / "nli"))


def test_a_model_that_measures_is_opened_before_anything_is_asked(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    model = ScriptedModel(world.poor_reader)
    with pytest.raises(ModelError, match="nowhere"):
        run(recipe.model_copy(update={"nli": str(tmp_path / "nowhere")}), tmp_path / "report", model)
    assert model.requests == []


def test_each_answer_is_measured_as_it_is_alone(recipe: EvaluateRecipe, tmp_path: Path) -> None:
    write_classifier(tmp_path / "nli", ["contradiction", "entailment"])
    chosen, model = cases(), load_entailment(str(tmp_path / "nli"))
    texts = [render_target("23 crowns"), render_refusal(), "", render_target("day 6. It is so.")]
    rows = [row(c, texts[n % 4], error="boom" if n == 5 else None) for n, c in enumerate(chosen)]
    results = [score_reply(each, RAG, c, ()) for each, c in zip(rows, chosen, strict=True)]
    encoder = open_measures(recipe.model_copy(update={"relevance": True})).encoder
    assert encoder is not None
    told = with_relevance(with_entailment(results, RAG, chosen, model), chosen, (), encoder)
    for found, result, case in zip(told, results, chosen, strict=True):
        refused = result.abstained and bool(result.final)
        assert (found.relevance is None, found.nli_groundedness is None) == (refused, refused)
        if refused:
            continue
        [expected] = answer_relevance([case.item.question], [result.final], encoder)
        assert found.relevance == pytest.approx(expected, abs=0.02)
        [expected] = entailed([claim_of(case.item, result.final, RAG.chunks_of(case) or ())], model)
        assert found.nli_groundedness == pytest.approx(expected, abs=1e-4)
    assert [r.relevance for r in with_relevance(results, chosen, ("23 crowns",), encoder)].count(None) > sum(
        r.relevance is None for r in told
    )  # a closed label speaks of nothing
    assert Measures().added_to(results, SYSTEMS["rag"], chosen, ()) == results


@pytest.mark.parametrize("setting", [{"relevance": True}, {"nli": "OWNER/NAME"}])
def test_a_sweep_refuses_what_it_would_not_show(setting: dict) -> None:
    with pytest.raises(ValueError, match="in no sweep; leave them out"):
        EvaluateSweepRecipe(**setting)
    assert EvaluateRecipe(**setting).logprobs
    assert not EvaluateSweepRecipe().logprobs
