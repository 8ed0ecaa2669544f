"""Options, progress bars and clean lines that several verbs share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.artifacts import home

if TYPE_CHECKING:
    from rich.progress import Progress

Settings = Annotated[list[str] | None, typer.Option("--set", help="override a recipe key: KEY=VALUE (may be repeated)")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with unfinished work of the same recipe and inputs")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an artefact that exists")]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="access label you hold: documents that need it are seen (may be repeated)"),
]
ToJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


def default_out(kind: str, name: str) -> Path:
    """Where an artefact goes when no --out is given: RAFT_HOME/KIND/NAME."""
    return home() / kind / name


def printable(line: str) -> str:
    """The line without control characters: a document's escape sequences must not reach the terminal."""
    return "".join(char if char.isprintable() else " " for char in line)


def progress_bar(unit: str) -> Progress:
    """A progress bar on stderr with rate and time left; silent when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )  # fmt: skip
