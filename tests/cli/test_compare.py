"""raft compare, and --fail-under on a report that is there already, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raft.artifacts import writing
from raft.evaluation.report import Report, write
from tests.evaluation.reported import make_report


def saved(folder: Path, report: Report) -> Path:
    with writing(folder, "report", {}, {}) as draft:
        write(report, draft.folder)
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, report = tmp_path_factory.mktemp("reports"), make_report()
    systems = tuple(replace(s, title="RAG\x1b[2J") if s.system == "rag" else s for s in report.systems)
    return saved(folder / "before", report), saved(folder / "after", replace(report, systems=systems))


def raft(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "raft", *map(str, words)], capture_output=True, text=True, check=False)


def test_a_table_without_escape_sequences(reports: tuple[Path, Path]) -> None:
    done = raft("compare", *reports)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| report " in done.stdout
    assert "+0.00 [+0.00, +0.00]" in done.stdout
    assert all(char.isprintable() or char == "\n" for char in done.stdout)


def test_json_has_everything(reports: tuple[Path, Path]) -> None:
    done = raft("compare", *reports, "--systems", "rag", "raft", "--fail-under", "rag.f1", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert [(c["before"], c["after"]) for c in found["changes"]] == [("rag", "raft")]
    assert found["changes"][0]["gained"]
    assert [outcome["met"] for outcome in found["fail_under"]] == [True]


def test_a_finished_report_can_be_checked_alone(reports: tuple[Path, Path]) -> None:
    assert raft("compare", reports[0], "--fail-under", "rag.f1+0.02").returncode == 0
    done = raft("compare", reports[0], "--fail-under", "rag.f1+0.02", "--fail-under", "raft.f1=0.99",
                "--fail-under", "closed_book.quote_validity=0")  # fmt: skip
    assert done.returncode == 6
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("raft: --fail-under raft.f1=0.99: raft.f1 is 0.")
    assert lines[1].startswith(
        "raft: --fail-under closed_book.quote_validity=0: closed_book.quote_validity has no value"
    )
    assert lines[2] == "raft: 2 of 3 conditions of --fail-under are not met"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "1 report to compare; expected two or more"),
        (("--fail-under", "f1>=1"), 2, "cannot be read; expected [SYSTEM.METRIC=]"),
        (("--fail-under", "dsf.f1"), 2, "'dsf' does not run"),
    ],
)
def test_mistakes_have_one_line(reports: tuple[Path, Path], words: tuple[str, ...], code: int, said: str) -> None:
    done = raft("compare", reports[0], *words)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
