"""One writer at a time, where a folder can be put."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft.artifacts import open_artifact, writing
from raft.errors import UsageError
from tests.test_artifacts import make


@pytest.mark.parametrize("resume", [None, False])
def test_a_second_writer_is_refused_and_the_first_is_not_disturbed(tmp_path: Path, resume: bool | None) -> None:
    for _ in range(2):  # the first time, and where it is replaced
        with writing(tmp_path / "a", "index", {}, {}, overwrite=True, resume=resume) as draft:
            (draft.folder / "data.txt").write_text("first")
            with pytest.raises(UsageError, match=r"another raft is writing .*a"):
                make(tmp_path / "a", "second", overwrite=True)
        assert list(open_artifact(tmp_path / "a", "index").files) == ["data.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_out_may_be_a_link_but_not_the_folder_one_is_in(tmp_path: Path) -> None:
    (tmp_path / "disk" / "a").mkdir(parents=True)
    (tmp_path / "a").symlink_to(tmp_path / "disk" / "a")
    make(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["a"]
    with pytest.raises(UsageError, match=r"--out \. is the folder that you are in"):
        make(Path(), overwrite=True)
