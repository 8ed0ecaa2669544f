"""One version at a time is read, one writer at a time writes, and nothing of another version stays."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raft import versions
from raft.artifacts import MANIFEST, RESUME, open_artifact, read_manifest
from raft.errors import ArtifactError, InputError, UsageError
from raft.places import partial_folder
from raft.versions import Unchanged, leftovers, new_version


def write(out: Path, text: str = "one", kind: str = "index", fail: BaseException | None = None) -> None:
    with new_version(out, kind, {"size": 3}, keep=("kept",)) as draft:
        (draft.folder / "deep").mkdir()
        (draft.folder / "deep" / "data.txt").write_text(text)
        (draft.folder.parent / "kept").mkdir(exist_ok=True)
        (draft.folder.parent / "kept" / text).write_text(text)
        if fail is not None:
            raise fail


def text_of(out: Path) -> str:
    return (out / open_artifact(out, "index").version / "deep" / "data.txt").read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_versions_follow_one_another_and_leave_nothing(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "a"
    for number in range(1, 4):
        write(out, str(number))
        assert (text_of(out), read_manifest(out, "index").version) == (str(number), f"v{number}")
        assert names(out) == [MANIFEST, f"v{number}"]
        assert names(out.parent) == ["a"]
        assert leftovers(out, "index") == []


def test_an_empty_folder_may_become_the_artefact(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a")
    assert text_of(tmp_path / "a") == "one"


@pytest.mark.parametrize("begun", [False, True])
def test_a_block_that_fails_keeps_what_it_should_and_the_next_uses_it(tmp_path: Path, begun: bool) -> None:
    out, partial = tmp_path / "a", partial_folder(tmp_path / "a")
    if begun:
        write(out, "old")
    with pytest.raises(KeyboardInterrupt):
        write(out, "new", fail=KeyboardInterrupt())
    assert names(partial) == ["kept", RESUME]
    assert [path.name for path in (leftovers(out, "index") if begun else [partial])] == ["a.partial"]
    assert text_of(out) == "old" if begun else not out.exists()
    with new_version(out, "index", {}, keep=("kept",)) as draft:
        assert names(draft.folder.parent / "kept") == ["new"]
        (draft.folder / "deep").mkdir()
        (draft.folder / "deep" / "data.txt").write_text("newer")
    assert text_of(out) == "newer"
    assert names(tmp_path) == ["a"]


def test_unchanged_leaves_all_as_it_is_and_clears_what_was_kept(tmp_path: Path) -> None:
    out = tmp_path / "a"
    write(out)
    with pytest.raises(KeyboardInterrupt):
        write(out, "new", fail=KeyboardInterrupt())
    (out / "v9").mkdir()
    (out / "notes.txt").write_text("mine")
    write(out, "other", fail=Unchanged())
    assert (text_of(out), names(out), names(tmp_path)) == ("one", [MANIFEST, "notes.txt", "v1"], ["a"])
    assert versions.strangers(out, "index") == [out / "notes.txt"]


@pytest.mark.parametrize(
    "lies_there",
    [[], ["resume.json.tmp"], ["kept"], ["v3"], [MANIFEST, "v2", RESUME], [f"{MANIFEST}.tmp", "kept", "v2"]],
)
def test_whatever_a_stopped_run_of_ours_left_is_no_hindrance(tmp_path: Path, lies_there: list[str]) -> None:
    out = tmp_path / "a"
    write(out, "old")
    partial_folder(out).mkdir()
    for name in lies_there:
        if name in ("kept", "v2", "v3"):
            (partial_folder(out) / name).mkdir()
        else:
            (partial_folder(out) / name).write_text('{\n "kind": "index"}')
    write(out, "new")
    assert (text_of(out), names(tmp_path)) == ("new", ["a"])


def test_what_is_not_ours_is_never_touched(tmp_path: Path) -> None:
    out, partial = tmp_path / "a", partial_folder(tmp_path / "a")
    partial.mkdir()
    (partial / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not unfinished work of raft"):
        write(out)
    (partial / RESUME).write_text('{\n "kind": "dataset"}')
    with pytest.raises(ArtifactError, match="unfinished work of another kind"):
        write(out)
    assert names(partial) == [RESUME, "thesis.txt"]
    other = tmp_path / "other"
    write(other, kind="dataset")
    with pytest.raises(ArtifactError, match=r"is another artefact \('dataset'\)"):
        write(other)
    assert open_artifact(other, "dataset")
    assert names(tmp_path) == ["a.partial", "other"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("3 requested and 0 written")]
)
@pytest.mark.parametrize("step", ["finish", "_switch", "block"])
def test_a_full_disk_is_one_clear_line_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, step: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    out = tmp_path / "a"
    write(out, "old")
    with monkeypatch.context() as patched, pytest.raises(InputError, match=r"cannot be written \(.*Free disk space"):
        if step != "block":
            patched.setattr(versions, step, fail)
        write(out, "new", fail=error if step == "block" else None)
    assert text_of(out) == "old"
    assert names(out) == [MANIFEST, "v1"]
    assert names(partial_folder(out)) == ["kept", RESUME]


def test_only_what_is_of_the_output_is_said_of_it(tmp_path: Path) -> None:
    out = tmp_path / "a"
    for error in (PermissionError(errno.EACCES, "no", str(tmp_path / "source")), OSError("no such model")):
        with pytest.raises(OSError, match=r"no") as caught:
            write(out, fail=error)
        assert caught.value is error
    for where in (out / "v1" / "x", partial_folder(out) / "v1" / "x"):
        with pytest.raises(InputError, match=r"a cannot be written \(no\)"):
            write(out, fail=PermissionError(errno.EACCES, "no", str(where)))


@pytest.mark.parametrize("there", [False, True])
def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, there: bool) -> None:
    (tmp_path / "disk").mkdir()
    if there:
        (tmp_path / "disk" / "a").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "disk" / "a")
    for text in ("one", "two"):
        write(tmp_path / "a", text)
        assert text_of(tmp_path / "a") == text
    assert (tmp_path / "a").is_symlink()
    assert (names(tmp_path), names(tmp_path / "disk")) == (["a", "disk"], ["a"])


def test_places_where_no_folder_can_be_put_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out in (Path(), Path(".."), tmp_path / "..", Path("/")):
        with pytest.raises(UsageError, match="--out"):
            write(out)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "a")
    with pytest.raises(UsageError, match=r"a is a mount point.*--out .*a/NAME$"):
        write(tmp_path / "a")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot be written.*Name another --out"):
        write(tmp_path / "file" / "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_clear_line(tmp_path: Path) -> None:
    write(tmp_path / "a")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write(tmp_path / "a")
        assert text_of(tmp_path / "a") == "one"
    finally:
        tmp_path.chmod(0o700)


def test_a_second_writer_is_refused_and_the_first_is_not_disturbed(tmp_path: Path) -> None:
    out = tmp_path / "a"
    for _ in range(2):  # the first version, and a later one
        with new_version(out, "index", {}) as draft:
            with pytest.raises(UsageError, match="another raft is writing"):
                write(out, "second")
            (draft.folder / "deep").mkdir()
            (draft.folder / "deep" / "data.txt").write_text("first")
        assert text_of(out) == "first"


@pytest.mark.parametrize("begun", [False, True])
def test_a_writer_that_has_switched_is_not_overtaken_while_it_tidies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    out, tidy, refused = tmp_path / "a", versions.remove_leftovers, []
    if begun:
        write(out, "old")

    def slow(*given: object) -> None:
        monkeypatch.setattr(versions, "remove_leftovers", tidy)
        assert text_of(out) == "new"  # it is read already
        with pytest.raises(UsageError) as caught:
            write(out, "second")
        refused.append(caught.value)
        tidy(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(versions, "remove_leftovers", slow)
    write(out, "new")
    assert (text_of(out), len(refused), names(tmp_path)) == ("new", 1, ["a"])


def test_the_lock_of_a_killed_writer_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from raft.versions import new_version\n"
        "with new_version(Path(sys.argv[1]), 'index', {}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert partial_folder(tmp_path / "a").exists()
    write(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write(tmp_path / "a")
    assert text_of(tmp_path / "a") == "one"
