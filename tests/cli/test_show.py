"""raft show on a dataset, one whose documents are hostile among them."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from raft.artifacts import writing
from raft.cli.show import show
from raft.rows import write_rows
from tests.lodges import write_lodges


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


def run(*words: object) -> str:
    app = typer.Typer()
    app.command()(show)
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False).stdout


def test_a_dataset_shows_what_is_in_it(tmp_path: Path) -> None:
    folder = write_lodges(tmp_path / "lodges", facts={"teacher": "gpt-x", "prompt_tokens": 12345})
    said = run(folder, "--samples", 3)
    assert said.count("\nexample ") == 3
    for line in ("  train: 40 questions, 120 examples, 60 groups", "  prompt_tokens: 12,345", "target words"):
        assert line in said.splitlines()
    assert "\nexample " not in run(folder, "--samples", 0)


def test_json_has_the_manifest_and_all_figures(tmp_path: Path) -> None:
    folder = write_lodges(tmp_path / "lodges", rejected=[{"id": "r", "reasons": ["quote_missing"]}])
    row = json.loads(run(folder, "--json", "--samples", 2))
    assert row["kind"] == "dataset"
    assert row["figures"]["rules"] == {"quote_missing": 1}
    assert len(row["figures"]["documents"]) == 61
    assert [sample["id"] for sample in row["samples"]] == ["q-0@0", "q-1@0"]
