"""The quick demo, for real: documents to report with the packaged models, each step a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raft.artifacts import open_artifact
from raft.cli.demo import _side_by_side

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(900)
def test_the_quick_demo_goes_the_whole_way(tmp_path: Path, student_folder: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(student_folder.parent, target_is_directory=True)
    env = os.environ | {"RAFT_HOME": str(home)}
    words = [sys.executable, "-c", "from raft.cli import main; main()", "demo", "--quick", "--corpus", "legal"]
    shown = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=800)
    assert shown.returncode == 0, shown.stderr
    folder = home / "demo" / "legal-quick"
    for name, kind in (("index", "index"), ("dataset", "dataset"), ("adapter", "adapter"), ("report", "report")):
        open_artifact(folder / name, kind)
    for part in (
        "$ raft index",
        "$ raft generate",
        "$ raft train",
        "$ raft evaluate",
        "base RAG",
        "RAFT",
        "raft serve",
    ):
        assert part in shown.stdout
    report = json.loads((folder / "report" / "report.json").read_text())
    assert {row["system"] for row in report["results"]} >= {"closed_book", "few_shot", "rag", "raft"}
    assert all(row["error"] is None for row in report["results"])


def test_answers_side_by_side_show_no_escape_sequences(tmp_path: Path) -> None:
    rows = [
        {"question_id": "q", "system": system, "f1": f1, "text": f"{system}\x1b[2J\nand\x9b31m"}
        for system, f1 in (("rag", 0.1), ("raft", 0.9))
    ]
    report = {"questions": [{"id": "q", "question": "Which\x1b[0m?", "answer": "None\x07"}], "results": rows}
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    shown = _side_by_side(tmp_path / "report.json")
    assert "question   Which [0m?\nreference  None \n" in shown
    assert "RAFT       raft [2J\n           and 31m" in shown
    assert all(char.isprintable() or char == "\n" for char in shown)
