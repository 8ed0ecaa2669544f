"""The quick demo, for real: documents to report with the packaged models, each step a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raft.artifacts import open_artifact

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
