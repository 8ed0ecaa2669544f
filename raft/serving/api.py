"""The HTTP face of a catalog of engines: OpenAI-compatible answers, a search, and the web page."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from raft.serving import chat_completions, operations, searches
from raft.serving.catalog import Catalog
from raft.serving.gate import Gate
from raft.serving.guard import Guard
from raft.serving.http_errors import add_handlers
from raft.serving.middleware import BodyLimit, SecureHeaders
from raft.serving.operations import WEB
from raft.serving.service import Listener, Service


def create_app(
    catalog: Catalog,
    guard: Guard | None = None,
    *,
    workers: int = 1,
    max_queue: int = 32,
    listeners: Sequence[Listener] = (),
) -> FastAPI:
    """The application. ``workers`` answers are made at once and ``max_queue`` requests wait; more are refused with 429.
    Without ``guard`` only requests addressed to localhost are taken. ``listeners`` are told of every request."""
    app = FastAPI(title="raft", docs_url=None, redoc_url=None)
    gates = (Gate(workers, max_queue), Gate(1, max_queue))
    app.state.service = Service(catalog, guard or Guard(), *gates, int(time.time()), tuple(listeners))
    for router in (chat_completions.router, searches.router, operations.router):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=WEB), name="static")
    add_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(SecureHeaders)
    return app
