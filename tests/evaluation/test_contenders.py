"""Systems of a recipe's own beside the built-in ones: other words, other adapters, endpoints."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raft.artifacts import open_artifact
from raft.config import ContenderRecipe, EvaluateRecipe
from raft.errors import ArtifactError, UsageError
from raft.evaluation.compare import evaluate
from raft.llm.chat import ChatRequest
from raft.llm.scripted import ScriptedModel
from raft.prompts import SYSTEM_CLOSED_BOOK, SYSTEM_SHORT, SYSTEM_WITH_DOCUMENTS, Message, fill_instruction
from raft.records import question_key
from tests.evaluation import world
from tests.evaluation.adapters import make_adapter
from tests.llm.stub import Stub, completion

PROMPT = "Quote like this: {quote_begin}words{quote_end}. Then {answer} and a word, or {answer} {refusal}."


@pytest.fixture
def endpoint() -> Iterator[Stub]:
    """A good reader behind an OpenAI-compatible endpoint."""

    def behave(word: str, nth: int) -> tuple[int, dict[str, str], Any]:
        return 200, {}, completion(world.good_reader(ChatRequest("q", (Message("user", word),))))

    stub = Stub(behave)
    threading.Thread(target=stub.serve_forever, args=(0.01,), daemon=True).start()
    yield stub
    stub.shutdown()
    stub.server_close()


def with_own(recipe: EvaluateRecipe, *contenders: dict[str, Any], **changes: Any) -> EvaluateRecipe:
    own = tuple(ContenderRecipe.model_validate(each) for each in contenders)
    return recipe.model_copy(update={"contenders": own, **changes})


def at(stub: Stub, **settings: Any) -> dict[str, Any]:
    return {"model": "reader", "base_url": stub.url, "api_key_env": "RAFT_TEST_KEY", **settings}


def test_an_endpoint_is_compared_with_the_others(
    world_recipe: EvaluateRecipe, endpoint: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFT_TEST_KEY", "key")
    reader = {"name": "reader", "title": "The reader", "model": at(endpoint, temperature=0.5)}
    without = {"name": "alone", "model": at(endpoint, temperature=0.5), "documents": "none", "shots": True}
    recipe = with_own(world_recipe, reader, without, systems=("rag", "rag_oracle"))
    base = ScriptedModel(world.poor_reader, "base")
    report = evaluate(recipe, tmp_path / "report", base=lambda: base)
    scores = {s.system: s for s in report.systems}
    assert [*scores] == ["rag", "rag_oracle", "reader", "alone"]
    assert (scores["reader"].title, scores["reader"].tuned, scores["reader"].failures) == ("The reader", False, 0)
    assert scores["reader"].quote_validity == 1.0
    assert scores["reader"].f1.mean > scores["rag"].f1.mean
    assert [(d.system, d.minus) for d in report.differences] == [
        ("reader", "rag"), ("reader", "rag_oracle"), ("reader", "alone")
    ]  # fmt: skip
    assert report.verdict[0].startswith("The reader ")
    assert " RAG: token F1 1.00 against 0.4" in report.verdict[0]
    assert report.settings["lead"] == "reader"
    said = [tuple((m["role"], m["content"]) for m in body["messages"]) for body in endpoint.bodies]
    assert {body["temperature"] for body in endpoint.bodies} == {0.5}
    assert len(said) == 32
    assert sorted(said[:16]) == sorted(tuple((m.role, m.content) for m in r.messages) for r in base.requests[:16])
    assert {(one[0], len(one)) for one in said[16:]} == {(("system", SYSTEM_CLOSED_BOOK), 6)}
    page = (tmp_path / "report" / "report.html").read_text()
    assert "The reader" in page
    other = evaluate(recipe.model_copy(update={"lead": "rag"}), tmp_path / "other", base=lambda: base)
    assert [(d.system, d.minus) for d in other.differences] == [
        ("rag", "rag_oracle"), ("rag", "reader"), ("rag", "alone")
    ]  # fmt: skip
    assert other.verdict[0].startswith("RAG ")
    assert " The reader: token F1 0.4" in other.verdict[0]


def test_another_instruction_is_read_by_the_same_parser_and_the_model_is_opened_once(
    world_recipe: EvaluateRecipe, tmp_path: Path
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(PROMPT)
    own = {"name": "mine", "prompt": str(prompt), "shots": True}
    recipe = with_own(world_recipe, own, systems=("rag", "raft"), limit=5)
    opened: list[ScriptedModel] = []

    def opener() -> ScriptedModel:
        opened.append(ScriptedModel(world.good_reader, "base"))
        return opened[-1]

    report = evaluate(recipe, tmp_path / "report", base=opener, tuned=lambda: ScriptedModel(world.poor_reader, "tuned"))
    (base,) = opened
    rag, mine = base.requests[:5], base.requests[5:]
    assert {r.messages[0].content for r in rag} == {SYSTEM_WITH_DOCUMENTS}
    assert {r.messages[0].content for r in mine} == {fill_instruction(PROMPT, documents=True)}
    assert [r.messages[-1] for r in rag] == [r.messages[-1] for r in mine]
    assert {len(r.messages) for r in mine} == {6}
    scores = {s.system: s for s in report.systems}
    assert scores["mine"].f1 == scores["rag"].f1  # the reader reads documents alone
    assert {(d.system, d.minus) for d in report.differences} == {("raft", "rag"), ("raft", "mine")}
    assert open_artifact(tmp_path / "report", "report").inputs["mine.prompt"] == report.settings["mine.prompt"]
    assert report.settings["contenders"][0]["name"] == "mine"


def test_who_is_asked_for_a_bare_answer_is_shown_bare_answers(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    own = {"name": "bare", "short": True, "shots": True}
    base = ScriptedModel(world.poor_reader, "base")
    evaluate(with_own(world_recipe, own, systems=(), limit=3), tmp_path / "report", base=lambda: base)
    shown = {r.messages[:-1] for r in base.requests}
    (first,) = shown
    assert first[0].content == SYSTEM_SHORT
    answers = {item.answer for item in world.questions() if item.split == "train"}
    assert {m.content for m in first if m.role == "assistant"} <= answers
    assert all("Document [1]" in m.content for m in first if m.role == "user")


def test_raft_asked_for_the_bare_answer(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    tuned = ScriptedModel(lambda request: "23 crowns", "tuned")
    recipe = world_recipe.model_copy(update={"systems": ("raft_short", "raft")})
    report = evaluate(recipe, tmp_path / "report", tuned=lambda: tuned)
    short, long = tuned.requests[:16], tuned.requests[16:]
    assert {r.messages[0].content for r in short} == {SYSTEM_SHORT}
    assert [r.messages[1:] for r in short] == [r.messages[1:] for r in long]
    assert [(d.system, d.minus) for d in report.differences] == [("raft", "raft_short")]
    assert report.systems[0].em.mean == pytest.approx(1 / 16)
    assert (report.systems[0].well_formed, report.systems[1].well_formed) == (None, 0.0)


def test_two_adapters_of_a_real_model_side_by_side(
    world_recipe: EvaluateRecipe, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tuple(item for item in world.questions() if item.id in ("toll-3", "market-3"))
    first = make_adapter(tmp_path / "first", tiny_folder, seed=1)
    second = make_adapter(tmp_path / "second", tiny_folder, seed=2, learned=known)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(PROMPT)
    model = world_recipe.model.model_copy(update={"model": str(tiny_folder)})
    recipe = with_own(
        world_recipe,
        {"name": "first", "adapter": first},
        {"name": "second", "adapter": second},
        {"name": "worded", "adapter": second, "prompt": prompt},
        model=model, systems=("rag",), max_new_tokens=6, limit=4,
    )  # fmt: skip

    def stop(done: int, total: int, system: str) -> None:
        if system == "second":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe, tmp_path / "report", on_reply=stop)
    prompt.write_text(PROMPT + " Be brief.")
    with pytest.raises(ArtifactError, match=r"worded\.prompt"):
        evaluate(recipe, tmp_path / "report", resume=True)
    prompt.write_text(PROMPT)
    report = evaluate(recipe, tmp_path / "report", resume=True)
    texts: dict[str, list[str]] = {}
    for row in report.results:
        texts.setdefault(row.system, []).append(row.text)
    assert [*texts] == ["rag", "first", "second", "worded"]
    assert len({tuple(said) for said in texts.values()}) == 4  # other weights or other words, other answers
    assert {s.system: s.model for s in report.systems} == {
        "rag": str(tiny_folder), "first": f"{tiny_folder}+first", "second": f"{tiny_folder}+second",
        "worded": f"{tiny_folder}+second",
    }  # fmt: skip
    assert {s.system for s in report.systems if s.tuned} == {"first", "second", "worded"}
    asked = {question_key(row["question"]) for row in report.questions}
    assert not asked & {question_key(item.question) for item in known}
    assert "2 questions are left out: a tuned model saw them" in capsys.readouterr().err
    inputs = open_artifact(tmp_path / "report", "report").inputs
    assert {"first.adapter", "second.adapter", "worded.adapter", "worded.prompt", "model"} <= set(inputs)
    rows = [json.loads(line) for line in (tmp_path / "report" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 16


def test_a_contender_brings_a_whole_model_of_its_own(
    world_recipe: EvaluateRecipe, tiny_folder: Path, tmp_path: Path
) -> None:
    own = {"name": "small", "model": {"model": str(tiny_folder)}}
    recipe = with_own(world_recipe, own, systems=("rag",), max_new_tokens=4, limit=2)
    report = evaluate(recipe, tmp_path / "report", base=lambda: ScriptedModel(world.poor_reader, "base"))
    assert [s.model for s in report.systems] == ["base", str(tiny_folder)]
    assert "small.model" in open_artifact(tmp_path / "report", "report").inputs


def test_an_adapter_goes_onto_no_endpoint(world_recipe: EvaluateRecipe, tiny_folder: Path, tmp_path: Path) -> None:
    far = world_recipe.model.model_copy(update={"base_url": "http://127.0.0.1:1/v1"})
    recipe = with_own(world_recipe, {"name": "near", "adapter": tmp_path / "none"}, model=far)
    with pytest.raises(UsageError, match=r"none cannot be loaded onto the endpoint http://127\.0\.0\.1:1/v1"):
        evaluate(recipe, tmp_path / "report")
    missing = with_own(world_recipe, {"name": "near", "adapter": tmp_path / "none"})
    with pytest.raises(ArtifactError, match="no adapter at"):
        evaluate(missing, tmp_path / "report")
