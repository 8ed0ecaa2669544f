"""A chat-completions endpoint on loopback for measuring: a fixed latency, faults on request, and exact counts.

    python benchmarks/stub_endpoint.py --latency-ms 50 --faults rate_limit=0.05,error=0.03,malformed=0.02

Prints where it listens ({"base_url": "http://127.0.0.1:41879/v1"}) and runs until it is stopped. It reads the prompt:
asked for questions it makes them of words of the document, asked a question it quotes the sentence nearest to it, so
that what it says passes a quality gate. It speaks to other RAFT tools as well, and answers /v1/embeddings and
/v1/models. Which calls meet a fault follows from their words and from how often they came, never from chance:

    rate_limit  429 with Retry-After, at the first try        truncated  200, finish_reason "length", at every try
    error       500, at the first try                         filter     200, finish_reason "content_filter", every try
    malformed   200 without a usable body, at the first try

GET /counts gives what happened since the start, or since POST /reset::

    {"calls": 912, "successful": 840, "repeated_successful": 2, "faults": {"rate_limit": 48, "error": 24},
     "latency": {"asked_ms": 50.0, "mean_ms": 50.4, "max_ms": 61.0}, "most_in_flight": 8, "cpu_seconds": 0.9,
     "repeats": [{"confirmed": false, "answered": 5120.31, "asked_again": 5121.77, "stage": "answer"}]}

A call is successful once an answer to it has been written to an open connection; one whose connection is gone by then
is counted as "abandoned". Calls are told apart by a hash of their body. An answer is "confirmed" when its connection
has carried another request since: the client had read it. Times are of the monotonic clock, which all processes of a
machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import math
import re
import resource
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stub_replies import compose, text_of

PASSING = ("rate_limit", "error", "malformed")  # met at the first try alone
LASTING = ("truncated", "filter")
_DIMENSIONS = 64
_RETRY_AFTER_SECONDS = 0.1

# --- what it counts --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Call:
    """What became of one request body: how often it came, and when it was last answered and seen to be read."""

    tries: int = 0
    answered: float | None = None
    confirmed: bool = False


@dataclass
class Tally:
    """The counts since the start or the last reset."""

    calls: int = 0
    successful: int = 0
    abandoned: int = 0
    embeddings: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    known: dict[bytes, Call] = field(default_factory=dict)
    repeats: list[dict[str, Any]] = field(default_factory=list)
    first_at: float | None = None
    last_at: float | None = None

    def report(self, latency_seconds: float) -> dict[str, Any]:
        answered = self.calls - self.abandoned - self.in_flight
        return {
            "calls": self.calls,
            "successful": self.successful,
            "repeated_successful": len(self.repeats),
            "abandoned": self.abandoned,
            "embeddings": self.embeddings,
            "stages": dict(self.stages),
            "faults": dict(self.faults),
            "latency": {
                "asked_ms": 1000 * latency_seconds,
                "mean_ms": round(1000 * self.seconds / max(1, answered), 2),
                "max_ms": round(1000 * self.longest, 2),
            },
            "most_in_flight": self.most_in_flight,
            "first_call": self.first_at,
            "last_answer": self.last_at,
            "cpu_seconds": round(time.process_time(), 2),
            "repeats": self.repeats,
        }


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    headers: str = ""
    fault: str | None = None


class Endpoint:
    """Answers calls after ``latency_seconds``; ``faults`` are shares of the calls by kind."""

    def __init__(self, latency_seconds: float = 0.05, faults: Mapping[str, float] | None = None, seed: int = 0) -> None:
        self.latency_seconds = latency_seconds
        self.faults = dict(faults or {})
        self.seed = seed
        self.tally = Tally()

    def chat(self, raw: bytes) -> tuple[bytes, Reply]:
        """(name of the call, reply) for the body of a chat request; counts a repeat of what was answered before."""
        body = json.loads(raw)
        kept = {name: value for name, value in body.items() if name not in ("stream", "stream_options", "user")}
        name = hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16).digest()
        call = self.tally.known.setdefault(name, Call())
        call.tries += 1
        stage, text = compose(body)
        self.tally.stages[stage] += 1
        if call.answered is not None:
            now = time.monotonic()
            earlier = {"confirmed": call.confirmed, "answered": call.answered, "asked_again": now, "stage": stage}
            self.tally.repeats.append(earlier)
        return name, self._reply(name, call, text, body)

    def _reply(self, name: bytes, call: Call, text: str, body: Mapping[str, Any]) -> Reply:
        kind = self._fault(name)
        if kind in PASSING and call.tries > 1:
            kind = None
        if kind == "rate_limit":
            return _problem(429, "slow down", f"Retry-After: {_RETRY_AFTER_SECONDS}\r\n", kind)
        if kind == "error":
            return _problem(500, "the model is busy", "", kind)
        if kind == "malformed":
            bodies = (b"<html>bad gateway</html>", b'{"choices": []}', b'{"id": "cut", "choices": [{"mess')
            return Reply(200, bodies[name[0] % len(bodies)], fault=kind)
        if kind == "truncated":
            return Reply(200, _completion(text[: len(text) // 2], "length", body), fault=kind)
        if kind == "filter":
            return Reply(200, _completion("", "content_filter", body), fault=kind)
        return Reply(200, _completion(text, "stop", body))

    def _fault(self, name: bytes) -> str | None:
        drawn = hashlib.blake2b(name, digest_size=8, key=str(self.seed).encode()).digest()
        at = int.from_bytes(drawn, "big") / 2**64
        for kind, share in self.faults.items():
            if at < share:
                return kind
            at -= share
        return None


def _problem(status: int, message: str, headers: str, fault: str | None) -> Reply:
    said = {"error": {"message": message, "type": "stub", "code": None, "param": None}}
    return Reply(status, json.dumps(said).encode(), headers, fault)


def _completion(text: str, finish: str, body: Mapping[str, Any]) -> bytes:
    read = sum(len(text_of(message)) for message in body["messages"]) // 4
    return json.dumps({
        "id": "chatcmpl-stub", "object": "chat.completion", "created": 0, "model": body.get("model", "stub"),
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": read, "completion_tokens": len(text) // 4, "total_tokens": read + len(text) // 4,
        },
    }).encode()  # fmt: skip


def _embeddings(raw: bytes) -> Reply:
    body = json.loads(raw)
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        drawn = hashlib.shake_128(str(text).encode()).digest(_DIMENSIONS)
        vector = [byte / 128 - 1 for byte in drawn]
        length = math.sqrt(sum(value * value for value in vector))
        floats = [value / length for value in vector]
        packed = base64.b64encode(struct.pack(f"<{_DIMENSIONS}f", *floats)).decode()
        value: Any = packed if body.get("encoding_format") == "base64" else floats
        rows.append({"object": "embedding", "index": number, "embedding": value})
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return Reply(200, json.dumps({"object": "list", "model": "stub", "data": rows, "usage": usage}).encode())


# --- how it listens --------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One keep-alive connection of HTTP/1.1, read by hand: a web framework would cost more than the client."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._buffer = bytearray()
        self._answered: list[Call] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:end])
            marked = re.search(rb"(?i)\r\ncontent-length:\s*(\d+)", head)
            length = int(marked.group(1)) if marked else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = bytes(self._buffer[end + 4 : end + 4 + length])
            del self._buffer[: end + 4 + length]
            method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
            self._handle(method, path.split("?")[0], body)

    def _handle(self, method: str, path: str, body: bytes) -> None:
        for call in self._answered:
            call.confirmed = True
        self._answered.clear()
        try:
            if path.endswith("/chat/completions"):
                self._chat(body)
            else:
                self._send(self._plain(method, path, body))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:  # the client's words
            self._send(_problem(400, f"{type(error).__name__}: {error}", "", None))

    def _plain(self, method: str, path: str, body: bytes) -> Reply:
        endpoint = self._endpoint
        if path.endswith("/embeddings"):
            endpoint.tally.embeddings += 1
            return _embeddings(body)
        if path.endswith("/models"):
            return Reply(200, b'{"object": "list", "data": [{"id": "stub", "object": "model", "owned_by": "stub"}]}')
        if path == "/reset" and method == "POST":
            endpoint.tally = Tally()
            return Reply(200, b"{}")
        if path == "/counts":
            return Reply(200, json.dumps(endpoint.tally.report(endpoint.latency_seconds)).encode())
        return _problem(404, f"no such path: {path}", "", None)

    def _chat(self, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        began, tally = loop.time(), self._endpoint.tally
        name, reply = self._endpoint.chat(body)
        tally.calls += 1
        tally.in_flight += 1
        tally.most_in_flight = max(tally.most_in_flight, tally.in_flight)
        tally.first_at = tally.first_at or began
        loop.call_at(began + self._endpoint.latency_seconds, self._finish, tally, name, reply, began)

    def _finish(self, tally: Tally, name: bytes, reply: Reply, began: float) -> None:
        tally.in_flight -= 1
        if self._transport.is_closing():
            tally.abandoned += 1
            return
        self._send(reply)
        now = time.monotonic()
        tally.seconds += now - began
        tally.longest, tally.last_at = max(tally.longest, now - began), now
        if reply.fault is not None:
            tally.faults[reply.fault] += 1
        if reply.fault is None or reply.fault == "truncated":  # a cut answer is an answer
            tally.successful += 1
            call = tally.known[name]
            call.answered, call.confirmed = now, False
            self._answered.append(call)

    def _send(self, reply: Reply) -> None:
        head = (
            f"HTTP/1.1 {reply.status} X\r\nContent-Type: application/json\r\n{reply.headers}"
            f"Content-Length: {len(reply.body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + reply.body)


async def serve(endpoint: Endpoint, port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(endpoint), "127.0.0.1", port, backlog=4096)
    bound = server.sockets[0].getsockname()[1]
    print(json.dumps({"base_url": f"http://127.0.0.1:{bound}/v1"}), flush=True)
    await server.serve_forever()


# --- for the other benchmarks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """A stub endpoint in a process of its own."""

    base_url: str

    def counts(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.base_url.removesuffix('/v1')}/counts") as reply:
            return dict(json.load(reply))

    def reset(self) -> None:
        urllib.request.urlopen(f"{self.base_url.removesuffix('/v1')}/reset", data=b"").close()


@contextlib.contextmanager
def running(latency_ms: float = 50.0, faults: str = "", seed: int = 0) -> Iterator[Running]:
    """A stub endpoint, stopped when the block is left."""
    command = [sys.executable, str(Path(__file__)), "--latency-ms", str(latency_ms), "--seed", str(seed)]
    process = subprocess.Popen([*command, "--faults", faults], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Running(json.loads(process.stdout.readline())["base_url"])
    finally:
        process.terminate()
        process.wait()


def read_faults(text: str) -> dict[str, float]:
    """``rate_limit=0.05,error=0.03`` -> shares by kind. Raises ValueError for unknown kinds."""
    shares = {kind.strip(): float(share) for kind, share in (pair.split("=") for pair in text.split(",") if pair)}
    unknown = set(shares) - {*PASSING, *LASTING}
    if unknown:
        raise ValueError(f"unknown faults {sorted(unknown)}; expected {[*PASSING, *LASTING]}")
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--faults", type=read_faults, default={}, help="e.g. rate_limit=0.05,error=0.03")
    parser.add_argument("--seed", type=int, default=0, help="which calls meet the faults")
    given = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(Endpoint(given.latency_ms / 1000, given.faults, given.seed), given.port))


if __name__ == "__main__":
    main()
