from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from stand_in import DRUGS, WordIndex, dose, monograph, question_rows, teach

from raft.artifacts import open_artifact
from raft.config_generate import GenerateRecipe
from raft.corpus.duplicates import NEAR_DUPLICATE, jaccard, shingles
from raft.dataset.build import JOURNAL, generate_dataset
from raft.dataset.estimate import estimate
from raft.errors import ArtifactError, EndpointError, InputError, UsageError
from raft.llm.scripted import ScriptedModel
from raft.places import partial_folder
from raft.prompts import REFUSAL, parse_answer
from raft.records import Document, chunk_from_row, example_from_row
from raft.rows import read_rows

ROOT = Path(__file__).resolve().parents[2]
TEACHER = {"model": "scripted"}


def recipe_of(**changes):
    return GenerateRecipe.model_validate({"teacher": TEACHER, "context": {"distractors": [1, 3]}} | changes)


def questions_file(folder, rows=None):
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or question_rows()))
    return path


def rows_of(folder, name):
    path = folder / f"{name}.jsonl"
    return list(read_rows(path)) if path.exists() else []


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, index):
    out = tmp_path_factory.mktemp("made") / "dataset"
    teacher = ScriptedModel(teach)
    summary = generate_dataset(recipe_of(split={"dev": 0.2, "test": 0.2}), index, out, teacher)
    return out, summary, teacher


def test_a_teacher_makes_a_whole_dataset(made, index):
    out, summary, _ = made
    manifest = open_artifact(out, "dataset")
    questions = rows_of(out, "questions")
    assert len(questions) == 30  # three a monograph
    assert sum(summary.questions.values()) == 30
    assert summary.examples == {split: len(rows_of(out, split)) for split in summary.examples}
    assert summary.examples["train"] == 3 * summary.questions["train"]
    assert manifest.facts["refused_by_rule"] == {"question_speaks_of_text": 10}
    assert manifest.facts["index_fingerprint"] == index.fingerprint
    assert manifest.facts["prompt_tokens"] == summary.prompt_tokens > 0
    assert JOURNAL not in manifest.files
    assert {row["question"] for row in rows_of(out, "rejected")} == {"Who wrote the text above, and why?"}


def test_answers_are_right_and_quotes_verbatim_where_the_target_says(made):
    out, _, _ = made
    chunks = {row["id"]: chunk_from_row(row) for row in rows_of(out, "chunks")}
    checked = 0
    for row in rows_of(out, "train") + rows_of(out, "dev") + rows_of(out, "test"):
        example, answer = example_from_row(row), parse_answer(row["target"])
        if example.oracle_present:
            assert answer.final == example.answer
            for quote in answer.quotes:
                assert quote.text in chunks[example.context[quote.document - 1]].text
                assert example.context[quote.document - 1] in example.oracle_ids
                checked += 1
        else:
            assert example.answer == REFUSAL
            assert answer.quotes == ()
        for n, drug in enumerate(DRUGS):
            if example.oracle_present and f"{drug} in adults" in example.question:
                assert answer.final == f"{dose(n)} mg"
    assert checked > 30


def test_examples_of_a_group_stand_together_and_share_their_context(made):
    out, _, _ = made
    rows = rows_of(out, "train")
    order = list(dict.fromkeys(row["group"] for row in rows))
    assert [row["group"] for row in rows] == sorted((row["group"] for row in rows), key=order.index)
    contexts = {}
    for row in rows:
        assert contexts.setdefault(row["group"], row["context"]) == row["context"]
    assert Counter(row["draw"] for row in rows) == dict.fromkeys(range(3), len(rows) // 3)


def test_no_document_of_dev_or_test_is_seen_in_training(made):
    out, summary, _ = made
    assert set(summary.questions) == {"train", "dev", "test"}
    strict = {d for row in rows_of(out, "questions") if row["split"] != "train" for d in row["document_ids"]}
    seen = {name.split("#")[0] for row in rows_of(out, "train") for name in (*row["context"], *row["oracle_ids"])}
    assert strict
    assert not strict & seen


def test_the_same_settings_write_the_same_bytes_whatever_order_replies_come_in(made, index, tmp_path):
    class Backwards(ScriptedModel):
        def complete(self, requests):
            yield from reversed(list(super().complete(requests)))

    generate_dataset(recipe_of(split={"dev": 0.2, "test": 0.2}), index, tmp_path / "dataset", Backwards(teach))
    assert files_of(tmp_path / "dataset") == files_of(made[0])


def test_existing_questions_without_a_teacher(index, tmp_path):
    path = questions_file(tmp_path)
    summary = generate_dataset(recipe_of(teacher=None, from_qa=path), index, tmp_path / "out")
    assert summary.questions == {"train": 11, "dev": 2}
    assert summary.reasoning == {"long_answer": 10, "none": 3}
    train = rows_of(tmp_path / "out", "train")
    lost = [row for row in train if row["answer_type"] == "unanswerable"]
    assert len(lost) == 9
    assert all(row["answer"] == REFUSAL and not row["oracle_present"] for row in lost)
    present = next(row for row in train if row["oracle_present"])
    quote = parse_answer(present["target"]).quotes[0].text
    assert quote.startswith(present["question"].split()[6])  # the whole sentence, from the drug's name on
    assert "The monograph sets" in present["target"]


def test_from_memory_gives_the_answer_where_the_oracle_is_absent(index, tmp_path):
    context = {"oracle_absent": "from_memory", "oracle_fraction": 0.0, "distractors": 2}
    recipe = recipe_of(teacher=None, from_qa=questions_file(tmp_path), context=context)
    generate_dataset(recipe, index, tmp_path / "out")
    rows = rows_of(tmp_path / "out", "train")
    assert not any(row["oracle_present"] for row in rows)
    assert {row["answer"] for row in rows if row["answer_type"] == "number"} == {f"{dose(n)} mg" for n in range(8)}
    assert all(row["answer"] == REFUSAL for row in rows if row["answer_type"] == "unanswerable")


def test_a_teacher_explains_existing_questions_and_the_evidence_stays_where_it_fails(index, tmp_path):
    def script(request):
        return "It is 9999 mg, they say." if "Alvoran" in request.messages[-1].content else teach(request)

    recipe = recipe_of(from_qa=questions_file(tmp_path))
    summary = generate_dataset(recipe, index, tmp_path / "out", ScriptedModel(script))
    by_id = {row["id"]: row for row in rows_of(tmp_path / "out", "questions")}
    assert by_id["q-Alvoran"]["reasoning_source"] == "long_answer"
    assert by_id["q-Bentrazol"]["reasoning"] == "The first dose in adults is given by mouth."
    assert summary.refused_by_rule == {"reasoning_not_grounded": 1}
    assert summary.refused == 0


def test_splits_and_limit_of_existing_questions(index, tmp_path):
    recipe = recipe_of(teacher=None, from_qa=questions_file(tmp_path), from_qa_splits=["train"], from_qa_limit=3)
    summary = generate_dataset(recipe, index, tmp_path / "out")
    assert [row["id"] for row in rows_of(tmp_path / "out", "questions")] == ["q-Alvoran", "q-Bentrazol", "q-Corvalexin"]
    assert set(summary.questions) == {"train"}
    held_out = {"istolan.md", "jorvex.md"}  # documents of the dev questions that were not used
    assert not held_out & {name.split("#")[0] for row in rows_of(tmp_path / "out", "train") for name in row["context"]}


def test_everything_refused_is_kept_with_its_reasons(index, tmp_path):
    rows = question_rows()[:4]
    rows[0]["evidence"][0]["text"] = "words that stand nowhere"
    rows[1]["answer"] = "seventy grams"
    rows[2]["question"] = rows[3]["question"].upper()
    rows.append(rows[0] | {"id": "leak", "evidence": rows[1]["evidence"], "gold_doc_ids": rows[1]["gold_doc_ids"]})
    rows[-1] |= {"answer": f"{dose(1)} mg", "split": "train", "question": "How much Bentrazol do adults get first?"}
    rows.append(rows[-1] | {"id": "strict", "split": "dev", "question": "Adults get which first amount of Bentrazol?"})
    rows[2]["evidence"], rows[2]["answer"] = rows[3]["evidence"], rows[3]["answer"]
    summary = generate_dataset(recipe_of(teacher=None, from_qa=questions_file(tmp_path, rows)), index, tmp_path / "out")
    reasons = {row["id"]: row["reasons"] for row in rows_of(tmp_path / "out", "rejected")}
    assert reasons == {
        "q-Alvoran": ["quote_missing"],
        "q-Bentrazol": ["answer_not_in_quote"],
        "q-Dunamil": ["duplicate_question"],
        "leak": ["document_of_stricter_split"],
    }
    assert summary.refused == 4


def test_no_question_left_says_why_and_leaves_no_dataset(index, tmp_path):
    teacher = ScriptedModel(lambda request: "1. What does this text say about it?")
    with pytest.raises(InputError, match=r"no question is left .*question_speaks_of_text 30"):
        generate_dataset(recipe_of(), index, tmp_path / "out", teacher)
    assert not (tmp_path / "out").exists()


def test_contexts_larger_than_the_corpus_are_refused(index, tmp_path):
    recipe = recipe_of(teacher=None, from_qa=questions_file(tmp_path), context={"distractors": 60})
    with pytest.raises(InputError, match="61 chunks cannot be filled"):
        generate_dataset(recipe, index, tmp_path / "out")
    assert not partial_folder(tmp_path / "out").exists()


def test_neither_teacher_nor_questions(index, tmp_path):
    with pytest.raises(UsageError, match="--from-qa"):
        generate_dataset(recipe_of(teacher=None), index, tmp_path / "out")


def test_questions_that_need_more_places_than_there_are(index, tmp_path):
    rows = question_rows()[:3]
    rows[0]["evidence"] += rows[1]["evidence"]
    recipe = recipe_of(teacher=None, from_qa=questions_file(tmp_path, rows), context={"distractors": 0})
    generate_dataset(recipe, index, tmp_path / "out")
    [refused] = rows_of(tmp_path / "out", "rejected")
    assert refused["reasons"] == ["more_oracles_than_places"]


def failing(share, calls):
    def script(request):
        calls.append(request.key)
        if len(calls) % 10 < share:
            raise RuntimeError("busy")
        return teach(request)

    return script


def test_some_failed_calls_are_counted_and_the_rest_goes_on(index, tmp_path):
    calls = []
    summary = generate_dataset(recipe_of(), index, tmp_path / "out", ScriptedModel(failing(2, calls)))
    failed = [row for row in rows_of(tmp_path / "out", "rejected") if row["reasons"] == ["teacher_failed"]]
    assert len(failed) == summary.refused_by_rule["teacher_failed"] == sum(n % 10 < 2 for n in range(1, len(calls) + 1))
    assert {row["said"] for row in failed} == {"RuntimeError: busy"}


def test_a_teacher_that_mostly_fails_ends_the_run_and_it_can_go_on(made, index, tmp_path):
    recipe, out, calls = recipe_of(split={"dev": 0.2, "test": 0.2}), tmp_path / "dataset", []
    with pytest.raises(EndpointError, match=r"calls of the teacher scripted failed.*busy.*--resume"):
        generate_dataset(recipe, index, out, ScriptedModel(failing(7, calls)))
    assert len(calls) < 60
    with pytest.raises(ArtifactError, match="--resume"):
        generate_dataset(recipe, index, out, ScriptedModel(teach))
    with pytest.raises(ArtifactError, match="seed: was 0, now 1"):
        generate_dataset(recipe.model_copy(update={"seed": 1}), index, out, ScriptedModel(teach), resume=True)
    answered = journal_keys(partial_folder(out) / JOURNAL)
    teacher = ScriptedModel(teach)
    generate_dataset(recipe, index, out, teacher, resume=True)
    assert answered
    assert not set(answered) & {request.key.partition("/")[2] for request in teacher.requests}
    assert files_of(out) == files_of(made[0])


def test_the_speed_of_asking_may_change_between_runs(index, tmp_path):
    with pytest.raises(EndpointError):
        generate_dataset(recipe_of(), index, tmp_path / "out", ScriptedModel(failing(7, [])))
    slower = recipe_of(teacher=TEACHER | {"concurrency": 2, "max_retries": 9})
    generate_dataset(slower, index, tmp_path / "out", ScriptedModel(teach), resume=True)


def test_what_the_errors_advise_to_change_may_change_and_nothing_is_asked_twice(index, tmp_path):
    out, first, second = tmp_path / "out", ScriptedModel(teach), ScriptedModel(teach)
    with pytest.raises(InputError, match="61 chunks cannot be filled"):
        generate_dataset(recipe_of(context={"distractors": 60}), index, out, first)
    changes = {"context": {"distractors": 2}, "quality": {"max_answer_words": 9}, "split": {"dev": 0.0, "test": 0.3}}
    generate_dataset(recipe_of(**changes), index, out, second, resume=True)
    assert len(first.requests) > 30
    assert second.requests == []
    recipe = open_artifact(out, "dataset").recipe
    assert (recipe["context"]["distractors"], recipe["quality"]["max_answer_words"]) == (2, 9)
    assert (recipe["split"]["dev"], recipe["split"]["test"]) == (0.0, 0.3)
    assert not partial_folder(out).exists()


def test_a_full_disk_in_the_last_step_keeps_every_reply(index, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    out, teacher = tmp_path / "out", ScriptedModel(teach)
    with monkeypatch.context() as patched:
        patched.setattr("raft.artifacts.finish", full)
        with pytest.raises(InputError, match=r"No space left.*--resume"):
            generate_dataset(recipe_of(split={"dev": 0.3, "test": 0.0}), index, out, ScriptedModel(teach))
    assert (partial_folder(out) / "dev.jsonl").exists()
    generate_dataset(recipe_of(split={"dev": 0.0, "test": 0.3}), index, out, teacher, resume=True)
    assert teacher.requests == []
    assert {"train.jsonl", "test.jsonl"} <= set(open_artifact(out, "dataset").files)
    assert not (out / "dev.jsonl").exists()
    assert not (out / JOURNAL).exists()


def test_a_run_without_a_teacher_does_not_wipe_replies_that_were_paid_for(index, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(EndpointError):
        generate_dataset(recipe_of(), index, out, ScriptedModel(failing(7, [])))
    paid = (partial_folder(out) / JOURNAL).read_bytes()
    without = recipe_of(teacher=None, from_qa=questions_file(tmp_path))
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ArtifactError, match=r"unfinished work lies in .*--resume"):
            generate_dataset(without, index, out, **options)
    assert (partial_folder(out) / JOURNAL).read_bytes() == paid != b""


class Short(ScriptedModel):
    """Says of one stage's replies about Alvoran that they were cut; nothing in their words shows it."""

    def __init__(self, stage):
        super().__init__(teach)
        self.stage = stage

    def complete(self, requests):
        for reply in super().complete(requests):
            about_alvoran = "Alvoran" in self.requests[-1].messages[-1].content
            yield replace(reply, truncated=about_alvoran and reply.key.startswith(f"{self.stage}/"))


def test_an_answer_that_was_cut_is_refused(index, tmp_path):
    whole = generate_dataset(recipe_of(), index, tmp_path / "whole", ScriptedModel(teach))
    summary = generate_dataset(recipe_of(), index, tmp_path / "out", Short("answers"))
    cut = [row for row in rows_of(tmp_path / "out", "rejected") if row["reasons"] == ["reply_cut"]]
    assert len(cut) == summary.refused_by_rule["reply_cut"] == 4  # three about Alvoran, one that names it beside Jorvex
    assert all("##begin_quote##" in row["said"] for row in cut)
    assert sum(whole.questions.values()) - sum(summary.questions.values()) == 4


def test_a_reasoning_that_was_cut_is_not_used(index, tmp_path):
    recipe = recipe_of(from_qa=questions_file(tmp_path))
    summary = generate_dataset(recipe, index, tmp_path / "out", Short("reasoning"))
    by_id = {row["id"]: row for row in rows_of(tmp_path / "out", "questions")}
    assert by_id["q-Alvoran"]["reasoning_source"] == "long_answer"
    assert by_id["q-Bentrazol"]["reasoning_source"] == "teacher"
    assert summary.refused_by_rule == {"reply_cut": 1}
    assert summary.refused == 0


def test_documents_named_by_evidence_alone_are_held_out(index, tmp_path):
    rows = [{key: value for key, value in row.items() if key != "gold_doc_ids"} for row in question_rows()]
    path = questions_file(tmp_path, rows)
    recipe = recipe_of(teacher=None, from_qa=path, from_qa_splits=["train"], context={"distractors": 20})
    generate_dataset(recipe, index, tmp_path / "out")
    held_out = {"istolan.md", "jorvex.md"}  # documents of the dev questions that were not used
    assert not held_out & {name.split("#")[0] for row in rows_of(tmp_path / "out", "train") for name in row["context"]}


@st.composite
def other_editions(draw):
    """Monographs as they were filed again: words replaced, left out, or put behind the end."""
    drug = draw(st.integers(0, len(DRUGS) - 1))
    words = monograph(drug, DRUGS[drug]).text.split(" ")
    for at in draw(st.lists(st.integers(0, len(words) - 1), max_size=3)):
        words[at] = draw(st.sampled_from(["adults", "ward", "9", "\n\nSo", ""]))
    return " ".join([*words, *draw(st.lists(st.sampled_from(["always", "again"]), max_size=3))])


@limits(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    editions=st.lists(other_editions(), min_size=1, max_size=12), policy=st.sampled_from(["random", "hard", "mixed"])
)
def test_no_distractor_is_a_near_duplicate_of_an_oracle(tmp_path, editions, policy):
    originals = [monograph(n, drug) for n, drug in enumerate(DRUGS)]
    index = WordIndex([*originals, *(Document(f"copy{n}.md", text) for n, text in enumerate(editions))])
    context = {"distractors": [2, 5], "policy": policy, "oracle_fraction": 0.5}
    recipe = recipe_of(teacher=None, from_qa=questions_file(tmp_path), context=context)
    generate_dataset(recipe, index, tmp_path / "out", overwrite=True)
    rows = rows_of(tmp_path / "out", "train") + rows_of(tmp_path / "out", "dev")
    assert rows
    for example in map(example_from_row, rows):
        oracles = [shingles(index.chunk(name).text) for name in example.oracle_ids]
        for name in set(example.context) - set(example.oracle_ids):
            words = shingles(index.chunk(name).text)
            assert all(jaccard(words, oracle) < NEAR_DUPLICATE for oracle in oracles)


def test_no_near_duplicate_of_a_dev_or_test_oracle_is_seen_in_training(tmp_path):
    originals = [monograph(n, drug) for n, drug in enumerate(DRUGS)]
    held_out = originals[8]  # of a dev question
    copy = Document("copy.md", held_out.text.replace("by mouth.", "by mouth again."))
    rows = question_rows()
    evidence = [{"doc_id": "copy.md", "text": f"a first dose of {dose(8)} mg by mouth again."}]
    rows.append(rows[0] | {"id": "leak", "question": "Which first dose is given by mouth again, in the copy?",
                           "answer": f"{dose(8)} mg", "gold_doc_ids": ["copy.md"], "evidence": evidence})  # fmt: skip
    recipe = recipe_of(teacher=None, from_qa=questions_file(tmp_path, rows), context={"distractors": 15})
    generate_dataset(recipe, WordIndex([*originals, copy]), tmp_path / "out")
    reasons = {row["id"]: row["reasons"] for row in rows_of(tmp_path / "out", "rejected")}
    assert reasons == {"leak": ["near_duplicate_of_stricter_split"]}
    seen = {name for row in rows_of(tmp_path / "out", "train") for name in row["context"]}
    assert "copy.md#0" not in seen
    assert any(name.startswith("alvoran.md") for name in seen)


def test_no_near_duplicate_of_a_held_out_document_is_seen_in_training(tmp_path):
    """The questions of the test split are not used, and yet they hold their documents out."""
    originals = [monograph(n, drug) for n, drug in enumerate(DRUGS)]
    copy = Document("copy.md", originals[9].text.replace("by mouth.", "by mouth again."))
    rows = [row | {"split": "test"} if row["id"] == f"q-{DRUGS[9]}" else row for row in question_rows()]
    evidence = [{"doc_id": "copy.md", "text": f"a first dose of {dose(9)} mg by mouth again."}]
    rows.append(rows[0] | {"id": "leak", "question": "Which first dose is given by mouth again, in the copy?",
                           "answer": f"{dose(9)} mg", "gold_doc_ids": ["copy.md"], "evidence": evidence})  # fmt: skip
    recipe = recipe_of(teacher=None, from_qa=questions_file(tmp_path, rows), context={"distractors": 15})
    generate_dataset(recipe, WordIndex([*originals, copy]), tmp_path / "out")
    reasons = {row["id"]: row["reasons"] for row in rows_of(tmp_path / "out", "rejected")}
    assert reasons == {"leak": ["near_duplicate_of_stricter_split"]}
    seen = {name for row in rows_of(tmp_path / "out", "train") for name in row["context"]}
    assert not seen & {"copy.md#0", "copy.md#1", "copy.md#2", f"{DRUGS[9].lower()}.md#0"}
    assert any(name.startswith("alvoran.md") for name in seen)


RUN = """
import sys, time
from pathlib import Path
from stand_in import DRUGS, WordIndex, monograph, teach
from raft.config_generate import GenerateRecipe
from raft.corpus.duplicates import NEAR_DUPLICATE, jaccard, shingles
from raft.dataset.build import generate_dataset
from raft.llm.scripted import ScriptedModel

log = open(sys.argv[2], "a")
def slow(request):
    log.write(request.key + "\\n"); log.flush()
    time.sleep(0.02)
    return teach(request)

index = WordIndex([monograph(n, drug) for n, drug in enumerate(DRUGS)])
recipe = GenerateRecipe.model_validate(
    {"teacher": {"model": "scripted"}, "context": {"distractors": [1, 3]}, "split": {"dev": 0.2, "test": 0.2}}
)
generate_dataset(recipe, index, Path(sys.argv[1]), ScriptedModel(slow), resume=True)
"""


def test_kill_minus_nine_loses_nothing_asks_nothing_twice_and_ends_in_the_same_bytes(made, tmp_path):
    out, log = tmp_path / "dataset", tmp_path / "calls.log"
    command = [sys.executable, "-c", RUN, str(out), str(log)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    journal, answered = partial_folder(out) / JOURNAL, []
    for more in (4, 17, 9, 13):  # rows of the journal until the next kill
        before = len(answered)
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None and len(journal_keys(journal)) < before + more:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        answered = journal_keys(journal)
        log.open("a").write("--- killed\n")
    subprocess.run(command, env=environment, check=True)
    runs = [[key.partition("/")[2] for key in run.split()] for run in log.read_text().split("--- killed\n")]
    assert len(answered) >= 43
    assert files_of(out) == files_of(made[0])
    assert not partial_folder(out).exists()
    calls = Counter(key for run in runs for key in run)
    in_flight = {run[-1] for run in runs[:-1]}  # asked when the process died: the one call that may come again
    assert {key for key, count in calls.items() if count > 1} <= in_flight
    assert not set(answered) & set(runs[-1])


def journal_keys(path):
    if not path.exists():
        return []
    with (
        contextlib.closing(sqlite3.connect(path, timeout=10)) as journal,
        contextlib.suppress(sqlite3.OperationalError),
    ):
        return [key for (key,) in journal.execute("SELECT key FROM replies")]
    return []  # its table is not there yet


def test_the_estimate_bounds_what_is_asked(made, index, tmp_path):
    teacher = made[2]
    plan = estimate(recipe_of(), index.chunks)
    assert plan.chunks == 30
    assert 30 < len(teacher.requests) <= plan.teacher_calls == 30 + 60
    assert estimate(recipe_of(questions={"max_chunks": 5}), index.chunks).teacher_calls == 5 + 10
    rows = estimate(recipe_of(from_qa=questions_file(tmp_path)), index.chunks)
    assert (rows.questions, rows.teacher_calls) == (13, 10)
    assert estimate(recipe_of(teacher=None, from_qa=tmp_path / "questions.jsonl"), index.chunks).teacher_calls == 0


def test_chunks_too_short_to_ask_about_cost_no_call(tmp_path):
    from raft.records import Document

    documents = [monograph(n, drug) for n, drug in enumerate(DRUGS)]
    index = WordIndex([*documents, Document("empty.md", ""), Document("title.md", "Sorrel Hospital")])
    teacher = ScriptedModel(teach)
    generate_dataset(recipe_of(), index, tmp_path / "out", teacher)
    assert sum(request.key.startswith("questions/") for request in teacher.requests) == 30
