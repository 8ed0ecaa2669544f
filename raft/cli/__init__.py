"""The ``raft`` command: one thin file per verb, each with an importable twin in its room."""

from __future__ import annotations

import os
import sys

import typer

from raft.errors import INTERRUPTED, RaftError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    help="Turn a document store into a question-answering service tuned to read retrieved documents.",
)


def _register() -> None:
    from raft.cli import ask, demo, evaluate, generate, index, search, serve, show, train

    for verb in (index, search, generate, train, evaluate, ask, serve, show, demo):
        name = verb.__name__.rsplit(".", 1)[1]
        app.command(name)(getattr(verb, name))


def main() -> None:
    """Run the command line; turn the errors of raft into one line and an exit code (errors.py)."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _register()
    try:
        app()
    except RaftError as error:
        if debug:
            raise
        print(f"raft: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("raft: interrupted; nothing finished is lost", file=sys.stderr)
        sys.exit(INTERRUPTED)
