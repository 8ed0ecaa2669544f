"""The shared samples, real and hostile, all end as their list expects, in one run that writes and sends nothing."""

from __future__ import annotations

import json
import multiprocessing
import re
import resource
import time
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from raft.config import ReadingRecipe
from raft.readers import source
from raft.readers.source import ReadOutcome, SourceFile, read_source

FORMATS = Path(__file__).parents[3] / "shared" / "data" / "formats"
LIST = FORMATS / "expected.jsonl"
ROWS = [json.loads(line) for line in LIST.read_text(encoding="utf-8").splitlines()] if LIST.is_file() else []
PROBES = ("/tmp/raft_traversal_probe.opf", "/tmp/raft_traversal_probe.txt")

pytestmark = pytest.mark.skipif(not ROWS, reason="the shared format samples are not on this machine")


def flat(text: str) -> str:
    """As the list compares: NFKC, words joined that a line's end divides, white space collapsed."""
    return " ".join(re.sub(r"(?<=\w)-\n(?=\w)", "", unicodedata.normalize("NFKC", text)).split())


class Run(NamedTuple):
    """All files by name, the seconds after which each was there, and the most memory that a worker took, in MiB."""

    files: dict[str, SourceFile]
    seconds: dict[str, float]
    most_memory: float


def read_all() -> Run:
    """A worker that writes or connects ends at once, which the refusals would show."""
    source._SETUP = "tests.readers.hostile:stop_at_writes_and_sockets"
    began = time.monotonic()
    files, seconds = {}, {}
    for file in read_source(FORMATS, ReadingRecipe(ocr="off")):
        files[file.name], seconds[file.name] = file, time.monotonic() - began
    return Run(files, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


@pytest.fixture(scope="module")
def run() -> Run:
    """In a process of its own, whose only children are the workers."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(read_all).result()


def outcome_of(run: Run, name: str) -> ReadOutcome:
    (outcome,) = run.files[name].outcomes or ()
    return outcome


@pytest.mark.parametrize("row", [row for row in ROWS if row["cls"] != "aux"], ids=lambda row: row["file"])
def test_a_sample_ends_as_expected(run: Run, row: dict[str, Any]) -> None:
    outcome = outcome_of(run, row["file"])
    text = flat(outcome.document.text) if outcome.document is not None else ""
    assert "exit code 99" not in outcome.reason, "it tried to write or to connect"
    assert "ended its reading process" not in outcome.reason
    if row["expect"] == "text":
        assert outcome.document is not None, outcome.reason
    if row["expect"] in ("reject", "password", "empty"):
        assert outcome.status == "refused"
    if row["expect"] == "ocr":
        assert "no text layer in its 3 pages" in outcome.reason
    if row["expect"] == "password":
        assert outcome.reason == "is encrypted: a password is needed"
    if outcome.document is not None:
        assert text
        assert all(flat(snippet) in text for snippet in row["snippets"])
        assert not any(word in text for word in row.get("forbidden", []))
        assert not any(word in text for word in row.get("forbidden_in_answer", []))
    else:
        assert outcome.reason
    assert run.seconds[row["file"]] <= row.get("max_seconds", 60)
    assert run.most_memory <= row.get("max_mb", 1500)


def test_every_file_has_its_outcome(run: Run) -> None:
    assert set(run.files) == {path.name for path in FORMATS.iterdir()}
    assert outcome_of(run, "file_we_dont_want_imported").status == "skipped"
    assert not any(Path(probe).exists() for probe in PROBES)


def test_pages_are_counted(run: Run) -> None:
    for row in ROWS:
        if "pages" in row:
            document = outcome_of(run, row["file"]).document
            assert document is not None
            assert len(document.metadata["page_starts"]) == row["pages"]


def test_the_password_opens_its_file(tmp_path: Path) -> None:
    for row in ROWS:
        if "password" in row:
            (tmp_path / "passwords").write_text(f"wrong\n{row['password']}\n", encoding="utf-8")
            (file,) = read_source(FORMATS / row["file"], ReadingRecipe(passwords=tmp_path / "passwords"))
            document = (file.outcomes or ())[0].document
            assert document is not None
            assert all(flat(snippet) in flat(document.text) for snippet in row["snippets"])
