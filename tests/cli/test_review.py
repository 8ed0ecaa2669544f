"""raft review over a real socket, and raft review --apply."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from raft.artifacts import open_artifact
from raft.cli.review import review
from raft.dataset.review import open_review
from raft.dataset.trail import trail_path
from raft.errors import ArtifactError, InputError, RaftError, UsageError
from raft.rows import read_rows
from tests.review_dataset import write_review_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_review_dataset(tmp_path / "wards")


def run(*arguments: object) -> str:
    """What the command prints; its error is raised as it is."""
    app = typer.Typer()
    app.command()(review)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(result.exception, RaftError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_review_is_served_stopped_and_applied(dataset: Path) -> None:
    command = [sys.executable, "-m", "raft", "review", str(dataset), "--port", "0", "--reviewer", "ada"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ)
    greeting = process.stderr.readline()
    url = re.search(r"http://127\.0\.0\.1:\d+", greeting).group()
    assert "as ada" in greeting
    assert str(trail_path(dataset)) in process.stderr.readline()
    assert "Review the dataset" in httpx.get(url).text
    httpx.post(f"{url}/api/questions/q%2F0/decision", json={"decision": "accept"}).raise_for_status()
    httpx.post(f"{url}/api/questions/q%2F1/decision", json={"decision": "reject", "reason": "trivial"})
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=20) == 0, rest
    assert "every decision is kept" in rest

    said = run(dataset, "--apply")
    assert "5 questions" in said
    assert "reviewed by ada: 1 accepted, 0 edited, 1 rejected, 4 undecided" in said
    assert open_artifact(dataset, "dataset").facts["review"]["rejected"] == 1


def test_apply_to_a_new_dataset_as_json(dataset: Path, tmp_path: Path) -> None:
    with open_review(dataset, "ada") as opened:
        opened.decide("q/0", "accept")
    told = json.loads(run(dataset, "--apply", "--accepted-only", "--out", tmp_path / "new", "--json"))
    assert (told["questions"], told["accepted"], told["undecided"], told["reviewers"]) == (1, 1, 5, ["ada"])
    assert [row["id"] for row in read_rows(tmp_path / "new" / "questions.jsonl")] == ["q/0"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("--host", "0.0.0.0"), UsageError, "has no keys"),
        (("--out", "x"), UsageError, "belong to --apply"),
        (("--accepted-only",), UsageError, "belong to --apply"),
        (("--apply",), UsageError, "nothing is decided"),
        (("--port", "0", "--split", "test"), UsageError, "no question in test"),
    ],
)
def test_wrong_usage_is_told(dataset: Path, arguments: tuple, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        run(dataset, *arguments)
    assert not trail_path(dataset).exists()


def test_what_is_no_dataset_or_a_taken_port_is_told(dataset: Path, tmp_path: Path) -> None:
    import socket

    with pytest.raises(ArtifactError, match="no dataset at"):
        run(tmp_path / "nothing", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="is in use"):
        run(dataset, "--port", taken.getsockname()[1])
