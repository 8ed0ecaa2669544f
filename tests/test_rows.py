"""JSON lines, whole ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raft.errors import InputError
from raft.rows import Journal, read_rows, write_rows


def test_a_journal_keeps_whole_rows_and_drops_a_last_one_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append({"text": "line separator \u2028 stays inside"})
    journal.append({"n": 2})
    journal.close()
    with path.open("a") as stream:
        stream.write('{"n": 3, "te')
    again = Journal(path)
    assert again.rows == [{"text": "line separator \u2028 stays inside"}, {"n": 2}]
    again.append({"n": 3})
    again.close()
    assert Journal(path).rows[-1] == {"n": 3}


def test_a_journal_survives_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raft.rows import Journal\n"
        "j = Journal(Path(sys.argv[1]))\nn = 0\n"
        "while True:\n    j.append({'n': n}); print(n, flush=True); n += 1"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "j")], stdout=subprocess.PIPE, text=True)
    said = [int(next(process.stdout)) for _ in range(500)][-1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    rows = Journal(tmp_path / "j").rows
    assert [row["n"] for row in rows] == list(range(len(rows)))
    assert len(rows) > said


def test_rows_that_are_not_objects_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n[2]\n')
    with pytest.raises(InputError, match="line 3 is list"):
        list(read_rows(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text("{oops}\n")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        list(read_rows(tmp_path / "rows.jsonl"))
    assert write_rows(tmp_path / "rows.jsonl", iter([{"a": "ü"}])) == 1
    assert list(read_rows(tmp_path / "rows.jsonl")) == [{"a": "ü"}]
