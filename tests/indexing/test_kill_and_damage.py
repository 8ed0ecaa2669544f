"""kill -9, damage, full disks, readers and writers at once. ``benchmarks/kill_index.py`` and ``damage_index.py`` do the
same hundreds and thousands of times."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.damage_index import damage_index
from raft.errors import ArtifactError, InputError, UsageError
from raft.indexing.verify import verify_index
from raft.places import partial_folder
from raft.records import Filter
from raft.retrieval import index as retrieval
from raft.retrieval.index import Index, open_index
from tests.indexing.conftest import build, write_files

ROOT = Path(__file__).parents[2]
EDITIONS = [
    {f"{n}.md": f"---\nlabels: [l{edition}]\n---\n# Clause {n}\n\nEdition {edition}." for n in range(2)}
    | {"open.md": f"# Open\n\nEdition {edition} of the lease."}
    for edition in range(3)
]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    source, out = write_files(tmp_path / "source", EDITIONS[0]), tmp_path / "index"
    build(source, out)
    return source, out


def edition_of(index: Index) -> set[str]:
    """The editions that its documents, chunks and hits are of: one, unless versions were mixed."""
    hits = index.search(["edition"], 5, "bm25")[0] + index.search(["lease"], 5, "dense")[0]
    texts = [chunk.text for chunk in index.chunks] + [document.text for document in index.documents]
    return {text.partition("Edition ")[2][0] for text in [*texts, *(hit.chunk.text for hit in hits)]}


def test_a_few_kills() -> None:
    command = [sys.executable, "-m", "benchmarks.kill_index", "--kills", "6"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(ended.stdout)
    assert (found["failures"], ended.returncode) == ([], 0)
    assert 3 <= found["kills"] <= 6


def test_every_damage_is_noticed(made: tuple[Path, Path]) -> None:
    found = damage_index(made[1], 300)
    assert found["undetected"] == []
    assert found["detected"] == 300


def test_a_reader_sees_one_version_while_a_writer_makes_ten(made: tuple[Path, Path]) -> None:
    source, out = made
    seen: list[set[str]] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                seen.append(edition_of(open_index(out, labels=("l0", "l1", "l2"))))
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 11):
            build(write_files(source, EDITIONS[number % 3]), out)
    finally:
        done.set()
        reader.join()
    assert failures == []
    assert len(seen) > 3
    assert all(len(editions) == 1 for editions in seen)
    assert edition_of(open_index(out, labels=("l1",))) == {"1"}


def test_who_has_the_old_version_open_keeps_it(made: tuple[Path, Path]) -> None:
    source, out = made
    held, fresh = open_index(out, labels=("l0",)), open_index(out)
    assert edition_of(held) == {"0"}
    build(write_files(source, EDITIONS[1]), out)
    assert not (out / "v1").exists()
    assert edition_of(held) == {"0"}
    assert len(held.search(["edition"], 5, where=Filter(sources=("0",)))[0]) == 1
    assert [document.id for document in fresh.documents] == ["open.md"]  # it reads its labels only now
    assert edition_of(fresh) == {"0"}
    assert edition_of(open_index(out)) == {"1"}


def test_an_index_that_is_updated_while_it_is_opened_is_opened_again(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = made
    was, times = retrieval._open, []

    def interrupted(*given: object) -> Index:
        times.append(1)
        if len(times) == 1:
            build(write_files(source, EDITIONS[1]), out)
            raise InputError("a file is gone")
        return was(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(retrieval, "_open", interrupted)
    assert edition_of(open_index(out)) == {"1"}
    assert len(times) == 2
    monkeypatch.setattr(retrieval, "_open", lambda *given: (_ for _ in ()).throw(ArtifactError("damaged")))
    with pytest.raises(ArtifactError, match="damaged"):
        open_index(out)


def test_two_writers_at_once(made: tuple[Path, Path]) -> None:
    source, out = made
    refused = []

    def second(stage: str, done: int, total: int | None) -> None:
        with pytest.raises(UsageError, match="another raft is writing") as caught:
            build(source, out)
        refused.append(caught.value)

    write_files(source, EDITIONS[1])
    assert build(source, out, on_progress=second).version == "v2"
    assert len(refused) > 3
    assert verify_index(out).problems == ()


@pytest.mark.parametrize("most", [300, 3000])
def test_a_disk_that_takes_no_more_costs_nothing(made: tuple[Path, Path], most: int) -> None:
    """No file may grow beyond so many bytes: first the texts cannot be written, then the vectors."""
    source, out = made
    write_files(source, EDITIONS[1])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(stage: str, done: int, total: int | None) -> None:
        if stage == "chunking":  # the files are read: their readers are not in want of a disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))

    try:
        with pytest.raises(InputError, match=r"index cannot be written \(.*--out$") as caught:
            build(source, out, on_progress=full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert edition_of(open_index(out)) == {"0"}
    build(source, out)
    assert verify_index(out).problems == ()
    assert not partial_folder(out).exists()


def test_a_copy_of_an_index_is_an_index(made: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(made[1], tmp_path / "copy")
    assert edition_of(open_index(tmp_path / "copy")) == {"0"}
