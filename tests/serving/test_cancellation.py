"""A client that leaves costs nothing any more, wherever its request stands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from live import DrippingModel, MemoryIndex, scripted, serving

from raft.records import EVERYTHING, Filter, Hit
from raft.serving.events import EventStream
from raft.serving.service import Exchange

ROUTES = ["/v1/chat/completions", "/v1/responses"]
SEARCHES = ["/v1/search", "/v1/vector_stores/raft/search"]


class SlowIndex(MemoryIndex):
    """Its searches come to an end when ``go`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def search(
        self, queries: Sequence[str], k: int, mode: str = "fused", where: Filter = EVERYTHING
    ) -> list[list[Hit]]:
        found = super().search(queries, k, mode, where)
        assert self.go.wait(20)
        return found


@contextlib.contextmanager
def asking(server: str, route: str, **settings: Any) -> Iterator[None]:
    """A client that sends a request and leaves at the end of the block, without having read an answer."""
    question = settings.pop("question", "Dose?")
    body = {
        "model": "raft", "messages": [{"role": "user", "content": question}], "input": question, "query": question,
        **settings,
    }  # fmt: skip
    content = json.dumps(body).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length:"
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(f"{head} {len(content)}\r\n\r\n".encode() + content)
        yield


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def search_works(server: str) -> bool:
    return httpx.post(f"{server}/v1/search", json={"query": "Dose?"}, timeout=20).status_code == 200


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_while_the_model_writes(route: str, streaming: bool) -> None:
    model, told = DrippingModel(), list[Exchange]()
    with serving(model, listeners=[told.append]) as server:
        with asking(server, route, stream=streaming):
            model.step.release()
            until(lambda: model.requests)
        for _ in range(200):  # the model goes on until it is told; it is told well before it ends
            if model.left.wait(0.05):
                break
            model.step.release()
        assert model.left.is_set()
        until(lambda: told)
    assert [exchange.outcome for exchange in told] == ["cancelled"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_while_it_waits_for_its_turn(route: str, streaming: bool) -> None:
    model, told = DrippingModel(), list[Exchange]()

    def answered_or_left() -> list[tuple[str, str]]:
        return [(exchange.asked.question, exchange.outcome) for exchange in told if exchange.route != "search"]

    with (
        serving(model, max_queue=1, listeners=[told.append]) as server,
        asking(server, ROUTES[0], question="First?"),
    ):
        until(lambda: model.requests)
        with asking(server, route, stream=streaming, question="Second?"):
            assert search_works(server)
        until(answered_or_left)
        assert answered_or_left() == [("Second?", "cancelled")]  # while the first one is written
        model.step.release(2000)
    assert len(model.requests) == 1


@pytest.mark.parametrize("route", [*ROUTES, *SEARCHES])
def test_while_it_is_searched_for_and_while_it_waits_for_its_search(route: str) -> None:
    model, index, told = scripted(), SlowIndex(), list[Exchange]()
    with serving(model, index=index, listeners=[told.append]) as server:
        with asking(server, route, question="First?"):
            until(lambda: index.queries == ["First?"])
            with asking(server, route, question="Second?", stream=True):
                time.sleep(0.05)
        until(lambda: len(told) == 2)  # before the search under way has ended
        index.go.set()
        assert search_works(server)
    assert [exchange.outcome for exchange in told] == ["cancelled", "cancelled", "searched"]
    assert index.queries == ["First?", "Dose?"]
    assert model.requests == []


def test_before_the_first_event_is_drawn() -> None:
    closed: list[str] = []

    async def source() -> AsyncGenerator[str, None]:
        try:
            yield "admitted"
            yield "more"
        finally:
            closed.append("source")

    async def events(pieces: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        async for piece in pieces:
            yield piece

    async def send(message: Any) -> None:
        raise OSError("the client has left")

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def scenario() -> None:
        pieces = source()
        await anext(pieces)
        with contextlib.suppress(Exception):
            await EventStream(pieces, events(pieces))({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
        assert closed == ["source"]

    asyncio.run(scenario())
