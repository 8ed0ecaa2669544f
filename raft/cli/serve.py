"""raft serve: answers over HTTP, for the openai client and for people."""

from __future__ import annotations

import errno
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.ask import open_engine
from raft.cli.options import Settings
from raft.config import load_recipe, require
from raft.config_serve import ServeRecipe
from raft.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

_SHUTDOWN_SECONDS = 30


def serve(
    index: Annotated[Path | None, typer.Option(help="index made by raft index")] = None,
    adapter: Annotated[Path | None, typer.Option(help="adapter made by raft train")] = None,
    model: Annotated[str | None, typer.Option(help="base model: hub id, folder, GGUF file or package:NAME")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on, 0 for any free one [8011]")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML recipe, e.g. configs/serve/cpu.toml")] = None,
    settings: Settings = None,
) -> None:
    """Serve answers: an OpenAI-compatible endpoint and a web page."""
    chosen = load_recipe(
        ServeRecipe, recipe, settings or (),
        index=index, model__adapter=adapter, model__model=model, host=host, port=port,
    )  # fmt: skip
    require(chosen.index, "index", "--index")
    from raft.serving.api import create_app
    from raft.serving.catalog import Catalog
    from raft.serving.guard import API_KEY_ENV, Guard, check_host

    api_key = os.environ.get(API_KEY_ENV) or None
    check_host(chosen.host, api_key)
    with listen(chosen.host, chosen.port) as listener:  # before the model is loaded: a taken port shows at once
        app = create_app(
            Catalog({"raft": open_engine(chosen)}),
            Guard(api_key),
            workers=chosen.model.concurrency if chosen.model.base_url else 1,
            max_queue=chosen.limits.max_queue,
        )
        typer.echo(_greeting(chosen.host, listener.getsockname()[1], api_key is not None), err=True)
        _run(app, listener)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError when the port is taken or the address is not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise InputError(f"port {port} on {host} {what}", "Name another --port, 0 for any free one") from None


def _run(app: FastAPI, listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM: requests in work are finished first, and the stop is a success."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_SHUTDOWN_SECONDS, server_header=False
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn has stopped by now, and passes on the signal that made it stop
        typer.echo("raft: stopped", err=True)


def _greeting(host: str, port: int, has_key: bool) -> str:
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    header = ' -H "Authorization: Bearer $RAFT_API_KEY"' if has_key else ""
    key = 'os.environ["RAFT_API_KEY"]' if has_key else '"none"'
    return f"""Serving on {url} (Ctrl-C stops)

  curl {url}/v1/chat/completions{header} -H "Content-Type: application/json" \\
    -d '{{"model": "raft", "messages": [{{"role": "user", "content": "YOUR QUESTION"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key={key})
  client.chat.completions.create(model="raft", messages=[{{"role": "user", "content": "YOUR QUESTION"}}])
"""
