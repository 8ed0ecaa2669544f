"""raft feedback: from ratings over a real index to a model that is trained on them, and questions that are asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from raft.artifacts import open_artifact
from raft.cli.feedback_export import feedback_export
from raft.cli.feedback_show import feedback_show
from raft.cli.show import show
from raft.cli.train import train
from raft.dataset.check import check_dataset
from raft.dataset.importers import read_questions
from raft.errors import ArtifactError, InputError, RaftError, UsageError
from raft.models import load_tokenizer, prompt_ids
from raft.prompts import build_messages
from raft.records import question_key
from raft.retrieval.index import open_index
from raft.rows import read_rows
from raft.serving.feedback import FeedbackStore, GivenAnswer, Opinion, Shown, text_hash
from raft.serving.feedback_export import is_held_out
from raft.training.preference_rows import make_preference_plan

COLOURS = ("red", "blue", "green", "white", "black", "amber", "violet", "grey", "pink", "brown")
QUESTIONS = [f"What colour is the door of ward {n}?" for n in range(len(COLOURS))]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from raft.indexing.build import build_index

    folder = tmp_path_factory.mktemp("feedback")
    source = folder / "documents"
    source.mkdir()
    for n, colour in enumerate(COLOURS):
        labels = "---\nlabels: [staff]\n---\n" if n == 1 else ""
        (source / f"{n}.md").write_text(f"{labels}# Ward {n}\n\n## Doors\n\nThe door of ward {n} is {colour}.\n")
    build_index(source, folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def rated(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each question answered over its ward and the next: even ones are right and liked, odd ones wrong and corrected,
    the last one is wrong and nobody says what is right."""
    chunks = {chunk.document_id: chunk for chunk in open_index(index, labels=("staff",)).chunks}
    path = tmp_path_factory.mktemp("kept") / "feedback.sqlite"
    store = FeedbackStore(path)
    for n, colour in enumerate(COLOURS):
        wards = [chunks[f"{m % len(COLOURS)}.md"] for m in (n + 1, n)]
        shown = tuple(Shown(chunk.id, chunk.document_id, text_hash(chunk.text)) for chunk in wards)
        good = n % 2 == 0
        said = wards[good].text.rsplit("\n\n", 1)[-1].strip()
        text = f"Document [{1 + good}] says ##begin_quote##{said}##end_quote##\n<ANSWER>: {said.split()[-1][:-1]}"
        given = GivenAnswer(
            f"chatcmpl-{n}", "ward", "raft@new" if n else "raft", "f1", QUESTIONS[n], QUESTIONS[n], (), shown, text, ()
        )
        correction = None if good or n == len(COLOURS) - 1 else colour
        store.write(given, Opinion("up" if good else "down", correction, None if good else "look again"))
    store.close()
    return path


def call(verb: Callable[..., None], *arguments: object) -> str:
    """What the command prints; its error is raised as it is."""
    app = typer.Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(result.exception, RaftError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def export(rated: Path, index: Path, out: Path, *more: object) -> str:
    return call(feedback_export, "--feedback", rated, "--index", index, "--out", out, *more)


def test_show_counts(rated: Path, tmp_path: Path) -> None:
    counts = json.loads(call(feedback_show, rated, "--json"))
    assert {name: counts[name] for name in ("answers", "up", "down", "corrected", "commented", "callers")} == {
        "answers": 10, "up": 5, "down": 5, "corrected": 4, "commented": 5, "callers": 1,
    }  # fmt: skip
    assert counts["models"] == {"raft@new": 9, "raft": 1}
    assert "  corrected: 4" in call(feedback_show, rated)
    with pytest.raises(InputError, match="is not there"):
        call(feedback_show, tmp_path / "none")


def test_corrections_are_preferred_and_their_pairs_are_learned(
    rated: Path, index: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    said = export(rated, index, out, "--as", "pairs", "--label", "staff")
    assert f"next: raft train --data {out} --set objective=dpo --set preference.pairs={out}/pairs.jsonl" in said
    pairs = list(read_rows(out / "pairs.jsonl"))
    assert [(pair["question"], pair["chosen"]) for pair in pairs] == [
        (QUESTIONS[n], f"Document [2] says ##begin_quote##The door of ward {n} is {COLOURS[n]}.##end_quote##\n"
         f"<ANSWER>: {COLOURS[n]}")
        for n in (1, 3, 5, 7)
    ]  # fmt: skip
    assert pairs[0]["rejected"].endswith("ward 2 is green.##end_quote##\n<ANSWER>: green")
    few = ["optim.max_steps=1", "watch.probe=false", "precision=float32"]
    small = [*few, "preference.batch_size=2"]
    trainings = {"sft": few, "kto": small, "dpo": [*small, f"preference.pairs={out}/pairs.jsonl"]}
    for objective, settings in trainings.items():
        options = [part for each in (f"objective={objective}", *settings) for part in ("--set", each)]
        tuned = tmp_path / objective
        call(train, "--data", out, "--model", tiny_folder, "--out", tuned, *options)
        adapter = open_artifact(tuned, "adapter")
        assert adapter.facts["labels"] == ["staff"]
        seen = json.loads((tuned / "seen.json").read_text())
        assert question_key(QUESTIONS[1]) in seen["questions"]
        assert "1.md" in seen["documents"]


def test_pairs_are_asked_as_the_server_asked(rated: Path, index: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from raft.config import load_recipe
    from raft.config_train import TrainRecipe

    export(rated, index, tmp_path / "mine", "--as", "pairs")
    pairs = tmp_path / "mine" / "pairs.jsonl"
    recipe = load_recipe(TrainRecipe, None, ["objective=dpo", f"preference.pairs={pairs}"], model=str(tiny_folder))
    plan = make_preference_plan(recipe, tmp_path / "mine", tiny_folder)
    opened = open_index(index)
    first = next(read_rows(pairs))
    messages = build_messages(first["question"], [opened.chunk(name) for name in first["documents"]])
    assert plan.pairs[0].prompt == prompt_ids(load_tokenizer(tiny_folder), messages)
    assert "Ward 4 > Doors" in messages[-1].content


def test_every_rated_answer_stands_in_the_form_of_kto(
    rated: Path, index: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    from trl import apply_chat_template

    export(rated, index, tmp_path / "mine", "--as", "pairs", "--label", "staff")
    rows = list(read_rows(tmp_path / "mine" / "kto.jsonl"))
    assert [row["label"] for row in rows] == [n % 2 == 0 for n in range(10)]
    assert all([turn["role"] for turn in row["prompt"]] == ["system", "user"] for row in rows)
    assert rows[0]["completion"] == [
        {"role": "assistant",
         "content": "Document [2] says ##begin_quote##The door of ward 0 is red.##end_quote##\n<ANSWER>: red"}
    ]  # fmt: skip
    told = apply_chat_template(rows[0], load_tokenizer(tiny_folder))
    assert told["prompt"].endswith("<|im_start|>assistant\n")
    assert told["completion"].startswith("Document [2] says")
    assert told["label"] is True


def test_the_export_is_a_dataset_that_keeps_its_word(rated: Path, index: Path, tmp_path: Path) -> None:
    export(rated, index, tmp_path / "mine", "--as", "pairs", "--label", "staff")
    assert [finding for finding in check_dataset(tmp_path / "mine") if not finding.holds] == []
    assert len(list(read_rows(tmp_path / "mine" / "train.jsonl"))) == 9
    assert "labels = " in call(show, tmp_path / "mine")


def test_questions_have_what_people_said_as_their_reference(rated: Path, index: Path, tmp_path: Path) -> None:
    said = export(rated, index, tmp_path / "asked", "--as", "questions", "--label", "staff")
    assert f"next: raft evaluate --questions {tmp_path / 'asked'}/evaluation.jsonl" in said
    items = read_questions(tmp_path / "asked" / "evaluation.jsonl")
    assert [(item.question, item.answer, item.gold_document_ids) for item in items] == [
        (QUESTIONS[n], COLOURS[n], (f"{n}.md",)) for n in range(9)
    ]
    assert items[3].evidence[0].text == "The door of ward 3 is white."
    assert {item.split for item in items} == {"test"}
    assert open_artifact(tmp_path / "asked", "questions").facts["labels"] == ["staff"]


def test_both_trains_on_no_question_that_it_asks(rated: Path, index: Path, tmp_path: Path) -> None:
    export(rated, index, tmp_path / "both", "--label", "staff")
    asked = {row["question"] for row in read_rows(tmp_path / "both" / "evaluation.jsonl")}
    learned = {row["question"] for name in ("pairs", "train", "questions")
               for row in read_rows(tmp_path / "both" / f"{name}.jsonl")}  # fmt: skip
    assert asked == {question for question in QUESTIONS[:9] if is_held_out(question_key(question))}
    assert asked
    assert learned == set(QUESTIONS[:9]) - asked
    prompts = " ".join(row["prompt"][1]["content"] for row in read_rows(tmp_path / "both" / "kto.jsonl"))
    assert not any(question in prompts for question in asked)


def test_documents_that_may_not_be_seen_stay_out(rated: Path, index: Path, tmp_path: Path) -> None:
    summary = json.loads(export(rated, index, tmp_path / "open", "--as", "pairs", "--json"))
    assert summary["left_out"] == {"document gone or not to be seen": 2}
    assert summary["labels"] == []
    assert not any("ward 1 is" in path.read_text() for path in (tmp_path / "open").glob("*.jsonl"))


def test_what_a_model_learned_or_an_earlier_turn_showed_needs_its_labels(index: Path, tmp_path: Path) -> None:
    """Answers over documents that everybody may see: what else they repeat is for those alone who hold its labels."""
    chunk = next(chunk for chunk in open_index(index).chunks if chunk.document_id == "4.md")
    shown = (Shown(chunk.id, chunk.document_id, text_hash(chunk.text)),)
    store = FeedbackStore(tmp_path / "f.sqlite")
    for name, labels in (("open", ()), ("staff", ("staff",)), ("board", ("board", "staff")), ("unknown", None)):
        asked = f"Ward 1 has ({name} words)? And ward 4?"
        text = f"Document [1] says ##begin_quote##The door of ward 4 is black.##end_quote##\n<ANSWER>: {name} black"
        given = GivenAnswer(name, "ward", "raft", "f1", "And ward 4?", asked, (("Ward 1?", ""),), shown, text, labels)
        store.write(given, Opinion("up"))
    store.close()
    summaries = {}
    for out, held in (("none", []), ("staff", ["staff"]), ("both", ["staff", "board"])):
        options = ["--as", "pairs", "--json", *(part for label in held for part in ("--label", label))]
        summaries[out] = json.loads(export(tmp_path / "f.sqlite", index, tmp_path / out, *options))
    left_out = "given under access labels that are not held"
    assert [(each["left_out"], each["labels"]) for each in summaries.values()] == [
        ({left_out: 3}, []), ({left_out: 1}, ["staff"]), ({}, ["board", "staff"]),
    ]  # fmt: skip
    texts = {out: "".join(path.read_text() for path in (tmp_path / out).glob("*.jsonl")) for out in summaries}
    for name, where in (("open", "none"), ("staff", "staff"), ("unknown", "staff"), ("board", "both")):
        found = [out for out, text in texts.items() if f"{name} black" in text]
        assert found == [*texts][[*texts].index(where) :]
    assert open_artifact(tmp_path / "staff", "dataset").facts["labels"] == ["staff"]


def test_documents_that_changed_since_are_left_out(rated: Path, index: Path, tmp_path: Path) -> None:
    from raft.indexing.build import build_index

    source = tmp_path / "documents"
    source.mkdir()
    for n, colour in enumerate(COLOURS):
        (source / f"{n}.md").write_text(f"# Ward {n}\n\n## Doors\n\nThe door of ward {n} is {colour}.\n")
    (source / "4.md").write_text("# Ward 4\n\n## Doors\n\nThe door of ward 4 is orange.\n")
    build_index(source, tmp_path / "index")
    summary = json.loads(export(rated, tmp_path / "index", tmp_path / "mine", "--as", "pairs", "--json"))
    assert summary["left_out"] == {"document changed": 2}


def test_what_cannot_be_exported_is_refused(rated: Path, index: Path, tmp_path: Path) -> None:
    FeedbackStore(tmp_path / "empty.sqlite").close()
    with pytest.raises(InputError, match=r"holds nothing to export as both \(0 rows\)"):
        export(tmp_path / "empty.sqlite", index, tmp_path / "mine")
    with pytest.raises(UsageError, match="--as is 'pears'"):
        export(rated, index, tmp_path / "mine", "--as", "pears")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(ArtifactError, match="exists already"):
        export(rated, index, tmp_path / "mine")
    assert not (tmp_path / "mine" / "manifest.json").exists()
