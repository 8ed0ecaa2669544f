"""The whole comparison over a real index with scripted models: what is asked, resumed, refused and reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raft.artifacts import Manifest, open_artifact, write_json, writing
from raft.config import ChatModelRecipe, ContenderRecipe, EncoderRecipe, EvaluateRecipe
from raft.errors import ArtifactError, InputError, ModelError, UsageError
from raft.evaluation.compare import evaluate
from raft.evaluation.report import Report
from raft.evaluation.systems import choose_systems
from raft.llm.chat import ChatReply, ChatRequest
from raft.llm.scripted import ScriptedModel
from raft.prompts import SYSTEM_CLOSED_BOOK, SYSTEM_SHORT, SYSTEM_WITH_DOCUMENTS
from raft.records import question_key
from tests.evaluation import world


class Models:
    """A base and a tuned model that remember what they were asked and in which order they were opened."""

    def __init__(
        self,
        base: Callable[[ChatRequest], str] = world.poor_reader,
        tuned: Callable[[ChatRequest], str] = world.good_reader,
    ) -> None:
        self.base, self.tuned = ScriptedModel(base, "base"), ScriptedModel(tuned, "tuned")
        self.opened: list[str] = []

    def evaluate(self, recipe: EvaluateRecipe, out: Path, **options: bool) -> Report:
        return evaluate(
            recipe, out, base=lambda: self._open(self.base), tuned=lambda: self._open(self.tuned), **options
        )

    def _open(self, model: ScriptedModel) -> ScriptedModel:
        self.opened.append(model.name)
        return model


def test_the_report_tells_the_tuned_model_from_the_base(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    models = Models()
    report = models.evaluate(world_recipe, tmp_path / "report")
    scores = {s.system: s for s in report.systems}
    assert [s.n for s in report.systems] == [16] * 8
    assert models.opened == ["base", "tuned"]
    assert scores["raft_oracle"].f1.mean == 1.0
    assert scores["raft_oracle"].abstention_recall == 1.0
    assert scores["raft"].quote_validity == 1.0
    assert scores["rag"].well_formed == 0.0
    (rag,) = [d for d in report.differences if d.minus == "rag"]
    assert rag.f1.mean == pytest.approx(scores["raft"].f1.mean - scores["rag"].f1.mean)
    assert rag.f1.low is not None
    assert rag.f1.low > 0
    manifest = open_artifact(tmp_path / "report", "report")
    assert set(manifest.files) == {"report.json", "report.md", "report.html", "answers.jsonl"}
    assert set(manifest.inputs) == {"questions", "index"}


def test_every_system_is_asked_as_its_name_says(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    models = Models()
    report = models.evaluate(world_recipe, tmp_path / "report")
    n = 16
    kinds = [models.base.requests[i * n : (i + 1) * n] for i in range(6)]
    closed, few, rag, short, few_rag, oracle = kinds
    assert {r.messages[0].content for r in [*closed, *few]} == {SYSTEM_CLOSED_BOOK}
    assert {r.messages[0].content for r in [*rag, *few_rag, *oracle]} == {SYSTEM_WITH_DOCUMENTS}
    assert {r.messages[0].content for r in short} == {SYSTEM_SHORT}
    assert "Document [" not in "".join(m.content for r in [*closed, *few] for m in r.messages)
    assert [r.messages[-1] for r in rag] == [r.messages[-1] for r in short] == [r.messages[-1] for r in few_rag]
    assert [r.messages for r in models.tuned.requests[:n]] == [r.messages for r in rag]  # the same hits, the same words
    for asked in (few, few_rag):
        assert len({r.messages[:-1] for r in asked}) == 1  # the examples are one shared prefix
        assert [len(r.messages) for r in asked] == [6] * n
    shown = "".join(m.content for m in few_rag[0].messages[:-1])
    assert any(question in shown for question in ("Arden", "Belmar", "Corvin"))
    assert all(name.endswith(("-0", "-1", "-2")) for name in report.settings["shot_ids"])


def test_two_runs_give_the_same_report(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    rows = []
    for folder in ("a", "b"):
        Models().evaluate(world_recipe, tmp_path / folder)
        report = json.loads((tmp_path / folder / "report.json").read_text())
        report.pop("name")
        for row in [*report["systems"], *report["results"]]:
            row.pop("seconds")
        rows.append(report)
    assert rows[0] == rows[1]


@pytest.mark.parametrize("stops_after", [5, 16, 100])
def test_a_killed_run_goes_on_and_asks_nothing_twice(
    world_recipe: EvaluateRecipe, tmp_path: Path, stops_after: int
) -> None:
    def dying(script: Callable[[ChatRequest], str]) -> Callable[[ChatRequest], str]:
        def answer(request: ChatRequest) -> str:
            if sum(len(m.requests) for m in (first.base, first.tuned)) > stops_after:
                raise KeyboardInterrupt
            return script(request)

        return answer

    first = Models(dying(world.poor_reader), dying(world.good_reader))
    with pytest.raises(KeyboardInterrupt):
        first.evaluate(world_recipe, tmp_path / "report")
    assert not (tmp_path / "report").exists()
    with pytest.raises(ArtifactError, match="unfinished work"):
        Models().evaluate(world_recipe, tmp_path / "report")
    other = world_recipe.model_copy(update={"top_k": 3})
    with pytest.raises(ArtifactError, match=r"recipe\.top_k: was 2, now 3"):
        Models().evaluate(other, tmp_path / "report", resume=True)
    second = Models()
    resumed = second.evaluate(world_recipe, tmp_path / "report", resume=True)
    assert len(second.base.requests) + len(second.tuned.requests) == 8 * 16 - stops_after
    whole = Models().evaluate(world_recipe, tmp_path / "whole")
    assert [r.text for r in resumed.results] == [r.text for r in whole.results]
    assert [s.f1 for s in resumed.systems] == [s.f1 for s in whole.systems]
    if stops_after >= 6 * 16:
        assert second.opened == ["tuned"]


def test_a_reply_that_fails_scores_nothing_and_is_shown(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    def sometimes(request: ChatRequest) -> str:
        if request.key == "toll-4":
            raise TimeoutError("no answer after 120 s")
        return world.good_reader(request)

    report = Models(tuned=sometimes).evaluate(world_recipe, tmp_path / "report")
    raft = next(s for s in report.systems if s.system == "raft_oracle")
    assert (raft.n, raft.failures) == (16, 1)
    assert raft.f1.mean == pytest.approx(15 / 16)
    assert report.verdict[-1] == "2 of 128 replies failed; they count as wrong answers."
    assert "- raft, question toll-4: TimeoutError: no answer after 120 s" in (tmp_path / "report/report.md").read_text()


def test_an_outage_ends_the_run_and_resume_asks_the_failed_again(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    asked: list[str] = []

    def outage(request: ChatRequest) -> str:
        asked.append(request.key)
        if len(asked) > 6:
            raise TimeoutError("no answer in 60 s")
        return world.good_reader(request)

    broken = Models(tuned=outage)
    with pytest.raises(ModelError, match=r"10 of 16 replies of raft failed .*no answer in 60 s.*--resume"):
        broken.evaluate(world_recipe, tmp_path / "report")
    mended = Models()
    report = mended.evaluate(world_recipe, tmp_path / "report", resume=True)
    assert mended.base.requests == []
    assert len(mended.tuned.requests) == 10 + 16
    whole = Models().evaluate(world_recipe, tmp_path / "whole")
    assert [s.f1 for s in report.systems] == [s.f1 for s in whole.systems]


@pytest.mark.parametrize(("fault", "message"), [("silent", "left 1 of 16 requests of rag"), ("twice", "'toll-3'")])
def test_a_model_that_skips_or_repeats_a_reply_is_refused(
    world_recipe: EvaluateRecipe, tmp_path: Path, fault: str, message: str
) -> None:
    class Faulty(ScriptedModel):
        def complete(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
            replies = list(super().complete(requests))
            yield from replies[1:] if fault == "silent" else [*replies, replies[0]]

    recipe = world_recipe.model_copy(update={"systems": ("rag",)})
    with pytest.raises(ModelError, match=message):
        evaluate(recipe, tmp_path / "report", base=lambda: Faulty(world.poor_reader))
    assert not (tmp_path / "report").exists()


def test_without_an_adapter_the_raft_systems_are_left_out_and_that_is_said(
    world_recipe: EvaluateRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = world_recipe.model_copy(update={"logprobs": False})
    report = evaluate(recipe, tmp_path / "report", base=lambda: ScriptedModel(world.poor_reader))
    assert [s.system for s in report.systems][-1] == "rag_oracle"
    note = "no adapter is given, so that raft and raft_oracle cannot run"
    assert report.notes == (note,)
    assert note in capsys.readouterr().err
    assert report.verdict[0].startswith("No tuned model was evaluated.")


def test_what_was_tuned_without_documents_answers_with_and_without_them(
    world_recipe: EvaluateRecipe, tmp_path: Path
) -> None:
    opened: list[str] = []
    models = {name: ScriptedModel(world.good_reader, name) for name in ("dsf", "raft")}

    def opener(name: str) -> Callable[[], ScriptedModel]:
        return lambda: opened.append(name) or models[name]  # type: ignore[func-returns-value]

    recipe = world_recipe.model_copy(update={"systems": ("raft", "dsf", "dsf_rag")})
    report = evaluate(recipe, tmp_path / "report", tuned=opener("raft"), dsf=opener("dsf"))
    assert opened == ["dsf", "raft"]
    assert [(s.system, s.model) for s in report.systems] == [
        ("raft", "raft"), ("dsf", "dsf"), ("dsf_rag", "dsf")
    ]  # fmt: skip
    alone, among = models["dsf"].requests[:16], models["dsf"].requests[16:]
    assert {r.messages[0].content for r in alone} == {SYSTEM_CLOSED_BOOK}
    assert [r.messages for r in among] == [r.messages for r in models["raft"].requests]
    assert {d.minus for d in report.differences} == {"dsf", "dsf_rag"}
    with pytest.raises(UsageError, match=r"dsf_adapter is given, but none of \['rag'\] uses it"):
        choose_systems(["rag"], ["base", "dsf"])


def test_impossible_choices_are_refused(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'rag' more than once"):
        choose_systems(["rag", "rag"], ["base"])
    with pytest.raises(UsageError, match=r"need a tuned model\. Give --adapter DIR"):
        choose_systems(["raft"], ["base"])
    with pytest.raises(UsageError, match=r"need a tuned model\. Give --dsf-adapter DIR or --adapter DIR"):
        choose_systems(["dsf", "raft"], ["base"])
    with pytest.raises(UsageError, match=r"none of .* uses it"):
        choose_systems(["rag"], ["base", "raft"])
    endpoint = world_recipe.model.model_copy(update={"base_url": "http://127.0.0.1:1/v1"})
    recipe = world_recipe.model_copy(update={"model": endpoint, "adapter": tmp_path / "adapter"})
    with pytest.raises(UsageError, match="cannot be loaded onto the endpoint"):
        evaluate(recipe, tmp_path / "report")
    with pytest.raises(InputError, match=r"no question's answer is one of the answer_labels \['yes', 'no'\]"):
        Models().evaluate(world_recipe.model_copy(update={"answer_labels": ("yes", "no")}), tmp_path / "report")
    with pytest.raises(ArtifactError, match="no adapter at"):
        evaluate(world_recipe.model_copy(update={"adapter": tmp_path / "none"}), tmp_path / "report")
    with pytest.raises(UsageError, match="index is not set"):
        Models().evaluate(world_recipe.model_copy(update={"index": None}), tmp_path / "report")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        Models().evaluate(world_recipe, tmp_path / "taken")


def labelled_index(world_recipe: EvaluateRecipe, folder: Path, labels: dict[str, str]) -> Path:
    """The invented world, some of whose documents carry an access label."""
    from raft.indexing.build import build_index

    rows = [
        {"id": d.id, "title": d.title, "text": d.text, "labels": [labels[d.id]] if d.id in labels else []}
        for d in world.documents()
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index(folder / "corpus.jsonl", folder / "index", encoder=EncoderRecipe(backend="torch"))
    return folder / "index"


def test_the_set_of_answers_opens_no_documents(world_recipe: EvaluateRecipe, tmp_path: Path) -> None:
    secret = {"gallin.md": "yes", "hestor.md": "hr"}
    changes = {
        "index": labelled_index(world_recipe, tmp_path, secret), "systems": ("rag",), "answer_labels": ("yes", "no"),
        "questions": world.write_questions(tmp_path / "q.jsonl", [
            replace(item, answer="yes", answer_type="label") if item.id == "toll-4" else item
            for item in world.questions()
            if not secret.keys() & set(item.gold_document_ids)
        ]),
    }  # fmt: skip
    recipe = world_recipe.model_copy(update=changes)
    report = Models().evaluate(recipe.model_copy(update={"systems": ("rag", "raft")}), tmp_path / "nobody")
    assert report.systems[0].labels is not None
    assert {chunk["document_id"] for chunk in report.chunks.values()}.isdisjoint(secret)
    whole = {"labels": ("hr",), "questions": world_recipe.questions, "answer_labels": ()}
    items = [item for item in world.questions() if "gallin.md" not in item.gold_document_ids]
    whole["questions"] = world.write_questions(tmp_path / "hr.jsonl", items)
    held = Models().evaluate(recipe.model_copy(update=whole | {"systems": ("rag", "raft")}), tmp_path / "hr")
    shown = {chunk["document_id"] for chunk in held.chunks.values()}
    assert "hestor.md" in shown
    assert "gallin.md" not in shown


def test_what_the_tuned_encoder_or_its_base_saw_is_left_out(
    world_recipe: EvaluateRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, asked, base in (("first", 3, "package:x"), ("second", 4, str(tmp_path / "first"))):
        with writing(tmp_path / name, "encoder", {}, {}) as draft:
            key = question_key(f"What is the bridge toll of {world.TOWNS[asked]}?")
            write_json(draft.folder / "seen.json", {"questions": [key], "documents": []})
            draft.facts["base_model"] = base
    assert world_recipe.index is not None
    shutil.copytree(world_recipe.index, tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    manifest["recipe"]["encoder"]["model"] = str(tmp_path / "second")
    monkeyed = Manifest(**{key: value for key, value in manifest.items() if key != "checksum"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raft.artifacts.read_manifest", lambda folder, kind: monkeyed)
        report = evaluate(
            world_recipe.model_copy(update={"systems": ("rag",), "logprobs": False}),
            tmp_path / "report",
            base=lambda: ScriptedModel(world.poor_reader),
        )
    assert {"toll-3", "toll-4"}.isdisjoint(row["id"] for row in report.questions)
    assert len(report.questions) == 14
    assert report.notes == ("2 questions are left out: a tuned model saw them or their documents",)
    assert report.notes[0] in capsys.readouterr().err


def test_a_base_that_no_system_uses_need_not_be_there(
    world_recipe: EvaluateRecipe, tiny_folder: Path, tmp_path: Path
) -> None:
    own = ContenderRecipe(name="tiny", model=ChatModelRecipe(model=str(tiny_folder)))
    changes = {"model": ChatModelRecipe(model=str(tmp_path / "gone")), "systems": (), "contenders": (own,)}
    recipe = world_recipe.model_copy(update=changes | {"limit": 2, "max_new_tokens": 4})
    assert [s.system for s in evaluate(recipe, tmp_path / "report").systems] == ["tiny"]
    assert set(open_artifact(tmp_path / "report", "report").inputs) == {"questions", "index", "tiny.model"}


def test_a_resumed_report_is_of_the_same_weights(
    world_recipe: EvaluateRecipe, tiny_folder: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    recipe = world_recipe.model_copy(
        update={"model": ChatModelRecipe(model=str(base)), "systems": ("rag",), "limit": 3, "max_new_tokens": 4}
    )

    def stop(done: int, *_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe, tmp_path / "report", on_reply=stop)
    weights = load_file(base / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: torch.zeros_like(weights[name])}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match="model"):
        evaluate(recipe, tmp_path / "report", resume=True)
    shutil.copytree(tiny_folder, base, dirs_exist_ok=True)
    assert len(evaluate(recipe, tmp_path / "report", resume=True).results) == 3
