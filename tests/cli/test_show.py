"""raft show on a dataset whose documents are hostile."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from raft.artifacts import writing
from raft.cli.show import show
from raft.rows import write_rows


def test_samples_show_no_escape_sequences(tmp_path: Path) -> None:
    row = {
        "id": "e\x1b[1m", "context": ["a"], "oracle_present": True, "question": "Which\x1b[2J?",
        "target": "First\x9b31m.\nSecond.",
    }  # fmt: skip
    with writing(tmp_path / "data", "dataset", {"note": "x\x9b"}, {}) as draft:
        write_rows(draft.folder / "train.jsonl", iter([row]))
        draft.facts["teacher"] = "y\x9b"
    app = typer.Typer()
    app.command()(show)
    said = CliRunner().invoke(app, [str(tmp_path / "data")], catch_exceptions=False).stdout
    assert "example e [1m over 1 chunks" in said
    assert "question: Which [2J?\n  target:   First 31m.\nSecond." in said
    assert all(char.isprintable() or char == "\n" for char in said)
