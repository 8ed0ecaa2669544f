"""The shipped test double: a ChatModel whose answers are a plain function of the request."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

from raft.llm.chat import ChatReply, ChatRequest


class ScriptedModel:
    """Answers with ``script(request)`` and remembers every request it was asked in ``requests``.

    A script that raises an Exception makes that one reply an error, as an endpoint would.
    """

    def __init__(self, script: Callable[[ChatRequest], str], name: str = "scripted") -> None:
        self.name = name
        self.requests: list[ChatRequest] = []
        self._script = script

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
            yield self._reply(request, text)

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        self.requests.append(request)
        text = self._script(request)
        yield from (text[i : i + 8] for i in range(0, len(text), 8))
        return self._reply(request, text)

    def _reply(self, request: ChatRequest, text: str) -> ChatReply:
        return ChatReply(request.key, text, sum(len(m.content.split()) for m in request.messages), len(text.split()))
