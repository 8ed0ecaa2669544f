"""The ``raft`` command: one thin file per verb, each with an importable twin in its room."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from raft.cli.options import printable
from raft.errors import INTERRUPTED, RaftError, UsageError


class Verbs(TyperGroup):
    """Commands of one word or two: ``raft index SOURCE`` beside ``raft index verify INDEX``. A source that bears the
    second word as its name is given as ``./verify``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        two = " ".join(args[:2])
        if two in self.commands:
            return two, self.commands[two], args[2:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    help="Turn a document store into a question-answering service tuned to read retrieved documents.",
)


def _register() -> None:
    from raft.cli import (
        ask,
        compare,
        dataset_check,
        dataset_export,
        dataset_import,
        demo,
        evaluate,
        evaluate_general,
        evaluate_judge,
        evaluate_retrieval,
        evaluate_sweep,
        export,
        feedback_export,
        feedback_show,
        generate,
        index,
        index_push,
        index_verify,
        keys,
        review,
        search,
        serve,
        show,
        train,
        tune,
    )

    for verb in (
        index, index_push, index_verify, search, generate, dataset_check, dataset_export,
        dataset_import, review, train, export, evaluate, evaluate_general, evaluate_judge,
        evaluate_retrieval, evaluate_sweep, compare, ask, serve, feedback_export, feedback_show, show,
        demo, tune,
    ):  # fmt: skip
        name = verb.__name__.rsplit(".", 1)[1]
        app.command(name.replace("_", " "))(getattr(verb, name))
    for name in ("keys_add", "keys_list", "keys_revoke"):
        app.command(name.replace("_", " "))(getattr(keys, name))


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
            "raft: interrupted; nothing half-done looks whole; generate, train, tune and evaluate go on with --resume",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
