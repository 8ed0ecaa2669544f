"""OpenAI's form of chat completions, as it goes over the wire.

{"model": "raft", "messages": [{"role": "user", "content": "What is the first dose of Corvalexin?"}],
 "top_k": 4, "filters": {"tags": ["dosing"], "since": "2025"}, "labels": ["ward"]}

Fields that are not named here are ignored: stock clients send many that mean nothing to a system whose decoding
settings are those it was evaluated with.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from raft.records import Filter
from raft.serving.carriers import Annotation, Context, SourceEvent
from raft.serving.conversation import turns_of
from raft.serving.engine import Asked
from raft.serving.schema import (
    MOST_MESSAGES,
    MOST_PARTS,
    FinishReason,
    ModelName,
    Options,
    RaftObject,
    Usage,
    checked_question,
)

# --- requests


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(max_length=MOST_PARTS, fail_fast=True)] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatCompletionRequest(Options):
    """The last user message is the question, those before it its conversation; system messages are ignored.
    ``max_tokens`` (or its newer name) can lower the server's limit on an answer's length, not raise it."""

    model: ModelName
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: Literal[1] | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> ChatCompletionRequest:
        checked_question(self.asked(Filter()).question)
        return self

    def asked(self, where: Filter) -> Asked:
        """The question to the engine."""
        earlier, question = turns_of((message.role, message.text) for message in self.messages)
        limit = self.max_completion_tokens or self.max_tokens
        return Asked(question, tuple(earlier), self.top_k, limit, where)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


# --- responses


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: list[Annotation]
    context: Context


class Choice(BaseModel):
    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None
    raft: RaftObject


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    annotations: list[Annotation] | None = None
    context: Context | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: None


class ChatCompletionChunk(BaseModel):
    """One event of a stream. The last one before ``[DONE]`` carries ``raft``, and ``usage`` when it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    raft: RaftObject | None = None
    event: SourceEvent | None = None
