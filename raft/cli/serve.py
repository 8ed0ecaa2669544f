"""raft serve: answers over HTTP, for the openai client and for people."""

from __future__ import annotations

import errno
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Settings
from raft.config import load_recipe, require
from raft.config_serve import ServeRecipe
from raft.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

_SHUTDOWN_SECONDS = 30  # for what is in work
_CANCEL_SECONDS = 1  # for what is not done by then


def serve(
    index: Annotated[Path | None, typer.Option(help="index made by raft index")] = None,
    adapter: Annotated[Path | None, typer.Option(help="adapter made by raft train")] = None,
    model: Annotated[str | None, typer.Option(help="base model: hub id, folder, GGUF file or package:NAME")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on, 0 for any free one [8011]")] = None,
    keys: Annotated[Path | None, typer.Option(help="file of raft keys: who may ask")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML recipe, e.g. configs/serve/cpu.toml")] = None,
    settings: Settings = None,
) -> None:
    """Serve answers: an OpenAI-compatible endpoint and a web page."""
    chosen = load_recipe(
        ServeRecipe, recipe, settings or (),
        index=index, model__adapter=adapter, model__model=model, host=host, port=port, keys=keys,
    )  # fmt: skip
    require(chosen.index, "index", "--index")
    from raft.serving.guard import API_KEY_ENV, check_host, check_origins

    api_key = os.environ.get(API_KEY_ENV, "").strip() or None  # the file of a secret often ends with a newline
    has_keys = api_key is not None or chosen.keys is not None
    check_host(chosen.host, api_key, chosen.keys)
    check_origins(chosen.cors_origins, has_keys)
    with listen(chosen.host, chosen.port) as listener:  # before the model is loaded: a taken port shows at once
        if hasattr(signal, "SIGHUP"):  # means "look for new versions", and would end a process that still loads them
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        app = open_app(chosen, api_key)
        typer.echo(_greeting(chosen.host, listener.getsockname()[1], has_keys), err=True)
        _run(app, listener, chosen.limits.receive_seconds)
        if app.state.service.feedback:
            app.state.service.feedback.store.close()


def open_app(recipe: ServeRecipe, api_key: str | None) -> FastAPI:
    """The application of a recipe. Files that are quick to look at come before indexes and models, so that what is
    wrong with them shows at once. Raises what is wrong with any of them."""
    from raft.serving.api import create_app
    from raft.serving.audit import Audit
    from raft.serving.feedback import FeedbackStore
    from raft.serving.guard import Guard
    from raft.serving.keys import KeyFile
    from raft.serving.logs import RequestLog, log_as_json
    from raft.serving.open import Stock
    from raft.serving.recent import Feedback, Recent
    from raft.serving.reload import Reloader
    from raft.serving.tracing import open_tracing

    keys = KeyFile(recipe.keys) if recipe.keys else None
    audit = Audit(recipe.audit, texts=recipe.log_texts) if recipe.audit else None
    feedback = None
    if recipe.feedback:
        feedback = Feedback(FeedbackStore(recipe.feedback), Recent(labels=recipe.labels))
    tracing = open_tracing()
    log_as_json()
    reloader = Reloader(Stock.open(recipe), recipe.reload_seconds)
    return create_app(
        reloader.catalog,
        Guard(api_key, keys, recipe.limits.requests_per_minute),
        workers=reloader.catalog.concurrency,
        limits=recipe.limits,
        cors_origins=recipe.cors_origins,
        audit=audit,
        listeners=[RequestLog(texts=recipe.log_texts), *([tracing] if tracing else ())],
        feedback=feedback,
        reloader=reloader,
        passages_as_events=recipe.passages_as_events,
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError when the port is taken or the address is not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise InputError(f"port {port} on {host} {what}", "Name another --port, 0 for any free one") from None


def _run(app: FastAPI, listener: socket.socket, receive_seconds: float) -> None:
    """Serve until Ctrl-C or SIGTERM: requests in work are finished first, and the stop is a success."""
    import uvicorn

    from raft.serving.connections import allow_many_sockets, protocol
    from raft.serving.shutdown import DrainingServer

    allow_many_sockets()
    config = uvicorn.Config(
        app, http=protocol(receive_seconds), ws="none", log_config=None, access_log=False,
        timeout_graceful_shutdown=_CANCEL_SECONDS, server_header=False,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        DrainingServer(config, app.state.drain, _SHUTDOWN_SECONDS).run(sockets=[listener])
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
