"""/v1/responses: the newer of OpenAI's forms, whose clients show passages and citations by themselves.

A stream (each event with its number, the ids left out)::

    response.created, response.in_progress
    response.output_item.added      the search
    response.file_search_call.in_progress, .searching, .completed
    response.output_item.done       the search with its passages
    response.output_item.added, response.content_part.added
    response.output_text.delta      ... once for each piece of the answer
    response.output_text.annotation.added      ... once for each quote that was found in the documents
    response.output_text.done, response.content_part.done, response.output_item.done
    response.completed              the whole response; .incomplete where it was cut at its limit, .failed
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from itertools import count
from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import to_json

from raft.errors import RaftError
from raft.llm.chat import PromptTooLong
from raft.serving import responses_schema as schema
from raft.serving.answering import Call, Pieces, answer, stream, unless_left
from raft.serving.engine import Found, Served
from raft.serving.events import EventStream
from raft.serving.guard import GuardedRoute
from raft.serving.http_errors import error_body
from raft.serving.openapi import errors, streamed
from raft.serving.responses_schema import IncompleteDetails, Response, ResponseError, ResponsesRequest
from raft.serving.schema import raft_object
from raft.serving.service import Exchange, caller_of, service_of

router = APIRouter(prefix="/v1", route_class=GuardedRoute)


@router.post(
    "/responses",
    response_model=Response,
    responses={**streamed("JSON of an event of a response"), **errors(404, 502, 504)},
)
async def responses(body: ResponsesRequest, request: Request) -> Any:
    """Answer the last message of the user from the documents."""
    service, caller = service_of(request), caller_of(request)
    call = Call(f"resp_{uuid.uuid4().hex}", "responses", caller, body.model, body.asked(body.where(caller.labels)))
    draft = _Draft(call)
    if not body.stream:
        made = await unless_left(request, answer(service, call))
        assert made.served is not None
        return draft.whole(made.served)
    pieces = stream(service, call)
    found = await unless_left(request, anext(pieces))  # admitted, or refused while the status can still say so
    assert isinstance(found, Found)
    return EventStream(pieces, draft.events(found, pieces))


class _Draft:
    """A response in the making: its parts as they are known, and the events that tell of them."""

    def __init__(self, call: Call) -> None:
        name = call.id.removeprefix("resp_")
        self._call = call
        self._created = int(time.time())
        self._search_id, self._message_id = f"fs_{name}", f"msg_{name}"
        self._numbers = count()

    def whole(self, served: Served) -> Response:
        """The response when the answer is made."""
        cut = served.truncated
        output = [
            schema.search_call(self._search_id, served.query, served.hits),
            schema.message(self._message_id, served),
        ]
        return self._response(
            "incomplete" if cut else "completed", output=output, usage=schema.usage(served), raft=raft_object(served),
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if cut else None,
        )  # fmt: skip

    def _response(self, status: schema.Status, **known: Any) -> Response:
        head = {"id": self._call.id, "created_at": self._created, "model": self._call.model}
        limit = self._call.asked.max_tokens
        return Response(**{"output": [], **head, **known}, status=status, max_output_tokens=limit)

    async def events(self, found: Found, pieces: Pieces) -> AsyncGenerator[str, None]:
        """The stream of an answer."""
        text: list[str] = []
        try:
            async with contextlib.aclosing(pieces):
                for event in self._opening(found):
                    yield event
                async for piece in pieces:
                    if isinstance(piece, str) and piece:
                        text.append(piece)
                        yield self._of_text("response.output_text.delta", delta=piece, logprobs=[])
                    elif isinstance(piece, Exchange) and piece.served is not None:
                        for event in self._closing(piece.served, "".join(text)):
                            yield event
        except RaftError as error:
            code = "invalid_prompt" if isinstance(error, PromptTooLong) else "server_error"
            told = ResponseError(code=code, message=error_body(error).error.message)
            yield self._event("response.failed", response=self._response("failed", error=told))

    def _opening(self, found: Found) -> Iterator[str]:
        begun = self._response("in_progress")
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        query = found.reading.query
        searching = schema.search_call(self._search_id, query, None)
        yield self._event("response.output_item.added", output_index=0, item=searching)
        for step in ("in_progress", "searching", "completed"):
            yield self._event(f"response.file_search_call.{step}", output_index=0, item_id=self._search_id)
        searched = schema.search_call(self._search_id, query, found.hits)
        yield self._event("response.output_item.done", output_index=0, item=searched)
        empty = schema.OutputMessage(
            id=self._message_id, type="message", role="assistant", status="in_progress", content=[]
        )
        yield self._event("response.output_item.added", output_index=1, item=empty)
        yield self._of_text("response.content_part.added", part=schema.output_text(""))

    def _closing(self, served: Served, text: str) -> Iterator[str]:
        message = schema.message(self._message_id, served)
        part = message.content[0]
        for number, annotation in enumerate(part.annotations):
            kind = "response.output_text.annotation.added"
            yield self._of_text(kind, annotation_index=number, annotation=annotation)
        yield self._of_text("response.output_text.done", text=text, logprobs=[])
        yield self._of_text("response.content_part.done", part=part)
        yield self._event("response.output_item.done", output_index=1, item=message)
        whole = self.whole(served)
        yield self._event(f"response.{whole.status}", response=whole)

    def _of_text(self, kind: str, **fields: Any) -> str:
        return self._event(kind, item_id=self._message_id, output_index=1, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> str:
        event = {"type": kind, "sequence_number": next(self._numbers), **fields}
        return f"event: {kind}\ndata: {to_json(event).decode()}\n\n"
