"""raft generate over a real index: with existing questions, and with a teacher behind a real socket."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import typer
from typer.testing import CliRunner

from raft.artifacts import open_artifact
from raft.cli.generate import _as_text, generate
from raft.config import ChunkingRecipe, EncoderRecipe
from raft.dataset.summary import DatasetSummary
from raft.errors import ArtifactError, CheckFailed, EndpointError, InputError, RecipeError, UsageError
from raft.prompts import parse_answer, render_target
from raft.records import Quote
from raft.rows import read_rows

WARDS = ["Ash", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Larch", "Maple"]
ROOM = "The {ward} ward of the Sorrel Hospital keeps its spare keys in cupboard {n}, behind the door of the office."


def question(ward):
    return f"In which cupboard does the {ward} ward keep its spare keys?"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    from raft.indexing.build import build_index

    folder = tmp_path_factory.mktemp("wards")
    for n, ward in enumerate(WARDS):
        (folder / f"{ward.lower()}.md").write_text(f"# {ward} ward\n\n{ROOM.format(ward=ward, n=40 + n)}\n")
    out = folder.parent / "wards-index"
    build_index(folder, out, chunking=ChunkingRecipe(), encoder=EncoderRecipe())
    return out


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [
        {
            "id": f"q{n}", "question": question(ward), "answer": f"cupboard {40 + n}", "answer_type": "short",
            "gold_doc_ids": [f"{ward.lower()}.md"],
            "evidence": [{"doc_id": f"{ward.lower()}.md", "text": f"spare keys in cupboard {40 + n}"}],
        }
        for n, ward in enumerate(WARDS)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments, fails=None):
    app = typer.Typer()
    app.command()(generate)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if fails is None:
        assert result.exception is None, result.exception
    else:
        assert isinstance(result.exception, fails), result.exception
        return str(result.exception)
    return result.stdout


SMALL = ("--set", "context.distractors=2", "--set", "split.dev=0", "--set", "split.test=0")


def test_existing_questions_over_a_real_index(index, questions, tmp_path):
    out = tmp_path / "dataset"
    said = run("--index", index, "--from-qa", questions, "--out", out, *SMALL)
    assert "8 questions accepted, 0 refused" in said
    assert f"next: raft dataset check {out}; raft train --data {out}" in said
    rows = list(read_rows(out / "train.jsonl"))
    assert len(rows) == 24
    assert all(len(set(row["context"])) == 3 for row in rows)
    quote = parse_answer(next(row for row in rows if row["oracle_present"])["target"]).quotes[0]
    assert re.fullmatch(r"The \w+ ward of the .* office\.", quote.text)


def test_the_sample_shows_no_escape_sequences(tmp_path):
    sample = {"question": "Which\x1b[2J?", "target": "First\x9b31m.\nSecond\x1b[0m.", "context": ["a"]}
    summary = DatasetSummary(
        out=tmp_path, questions={"train": 1}, examples={"train": 1}, groups=1, refused=0, refused_by_rule={},
        question_types={}, flags={}, reasoning={}, oracle_share=1.0, sample=sample, teacher_calls=0, failed_calls=0,
        prompt_tokens=0, completion_tokens=0, cost=0.0,
    )  # fmt: skip
    said = _as_text(summary)
    assert "question: Which [2J?\n  target:   First 31m.\n            Second [0m." in said
    assert all(char.isprintable() or char == "\n" for char in said)


def test_json_the_default_folder_and_overwriting(index, questions, tmp_path, monkeypatch):
    monkeypatch.setenv("RAFT_HOME", str(tmp_path / "home"))
    asked = ("--index", index, "--from-qa", questions, "--json", *SMALL)
    summary = json.loads(run(*asked))
    assert summary["out"] == str(tmp_path / "home" / "datasets" / "wards-index")
    assert summary["examples"] == {"train": 24}
    assert "--overwrite" in run(*asked, fails=ArtifactError)
    assert json.loads(run(*asked, "--overwrite"))["sample"] == summary["sample"]


def test_a_dry_run_says_what_the_teacher_would_be_asked(index, tmp_path):
    asked = ("--index", index, "--teacher", "some-model", "--dry-run", "--out", tmp_path / "out")
    assert "8 chunks, at most 16 questions, at most 24 calls of the teacher" in run(*asked)
    assert json.loads(run(*asked, "--json", "--set", "questions.per_chunk=1"))["teacher_calls"] == 16
    assert not (tmp_path / "out").exists()
    priced = ("--set", "teacher.prompt_price=2.5", "--set", "teacher.completion_price=10")
    plan = json.loads(run(*asked, "--json", *priced))
    expected = (2.5 * plan["prompt_tokens"] + 10 * plan["completion_tokens"]) / 1e6
    assert plan["cost"] == round(expected, 2) > 0
    both = json.loads(run(*asked, "--json", "--set", "quality.round_trip=both"))
    assert both["teacher_calls"] == 24 + 2 * 16


def test_wrong_use_is_one_clear_line(index, questions, tmp_path):
    assert "--from-qa" in run("--index", index, fails=UsageError)
    assert "--index" in run("--from-qa", questions, fails=UsageError)
    assert "did you mean 'oracle_fraction'" in run("--set", "context.oracle_fractoin=1", fails=RecipeError)
    assert "not a finished" in run("--index", tmp_path, "--from-qa", questions, fails=ArtifactError)
    assert "cannot be read" in run("--index", index, "--from-qa", tmp_path / "absent.jsonl", fails=InputError)


class Teacher(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.calls.append(body["messages"])
            status = 429 if len(self.server.calls) % 5 == 0 else self.server.status
        answer = {"choices": [{"index": 0, "finish_reason": "stop", "message": self.reply(body["messages"])}]}
        data = json.dumps(answer if status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", len(data)), ("Retry-After", 0.01)):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def reply(self, messages):
        asked = messages[-1]["content"]
        ward, cupboard = re.search(r"The (\w+) ward", asked).group(1), re.search(r"cupboard \d+", asked).group()
        if "Question:" not in asked:
            return {"role": "assistant", "content": f"1. {question(ward)}"}
        quote = re.search(r"The \w+ ward of the .*office\.", asked).group()
        return {"role": "assistant", "content": render_target(cupboard, "It is named there.", [Quote(quote, 1)])}

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    server.calls, server.lock, server.status = [], threading.Lock(), 200
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_teacher_behind_an_endpoint_that_limits_its_rate(index, endpoint, tmp_path):
    url, out = f"http://127.0.0.1:{endpoint.server_port}/v1", tmp_path / "dataset"
    said = run("--index", index, "--teacher", "stub", "--base-url", url, "--out", out, *SMALL)
    assert "8 questions accepted, 0 refused" in said
    assert {row["answer"] for row in read_rows(out / "questions.jsonl")} == {f"cupboard {40 + n}" for n in range(8)}
    assert open_artifact(out, "dataset").facts["teacher"] == "stub"


def test_an_endpoint_that_refuses_the_key_ends_the_run_and_resume_goes_on(index, endpoint, tmp_path):
    url, out = f"http://127.0.0.1:{endpoint.server_port}/v1", tmp_path / "dataset"
    asked = ("--index", index, "--teacher", "stub", "--base-url", url, "--out", out, *SMALL)
    endpoint.status = 401
    assert "refuses the key" in run(*asked, fails=EndpointError)
    assert not out.exists()
    endpoint.status = 200
    assert "8 questions accepted" in run(*asked, "--resume")


def test_a_budget_stops_the_run_and_a_larger_one_goes_on(index, endpoint, tmp_path):
    url, out = f"http://127.0.0.1:{endpoint.server_port}/v1", tmp_path / "dataset"
    asked = ("--index", index, "--teacher", "stub", "--base-url", url, "--out", out, *SMALL)
    few = ("--set", "teacher.budget_tokens=3000", "--set", "teacher.concurrency=1")
    assert "budget of 3,000 tokens is spent" in run(*asked, *few, fails=CheckFailed)
    answered = len(endpoint.calls)
    assert 0 < answered < 16
    said = run(*asked, "--resume")
    assert "8 questions accepted, 0 refused" in said
    assert "teacher: 16 calls" in said
    asked_words = [json.dumps(messages) for messages in endpoint.calls]
    retried = len(asked_words) // 5  # the endpoint limits its rate: these came again
    assert len(asked_words) - len(set(asked_words)) <= retried


def test_a_cache_makes_the_second_dataset_free(index, endpoint, tmp_path):
    url, cache = f"http://127.0.0.1:{endpoint.server_port}/v1", tmp_path / "cache.sqlite"
    asked = ("--index", index, "--teacher", "stub", "--base-url", url, "--set", f"teacher.cache={cache}", *SMALL)
    run(*asked, "--out", tmp_path / "one")
    calls = len(endpoint.calls)
    said = run(*asked, "--out", tmp_path / "two", "--set", "context.policy=random")
    assert len(endpoint.calls) == calls
    assert "8 questions accepted" in said
    assert (tmp_path / "one" / "questions.jsonl").read_bytes() == (tmp_path / "two" / "questions.jsonl").read_bytes()
