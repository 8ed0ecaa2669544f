"""Any endpoint that speaks OpenAI's chat completions: OpenAI, Azure, vLLM, Ollama, llama.cpp's server.

The caller's thread pulls requests and yields replies; one background thread runs the event loop that keeps up
to ``concurrency`` calls in flight. Requests are pulled only when there is room for them, so a hundred thousand
of them never stand in memory together. What may succeed later (429 with its Retry-After, 5xx, timeouts, broken
connections) is tried again by the ``openai`` client itself.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import re
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from typing import Any

from raft.errors import EndpointError, ModelError
from raft.llm.chat import ChatReply, ChatRequest, PromptTooLong

_OPTIONAL = {"max_tokens", "temperature", "seed"}  # parameters that some models refuse by name
_TRIES = 3 + len(_OPTIONAL)  # a body that is no chat completion is asked for again
_MALFORMED = "malformed: the answers were no chat completions"
_TOO_LONG = re.compile(r"context_length_exceeded|exceed_context_size|maximum context length")  # OpenAI, llama.cpp, vLLM


class OpenAICompatibleModel:
    """A ChatModel behind an endpoint. When the key's environment variable is unset a placeholder key is sent,
    which local servers ignore."""

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str = "OPENAI_API_KEY",
        *,
        concurrency: int = 16,
        timeout_seconds: float = 120.0,
        max_retries: int = 5,
    ) -> None:
        self.name = model
        self._base_url = base_url
        self._api_key_env = api_key_env
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._refused_parameters: set[str] = set()

    def check(self, request: ChatRequest) -> None:
        """Only the endpoint can count a prompt's tokens: how long it may be shows when it is asked."""

    def complete(self, requests: Iterable[ChatRequest]) -> Generator[ChatReply, None, None]:
        """One reply a request, as they finish; closing the generator cancels what is in flight.

        Raises EndpointError when the endpoint is down or refuses every request (key, model, quota); the calls in
        flight are finished and yielded before.
        """
        source = iter(requests)
        finished: queue.SimpleQueue[Future[ChatReply]] = queue.SimpleQueue()
        running = 0
        failure: BaseException | None = None
        done: list[Future[ChatReply]] = []
        with _Loop(self._open_client) as loop:
            while True:
                for request in itertools.islice(source, 0 if failure else self._concurrency - running):
                    loop.submit(self._ask(loop.client, request)).add_done_callback(finished.put)
                    running += 1
                yield from (future.result() for future in done if future.exception() is None)
                if not running:
                    break
                done = _take(finished)
                running -= len(done)
                failure = failure or next((e for e in (future.exception() for future in done) if e is not None), None)
        if failure is not None:
            raise failure

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        """The reply in pieces; the generator returns the finished ChatReply. Raises EndpointError when the endpoint
        fails, ModelError (PromptTooLong) when it refuses this request."""
        import openai

        text, finish, usage, chosen = "", None, None, False
        try:
            with openai.OpenAI(**self._client_settings()) as client:
                for piece in self._open_stream(client, request):
                    usage = getattr(piece, "usage", None) or usage
                    for choice in (getattr(piece, "choices", None) or [])[:1]:
                        chosen = True
                        finish = choice.finish_reason or finish
                        text += choice.delta.content or ""
                        if choice.delta.content:
                            yield choice.delta.content
        except openai.APIError as error:
            raise self._endpoint_error(error) or ModelError(f"{self._base_url} refused: {error}") from None
        except ValueError:  # an event is not JSON
            chosen = False
        if not chosen:
            raise ModelError(f"{self._base_url} gave no answer ({_MALFORMED})")
        return _reply(request.key, text, finish, usage)

    def _open_stream(self, client: Any, request: ChatRequest) -> Any:
        """The endpoint's pieces; what it refuses by name is left out. Raises PromptTooLong, openai's errors."""
        import openai

        while True:
            call = self._call(request)
            try:
                return client.chat.completions.create(**call, stream=True, stream_options={"include_usage": True})
            except openai.BadRequestError as error:
                if _is_too_long(error):
                    raise PromptTooLong(_too_long(request)) from None
                if not self._leave_out(error, call):
                    raise

    def _leave_out(self, error: Any, call: dict[str, Any]) -> bool:
        """Whether the endpoint refused a parameter of the call that can be left out; from now on it is."""
        if error.param not in _OPTIONAL & call.keys():
            return False
        self._refused_parameters.add(str(error.param))
        return True

    def _client_settings(self) -> dict[str, Any]:
        return {
            "base_url": self._base_url,
            "api_key": os.environ.get(self._api_key_env) or "none",
            "timeout": self._timeout_seconds,
            "max_retries": self._max_retries,
        }

    def _open_client(self) -> Any:
        import openai

        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(  # httpx's or httpx2's, whichever this openai uses
            max_connections=self._concurrency, max_keepalive_connections=self._concurrency
        )
        return openai.AsyncOpenAI(**self._client_settings(), http_client=openai.DefaultAsyncHttpxClient(limits=limits))

    def _call(self, request: ChatRequest) -> dict[str, Any]:
        call: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        if request.temperature > 0:
            call["seed"] = request.seed
        for name in self._refused_parameters & call.keys():
            value = call.pop(name)
            if name == "max_tokens":
                call["max_completion_tokens"] = value
        return call

    async def _ask(self, client: Any, request: ChatRequest) -> ChatReply:
        """The reply, or one with ``error`` when this request is refused for good. Raises EndpointError."""
        import openai

        for _ in range(_TRIES):
            call = self._call(request)
            try:
                completion = await client.chat.completions.create(**call)
            except openai.BadRequestError as error:
                if _is_too_long(error):
                    return ChatReply(request.key, "", error=_too_long(request), too_long=True)
                if not self._leave_out(error, call):
                    return ChatReply(request.key, "", error=f"refused: {error}")
            except openai.APIError as error:
                failure = self._endpoint_error(error)
                if failure is not None:
                    raise failure from None
                return ChatReply(request.key, "", error=f"{type(error).__name__}: {error}")
            except ValueError:  # the body is not JSON
                continue
            else:
                reply = _read_completion(request.key, completion)
                if reply is not None:
                    return reply
        return ChatReply(request.key, "", error=_MALFORMED)

    def _endpoint_error(self, error: Any) -> EndpointError | None:
        """The error that ends the run, when every other request would meet it too; None when it is this one's."""
        import openai

        where = f"endpoint {self._base_url}"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return EndpointError(
                f"{where} refuses the key ({error.status_code})", f"Set {self._api_key_env} to a key that it accepts"
            )
        if isinstance(error, openai.NotFoundError):
            return EndpointError(f"{where} has no model {self.name!r} (404)", "Check --teacher and --base-url")
        if isinstance(error, openai.RateLimitError):
            return EndpointError(
                f"{where} still answers 429 after {self._max_retries} retries ({error.message})",
                "Wait or lower the concurrency, then go on with --resume",
            )
        if isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError):
            cause = error.__cause__ or error
            return EndpointError(f"{where} cannot be reached ({cause})", "Start it or check --base-url")
        return None


def _is_too_long(error: Any) -> bool:
    return any(_TOO_LONG.search(str(said)) for said in (error.code, error.type, error.message))


def _too_long(request: ChatRequest) -> str:
    return f"the prompt and {request.max_tokens} tokens to write exceed the window of the endpoint's model"


def _take(finished: queue.SimpleQueue[Future[ChatReply]]) -> list[Future[ChatReply]]:
    """At least one finished call, and all others that have finished by now."""
    done = [finished.get()]
    while not finished.empty():
        done.append(finished.get())
    return done


def _read_completion(key: str, completion: Any) -> ChatReply | None:
    """The reply in a chat completion, or None when the body is something else."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
        return None
    message = choices[0].message
    finish = choices[0].finish_reason
    if finish == "content_filter" or getattr(message, "refusal", None):
        return ChatReply(key, "", error=f"refused: {getattr(message, 'refusal', None) or 'content filter'}")
    return None if not isinstance(message.content, str) else _reply(key, message.content, finish, completion.usage)


def _reply(key: str, text: str, finish: str | None, usage: Any) -> ChatReply:
    prompt_tokens = getattr(usage, "prompt_tokens", 0) or 0
    completion_tokens = getattr(usage, "completion_tokens", 0) or 0
    return ChatReply(key, text, prompt_tokens, completion_tokens, truncated=finish == "length")


class _Loop:
    """An event loop with an open client on a thread of its own; leaving the block cancels what still runs."""

    def __init__(self, open_client: Callable[[], Any]) -> None:
        self._open_client = open_client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raft-endpoint", daemon=True)

    def __enter__(self) -> _Loop:
        self._thread.start()
        self.client = self._open_client()
        return self

    def submit(self, work: Coroutine[Any, Any, ChatReply]) -> Future[ChatReply]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()
