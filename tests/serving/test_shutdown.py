"""A stop that breaks no answer off."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import openai
import pytest
import uvicorn
from live import FINGERPRINT, DrippingModel, MemoryIndex

from raft.serving.api import create_app
from raft.serving.catalog import Catalog
from raft.serving.engine import AnswerEngine
from raft.serving.shutdown import Drain, DrainingServer

ASK = [{"role": "user", "content": "What is the first dose of Corvalexin?"}]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclass
class Running:
    url: str
    model: DrippingModel
    server: DrainingServer
    drain: Drain
    thread: threading.Thread

    def ask(self, **settings: object):
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)
        return client.chat.completions.create(model="raft", messages=ASK, **settings)

    def status(self, path: str) -> int:
        return httpx.get(f"{self.url}{path}").status_code

    def stop(self) -> None:
        """What uvicorn does on SIGTERM."""
        self.server.should_exit = True
        until(lambda: self.status("/readyz") == 503)


@contextlib.contextmanager
def running(seconds: float) -> Iterator[Running]:
    model = DrippingModel()
    app = create_app(Catalog({"raft": AnswerEngine(MemoryIndex(), model, FINGERPRINT)}))
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = DrainingServer(config, app.state.drain, seconds)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", model, server, app.state.drain, thread)
        finally:
            server.should_exit = True
            model.step.release(100_000)
            thread.join(timeout=20)
            assert not thread.is_alive()


def test_what_is_in_work_is_finished_and_new_requests_are_sent_elsewhere() -> None:
    with running(seconds=60) as here:
        streams = [here.ask(stream=True), here.ask(stream=True)]  # one is answered, one waits for its turn
        assert here.status("/readyz") == 200
        here.stop()
        for path in ("/v1/models", "/", "/nothing"):
            refused = httpx.get(f"{here.url}{path}")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.json()["error"]["code"] == "shutting_down"
            assert refused.headers["x-content-type-options"] == "nosniff"
        with pytest.raises(openai.InternalServerError):
            here.ask()
        assert (here.status("/healthz"), here.status("/metrics")) == (200, 200)
        here.model.step.release(2000)
        for stream in streams:
            chunks = list(stream)
            assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) == 1000
            assert chunks[-1].raft["documents"]
        here.thread.join(timeout=20)
        assert not here.thread.is_alive()


def test_a_whole_answer_is_finished_too() -> None:
    with running(seconds=60) as here:
        made = []
        asking = threading.Thread(target=lambda: made.append(here.ask()))
        asking.start()
        until(lambda: here.drain.in_work > 0)
        here.stop()
        here.model.step.release(1000)
        asking.join(timeout=20)
        assert made[0].choices[0].message.content == "".join(here.model.pieces)


def test_what_takes_longer_than_the_time_is_broken_off() -> None:
    with running(seconds=0.2) as here:
        stream = here.ask(stream=True)
        here.model.step.release()
        here.server.should_exit = True
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            list(stream)
        here.model.step.release()
        assert here.model.left.wait(20)


def test_an_idle_server_stops_at_once() -> None:
    with running(seconds=3600) as here, httpx.Client() as client:  # whose connection stays open
        assert client.get(f"{here.url}/healthz").status_code == 200
        here.server.should_exit = True
        here.thread.join(timeout=20)
        assert not here.thread.is_alive()


def test_a_second_signal_does_not_wait() -> None:
    with running(seconds=3600) as here:
        stream = here.ask(stream=True)  # in work
        here.stop()
        here.server.force_exit = True  # what uvicorn does on a second Ctrl-C
        here.model.step.release(100_000)
        here.thread.join(timeout=20)
        assert not here.thread.is_alive()
        stream.close()
