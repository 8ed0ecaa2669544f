"""The command line as a user meets it: help, errors as one line, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("index", "search", "generate", "train", "tune", "export", "evaluate", "ask", "serve", "show", "demo")


def raft(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    code = "from raft.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=cwd, timeout=300)


def test_help_names_every_verb() -> None:
    shown = raft("--help")
    assert shown.returncode == 0
    assert all(verb in shown.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    shown = raft(verb, "--help")
    assert shown.returncode == 0
    assert "--help" in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["tran"], 2, "No such command"),
        (["train", "--data"], 2, "requires an argument"),
        (["train"], 2, "dataset is not set. Give --data"),
        (["train", "--set", "methd=lora"], 3, "did you mean 'method'?"),
        (["train", "nowhere.toml"], 4, "recipe nowhere.toml cannot be read"),
        (["train", "--data", "nowhere"], 4, "no dataset at nowhere. Make one with: raft generate"),
        (["index", "nowhere"], 4, "nowhere"),
        (["search", "x", "--index", "nowhere"], 4, "no index at nowhere. Make one with: raft index"),
        (["show", "corpora"], 4, "not a finished artefact"),
        (["demo", "--corpus", "cooking"], 2, "Choose one of: legal, medical"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(words: list[str], code: int, says: str) -> None:
    shown = raft(*words)
    assert shown.returncode == code
    assert says in shown.stderr
    assert "Traceback" not in shown.stderr
    if code != 2 or "raft:" in shown.stderr:
        assert len(shown.stderr.strip().splitlines()) == 1


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in raft("train", "--data", "nowhere", "--debug").stderr
