"""The clients of serve_soak.py: those who ask, and those who misbehave.

Each sends one request and counts what came back, under its own name and the status::

    {"whole": {"200": 1630, "429": 1590}, "too_large": {"413": 310}}

A status that may not come back, and every answer that is not to its question, is noted in ``wrong``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from live_server import CODE, Ledger, question

ANSWER_SECONDS = 180  # longer than the server's own limit


@dataclass
class Soak:
    """One arm: whom it asks, and what was found."""

    url: str
    kept: Sequence[Ledger]
    echoes: bool
    seed: int
    outcomes: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    wrong: list[str] = field(default_factory=list)
    mixed: int = 0
    own_code: list[bool] = field(default_factory=list)
    first_words: list[float] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    not_sent: int = 0

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.codes = frozenset(ledger.code for ledger in self.kept)

    def count(self, kind: str, status: object, allowed: Sequence[object]) -> None:
        self.outcomes[kind][str(status)] += 1
        if status not in allowed:
            self.wrong.append(f"{kind}: {status}")


def reset(soak: Soak) -> Soak:
    return Soak(soak.url, soak.kept, soak.echoes, soak.seed + 1, ids=soak.ids)


# --- those who ask ---------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    ledger: Ledger
    question: str
    nonce: str
    began: float = field(default_factory=time.monotonic)

    def body(self, **more: object) -> dict[str, object]:
        return {"model": "raft", "messages": [{"role": "user", "content": self.question}], **more}


def new_question(soak: Soak) -> Asked:
    ledger, nonce = soak.draw.choice(soak.kept), f"n{uuid.uuid4().hex[:12]}"
    return Asked(ledger, question(ledger, nonce), nonce)


async def whole(soak: Soak, session: aiohttp.ClientSession) -> bool:
    asked = new_question(soak)
    async with session.post("/v1/chat/completions", json=asked.body()) as reply:
        said = await reply.json()
        soak.count("whole", reply.status, (200, 429))
        if reply.status == 429 and "Retry-After" not in reply.headers:
            soak.wrong.append("whole: 429 without Retry-After")
        if reply.status == 200:
            judge(soak, asked, {said["id"]}, said["choices"][0]["message"]["content"], said["raft"])
        return reply.status == 200


async def streamed(soak: Soak, session: aiohttp.ClientSession) -> bool:
    asked = new_question(soak)
    ids, text, raft, ended = set[str](), "", None, False
    async with session.post("/v1/chat/completions", json=asked.body(stream=True)) as reply:
        soak.count("stream", reply.status, (200, 429))
        if reply.status != 200:
            return False
        async for event in events(reply):
            if event is None:
                ended = True
                continue
            ids.add(event.get("id", "none"))
            for choice in event.get("choices", ()):
                if (words := choice["delta"].get("content")) and not text:
                    soak.first_words.append(time.monotonic() - asked.began)
                text += words or ""
            raft = event.get("raft") or raft
    if not ended or raft is None:
        soak.wrong.append(f"stream: broke off after {text!r}")
        return False
    judge(soak, asked, ids, text, raft)
    return True


async def events(reply: aiohttp.ClientResponse) -> Any:
    """The events of a stream; None for its end."""
    async for line in reply.content:
        if line.startswith(b"data: "):
            data = line[6:].strip()
            yield None if data == b"[DONE]" else json.loads(data)


def judge(soak: Soak, asked: Asked, ids: set[str], text: str, raft: dict[str, Any]) -> None:
    shown = " ".join(document["text"] for document in raft["documents"])
    codes = soak.codes.intersection(CODE.findall(text))  # what a model makes up is no ledger's
    fits = (
        len(ids) == 1
        and not ids & soak.ids
        and asked.question in raft["query"]
        and raft["documents"][0]["document_id"] == asked.ledger.name
        and codes <= set(CODE.findall(shown))
        and (not soak.echoes or (asked.ledger.code in text and asked.nonce in text))
    )
    soak.ids |= ids
    soak.own_code.append(asked.ledger.code in codes)
    if not fits:
        soak.mixed += 1
        soak.wrong.append(f"mixed: {asked.question} -> {text!r} {raft['query']!r}")


async def left(soak: Soak, session: aiohttp.ClientSession) -> bool:
    """A stream that is left after a few words, or before the first."""
    asked, most = new_question(soak), soak.draw.randrange(6)
    async with session.post("/v1/chat/completions", json=asked.body(stream=True)) as reply:
        soak.count("left", reply.status, (200, 429))
        if reply.status == 200 and most:
            async for _ in events(reply):
                most -= 1
                if most <= 0:
                    break
        reply.close()
    return False


async def search(soak: Soak, session: aiohttp.ClientSession) -> bool:
    asked = new_question(soak)
    async with session.post("/v1/search", json={"query": asked.question}) as reply:
        soak.count("search", reply.status, (200, 429))
        if reply.status == 200 and (await reply.json())["data"][0]["document_id"] != asked.ledger.name:
            soak.mixed += 1
    return False


async def probe(soak: Soak, session: aiohttp.ClientSession) -> bool:
    path = soak.draw.choice(["/healthz", "/readyz", "/metrics", "/"])
    async with session.get(path) as reply:
        await reply.read()
        soak.count("probe", reply.status, (200, 503) if path == "/readyz" else (200,))
    return False


# --- those who misbehave ---------------------------------------------------------------------------------------------

_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_LET_GO = (408, "ConnectionResetError")  # a byte that was on its way may wipe out the 408
_BAD: tuple[tuple[str, bytes, int], ...] = (
    ("/v1/chat/completions", b'{"model": "raft", "messages": [', 400),
    ("/v1/chat/completions", b'{"model": "raft", "messages": []}', 400),
    ("/v1/chat/completions", b'{"model": "none", "messages": [{"role": "user", "content": "x"}]}', 404),
    ("/v1/chat/completions", b"\xff\xfe\x00", 400),
    ("/v1/search", b'{"query": 5}', 400),
    ("/v1/search", b'{"query": "x", "top_k": -1}', 400),
    ("/v1/none", b"{}", 404),
)


async def malformed(soak: Soak, session: aiohttp.ClientSession) -> bool:
    path, body, expected = soak.draw.choice(_BAD)
    async with session.post(path, data=body, headers={"Content-Type": "application/json"}) as reply:
        soak.count("malformed", reply.status, (expected,))
        if "Traceback" in await reply.text():
            soak.wrong.append("malformed: a stack trace was sent")
    return False


async def no_http(soak: Soak, session: aiohttp.ClientSession) -> bool:
    rubbish = soak.draw.choice([b"HELLO", b"GET /\x00 HTTP/1.1", b"\x16\x03\x01\x02\x00" * 9])
    soak.count("no_http", await raw(soak, [rubbish + b"\r\n\r\n"]), (400,))
    return False


async def too_large(soak: Soak, session: aiohttp.ClientSession) -> bool:
    """Of a declared length, or in pieces without one."""
    if soak.draw.random() < 0.5:
        parts = [_HEAD + b"Content-Length: 50000000\r\n\r\n", b"x" * 4096]
    else:
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        parts = [_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 20, b"0\r\n\r\n"]
    soak.count("too_large", await raw(soak, parts), (413,))
    return False


async def slow_body(soak: Soak, session: aiohttp.ClientSession) -> bool:
    parts = [_HEAD + b"Content-Length: 500\r\n\r\n", *[b" "] * 40]
    soak.count("slow_body", await raw(soak, parts, pause=0.5), _LET_GO)
    return False


async def slow_head(soak: Soak) -> None:
    """One connection after the other whose head never ends."""
    while True:
        soak.count("slow_head", await raw(soak, [_HEAD, *[b"X"] * 1000], pause=0.5), _LET_GO)


async def raw(soak: Soak, parts: Sequence[bytes], pause: float = 0.0) -> int | str:
    """The status that comes back; what is left of the parts is not sent once there is one."""
    host, port = soak.url.removeprefix("http://").split(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError as error:
        return f"not connected ({error.strerror})"
    first = asyncio.ensure_future(reader.readline())
    try:
        for part in parts:
            writer.write(part)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            await asyncio.wait([first], timeout=pause)
            if first.done():
                break
        line = await asyncio.wait_for(first, ANSWER_SECONDS)
        return int(line.split()[1]) if line else "closed"
    except (ConnectionError, TimeoutError) as error:
        return type(error).__name__
    finally:
        first.cancel()
        writer.transport.abort()


# --- who comes next -------------------------------------------------------------------------------------------------

Client = Callable[[Soak, aiohttp.ClientSession], Awaitable[bool]]
HONEST: tuple[tuple[Client, float], ...] = ((streamed, 0.55), (whole, 0.45))
OTHERS: tuple[tuple[Client, float], ...] = (
    (left, 0.5), (search, 0.08), (probe, 0.08), (malformed, 0.12), (no_http, 0.05), (too_large, 0.1), (slow_body, 0.07),
)  # fmt: skip


def pick(soak: Soak, clients: Sequence[tuple[Client, float]]) -> Client:
    return soak.draw.choices([client for client, _ in clients], [share for _, share in clients])[0]


async def attempt(soak: Soak, session: aiohttp.ClientSession, client: Client) -> bool:
    try:
        return await client(soak, session)
    except (aiohttp.ClientError, TimeoutError, ConnectionError, ValueError, LookupError) as error:
        soak.count(client.__name__, type(error).__name__, ())
        return False
