"""The HTTP face of a catalog of engines: OpenAI-compatible answers, a search, and the web page."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware

from raft.config_serve import LimitsRecipe
from raft.serving import chat_completions, feedback_api, openapi, operations, responses, searches
from raft.serving.audit import Audit
from raft.serving.catalog import Catalog
from raft.serving.gate import Gate
from raft.serving.guard import LIMIT_HEADERS, Guard
from raft.serving.http_errors import add_handlers
from raft.serving.metrics import CountResponses, Metrics
from raft.serving.middleware import BodyLimit, SecureHeaders
from raft.serving.operations import WEB
from raft.serving.recent import Feedback
from raft.serving.reload import Reloader
from raft.serving.service import Listener, Service
from raft.serving.shutdown import Drain, Draining


def create_app(
    catalog: Catalog,
    guard: Guard | None = None,
    *,
    workers: int = 1,
    limits: LimitsRecipe = LimitsRecipe(),
    cors_origins: Sequence[str] = (),
    audit: Audit | None = None,
    listeners: Sequence[Listener] = (),
    feedback: Feedback | None = None,
    reloader: Reloader | None = None,
    passages_as_events: bool = False,
) -> FastAPI:
    """The application. ``workers`` answers are made at once, as many others as ``limits`` say wait their turn. Without
    ``guard`` only requests addressed to localhost are taken; pages of ``cors_origins`` may call, no others. ``audit``
    and ``listeners`` are told of every request. A stop goes by ``app.state.drain``.
    ``feedback`` keeps what people say of answers; without it nothing is kept. ``reloader`` changes the catalog while
    the server runs. ``passages_as_events`` puts passages into streams in Open WebUI's form."""
    app = FastAPI(
        title="raft", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan(reloader),
        redirect_slashes=False,  # redirects come before the key is looked at, and repeat the Host header
    )  # fmt: skip
    guard = guard or Guard()
    gates = (Gate(workers, limits.max_queue), Gate(1, limits.max_queue))
    app.state.drain = Drain()
    app.state.metrics = Metrics()
    app.state.metrics.watch(answers=gates[0], searches=gates[1])
    app.state.metrics.watch_keys(guard.keys_unreadable)
    told = (*([audit] if audit else ()), app.state.metrics, *listeners, *([feedback.recent] if feedback else ()))
    app.state.service = Service(
        catalog, guard, *gates, int(time.time()), told, feedback,
        answer_seconds=limits.answer_seconds, audit=audit, passages_as_events=passages_as_events,
    )  # fmt: skip
    for room in (chat_completions, responses, searches, feedback_api, operations, openapi):
        app.include_router(room.router)
    openapi.describe(app)
    app.mount("/static", StaticFiles(directory=WEB), name="static")
    add_handlers(app)
    _add_middleware(app, limits, cors_origins)
    return app


def _lifespan(reloader: Reloader | None) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(reloader.run()) if reloader else None
        yield
        if watching:
            watching.cancel()
            await asyncio.wait([watching])

    return lifespan


def _add_middleware(app: FastAPI, limits: LimitsRecipe, cors_origins: Sequence[str]) -> None:
    """The last one added is the first to see a request."""
    app.add_middleware(BodyLimit, max_bytes=1000 * limits.max_body_kb, receive_seconds=limits.receive_seconds)
    app.add_middleware(Draining, drain=app.state.drain)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=cors_origins, allow_methods=("GET", "POST"), allow_headers=("*",),
            expose_headers=("retry-after", *LIMIT_HEADERS),
        )  # fmt: skip
    app.add_middleware(CountResponses, responded=app.state.metrics.responded)
    app.add_middleware(SecureHeaders)
