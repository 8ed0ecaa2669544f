"""Any endpoint that speaks OpenAI's chat completions: OpenAI, Azure, vLLM, Ollama, llama.cpp's server.

The caller's thread pulls requests and yields replies; one background thread runs the event loop that keeps up
to ``concurrency`` calls in flight. Requests are pulled when there is room for them, and a few ahead, so that a
hundred thousand of them never stand in memory together. What may succeed later (5xx, timeouts, broken connections) is
tried again, each call by itself; 429s make all of them wait and then go slower (pacing.py). Streams take another way
(endpoint_streams.py).
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import random
import re
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from raft.errors import EndpointError, ModelError
from raft.llm.chat import ChatReply, ChatRequest, Keep, PromptTooLong
from raft.llm.endpoint_client import Connections, Endpoint
from raft.llm.endpoint_errors import MALFORMED, Failure, StatusError, failure_of, one_line, stream_failure_of
from raft.llm.endpoint_streams import Said, Streams, Tell
from raft.llm.logprobs import of_completion
from raft.llm.pacing import Pace

_OPTIONAL = {"max_tokens", "temperature", "seed", "logprobs"}  # parameters that some models refuse by name
_UNSUPPORTED = re.compile(r"unsupported|not supported|unrecogni[sz]ed|unknown|extra_forbidden|not permitted", re.I)
_FORMATS = ("json_schema", "json_object", None)  # what a request with a schema asks for, until it is refused
_FORMAT_REFUSED = re.compile(r"response_format|json_schema|json_object|structured[ _]output|grammar|guided", re.I)
_MAY_REFUSE_FORMAT = {400, 404, 415, 422, 500, 501}
_MAY_REFUSE_LOGPROBS = {400, 403, 404, 415, 422, 501}  # OpenAI: "You are not allowed to request logprobs from ..."
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0  # before a call is tried again; doubled each time
_READY = 8  # requests at most that wait for their turn, so that a reply is followed by the next call at once; half of
# them are handed over together, for to wake the loop costs more than a call does
_LONGEST_RETRY_AFTER_SECONDS = 600.0  # an endpoint that asks for more ends the run, which may go on another day


class OpenAICompatibleModel:
    """A ChatModel behind an endpoint. When the key's environment variable is unset a placeholder key is sent,
    which local servers ignore. A reply's token counts and log-probabilities are the endpoint's own; 0 and None where
    it gives none, or refuses to."""

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
        self._endpoint = Endpoint(base_url, api_key_env, timeout_seconds)
        self.concurrency = concurrency
        self._max_retries = max_retries
        self._opening = threading.Lock()
        self._streams: Streams | None = None  # from the first one on
        self._refused_parameters: set[str] = set()
        self._format = 0  # of _FORMATS

    def check(self, request: ChatRequest) -> None:
        """Only the endpoint can count a prompt's tokens: how long it may be shows when it is asked."""

    def complete(self, requests: Iterable[ChatRequest]) -> Generator[ChatReply, None, None]:
        """One reply a request, as they finish; closing the generator cancels what is in flight.

        Raises EndpointError when the endpoint is down or refuses every request (key, model, quota), or when the
        system lacks the open files for ``concurrency``; the calls in flight are finished and yielded before.
        """
        return self.complete_and_keep(requests, lambda reply: None)

    def complete_and_keep(self, requests: Iterable[ChatRequest], keep: Keep) -> Generator[ChatReply, None, None]:
        """As ``complete``; ``keep`` gets each reply that is no error on the event loop, before another call starts."""
        source = iter(requests)
        running = 0  # and the few that wait for their turn
        failure: BaseException | None = None
        done: list[ChatReply | BaseException] = []
        connections = Connections(self._endpoint, self.name, self.concurrency)
        with _Loop(connections, keep) as loop:
            ask = partial(self._ask, _Line(connections, Pace(self.concurrency)))
            ready = min(_READY, self.concurrency)
            most = self.concurrency + ready
            while True:
                yield from (reply for reply in done if isinstance(reply, ChatReply))
                while not failure and most - running >= ready // 2:
                    if not (made := list(itertools.islice(source, min(most - running, ready)))):
                        break
                    loop.submit(ask, made)
                    running += len(made)
                if not running:
                    break
                done = loop.take()
                running -= len(done)
                failure = failure or next((e for e in done if isinstance(e, BaseException)), None)
        if failure is not None:
            raise failure

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        """The reply in pieces; the generator returns the finished ChatReply, ``truncated`` also where the endpoint just
        broke off. Closing it ends the call, which is not tried again. Raises EndpointError when the endpoint fails,
        ModelError (PromptTooLong) when it gives no answer to this request."""
        import openai

        try:
            said = yield from self._open_streams().pieces(partial(self._read_stream, request))
        except openai.APIError as error:
            raise self._stream_error(stream_failure_of(error, self._endpoint.secrets), request) from None
        except ValueError:  # an event is not JSON
            said = Said()
        if said.finish == "content_filter" or said.refusal:
            why = one_line(said.refusal or "content filter", self._endpoint.secrets)
            raise ModelError(f"{self._endpoint.shown} refused: {why}")
        if not said.is_answer:
            raise ModelError(f"{self._endpoint.shown} gave no answer ({MALFORMED})")
        usage = said.usage.model_dump() if hasattr(said.usage, "model_dump") else None
        reply = _reply(request.key, said.text, said.finish, usage)
        return replace(reply, truncated=True) if said.is_cut else reply

    def _open_streams(self) -> Streams:
        with self._opening:
            if self._streams is None:
                self._streams = Streams(self._endpoint.open(self._max_retries))
            return self._streams

    async def _read_stream(self, request: ChatRequest, client: Any, tell: Tell) -> Said:
        said = Said()
        async with await self._call_stream(client, request) as pieces:
            async for piece in pieces:
                if words := said.take(piece):
                    tell(words)
        return said

    async def _call_stream(self, client: Any, request: ChatRequest) -> Any:
        """The endpoint's pieces; what it refuses by name is left out. Raises openai's errors."""
        import openai

        while True:
            call = self._call(replace(request, logprobs=False))
            try:
                return await client.chat.completions.create(**call, stream=True, stream_options={"include_usage": True})
            except openai.APIStatusError as error:
                if not self._leave_out(stream_failure_of(error, self._endpoint.secrets), call):
                    raise

    def _stream_error(self, failure: Failure, request: ChatRequest) -> ModelError:
        if failure.kind == "too_long":
            return PromptTooLong(_too_long(request))
        what = f"refused: {failure.said}" if failure.kind == "refused" else f"gave no answer ({failure.said})"
        return self._ending(failure) or ModelError(f"{self._endpoint.shown} {what}")

    def _call(self, request: ChatRequest) -> dict[str, Any]:
        call: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        if request.temperature > 0:
            call["seed"] = request.seed
        if request.logprobs:
            call["logprobs"] = True
        for name in self._refused_parameters & call.keys():
            value = call.pop(name)
            if name == "max_tokens":
                call["max_completion_tokens"] = value
        if request.schema is not None and _FORMATS[self._format] is not None:
            call["response_format"] = _response_format(_FORMATS[self._format], request.schema)
        return call

    def _leave_out(self, failure: Failure, call: dict[str, Any]) -> bool:
        """Whether the endpoint refused a part of the call that can be left out; from now on it is."""
        if "response_format" in call and failure.status in _MAY_REFUSE_FORMAT and _FORMAT_REFUSED.search(failure.said):
            if call["response_format"]["type"] == _FORMATS[self._format]:  # else another call was first to learn it
                self._format += 1
            return True
        if "logprobs" in call and failure.status in _MAY_REFUSE_LOGPROBS and "logprob" in failure.said.lower():
            self._refused_parameters.add("logprobs")
            return True
        named = {failure.param} & _OPTIONAL & call.keys()
        if not named and _UNSUPPORTED.search(failure.said):
            named = {name for name in _OPTIONAL & call.keys() if re.search(rf"\b{name}\b", failure.said)}
        if failure.kind != "refused" or not named:
            return False
        self._refused_parameters |= {str(name) for name in named}
        return True

    async def _ask(self, line: _Line, request: ChatRequest) -> ChatReply:
        """The reply, or one with ``error`` when this request is refused for good. Raises EndpointError."""
        tries, again = 0, False
        while True:
            call, outcome = await self._try(line, request, again)
            again = True
            if isinstance(outcome, ChatReply):
                return outcome
            if self._leave_out(outcome, call):
                continue
            if outcome.status == 403 and outcome.kind == "key" and line.has_answered:
                outcome = replace(outcome, kind="refused")  # by a firewall or filter before it: the key is accepted
            tries += outcome.kind != "limited"
            ending = self._ending(outcome, tries, line.pace.refusals)
            if ending is not None:
                line.failure = ending
                line.pace.give_up()
                raise ending
            if outcome.kind == "too_long":
                return ChatReply(request.key, "", error=_too_long(request), too_long=True)
            if outcome.kind == "refused":
                return ChatReply(request.key, "", error=f"refused: {outcome.said}")
            if tries > self._max_retries:
                return ChatReply(request.key, "", error=outcome.said)
            if line.failure is not None:  # while this call was under way
                raise line.failure
            await line.pace.wait_alone(outcome.alone_seconds or _seconds_before_retry(outcome, tries))

    async def _try(self, line: _Line, request: ChatRequest, again: bool) -> tuple[dict[str, Any], ChatReply | Failure]:
        """One call, made when it is its turn, and what came of it."""
        import aiohttp

        started_at = await line.pace.enter(again)
        call = self._call(request)  # now: what others were refused meanwhile is left out
        try:
            if line.failure is not None:  # while this call waited for its turn
                raise line.failure
            async with asyncio.timeout(self._endpoint.timeout_seconds):
                reply = _read_completion(request, await line.connections.post(call))
        except (StatusError, aiohttp.ClientError, ValueError) as error:
            failure = failure_of(error, self._endpoint.secrets)
            if failure.kind == "limited":
                failure = replace(failure, alone_seconds=line.pace.refused(started_at, failure.wait_seconds))
            return call, failure
        except TimeoutError:
            return call, Failure("passing", f"Timeout: no reply within {self._endpoint.timeout_seconds:g} s")
        else:
            line.pace.answered()
            line.has_answered = line.has_answered or reply is not None
            return call, reply or Failure("malformed", MALFORMED)
        finally:
            line.pace.leave()

    def _ending(self, failure: Failure, tries: int | None = None, refusals: int | None = None) -> EndpointError | None:
        """The error that ends the run, when every other request would meet it too; None when it is this one's, or
        when another of ``max_retries`` tries is left (counted by ``openai`` itself for a stream)."""
        where, said = f"endpoint {self._endpoint.shown}", failure.said
        spent = [count is None or count > self._max_retries for count in (tries, refusals)]
        wait = failure.wait_seconds or 0.0
        if failure.kind == "key" and (failure.status == 401 or spent[0]):
            env = self._endpoint.api_key_env
            return EndpointError(f"{where} refuses the key ({failure.status})", f"Set {env} to a key that it accepts")
        if failure.kind == "model":
            return EndpointError(f"{where} has no model {self.name!r} (404)", "Check --teacher and --base-url")
        if failure.kind == "quota":
            return EndpointError(f"{where} has no quota left ({said})", "Add credit, then go on with --resume")
        if failure.kind == "limited" and wait > _LONGEST_RETRY_AFTER_SECONDS:
            return EndpointError(f"{where} asks to come back in {wait:.0f} s ({said})", "Go on then with --resume")
        if failure.kind == "limited" and spent[1]:
            return EndpointError(
                f"{where} still answers 429 after {self._max_retries} retries ({said})",
                "Wait or lower the concurrency, then go on with --resume",
            )
        if failure.kind == "unreachable" and spent[0]:
            return EndpointError(f"{where} cannot be reached ({said})", "Start it or check --base-url")
        return None


def _seconds_before_retry(failure: Failure, tries: int) -> float:
    """None after a malformed answer, nor after a 429, for which the pace waits."""
    if failure.kind in ("malformed", "limited"):
        return 0.0
    wait: float = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** (tries - 1)) * random.uniform(0.75, 1.0)
    if failure.wait_seconds is not None:
        wait = min(_LONGEST_RETRY_AFTER_SECONDS, failure.wait_seconds)
    return wait


def _response_format(kind: str | None, schema: Mapping[str, Any]) -> dict[str, Any]:
    if kind != "json_schema":
        return {"type": kind}
    return {"type": kind, "json_schema": {"name": "reply", "schema": dict(schema), "strict": True}}


def _too_long(request: ChatRequest) -> str:
    return f"the prompt and {request.max_tokens} tokens to write exceed the window of the endpoint's model"


def _read_completion(request: ChatRequest, body: Any) -> ChatReply | None:
    """The reply in the body of a chat completion, or None when the body is something else."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return None
    finish, content, refusal = choice.get("finish_reason"), message.get("content"), message.get("refusal")
    if finish == "content_filter" or refusal:
        return ChatReply(request.key, "", error=f"refused: {one_line(str(refusal or 'content filter'))}")
    if content is None and finish == "length":  # all of max_tokens went into thinking
        content = ""
    if not isinstance(content, str):
        return None
    reply, given = _reply(request.key, content, finish, body.get("usage")), choice.get("logprobs")
    if request.logprobs and isinstance(given, dict):
        return replace(reply, logprobs=of_completion(given.get("content"), content))
    return reply


def _reply(key: str, text: str, finish: str | None, usage: Any) -> ChatReply:
    counts = usage if isinstance(usage, dict) else {}
    details = counts.get("prompt_tokens_details")
    cached = (details.get("cached_tokens") if isinstance(details, dict) else None) or 0
    prompt_tokens, completion_tokens = counts.get("prompt_tokens") or 0, counts.get("completion_tokens") or 0
    truncated = finish == "length"
    return ChatReply(key, text, prompt_tokens, completion_tokens, truncated=truncated, cached_tokens=cached)


@dataclass
class _Line:
    """The way to the endpoint for the calls of one ``complete``; ``failure`` is what ends them all. Once one of them
    ``has_answered``, a 403 is no matter of the key."""

    connections: Connections
    pace: Pace
    has_answered: bool = False
    failure: EndpointError | None = None


class _Loop:
    """An event loop on a thread of its own; leaving the block cancels what still runs and closes the connections."""

    def __init__(self, connections: Connections, keep: Keep) -> None:
        self._connections = connections
        self._keep = keep
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raft-endpoint", daemon=True)
        self._finished: queue.SimpleQueue[ChatReply | BaseException] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> _Loop:
        self._thread.start()
        return self

    def submit(self, ask: Callable[[ChatRequest], Awaitable[ChatReply]], requests: Sequence[ChatRequest]) -> None:
        """Start these requests, with one wake-up of the loop for all of them."""
        if requests:
            self._loop.call_soon_threadsafe(self._start, ask, requests)

    def take(self) -> list[ChatReply | BaseException]:
        """At least one finished request, and all others that have finished by now."""
        done = [self._finished.get()]
        while not self._finished.empty():
            done.append(self._finished.get())
        return done

    def _start(self, ask: Callable[[ChatRequest], Awaitable[ChatReply]], requests: Sequence[ChatRequest]) -> None:
        for request in requests:
            task = self._loop.create_task(self._finish(ask, request))
            self._tasks.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._tasks.discard)

    async def _finish(self, ask: Callable[[ChatRequest], Awaitable[ChatReply]], request: ChatRequest) -> None:
        try:
            reply = await ask(request)
            if reply.error is None:
                self._keep(reply)  # no other call starts before this returns: nothing is awaited meanwhile
            self._finished.put(reply)
        except Exception as error:  # noqa: BLE001 - complete raises it in the caller's thread
            self._finished.put(error)

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connections.close()
