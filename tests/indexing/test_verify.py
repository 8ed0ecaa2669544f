"""What was removed from the source leaves no trace, and a trace that was planted is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raft.artifacts import Draft, finish, read_manifest
from raft.corpus.store import CHUNKS, DOCUMENTS, RowWriter
from raft.errors import ArtifactError
from raft.indexing.verify import verify_index
from raft.places import partial_folder
from raft.retrieval.bm25 import Bm25Index
from tests.indexing.conftest import build, write_files

SECRET = "Zyxwort"
FILES = {
    "a.md": "# Rent\n\nRent is due on the first day of each month.",
    "b.md": f"---\nlabels: [board]\n---\n# Patient {SECRET}\n\n{SECRET} was seen by the zyxwortic ward.",
    "c.jsonl": json.dumps({"id": "row", "text": f"Pay of {SECRET}.", "tags": [SECRET]}),
    "d.md": "# Roof\n\nThe landlord keeps the roof in good repair.",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build(write_files(folder / "work" / "source", FILES), folder / "work" / "index")
    return (folder / "work").rename(folder / "whole")


@pytest.fixture
def index(built: Path) -> Path:
    """A copy beside its source, in the folder where it was built."""
    work = built.with_name("work")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(built, work)
    return work / "index"


def traces(out: Path) -> list[Path]:
    folders = [out, partial_folder(out)]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    word = SECRET.casefold().encode()
    return [path for path in files if word in path.read_bytes().lower() or word[:6] in path.read_bytes().lower()]


def test_a_removed_document_leaves_no_trace(index: Path) -> None:
    assert {path.name for path in traces(index)} >= {"documents.jsonl", "chunks.jsonl", "terms.npy", "facets.jsonl"}
    source = index.parent / "source"
    write_files(source, {name: FILES[name] for name in ("a.md", "d.md")})
    build(source, index)
    assert traces(index) == []
    assert verify_index(index, gone=["b.md", "row"]).problems == ()
    assert sorted(path.name for path in index.iterdir()) == ["manifest.json", "v2"]
    assert verify_index(index, gone=["a.md"]).problems == ("'a.md' is in the index: 1 documents, 1 chunks",)


def test_a_name_is_looked_for_among_ids_sources_and_files(tmp_path: Path) -> None:
    rows = [{"id": "x", "text": "Pay.", "source": "elsewhere"}, {"id": "y", "text": "Rent."}]
    files = {"hr/people.jsonl": "\n".join(map(json.dumps, rows)), "bad.md": b"\x00\x01"}
    build(write_files(tmp_path / "source", files), tmp_path / "index")
    both, one = "2 documents, 2 chunks", "1 documents, 1 chunks"
    expected = {
        "hr/people.jsonl": both, "people.jsonl": both, "./hr/people.jsonl": both, "hr/people.jsonl#2": one,
        "elsewhere": one, "y": one, "bad.md": "no document, but the list of the source's files names it", "people": "",
    }  # fmt: skip
    found = verify_index(tmp_path / "index", gone=list(expected))
    assert found.gone == expected
    assert len(found.problems) == 7


def test_files_that_are_not_of_raft_are_named_and_no_problem(index: Path) -> None:
    (index / "notes").mkdir()
    (index / "v1" / "bm25" / "mine.txt").write_text("mine")
    for name in ("notes/a.txt", "backup.zip", "v7"):
        (index / name).write_text("mine")
    found = verify_index(index)
    assert found.problems == ()
    assert found.not_of_raft == tuple(str(index / n) for n in ("backup.zip", "notes", "v1/bm25/mine.txt", "v7"))
    write_files(index.parent / "source", FILES | {"new.md": "# New"})
    assert build(index.parent / "source", index).version == "v8"
    assert sorted(path.name for path in index.iterdir()) == ["backup.zip", "manifest.json", "notes", "v7", "v8"]
    assert (index / "notes" / "a.txt").read_text() == "mine"


def test_what_a_stopped_run_had_encoded_goes_with_the_next_run_even_if_nothing_changed(index: Path) -> None:
    source, journal = index.parent / "source", partial_folder(index) / "embeddings"

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "encoding":
            raise KeyboardInterrupt

    write_files(source, FILES | {"new.md": "# New\n\nSomething else."})
    with pytest.raises(KeyboardInterrupt):
        build(source, index, on_progress=stop)
    assert journal.exists()
    assert "stopped runs" in verify_index(index).problems[0]
    write_files(source, FILES)
    assert not build(source, index).changed
    assert verify_index(index).problems == ()
    assert not partial_folder(index).exists()


def reseal(index: Path) -> None:
    """Give the index a manifest that agrees with its changed files."""
    manifest = read_manifest(index, "index")
    draft = Draft(index / manifest.version, dict(manifest.inputs), dict(manifest.facts))
    finish(draft, "index", manifest.recipe, 0.0, manifest.version)


def rewrite(index: Path, name: str, change: Callable[[list[dict]], list[dict]]) -> None:
    folder = index / "v1"
    rows = change([json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()])
    lines = [(json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows]
    if name in (DOCUMENTS, CHUNKS):
        with RowWriter(folder, name) as writer:
            for row, line in zip(rows, lines, strict=True):
                writer.write(row["id"], line)
    else:
        (folder / f"{name}.jsonl").write_bytes(b"".join(lines))


def alter(name: str, **fields: object) -> Callable[[Path], None]:
    return lambda index: rewrite(index, name, lambda rows: [rows[0] | fields, *rows[1:]])


def drop_last(name: str) -> Callable[[Path], None]:
    return lambda index: rewrite(index, name, lambda rows: rows[:-1])


def more_words(index: Path) -> None:
    Bm25Index.build(["rent", "board", "zyxwort surplus", "roof"]).save(index / "v1")


def other_keys(index: Path) -> None:
    keys = np.load(index / "v1" / "keys.npy")
    np.save(index / "v1" / "keys.npy", keys[::-1])


def other_owners(index: Path) -> None:
    np.save(index / "v1" / "chunk_documents.npy", np.array([0, 0, 1, 9], dtype=np.int32))


def wrong_ids(index: Path) -> None:
    ids = np.load(index / "v1" / "documents.ids.npy")
    np.save(index / "v1" / "documents.ids.npy", np.stack([ids[0], ids[1][::-1]]))


TAMPERINGS: list[tuple[Callable[[Path], None], str]] = [
    (alter(CHUNKS, text=f"{SECRET} was seen."), "chunk 'a.md#0' is no part of document 'a.md'"),
    (alter(CHUNKS, start=1), "is no part of"),
    (alter(CHUNKS, title=SECRET), "the vector of chunk 'a.md#0' is that of another text"),
    (alter(CHUNKS, document_id="d.md"), "is no part of"),
    (alter(DOCUMENTS, text=SECRET), "is no part of"),
    (alter(DOCUMENTS, id=SECRET), "documents are not those that outcomes.jsonl"),
    (alter("facets", labels=["board"]), "the facets of 'a.md' are not its own"),
    (alter("outcomes", document_id=SECRET), "documents are not those that outcomes.jsonl"),
    (lambda index: rewrite(index, "outcomes", lambda rows: [*rows, rows[0]]), "5 outcomes, 4 outcomes of files"),
    (drop_last("facets"), "4 documents, 3 rows of facets"),
    (drop_last(CHUNKS), "3 chunks, 4 vectors"),
    (more_words, "words that no chunk holds"),
    (other_keys, "is that of another text"),
    (other_owners, "do not stand in the order of their documents"),
    (wrong_ids, "is not found by its id"),
]


@pytest.mark.parametrize(("tamper", "says"), TAMPERINGS, ids=[says[:30] for _, says in TAMPERINGS])
def test_rows_that_were_tampered_with_are_found_behind_right_hashes(
    index: Path, tamper: Callable[[Path], None], says: str
) -> None:
    tamper(index)
    with pytest.raises(ArtifactError, match="damaged"):
        verify_index(index)
    reseal(index)
    problems = verify_index(index).problems
    assert any(says in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_the_files_of_stopped_runs_are_found(index: Path) -> None:
    def plant(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
        return path

    for path in (index / "v0" / "documents.jsonl", index / "manifest.json.tmp", index / "resume.json",
                 partial_folder(index) / "v2" / "documents.jsonl"):  # fmt: skip
        plant(path)
        (problem,) = verify_index(index).problems
        assert problem.startswith("1 files or folders of stopped runs")
        build(index.parent / "source", index)
        assert verify_index(index).problems == ()
        assert not path.exists()


def test_a_damaged_or_missing_index_cannot_be_verified(index: Path) -> None:
    with pytest.raises(ArtifactError, match="no index at"):
        verify_index(index.parent / "nowhere")
    shutil.rmtree(index / "v1" / "bm25")
    with pytest.raises(ArtifactError, match="is missing"):
        verify_index(index)
