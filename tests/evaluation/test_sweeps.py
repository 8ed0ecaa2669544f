"""The whole run of sweeps over a real index with scripted models: what is asked, resumed, refused and written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from raft.artifacts import open_artifact
from raft.config import EvaluateRecipe, EvaluateSweepRecipe, SweptSystem, load_recipe
from raft.errors import ArtifactError, InputError, RecipeError, UsageError
from raft.evaluation.cases import SYSTEMS
from raft.evaluation.sweep_report import SweepReport
from raft.evaluation.sweeps import evaluate_sweeps, read_paraphrases
from raft.llm.chat import ChatRequest
from raft.llm.scripted import ScriptedModel
from tests.evaluation import world
from tests.evaluation.sweeping import NAMES, figure


@pytest.fixture
def sweep_recipe(world_recipe: EvaluateRecipe) -> EvaluateSweepRecipe:
    return EvaluateSweepRecipe(
        index=world_recipe.index, questions=world_recipe.questions, search="bm25", top_k=2, resamples=100, shots=2,
        distractors=(0, 1, 3), orders=2, systems=("rag", "raft"),
    )  # fmt: skip


class Models:
    """A base and a tuned model that can stop after some replies."""

    def __init__(self, stops_after: int = 10**9) -> None:
        def stopping(script: Callable[[ChatRequest], str]) -> Callable[[ChatRequest], str]:
            def answer(request: ChatRequest) -> str:
                if len(self.asked) > stops_after:
                    raise KeyboardInterrupt
                return script(request)

            return answer

        self.base = ScriptedModel(stopping(world.poor_reader), "base")
        self.tuned = ScriptedModel(stopping(world.good_reader), "tuned")

    @property
    def asked(self) -> list[tuple[str, str]]:
        return [(model.name, request.key) for model in (self.base, self.tuned) for request in model.requests]

    def sweep(self, recipe: EvaluateSweepRecipe, out: Path, **options: bool) -> SweepReport:
        return evaluate_sweeps(recipe, out, base=lambda: self.base, tuned=lambda: self.tuned, **options)


def test_a_sweep_is_an_artefact_that_tells_a_good_reader_from_a_poor_one(
    sweep_recipe: EvaluateSweepRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = Models()
    report = models.sweep(sweep_recipe, tmp_path / "sweep")
    manifest = open_artifact(tmp_path / "sweep", "sweep")
    assert set(manifest.files) == {"sweep.json", "sweep.md", "sweep.html", "contexts.jsonl", "answers.jsonl"}
    left = ("similar", "paraphrase")  # a document is one chunk; no paraphrases are given
    assert [scores.name for scores in report.sweeps] == [name for name in NAMES if name not in left]
    note = "2 of 16 questions are left out: they have no located oracle"
    assert note in report.notes
    assert note in capsys.readouterr().err
    by_name = {scores.name: scores for scores in report.sweeps}
    assert figure(by_name["distractors"], "3", "f1") == 1.0
    assert figure(by_name["no_oracle"], "without oracle", "declined") == 1.0
    assert figure(by_name["no_oracle"], "without oracle", "says_reference", "rag") > 0.3
    assert figure(by_name["injected"], "order", "attacked") == 0.0
    assert len(set(models.asked)) == len(models.asked) == 2 * manifest.facts["asked"]
    rows = [json.loads(line) for line in (tmp_path / "sweep/contexts.jsonl").read_text().splitlines()]
    assert {row["key"] for row in rows} == {key for _, key in models.asked}
    assert all(row["canary"] in "".join(row["made"].values()) for row in rows if row["canary"])
    assert json.loads((tmp_path / "sweep/sweep.json").read_text())["sweeps"][0]["n"] == 14


@pytest.mark.parametrize("stops_after", [3, 260])
def test_a_killed_run_goes_on_asks_nothing_twice_and_gives_the_same(
    sweep_recipe: EvaluateSweepRecipe, tmp_path: Path, stops_after: int
) -> None:
    first, second, whole = Models(stops_after), Models(), Models()
    with pytest.raises(KeyboardInterrupt):
        first.sweep(sweep_recipe, tmp_path / "sweep")
    other = sweep_recipe.model_copy(update={"distractors": (0, 2)})
    with pytest.raises(ArtifactError, match=r"recipe\.distractors"):
        Models().sweep(other, tmp_path / "sweep", resume=True)
    resumed = second.sweep(sweep_recipe, tmp_path / "sweep", resume=True)
    told = whole.sweep(sweep_recipe, tmp_path / "whole")
    assert len(first.asked) == stops_after + 1
    assert [*first.asked[:-1], *second.asked] == whole.asked
    assert resumed.sweeps == told.sweeps
    contexts = [(tmp_path / name / "contexts.jsonl").read_bytes() for name in ("sweep", "whole")]
    assert contexts[0] == contexts[1]


def test_a_paraphrase_asks_in_other_words_over_the_same_documents(
    sweep_recipe: EvaluateSweepRecipe, tmp_path: Path
) -> None:
    path = tmp_path / "paraphrases.jsonl"
    path.write_text("".join(
        json.dumps({"id": f"toll-{n}", "question": f"{world.TOWNS[n]} asks which bridge toll?"}) + "\n"
        for n in (3, 4, 8)
    ))  # fmt: skip
    recipe = sweep_recipe.model_copy(update={"paraphrases": path, "sweeps": ("paraphrase",), "systems": ("raft",)})
    models = Models()
    (scores,) = models.sweep(recipe, tmp_path / "sweep").sweeps
    assert (scores.n, scores.left_out) == (3, 11)
    asked, other = models.tuned.requests[:3], models.tuned.requests[3:]
    for before, after in zip(asked, other, strict=True):
        documents = [r.messages[-1].content.rpartition("Question: ") for r in (before, after)]
        assert documents[0][0] == documents[1][0]
        assert re.fullmatch(r"What is the bridge toll of \w+\?", documents[0][2])
        assert re.fullmatch(r"\w+ asks which bridge toll\?", documents[1][2])
    assert "paraphrases" in open_artifact(tmp_path / "sweep", "sweep").inputs


def test_impossible_sweeps_are_refused_in_one_line(sweep_recipe: EvaluateSweepRecipe, tmp_path: Path) -> None:
    def refused(**changes: object) -> None:
        Models().sweep(sweep_recipe.model_copy(update=changes), tmp_path / "sweep")

    with pytest.raises(UsageError, match=r"paraphrase needs the questions in other words.*--set paraphrases=FILE"):
        refused(sweeps=("position", "paraphrase"))
    with pytest.raises(InputError, match=r"no sweep can be made of 16 questions: .*14 of 14 .*too few near misses"):
        refused(sweeps=("distractors",), distractors=(0, 90))
    with pytest.raises(RecipeError, match="must be above the one before it"):
        load_recipe(EvaluateSweepRecipe, None, ["distractors=[4, 2]"])
    with pytest.raises(RecipeError, match=r"systems.*'rag_oracle'"):
        load_recipe(EvaluateSweepRecipe, None, ['systems=["rag_oracle"]'])
    for number, row in enumerate(('{"id": "a"}', '{"question": "b"}', '{"id": "a", "question": "b"}\n' * 2)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(row)
        with pytest.raises(InputError, match=r"row [12]"):
            read_paraphrases(path)


def test_every_system_with_found_documents_can_be_swept() -> None:
    assert set(get_args(SweptSystem)) == {name for name, system in SYSTEMS.items() if system.documents == "hits"}
    assert all(field.description for name, field in EvaluateSweepRecipe.model_fields.items() if name != "model")
