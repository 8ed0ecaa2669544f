"""What a request's body may be, over real sockets."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest
from live import scripted, serving

from raft.config_serve import LimitsRecipe
from raft.serving.middleware import SECURE_HEADERS

HEAD = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"query": "dose"}'


def line_to(server: str) -> socket.socket:
    host, port = server.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def everything(line: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    came = b""
    while more := line.recv(65536):
        came += more
    return came


@pytest.mark.parametrize("framing", [b"Content-Length: 17\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_body_that_trickles_in_is_refused_after_its_time(framing: bytes) -> None:
    """However steadily: the time is of the whole body, not of the pause between two bytes of it."""
    with serving(scripted(), limits=LimitsRecipe(receive_seconds=0.4)) as server, line_to(server) as line:
        line.sendall(HEAD + framing)
        line.settimeout(0.05)
        came = b""
        for byte in BODY[:-1] * 20:
            try:
                line.sendall(bytes([byte]) if b"Length" in framing else b"1\r\n%c\r\n" % byte)
                came = line.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            break
        line.settimeout(20)
        head, _, body = (came + everything(line)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == "request_timeout"
    assert all(f"{name}: {value}".encode() in head for name, value in SECURE_HEADERS.items())


def test_a_body_that_comes_in_time_is_read_and_the_answer_may_take_longer() -> None:
    def slow(request: object) -> str:
        time.sleep(0.6)
        return "<ANSWER>: 12 mg"

    asked = {"model": "raft", "messages": [{"role": "user", "content": "What dose?"}]}
    with serving(scripted(slow), limits=LimitsRecipe(receive_seconds=0.4)) as server:
        with line_to(server) as line:
            line.sendall(HEAD + b"Content-Length: 17\r\nConnection: close\r\n\r\n" + BODY[:5])
            line.sendall(BODY[5:])
            assert everything(line).startswith(b"HTTP/1.1 200")
        for streaming in (False, True):
            response = httpx.post(f"{server}/v1/chat/completions", json={**asked, "stream": streaming}, timeout=30)
            assert response.status_code == 200
            assert "12 mg" in response.text


@pytest.mark.parametrize("kilobytes", [1, 3])
def test_the_largest_body_is_a_setting(kilobytes: int) -> None:
    headers = {"content-type": "application/json"}
    with serving(scripted(), limits=LimitsRecipe(max_body_kb=kilobytes)) as server:
        for size, status in ((1000 * kilobytes, 200), (1000 * kilobytes + 1, 413)):
            padded = BODY.ljust(size)
            response = httpx.post(f"{server}/v1/search", content=padded, headers=headers)
            assert response.status_code == status
            in_chunks = httpx.post(f"{server}/v1/search", content=iter([padded[:500], padded[500:]]), headers=headers)
            assert in_chunks.status_code == status
        assert str(1000 * kilobytes) in response.json()["error"]["message"]
