"""The seam between raft and language models: one small protocol, four implementations.

``openai_compatible`` (any endpoint), ``local`` (transformers), and ``scripted`` (the shipped test double);
``cache`` wraps any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from raft.prompts import Message


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """``key`` is the caller's name for the request; replies come back under it, in any order."""

    key: str
    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A model's answer, or why there is none: ``error`` is set when this one request failed for good.

    ``truncated`` is True when the text was cut at ``max_tokens``.
    """

    key: str
    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: bool = False
    error: str | None = None


class ChatModel(Protocol):
    """A teacher, student or served model."""

    @property
    def name(self) -> str: ...

    def complete(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """One reply a request, as they finish. One request that fails is a reply with ``error``; a model that
        cannot answer at all raises ModelError (EndpointError for endpoints)."""
        ...

    def stream(self, request: ChatRequest) -> Iterator[str]:
        """The reply in pieces, as they are made. Raises ModelError. A generator that counts tokens returns the
        finished ChatReply (``reply = yield from model.stream(request)``)."""
        ...
