"""Whatever a parser does, it ends in one outcome of its file, and the other files are read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from raft.config import ReadingRecipe
from raft.errors import InputError
from raft.readers import source
from raft.readers.source import read_source
from raft.readers.workers import Batch, Settings, Task, Worker, in_order


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_SETUP", "tests.readers.hostile:install")


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(f"Words of {name}.", encoding="utf-8")


def reasons(folder: Path, **reading: object) -> dict[str, str]:
    """Why each file was not indexed; "" for one that was. Each has one outcome."""
    found = {}
    for file in read_source(folder, ReadingRecipe(**reading)):  # type: ignore[arg-type]
        (outcome,) = file.outcomes or ()
        found[file.name] = "" if outcome.document is not None else outcome.reason
        assert (outcome.status == "indexed") == (outcome.document is not None)
    return found


@pytest.mark.usefixtures("hostile")
def test_crashes_and_hogs_are_one_refusal_each(tmp_path: Path) -> None:
    acts = ("crash", "exit", "hog", "odd", "write", "run", "connect", "talk")
    write(tmp_path, *(f"{act}.txt" for act in acts), *(f"good{n}.txt" for n in range(8)))
    found = reasons(tmp_path, workers=1)
    assert list(found) == sorted(found)
    assert {name for name, reason in found.items() if not reason} == {*(f"good{n}.txt" for n in range(8)), "talk.txt"}
    assert "SIGSEGV" in found["crash.txt"]
    assert "exit code 3" in found["exit.txt"]
    assert found["hog.txt"] == "needs more than 1500 MB of memory (reading.memory_mb)"
    assert found["odd.txt"] == "damaged txt (odd)"
    assert "writes no file" in found["write.txt"]
    assert not Path("written-by-a-reader.txt").exists()
    assert "may not use" in found["run.txt"]
    assert "may not use" in found["connect.txt"]


@pytest.mark.usefixtures("hostile")
def test_files_that_hang_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raft.readers.workers._GRACE_SECONDS", 0.5)
    write(tmp_path, "a.txt", "deaf.txt", "hang.txt", "z.txt")
    found = reasons(tmp_path, workers=1, seconds=3)
    late = "takes longer than 3 seconds (reading.seconds)"
    assert found == {"a.txt": "", "deaf.txt": late, "hang.txt": late, "z.txt": ""}


@pytest.mark.usefixtures("hostile")
def test_a_file_is_not_blamed_for_the_memory_of_others(tmp_path: Path) -> None:
    write(tmp_path, *(f"leak{n}.txt" for n in range(6)))
    assert set(reasons(tmp_path, workers=1, memory_mb=512).values()) == {""}


def test_memory_is_limited_in_a_real_file(tmp_path: Path) -> None:
    rows = "[" + ",".join(["[[]]"] * 3_000_000) + "]"
    (tmp_path / "x.json").write_text(rows, encoding="utf-8")
    assert "needs more than 256 MB" in reasons(tmp_path, memory_mb=256)["x.json"]


def test_results_are_in_order_whatever_worker_is_faster(tmp_path: Path) -> None:
    write(tmp_path, *(f"{n:03}.txt" for n in range(100)))
    batches = [Batch((Task(str(tmp_path / f"{n:03}.txt"), f"{n:03}.txt"),), 9) for n in range(100)]
    found = [outcomes[0].source for _, outcomes in in_order(batches, Settings(), 3) if outcomes]
    assert found == [f"{n:03}.txt" for n in range(100)]


def test_few_results_are_ahead_of_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Worker.read

    def read(self: Worker, tasks: tuple[Task, ...]) -> object:
        seen.append(len(tasks))
        return real(self, tasks)

    monkeypatch.setattr(Worker, "read", read)
    (tmp_path / "a.txt").write_text("Words.", encoding="utf-8")
    batches = [Batch((Task(str(tmp_path / "a.txt"), "a.txt"),), 100 << 20) for _ in range(20)]
    results = in_order(batches, Settings(), 1)
    next(results)
    time.sleep(0.5)
    assert len(seen) <= 3
    assert len(list(results)) == 19


def alive(marker: str) -> list[int]:
    """The reading processes that this process has started and not yet ended."""
    listing = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listing.splitlines() if marker in line and "workers import work" in line]


@pytest.mark.usefixtures("hostile")
def test_a_reader_that_is_closed_ends_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "marker")])
    write(tmp_path, "a.txt", "hang.txt")
    files = read_source(tmp_path)
    assert next(files).name == "a.txt"
    assert alive(str(tmp_path / "marker"))
    files.close()  # type: ignore[attr-defined]
    assert not alive(str(tmp_path / "marker"))


SCRIPT = """
import sys
print("run", flush=True)
sys.path.append({marker!r})
from pathlib import Path
from raft.readers import source
source._SETUP = "tests.readers.hostile:install"
for file in source.read_source(Path({folder!r})):
    print(file.name, file.outcomes[0].status, flush=True)
"""


@pytest.mark.parametrize("way", ["file", "stdin", "-c"])
def test_a_script_without_a_guard_runs_once(tmp_path: Path, way: str) -> None:
    (tmp_path / "docs").mkdir()
    write(tmp_path / "docs", "a.txt", "b.txt")
    (tmp_path / "docs" / "json.py").write_text("raise SystemExit('a module of the documents was run')")
    code = SCRIPT.format(marker=str(tmp_path), folder=".")
    (tmp_path / "script.py").write_text(code, encoding="utf-8")
    command = {"file": [str(tmp_path / "script.py")], "stdin": ["-"], "-c": ["-c", code]}[way]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-P", *command], input=code if way == "stdin" else None, capture_output=True, text=True,
        cwd=tmp_path / "docs", env=os.environ | {"PYTHONPATH": root}, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[:3] == ["run", "a.txt indexed", "b.txt indexed"]
    assert done.stderr == ""


def test_ctrl_c_ends_the_workers_at_once(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "hang.txt")
    marker = str(tmp_path / "marker")
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job is deaf
    code = heard + textwrap.dedent(SCRIPT.format(marker=marker, folder=str(tmp_path)))
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["run\n", "a.txt indexed\n"]
        assert alive(marker)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)  # less than the 60 seconds of a file
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors
    assert not alive(marker)


def test_a_process_that_cannot_start_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.txt")
    monkeypatch.setattr(source, "_SETUP", "tests.readers.hostile:missing")
    with pytest.raises(InputError, match="did not start: it ended its reading process"):
        list(read_source(tmp_path))


def test_the_parent_loads_no_parser() -> None:
    code = (
        "import sys, raft.readers.source; "
        "print({'torch', 'lxml', 'bs4', 'docx', 'openpyxl', 'pypdfium2', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
