"""OpenAI's form of /v1/responses, as it goes over the wire.

{"model": "raft", "input": "What is the first dose of Corvalexin?", "stream": true, "top_k": 4}

The ``output`` of a response is a ``file_search_call`` with the passages, and a ``message`` with the answer. Fields of a
request that are not named here are ignored, as in chat completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from raft.records import Filter, Hit
from raft.serving.carriers import Attributes, FileCitation, file_citations, search_result
from raft.serving.conversation import turns_of
from raft.serving.engine import Asked, Served
from raft.serving.schema import (
    MOST_MESSAGES,
    MOST_PARTS,
    ModelName,
    Options,
    RaftObject,
    checked_question,
    told_as_cached,
)

# --- requests


class InputPart(BaseModel):
    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str = ""
    refusal: str = ""


class InputMessage(BaseModel):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[InputPart], Field(max_length=MOST_PARTS, fail_fast=True)]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text or part.refusal for part in self.content)


class OtherItem(BaseModel):
    """What clients send back of an earlier response beside its messages, like a file_search_call. It is ignored."""

    type: str = Field(json_schema_extra={"not": {"const": "message"}})


def _kind_of(item: Any) -> str:
    """The tag of an item: what says nothing of its type is a message."""
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return "message" if kind == "message" else "other"


Item = Annotated[Annotated[InputMessage, Tag("message")] | Annotated[OtherItem, Tag("other")], Discriminator(_kind_of)]
Items = Annotated[list[Item], Field(max_length=MOST_MESSAGES, fail_fast=True)]


class ResponsesRequest(Options):
    """``input`` is the question, or a conversation whose last message of the user is the question. ``instructions`` and
    system messages are ignored. ``max_output_tokens`` can lower the server's limit on an answer's length, not raise
    it."""

    model: ModelName
    input: str | Items
    stream: bool = False
    max_output_tokens: int | None = Field(None, ge=1)
    previous_response_id: None = None
    conversation: None = None

    @field_validator("previous_response_id", "conversation", mode="before")
    @classmethod
    def _keeps_none(cls, given: Any) -> None:
        if given is not None:
            raise ValueError("this server keeps no conversations; send the earlier messages in input")

    @model_validator(mode="after")
    def _asks_something(self) -> ResponsesRequest:
        checked_question(self.asked(Filter()).question)
        return self

    def asked(self, where: Filter) -> Asked:
        """The question to the engine."""
        items = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        earlier, question = turns_of((item.role, item.text) for item in items if isinstance(item, InputMessage))
        return Asked(question, tuple(earlier), self.top_k, self.max_output_tokens, where)


# --- responses

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class FileSearchResult(BaseModel):
    """A passage. ``score`` tells the order alone, 1/rank: similarities stay on the server."""

    file_id: str
    filename: str
    score: float
    text: str
    attributes: Attributes


class FileSearchCall(BaseModel):
    id: str
    type: Literal["file_search_call"]
    status: Literal["in_progress", "completed"]
    queries: list[str]
    results: list[FileSearchResult] | None


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[FileCitation]
    logprobs: list[None]


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class InputTokens(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokens(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class ResponseError(BaseModel):
    code: Literal["server_error", "invalid_prompt"]
    message: str


class TextFormat(BaseModel):
    type: Literal["text"] = "text"


class TextSettings(BaseModel):
    format: TextFormat = TextFormat()


class Response(BaseModel):
    """What is always the same says that this server has no such setting."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[FileSearchCall | OutputMessage]
    usage: ResponseUsage | None = None
    raft: RaftObject | None = None
    instructions: None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    store: bool = False
    temperature: None = None
    text: TextSettings = TextSettings()
    tool_choice: Literal["auto"] = "auto"
    tools: list[None] = []
    top_p: None = None
    truncation: Literal["disabled"] = "disabled"


# --- from records to responses


def search_call(id: str, query: str, hits: Sequence[Hit] | None) -> FileSearchCall:
    """The search as an item of the output; ``hits`` are None while it is under way."""
    results = None if hits is None else [FileSearchResult(text=h.chunk.text, **search_result(h)) for h in hits]
    status: Literal["in_progress", "completed"] = "in_progress" if hits is None else "completed"
    return FileSearchCall(id=id, type="file_search_call", status=status, queries=[query], results=results)


def message(id: str, served: Served) -> OutputMessage:
    """The answer as an item of the output."""
    text = output_text(served.answer.text, file_citations(served))
    status: Literal["completed", "incomplete"] = "incomplete" if served.truncated else "completed"
    return OutputMessage(id=id, type="message", role="assistant", status=status, content=[text])


def output_text(text: str, annotations: Sequence[FileCitation] = ()) -> OutputText:
    return OutputText(type="output_text", text=text, annotations=list(annotations), logprobs=[])


def usage(served: Served) -> ResponseUsage | None:
    """The model's token counts, or None when it does not count."""
    reply = served.reply
    if reply is None:
        return None
    return ResponseUsage(
        input_tokens=reply.prompt_tokens,
        input_tokens_details=InputTokens(cached_tokens=told_as_cached(reply), cache_write_tokens=0),
        output_tokens=reply.completion_tokens,
        output_tokens_details=OutputTokens(reasoning_tokens=0),
        total_tokens=reply.prompt_tokens + reply.completion_tokens,
    )
