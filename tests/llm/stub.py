"""An endpoint on loopback that answers as a test says: well, late, badly or not at all."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from raft.llm.chat import ChatRequest
from raft.llm.openai_compatible import OpenAICompatibleModel
from raft.prompts import Message


def completion(text, finish="stop", **message):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    return {
        "id": "c", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }  # fmt: skip


class Stub(ThreadingHTTPServer):
    """``behave(word, nth)`` -> (status, headers, body) for the nth call about a word; the body may be a dict, or None
    for a connection that breaks."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, behave):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave = behave
        self.calls = Counter()
        self.bodies = []
        self.paths = []
        self.headers = []
        self.keys = set()
        self.callers = set()
        self.running = self.most_running = 0
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        """A client that hangs up is a part of these tests; a bug in ``behave`` is not."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        stub = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        word = body["messages"][-1]["content"]
        with stub.lock:
            stub.bodies.append(body)
            stub.paths.append(self.path)
            stub.headers.append(self.headers)
            stub.keys.add(self.headers["Authorization"])
            stub.callers.add(self.client_address)
            stub.calls[word] += 1
            nth = stub.calls[word]
            stub.running += 1
            stub.most_running = max(stub.most_running, stub.running)
        status, headers, answer = stub.behave(word, nth)
        with stub.lock:
            stub.running -= 1
        if answer is None:
            self.close_connection = True
            return
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def do_CONNECT(self):
        with self.server.lock:
            self.server.headers.append(self.headers)
        self.send_error(407)

    def log_message(self, *_):
        pass


class Silent:
    """An endpoint that sends the ``beginning`` of an answer to whoever calls it, and nothing more."""

    def __init__(self, beginning=b""):
        self.beginning = beginning
        self._listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def take_call(self, seconds=20):
        """The connection of the next call; raises TimeoutError when there is none."""
        self._listener.settimeout(seconds)
        line = self._listener.accept()[0]
        line.settimeout(20)
        call = b""
        while not call.endswith(b"}"):
            call += line.recv(65536)
        line.sendall(self.beginning)
        return line


def wait_until_left(line):
    """Until the caller has closed its end of the connection."""
    with line:
        while line.recv(65536):
            pass


def heard(stream):
    """The pieces of a stream that say something, and the reply that it returns."""
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return [piece for piece in pieces if piece], end.value


def model_of(stub, base_url=None, **settings):
    return OpenAICompatibleModel("stub", base_url or stub.url, "RAFT_TEST_KEY", **{"max_retries": 2, **settings})


def request(word, **settings):
    return ChatRequest(f"key-{word}", (Message("user", word),), **settings)


def ok(word, nth):
    return 200, {}, completion(f"about {word}")


EVENTS = {"Content-Type": "text/event-stream"}


def piece(words, finish=None, **delta):
    return {"choices": [{"index": 0, "delta": {"content": words, **delta}, "finish_reason": finish}]}


def sse(*pieces, end="data: [DONE]\n\n"):
    rows = [{"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", **piece} for piece in pieces]
    return "".join(f"data: {json.dumps(row)}\n\n" for row in rows) + end
