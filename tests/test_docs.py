"""What the documents show is what the program takes: every command parses, every file named exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from raft.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "corpora").glob("*/README.md"))]


def commands() -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
        lines = (re.search(r"^\s*(?:\S.* -m )?(raft .*)", line) for block in blocks for line in block.splitlines())
        found += [line[1].strip() for line in lines if line]
    return found


def test_the_documents_show_every_verb() -> None:
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"raft {verb}" in shown for verb in get_command(app).commands)
    assert len(commands()) >= 9


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_shown_is_one_the_program_takes(command: str) -> None:
    words = shlex.split(command.split(" #")[0])[1:]
    name, verb, given = get_command(app).resolve_command(None, words)
    verb.make_context(name, given)  # raises on an unknown option or a missing argument
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file(), f"{word} is shown but not shipped"


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_project_speaks_of_itself_alone() -> None:
    for page in [*PAGES, *sorted((ROOT / "raft").rglob("*.py"))]:
        assert "/work/" not in page.read_text(encoding="utf-8"), page
