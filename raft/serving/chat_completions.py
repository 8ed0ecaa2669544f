"""/v1/chat/completions: OpenAI's form, so that stock clients work unchanged."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from raft.errors import RaftError
from raft.serving import carriers, schema
from raft.serving.answering import Call, Pieces, answer, stream, unless_left
from raft.serving.chat_schema import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChunkChoice,
    Delta,
)
from raft.serving.engine import Served
from raft.serving.events import EventStream
from raft.serving.guard import GuardedRoute
from raft.serving.http_errors import error_body
from raft.serving.openapi import errors, streamed
from raft.serving.schema import FinishReason
from raft.serving.service import Exchange, caller_of, service_of

router = APIRouter(prefix="/v1", route_class=GuardedRoute)


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses={**streamed("JSON of a chat.completion.chunk; of the last one: [DONE]"), **errors(404, 502, 504)},
)
async def chat_completions(body: ChatCompletionRequest, request: Request) -> Any:
    """Answer the last user message from the documents."""
    service, caller = service_of(request), caller_of(request)
    call = Call(f"chatcmpl-{uuid.uuid4().hex}", "chat", caller, body.model, body.asked(body.where(caller.labels)))
    if not body.stream:
        return _completion(await unless_left(request, answer(service, call)))
    pieces = stream(service, call)
    await unless_left(request, anext(pieces))  # admitted, or refused while the status can still say so
    return EventStream(pieces, _events(call, pieces, body.wants_usage, service.passages_as_events))


def _completion(made: Exchange) -> ChatCompletion:
    served = made.served
    assert served is not None
    message = AssistantMessage(
        role="assistant", content=served.answer.text, refusal=None,
        annotations=carriers.url_citations(served), context=carriers.context(served),
    )  # fmt: skip
    choice = Choice(index=0, message=message, finish_reason=schema.finish_reason(served), logprobs=None)
    return ChatCompletion(
        id=made.id, object="chat.completion", created=int(time.time()), model=made.model,
        choices=[choice], usage=schema.usage(served), raft=schema.raft_object(served),
    )  # fmt: skip


async def _events(call: Call, pieces: Pieces, wants_usage: bool, passages_as_events: bool) -> AsyncGenerator[str, None]:
    head = {"id": call.id, "object": "chat.completion.chunk", "created": int(time.time()), "model": call.model}
    try:
        async with contextlib.aclosing(pieces):
            yield _event(head, Delta(role="assistant", content=""))
            async for piece in pieces:
                if isinstance(piece, str) and piece:
                    yield _event(head, Delta(content=piece))
                elif isinstance(piece, Exchange) and piece.served is not None:
                    for event in _last_events(head, piece.served, wants_usage, passages_as_events):
                        yield event
    except RaftError as error:
        yield _sse(error_body(error))
    yield "data: [DONE]\n\n"


def _last_events(head: dict[str, Any], served: Served, wants_usage: bool, passages_as_events: bool) -> list[str]:
    """The end of the stream. As OpenAI does it, usage comes in a chunk of its own without choices."""
    passages = carriers.source_events(served) if passages_as_events else []
    events = [_sse(ChatCompletionChunk(**head, choices=[], event=passage)) for passage in passages]
    delta = Delta(annotations=carriers.url_citations(served), context=carriers.context(served))
    raft = schema.raft_object(served)
    finish = schema.finish_reason(served)
    if not wants_usage:
        return [*events, _event(head, delta, finish, raft=raft)]
    last = ChatCompletionChunk(**head, choices=[], usage=schema.usage(served), raft=raft)
    return [*events, _event(head, delta, finish), _sse(last)]


def _event(head: dict[str, Any], delta: Delta, finish: FinishReason | None = None, **last: Any) -> str:
    choice = ChunkChoice(index=0, delta=delta, finish_reason=finish, logprobs=None)
    return _sse(ChatCompletionChunk(**head, choices=[choice], **last))


def _sse(event: BaseModel) -> str:
    return f"data: {event.model_dump_json(exclude_unset=True)}\n\n"
