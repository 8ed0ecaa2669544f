"""raft review: look through the questions of a dataset on a local page; accept, edit or reject them; apply it."""

from __future__ import annotations

import contextlib
import getpass
import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import ToJson
from raft.cli.serve import listen
from raft.errors import UsageError
from raft.records import Split

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

    from raft.dataset.review_apply import Applied

_SHUTDOWN_SECONDS = 2  # an open page may hold its connection


def review(
    dataset: Annotated[Path, typer.Argument(help="dataset made by raft generate")],
    reviewer: Annotated[str | None, typer.Option(help="who decides [your login name]")] = None,
    split: Annotated[Split | None, typer.Option(help="review the questions of train, dev or test alone")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="review so many questions, drawn at random")] = None,
    host: Annotated[str, typer.Option(help="address to listen on, of this machine only")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on, 0 for any free one")] = 8012,
    apply: Annotated[bool, typer.Option("--apply", help="apply the decisions to the dataset, and stop")] = False,
    out: Annotated[Path | None, typer.Option(help="with --apply: a new dataset instead of DATASET")] = None,
    accepted_only: Annotated[
        bool, typer.Option("--accepted-only", help="with --apply: leave out what nobody has decided on")
    ] = False,
    to_json: ToJson = False,
) -> None:
    """Review a dataset on a web page of this machine, and apply what was decided."""
    if apply:
        from raft.dataset.review_apply import apply_review

        done = apply_review(dataset, out, accepted_only=accepted_only)
        typer.echo(json.dumps(asdict(done), ensure_ascii=False, default=str) if to_json else _as_text(done))
        return
    if out is not None or accepted_only or to_json:
        raise UsageError("--out, --accepted-only and --json belong to --apply", f"raft review {dataset} --apply ...")
    _serve(dataset, reviewer or _login(), split, sample, host, port)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        raise UsageError("your login name is not known to the system", "Give --reviewer NAME") from None


def _serve(dataset: Path, reviewer: str, split: Split | None, sample: int | None, host: str, port: int) -> None:
    from raft.dataset.review import open_review
    from raft.dataset.trail import trail_path
    from raft.serving.review import check_loopback, create_review_app

    check_loopback(host)
    with listen(host, port) as listener, open_review(dataset, reviewer) as opened:
        app = create_review_app(opened, split=split, sample=sample)
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        typer.echo(f"Review {dataset} as {reviewer} on {url} (Ctrl-C stops)", err=True)
        typer.echo(f"Decisions go to {trail_path(dataset)}", err=True)
        _run(app, listener)


def _run(app: FastAPI, listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM; the stop is a success."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_SHUTDOWN_SECONDS, server_header=False
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has stopped by now, and passes on what made it stop
        uvicorn.Server(config).run(sockets=[listener])
    typer.echo("raft: stopped; every decision is kept", err=True)


def _as_text(done: Applied) -> str:
    counts = f"{done.accepted} accepted, {done.edited} edited, {done.rejected} rejected, {done.undecided} undecided"
    return (
        f"{done.out}: {done.questions} questions, {done.examples} examples are left\n"
        f"reviewed by {', '.join(done.reviewers)}: {counts}\nnext: raft train --data {done.out}"
    )
