"""The shipped test double: a ChatModel whose answers are a plain function of the request."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator

from raft.llm.chat import ChatReply, ChatRequest

_AT_ONCE = 256  # streams; a script takes no time


class ScriptedModel:
    """Answers with ``script(request)`` and remembers every request it was asked in ``requests``.

    Any number of threads may ask it at once. A script that raises an Exception makes that one reply an error, as an
    endpoint would. ``logprob`` gives the log-probability of each word of a reply, where the request asks for them;
    without it there are none.
    """

    def __init__(
        self,
        script: Callable[[ChatRequest], str],
        name: str = "scripted",
        logprob: Callable[[ChatRequest], float] | None = None,
    ) -> None:
        self.name = name
        self.concurrency = _AT_ONCE
        self.requests: list[ChatRequest] = []
        self._script = script
        self._logprob = logprob

    def check(self, request: ChatRequest) -> None:
        """A script takes a prompt of any length."""

    def complete(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        for request in requests:
            self.requests.append(request)
            try:
                text = self._script(request)
            except Exception as error:  # noqa: BLE001 - a script stands for an endpoint, whose failures become replies
                yield ChatReply(request.key, "", error=f"{type(error).__name__}: {error}")
                continue
            yield self._reply(request, text, self._logprob if request.logprobs else None)

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        self.requests.append(request)
        text = self._script(request)
        yield from (text[i : i + 8] for i in range(0, len(text), 8))
        return self._reply(request, text)

    def _reply(
        self, request: ChatRequest, text: str, logprob: Callable[[ChatRequest], float] | None = None
    ) -> ChatReply:
        prompt_tokens = sum(len(m.content.split()) for m in request.messages)
        likely = logprob and tuple((word, logprob(request)) for word in re.findall(r"\s*\S+|\s+$", text))
        return ChatReply(request.key, text, prompt_tokens, len(text.split()), logprobs=likely)
