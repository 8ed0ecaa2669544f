"""What is shipped to run a server with: a unit that systemd takes and finds safe, an image that is not root's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raft.config import load_recipe
from raft.config_serve import ServeRecipe

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "configs" / "serve" / "raft.service"
RECIPE = ROOT / "configs" / "serve" / "production.toml"
DOCKERFILE = ROOT / "Dockerfile"
STATE = Path("/var/lib/raft")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as it would be installed here: the command must exist."""
    text = UNIT.read_text(encoding="utf-8")
    assert text.count("/opt/raft/bin/raft") == 1
    (tmp_path / "raft.service").write_text(text.replace("/opt/raft/bin/raft", sys.executable), encoding="utf-8")
    return tmp_path / "raft.service"


def analyzed(*words: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def test_systemd_takes_the_unit(unit: Path) -> None:
    said = analyzed("verify", str(unit))
    assert (said.returncode, said.stderr.strip()) == (0, "")


def test_systemd_finds_little_to_expose(unit: Path) -> None:
    """Its score goes from 0 (nothing) to 10; a unit without any of these settings has 9.6."""
    said = analyzed("security", "--offline=yes", "--no-pager", str(unit))
    if "unrecognized option" in said.stderr:
        pytest.skip("this systemd-analyze reads running units alone")
    [score] = re.findall(r"exposure level for raft.service: ([0-9.]+)", said.stdout)
    assert float(score) <= 2.0


def test_the_recipe_writes_into_the_one_folder_that_may_be_written() -> None:
    recipe = load_recipe(ServeRecipe, RECIPE)
    assert recipe.host == "127.0.0.1"
    for path in (recipe.index, recipe.keys, recipe.feedback, recipe.audit):
        assert path is not None
        assert path.is_relative_to(STATE)
    assert recipe.limits.requests_per_minute is not None
    assert f"StateDirectory={STATE.name}\n" in UNIT.read_text(encoding="utf-8")


def test_the_image_is_not_roots_and_copies_what_is_there() -> None:
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1].isdigit()
    assert int(users[-1]) > 0
    assert f"VOLUME {STATE}" in lines
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in kept, source
