"""The seam between raft and language models: one small protocol.

``openai_compatible`` (any endpoint), ``local`` (transformers), ``openvino`` (a CPU engine), ``ray_workers`` (several
processes or machines), and ``scripted`` (the shipped test double).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from raft.errors import ModelError
from raft.prompts import Message


class PromptTooLong(ModelError):
    """A prompt, with what is to be written, exceeds the model's window: trying again will not help. The message
    names nothing but token counts, so that a server may show it to its clients."""

    def __init__(self, what: str) -> None:
        super().__init__(what, "Give fewer or shorter documents (top_k)")


TokenLogprobs = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """``key`` is the caller's name for the request; replies come back under it, in any order. ``schema`` is a JSON
    schema that the reply should follow; a model that cannot be held to one is asked all the same. ``logprobs`` asks
    ``complete`` for the log-probabilities of the tokens written; ``stream`` gives none."""

    key: str
    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A model's answer, or why there is none: ``error`` is set when this one request failed for good.

    ``truncated`` is True when the text was cut at ``max_tokens``; ``too_long`` when ``error`` is that the prompt
    exceeds the model's window. ``logprobs`` are the tokens of the text with their natural log-probabilities by the
    model, ``(("12", -0.1), (" mg", -0.02))``: the pieces join to the text, and one without text of its own (a byte of a
    character, space that was stripped) is "". None where they were not asked for, or the model gives none.

    ``cached_tokens`` of the prompt had their keys and values at hand from earlier prompts that begin alike, and were
    not computed anew; 0 where the model does not tell. They are no part of the answer, and of no comparison.
    """

    key: str
    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: bool = False
    error: str | None = None
    too_long: bool = False
    logprobs: TokenLogprobs | None = None
    cached_tokens: int = field(default=0, compare=False)


def streams_on_cpu() -> int:
    """How many streams a model on these processors answers at once: more of them would share the same processors, and
    each wait longer for its own words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_STREAMS, _STREAMS_A_CORE * cores)


class ChatModel(Protocol):
    """A teacher, student or served model."""

    @property
    def name(self) -> str: ...

    @property
    def concurrency(self) -> int:
        """How many calls of ``stream`` are answered at once. Any number of threads may call it; those beyond wait."""
        ...

    def check(self, request: ChatRequest) -> None:
        """Raises PromptTooLong when it is plain without running the model; may be called from any thread."""
        ...

    def complete(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """One reply a request, as they finish. One request that fails is a reply with ``error``; a model that
        cannot answer at all raises ModelError (EndpointError for endpoints)."""
        ...

    def stream(self, request: ChatRequest) -> Iterator[str]:
        """The reply in pieces, as they are made; an empty one now and then while there is nothing new, so that whoever
        is not listened to any more can stop. Raises ModelError (PromptTooLong). A generator that counts tokens returns
        the finished ChatReply (``reply = yield from model.stream(request)``); one that is closed ends its request."""
        ...


MAX_STREAMS = 64  # that a local model answers at once
_STREAMS_A_CORE = 8
SIGN_OF_LIFE_SECONDS = 0.25  # after which a stream without news yields an empty piece

Keep = Callable[[ChatReply], None]


@runtime_checkable
class ConcurrentModel(Protocol):
    """A ChatModel that has many calls in flight."""

    def complete_and_keep(self, requests: Iterable[ChatRequest], keep: Keep) -> Iterator[ChatReply]:
        """As ``complete``. ``keep`` gets each reply that is no error as soon as it has come, on another thread, before
        another call takes its place: what it keeps survives whatever its caller is busy with."""
        ...
