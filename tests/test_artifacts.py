"""An artefact is whole or it is not there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raft.artifacts import (
    MANIFEST,
    Journal,
    open_artifact,
    read_manifest,
    read_rows,
    write_rows,
    writing,
)
from raft.errors import ArtifactError, InputError


def make(out: Path, text: str = "one", **options) -> None:
    with writing(out, "index", {"size": 3}, {"corpus": "abc"}, **options) as draft:
        (draft.folder / "deep").mkdir(exist_ok=True)
        (draft.folder / "deep" / "data.txt").write_text(text)
        draft.facts["n"] = 1


def test_a_finished_artefact_opens_with_all_that_made_it(tmp_path: Path) -> None:
    make(tmp_path / "a")
    manifest = open_artifact(tmp_path / "a", "index")
    assert manifest.recipe == {"size": 3}
    assert manifest.inputs == {"corpus": "abc"}
    assert manifest.facts == {"n": 1}
    assert list(manifest.files) == ["deep/data.txt"]
    assert manifest.packages["torch"]
    assert not any("KEY" in word or "HOME" in word for word in json.dumps(manifest.recipe).split())


def test_equal_content_has_equal_fingerprints(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        make(tmp_path / name, text)
    a, b, c = (read_manifest(tmp_path / name, "index").fingerprint for name in "abc")
    assert a == b != c


def test_every_damage_is_detected_at_opening(tmp_path: Path) -> None:
    make(tmp_path / "a", "some words " * 50)
    path = tmp_path / "a" / "deep" / "data.txt"
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        at = rng.randrange(len(whole))
        damaged = rng.choice([whole[:at], whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]])
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="has changed"):
            open_artifact(tmp_path / "a", "index")
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        open_artifact(tmp_path / "a", "index")


def test_a_failure_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a", "index", {}, {}) as draft:
        (draft.folder / "half").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left"), writing(tmp_path / "a", "index", {}, {}):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_replacing_needs_a_word_and_never_touches_what_is_not_ours(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(ArtifactError, match="exists already"):
        make(tmp_path / "a", "two")
    make(tmp_path / "a", "two", overwrite=True)
    assert (tmp_path / "a" / "deep" / "data.txt").read_text() == "two"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not an artefact"):
        make(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_resuming_needs_the_same_settings_and_inputs(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        writing(tmp_path / "a", "dataset", {"x": {"y": 1}}, {}, resume=False) as draft,
    ):
        (draft.folder / "rows").write_text("kept")
        raise KeyboardInterrupt
    with (
        pytest.raises(ArtifactError, match="unfinished work"),
        writing(tmp_path / "a", "dataset", {"x": {"y": 1}}, {}, resume=False),
    ):
        pass
    with (
        pytest.raises(ArtifactError, match=r"recipe.x.y: was 1, now 2"),
        writing(tmp_path / "a", "dataset", {"x": {"y": 2}}, {}, resume=True),
    ):
        pass
    with writing(tmp_path / "a", "dataset", {"x": {"y": 1}}, {}, resume=True) as draft:
        assert (draft.folder / "rows").read_text() == "kept"
    assert open_artifact(tmp_path / "a", "dataset").kind == "dataset"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "not a finished"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "is damaged"),
        (lambda folder: (folder / MANIFEST).write_text('{"kind": "index"}'), "is damaged"),
        (lambda folder: None, "is a index, not a adapter"),
    ],
)
def test_a_folder_that_is_not_the_artefact_asked_for_is_refused(tmp_path: Path, spoil, says: str) -> None:
    make(tmp_path / "a")
    spoil(tmp_path / "a")
    with pytest.raises(ArtifactError, match=says):
        open_artifact(tmp_path / "a", "adapter" if "adapter" in says else "index")


def test_a_missing_artefact_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="raft train"):
        open_artifact(tmp_path / "nowhere", "adapter")


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
        "import sys; from pathlib import Path; from raft.artifacts import Journal\n"
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
