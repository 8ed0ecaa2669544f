"""/v1/chat/completions: OpenAI's form, so that stock clients work unchanged."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from raft.errors import RaftError
from raft.serving import schema
from raft.serving.answering import Call, answer, stream
from raft.serving.engine import Asked, Served
from raft.serving.guard import GuardedRoute
from raft.serving.http_errors import error_body
from raft.serving.schema import ChatCompletionChunk, ChatCompletionRequest, Delta
from raft.serving.service import Exchange, caller_of, service_of

router = APIRouter(prefix="/v1", route_class=GuardedRoute)


@router.post("/chat/completions", response_model=schema.ChatCompletion)
async def chat_completions(body: ChatCompletionRequest, request: Request) -> Any:
    """Answer the last user message from the documents."""
    asked = Asked(body.question, top_k=body.top_k, max_tokens=body.token_limit)
    call = Call(f"chatcmpl-{uuid.uuid4().hex}", "chat", caller_of(request), body.model, asked)
    service = service_of(request)
    if not body.stream:
        return _completion(await answer(service, call))
    pieces = stream(service, call)
    await anext(pieces)  # admitted, or refused while the status can still say so
    return EventStream(_events(call, pieces, body.wants_usage))


def _completion(made: Exchange) -> schema.ChatCompletion:
    served = made.served
    assert served is not None
    message = schema.AssistantMessage(
        role="assistant", content=served.answer.text, refusal=None, annotations=schema.url_citations(served)
    )
    choice = schema.Choice(index=0, message=message, finish_reason=schema.finish_reason(served), logprobs=None)
    return schema.ChatCompletion(
        id=made.id, object="chat.completion", created=int(time.time()), model=made.model,
        choices=[choice], usage=schema.usage(served), raft=schema.raft_object(served),
    )  # fmt: skip


class EventStream(StreamingResponse):
    """Server-sent events whose source is closed when the client leaves, not whenever it is garbage collected."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        super().__init__(events, headers={"x-accel-buffering": "no"})
        self._events = events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with contextlib.aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _events(
    call: Call, pieces: AsyncGenerator[str | Exchange, None], wants_usage: bool
) -> AsyncGenerator[str, None]:
    head = {"id": call.id, "object": "chat.completion.chunk", "created": int(time.time()), "model": call.model}
    try:
        async with contextlib.aclosing(pieces):
            yield _event(head, Delta(role="assistant", content=""))
            async for piece in pieces:
                if isinstance(piece, str):
                    yield _event(head, Delta(content=piece))
                elif piece.served is not None:
                    for event in _last_events(head, piece.served, wants_usage):
                        yield event
    except RaftError as error:
        yield _sse(error_body(error))
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
