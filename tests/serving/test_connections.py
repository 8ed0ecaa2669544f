"""Slow clients on real sockets: they are let go, and hold nobody back."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from live import FINGERPRINT, MemoryIndex, scripted

from raft.serving.api import create_app
from raft.serving.catalog import Catalog
from raft.serving.connections import allow_many_sockets, protocol
from raft.serving.engine import AnswerEngine
from raft.serving.guard import Guard

HEAD = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
QUESTION = {"model": "raft", "messages": [{"role": "user", "content": "What is the first dose?"}]}
PATIENCE = 60.0  # seconds: how long a test waits for what must happen


@dataclass(frozen=True)
class Live:
    url: str
    server: uvicorn.Server

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)

    def connections(self) -> int:
        return len(self.server.server_state.connections)


@contextlib.contextmanager
def serving(app: Callable | None = None, *, api_key: str | None = None, **settings: float) -> Iterator[Live]:
    """A server on a real socket; a bare ``app`` takes no part in its start and end."""
    lifespan = "auto" if app is None else "off"
    if app is None:
        app = create_app(Catalog({"raft": AnswerEngine(MemoryIndex(), scripted(), FINGERPRINT)}), Guard(api_key))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http=protocol(**settings), ws="none", lifespan=lifespan, log_level="critical",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", server)
        finally:
            server.should_exit = True
            thread.join(timeout=PATIENCE)
            assert not thread.is_alive()


def until(held: Callable[[], bool], what: str) -> None:
    last = time.monotonic() + PATIENCE
    while not held():
        assert time.monotonic() < last, f"never happened: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def trickling(address: tuple[str, int], count: int, opening: bytes) -> Iterator[dict[socket.socket, bytes]]:
    """``count`` connections that send ``opening`` and then byte after byte; what came back on those that are closed."""
    sockets = [socket.create_connection(address) for _ in range(count)]
    ended: dict[socket.socket, bytes] = {}
    stop = threading.Event()

    def drip() -> None:
        with selectors.DefaultSelector() as selector:
            for each in sockets:
                each.setblocking(False)
                with contextlib.suppress(OSError):
                    each.send(opening)
                selector.register(each, selectors.EVENT_READ, bytearray())
            while not stop.is_set():
                for key, _ in selector.select(timeout=0.05):
                    _read(selector, key, ended)
                for key in list(selector.get_map().values()):
                    with contextlib.suppress(OSError):
                        key.fileobj.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield ended
    finally:
        stop.set()
        thread.join(timeout=PATIENCE)
        for each in sockets:
            each.close()


def _read(selector: selectors.BaseSelector, key: selectors.SelectorKey, ended: dict[socket.socket, bytes]) -> None:
    came = b""
    with contextlib.suppress(ConnectionError):
        came = key.fileobj.recv(65536)
    key.data.extend(came)
    if not came:
        selector.unregister(key.fileobj)
        ended[key.fileobj] = bytes(key.data)


def ask(url: str) -> int:
    """The status of an honest request on a connection of its own."""
    return httpx.post(f"{url}/v1/chat/completions", json=QUESTION, timeout=PATIENCE).status_code


def exchange(address: tuple[str, int], parts: Sequence[bytes]) -> bytes:
    """What comes back for the parts, sent one after the other, until the server closes."""
    with socket.create_connection(address, timeout=PATIENCE) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(0.05)
        came = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65536):
                came += piece
        return came


def test_five_hundred_slow_clients_hold_no_honest_one_back_and_are_let_go() -> None:
    allow_many_sockets()
    with serving(receive_seconds=2.0) as live, trickling(live.address, 500, HEAD + b"X-Slow: ") as ended:
        until(lambda: live.connections() >= 100, "many slow clients are connected")
        assert [ask(live.url) for _ in range(10)] == [200] * 10
        until(lambda: len(ended) == 500, "every slow client is let go")
        until(lambda: live.connections() == 0, "the server has forgotten them")
        assert ask(live.url) == 200
    replies = list(ended.values())
    assert sum(reply.startswith(b"HTTP/1.1 408 ") for reply in replies) >= 490  # a last byte sent may reset the rest
    told = max(replies).partition(b"\r\n\r\n")[2]
    assert json.loads(told)["error"]["code"] == "request_timeout"


def test_the_oldest_of_too_many_are_let_go_before_their_time() -> None:
    with serving(receive_seconds=PATIENCE, most_waiting=20) as live, trickling(live.address, 100, HEAD) as ended:
        until(lambda: len(ended) >= 80, "all but twenty are let go")
        assert live.connections() <= 20
        assert [ask(live.url) for _ in range(10)] == [200] * 10


@pytest.mark.parametrize("opening", [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_head_that_never_comes_whole_is_refused(opening: bytes) -> None:
    with serving(receive_seconds=0.2) as live:
        assert exchange(live.address, [opening]).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_goes_on_after_its_answer_is_cut_off() -> None:
    refused = HEAD + b"Content-Length: 900000\r\n\r\n{"
    with serving(receive_seconds=0.2, api_key="k") as live:
        assert exchange(live.address, [refused, b" ", b" "]).startswith(b"HTTP/1.1 401 ")
        until(lambda: live.connections() == 0, "the connection is closed")


def test_a_body_that_a_route_waits_for_in_vain_ends_too() -> None:
    left = threading.Event()

    async def waiting_for_ever(scope: dict, receive: Callable, send: Callable) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    asked = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    with serving(waiting_for_ever, receive_seconds=0.2) as live:
        assert exchange(live.address, [asked]) == b""
        assert left.wait(PATIENCE)


def test_a_request_that_pauses_within_its_time_is_answered_and_its_connection_serves_again() -> None:
    body = json.dumps({"query": "dose"}).encode()
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    parts = [whole[:30], whole[30:-5], whole[-5:], whole[:-5], whole[-5:], whole + whole]
    with serving(receive_seconds=5.0) as live:
        last = whole.replace(b"Host:", b"Connection: close\r\nHost:")
        came = exchange(live.address, [*parts, last])
    assert came.count(b"HTTP/1.1 200 ") == 5


def test_an_idle_connection_is_kept_as_long_as_uvicorn_keeps_it() -> None:
    """The deadline is of a request: none runs between two."""
    with serving(receive_seconds=0.2) as live, httpx.Client(base_url=live.url, timeout=PATIENCE) as client:
        assert client.get("/healthz").status_code == 200
        time.sleep(0.5)
        assert live.connections() == 1
        assert client.get("/healthz").status_code == 200
        assert live.connections() == 1


def test_who_does_not_read_an_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raft.serving.connections.SEND_SECONDS", 0.2)
    ended = threading.Event()

    async def endless(scope: dict, receive: Callable, send: Callable) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while live.connections():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        ended.set()

    with serving(endless, receive_seconds=PATIENCE) as live, socket.create_connection(live.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert ended.wait(PATIENCE)
