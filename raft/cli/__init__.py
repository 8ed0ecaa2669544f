"""The ``raft`` command: one thin file per verb, each with an importable twin in its room."""

from __future__ import annotations

import os
import sys

import typer
from typer.exceptions import TyperException

from raft.cli.options import printable
from raft.errors import INTERRUPTED, RaftError, UsageError

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


_register()


def main() -> None:
    """Run the command line; turn the errors of raft into one line and an exit code (errors.py).

    ``--debug`` anywhere on the line shows the traceback instead.
    """
    debug = "--debug" in sys.argv
    words = [word for word in sys.argv[1:] if word != "--debug"]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        sys.exit(app(words, prog_name="raft", standalone_mode=False) or 0)
    except TyperException as error:
        if debug:
            raise
        error.show()  # type: ignore[attr-defined]
        sys.exit(UsageError.exit_code)
    except RaftError as error:
        if debug:
            raise
        print(f"raft: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print(
            "raft: interrupted; nothing half-done looks whole; generate, train and evaluate go on with --resume",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
