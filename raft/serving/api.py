"""The HTTP face of an AnswerEngine: OpenAI-compatible chat completions, a search, and the web page."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from raft.errors import RaftError, UsageError
from raft.llm.chat import PromptTooLong
from raft.prompts import ANSWER_MARK, QUOTE_BEGIN, QUOTE_END
from raft.records import Hit
from raft.serving import schema
from raft.serving.engine import AnswerEngine, Gate, Overloaded, Served
from raft.serving.schema import ChatCompletionChunk, ChatCompletionRequest, Delta, SearchRequest

WEB = Path(__file__).parent / "web"
API_KEY_ENV = "RAFT_API_KEY"
RETRY_AFTER_SECONDS = 5
MAX_BODY_BYTES = 1_000_000
SECURE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_TOO_LARGE = f"the body of the request is larger than {MAX_BODY_BYTES} bytes"
log = logging.getLogger("raft.serving")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes share. Searches have a gate of their own, so that they do not wait behind answers."""

    engine: AnswerEngine
    model_name: str
    api_key: str | None
    answers: Gate
    searches: Gate
    started: int


def create_app(
    engine: AnswerEngine,
    model_name: str = "raft",
    *,
    api_key: str | None = None,
    workers: int = 1,
    max_queue: int = 32,
) -> FastAPI:
    """The application. ``workers`` answers are made at once (1 for a local model) and ``max_queue`` requests wait;
    more are refused with 429. Without ``api_key`` only requests addressed to localhost are taken."""
    app = FastAPI(title="raft", docs_url=None, redoc_url=None)
    app.state.service = Service(
        engine, model_name, api_key, Gate(workers, max_queue), Gate(1, max_queue), int(time.time())
    )
    app.include_router(v1)
    app.include_router(pages)
    app.mount("/static", StaticFiles(directory=WEB), name="static")
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RaftError, _on_raft_error)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(BodyLimit)
    app.add_middleware(SecureHeaders)
    return app


def check_host(host: str, api_key: str | None) -> None:
    """Raise UsageError when ``host`` can be reached from other machines and there is no key."""
    if api_key is None and not _is_loopback(host):
        raise UsageError(
            f"host {host} can be reached from other machines, and no key protects the documents",
            f"Set {API_KEY_ENV} in the environment, or serve on 127.0.0.1",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _authorize(request: Request) -> None:
    expected = _service(request).api_key
    if expected is None:
        if not _is_loopback(request.url.hostname or ""):  # a foreign page may point its own name at 127.0.0.1
            raise HTTPException(403, f"without {API_KEY_ENV} this server is reached as localhost only")
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # header values arrive decoded as latin-1; encoding them so gives back the bytes that were sent
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), expected.encode()):
        raise HTTPException(401, "no valid API key was given", {"WWW-Authenticate": "Bearer"})


class GuardedRoute(APIRoute):
    """A route that reads no body before the key is checked (a dependency would be asked after that)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            _authorize(request)
            return await handle(request)

        return guarded


v1 = APIRouter(prefix="/v1", route_class=GuardedRoute)
pages = APIRouter()


@v1.post("/chat/completions", response_model=schema.ChatCompletion)
async def chat_completions(body: ChatCompletionRequest, request: Request) -> Any:
    """Answer the last user message from the documents."""
    service = _service(request)
    if body.model != service.model_name:
        return _error(404, f"the model {body.model!r} does not exist; this server has {service.model_name!r}",
                      param="model", code="model_not_found")  # fmt: skip
    if body.stream:
        look_up = partial(service.engine.find, body.question, body.top_k, body.token_limit)
        events = _events(service, body, await service.searches.run(look_up))
        await anext(events)  # admitted, or refused while the status can still say so
        return EventStream(events)
    job = partial(service.engine.answer, body.question, body.top_k, body.token_limit)
    return _completion(await service.answers.run(job), service.model_name)


@v1.get("/models")
async def models(request: Request) -> schema.ModelList:
    """The one model that this server has."""
    service = _service(request)
    card = schema.ModelCard(id=service.model_name, object="model", created=service.started, owned_by="raft")
    return schema.ModelList(object="list", data=[card])


@v1.post("/search")
async def search(body: SearchRequest, request: Request) -> schema.SearchResponse:
    """The best chunks for a query, best first."""
    service = _service(request)
    hits = await service.searches.run(partial(service.engine.search, body.query, body.top_k))
    return schema.SearchResponse(object="list", data=schema.documents(hits))


@pages.get("/healthz")
async def healthz(request: Request) -> schema.Health:
    """Ready, with the fingerprint of the index that is served."""
    service = _service(request)
    return schema.Health(status="ready", model=service.model_name, index=service.engine.fingerprint)


@pages.get("/", include_in_schema=False)
async def page(request: Request) -> HTMLResponse:
    from jinja2 import Template

    template = Template((WEB / "index.html").read_text(encoding="utf-8"), autoescape=True)
    markers = {"quote_begin": QUOTE_BEGIN, "quote_end": QUOTE_END, "answer_mark": ANSWER_MARK}
    limit = schema.MAX_QUESTION_CHARACTERS
    return HTMLResponse(template.render(model=_service(request).model_name, max_characters=limit, **markers))


def _completion(served: Served, model_name: str) -> schema.ChatCompletion:
    message = schema.AssistantMessage(
        role="assistant", content=served.answer.text, refusal=None, annotations=schema.url_citations(served)
    )
    choice = schema.Choice(index=0, message=message, finish_reason=schema.finish_reason(served), logprobs=None)
    return schema.ChatCompletion(
        id=_completion_id(), object="chat.completion", created=int(time.time()), model=model_name,
        choices=[choice], usage=schema.usage(served), raft=schema.raft_object(served),
    )  # fmt: skip


def _completion_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


class EventStream(StreamingResponse):
    """Server-sent events whose source is closed when the client leaves, not whenever it is garbage collected."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, headers={"x-accel-buffering": "no"})
        self._events = events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with contextlib.aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _events(service: Service, body: ChatCompletionRequest, hits: list[Hit]) -> AsyncGenerator[str, None]:
    """First nothing, once the request is admitted (else Overloaded is raised); then the events of the stream."""
    head = {"id": _completion_id(), "object": "chat.completion.chunk", "created": int(time.time()),
            "model": service.model_name}  # fmt: skip
    job = service.engine.stream(body.question, body.top_k, body.token_limit, hits)
    try:
        async with contextlib.aclosing(service.answers.stream(job)) as pieces:
            await anext(pieces)
            yield ""
            yield _event(head, Delta(role="assistant", content=""))
            async for piece in pieces:
                if isinstance(piece, str):
                    yield _event(head, Delta(content=piece))
                else:
                    for event in _last_events(head, piece, body.wants_usage):
                        yield event
    except Overloaded:
        raise
    except RaftError as error:
        yield _sse(_error_body(error))
    yield "data: [DONE]\n\n"


def _last_events(head: dict[str, Any], served: Served, wants_usage: bool) -> list[str]:
    """The end of the stream. As OpenAI does it, usage comes in a chunk of its own without choices."""
    delta = Delta(annotations=schema.url_citations(served))
    raft = schema.raft_object(served)
    finish = schema.finish_reason(served)
    if not wants_usage:
        return [_event(head, delta, finish, raft=raft)]
    last = ChatCompletionChunk(**head, choices=[], usage=schema.usage(served), raft=raft)
    return [_event(head, delta, finish), _sse(last)]


def _event(head: dict[str, Any], delta: Delta, finish: schema.FinishReason | None = None, **last: Any) -> str:
    choice = schema.ChunkChoice(index=0, delta=delta, finish_reason=finish, logprobs=None)
    return _sse(ChatCompletionChunk(**head, choices=[choice], **last))


def _sse(event: ChatCompletionChunk | schema.ErrorResponse) -> str:
    return f"data: {event.model_dump_json(exclude_unset=True)}\n\n"


def _error(
    status: int, message: str, *, kind: str = "invalid_request_error", param: str | None = None,
    code: str | None = None, headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    detail = schema.ErrorDetail(message=message, type=kind, param=param, code=code)
    return JSONResponse({"error": detail.model_dump()}, status, headers)


def _on_invalid(request: Request, error: Any) -> JSONResponse:
    mistakes = [(".".join(str(part) for part in item["loc"][1:]), item["msg"]) for item in error.errors()]
    message = "; ".join(f"{where}: {said}" if where else said for where, said in mistakes)
    return _error(400, message.replace("Value error, ", ""), param=mistakes[0][0] or None)


def _on_http_error(request: Request, error: Any) -> JSONResponse:
    code = "invalid_api_key" if error.status_code == 401 else None
    return _error(error.status_code, str(error.detail), code=code, headers=error.headers)


def _on_raft_error(request: Request, error: Any) -> JSONResponse:
    if isinstance(error, Overloaded):
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return _error(429, str(error), kind="rate_limit_error", code="queue_full", headers=headers)
    return JSONResponse(_error_body(error).model_dump(), 400 if isinstance(error, PromptTooLong) else 502)


def _error_body(error: RaftError) -> schema.ErrorResponse:
    """What the client is told of a failure behind the server: that it failed. Why goes to the log, because it may
    name files or hosts. A prompt that is too long is the client's to mend, and told in full."""
    if isinstance(error, PromptTooLong):
        return schema.ErrorResponse(
            error=schema.ErrorDetail(
                message=str(error), type="invalid_request_error", param="top_k", code="context_length_exceeded"
            )
        )
    log.error("request failed: %s", error)
    message = "the model could not answer; try again later"
    return schema.ErrorResponse(
        error=schema.ErrorDetail(message=message, type="server_error", param=None, code="model_error")
    )


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    return _error(500, "internal error", kind="server_error", headers=SECURE_HEADERS)


class BodyLimit:
    """ASGI middleware: a body above MAX_BODY_BYTES is refused with 413, by the length it declares or, when it
    declares none, as soon as more has come."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        came = 0

        async def receiving() -> MutableMapping[str, Any]:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > MAX_BODY_BYTES:
                raise HTTPException(413, _TOO_LARGE)
            return message

        declared = dict(scope.get("headers", ())).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            await _error(413, _TOO_LARGE)(scope, receive, send)
        else:
            await self._app(scope, receiving, send)


class SecureHeaders:
    """ASGI middleware: SECURE_HEADERS on every response."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in SECURE_HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, sending)
