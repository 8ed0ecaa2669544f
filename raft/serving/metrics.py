"""What Prometheus reads from a server: figures alone, under labels that a client cannot make more of.

raft_requests_total{outcome="answered",route="chat"} 812.0
raft_first_token_seconds_bucket{le="0.5"} 640.0
raft_requests_waiting{gate="answers"} 3.0
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from raft.serving.engine import Served
from raft.serving.gate import Gate
from raft.serving.middleware import Receive, Send
from raft.serving.service import Exchange

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """A Listener that counts. Each server has its own; nothing is global."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        count, spread = self._counter, self._histogram
        self._requests = count("raft_requests", "Requests by route and how they ended", "route", "outcome")
        self._responses = count("raft_http_responses", "Responses by status, of every path", "status")
        self._retrieval = spread("raft_retrieval_seconds", "Time of the search, waiting for it counted", _SHORT)
        self._first = spread("raft_first_token_seconds", "From the search to the first words, waiting counted", _LONG)
        self._total = spread("raft_answer_seconds", "From the request to the end of its answer", _LONG)
        self._speed = spread("raft_tokens_per_second", "Of one answer, from its first words on", _SPEEDS)
        self._prompt = count("raft_prompt_tokens", "Tokens of prompts")
        self._cached = count("raft_cached_prompt_tokens", "Of them, those that an earlier prompt had begun with")
        self._written = count("raft_completion_tokens", "Tokens written")
        self._citations = count("raft_citations", "Quotes that stand in a document")
        self._unverified = count("raft_unverified_quotes", "Quotes left out because they stand in none")

    def __call__(self, exchange: Exchange) -> None:
        self._requests.labels(exchange.route, exchange.outcome).inc()
        if exchange.hits or exchange.served:
            self._retrieval.observe(exchange.timing.retrieval)
        if exchange.timing.first_token is not None:
            self._first.observe(exchange.timing.first_token)
        if exchange.served is not None:
            self._count_answer(exchange, exchange.served)

    def _count_answer(self, exchange: Exchange, served: Served) -> None:
        timing, reply = exchange.timing, served.reply
        self._total.observe(timing.total)
        self._citations.inc(len(served.citations))
        self._unverified.inc(served.unverified)
        if reply is None:
            return
        self._prompt.inc(reply.prompt_tokens)
        self._cached.inc(reply.cached_tokens)
        self._written.inc(reply.completion_tokens)
        writing = timing.total - timing.retrieval - (timing.first_token or 0.0)
        if timing.first_token is not None and reply.completion_tokens > 1 and writing > 0:
            self._speed.observe((reply.completion_tokens - 1) / writing)

    def watch(self, **gates: Gate) -> None:
        """Show how many requests are worked on and wait, for each gate under its name."""
        running = Gauge("raft_requests_running", "Worked on now", ["gate"], registry=self._registry)
        waiting = Gauge("raft_requests_waiting", "Waiting for their turn now", ["gate"], registry=self._registry)
        for name, gate in gates.items():
            running.labels(name).set_function(partial(getattr, gate, "running"))
            waiting.labels(name).set_function(partial(getattr, gate, "waiting"))

    def watch_keys(self, unreadable: Callable[[], bool]) -> None:
        """Show whether the key file cannot be read, so that what was changed in it does not count."""
        about = "1 while the key file cannot be read, and the keys that it had before stay in force"
        Gauge("raft_keys_unreadable", about, registry=self._registry).set_function(unreadable)

    def responded(self, status: int) -> None:
        self._responses.labels(str(status)).inc()

    def text(self) -> bytes:
        """All figures, in Prometheus' text form."""
        return generate_latest(self._registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, about, buckets=buckets, registry=self._registry)


class CountResponses:
    """ASGI middleware: tells ``responded`` the status of every response, 500 for one that broke before it began."""

    def __init__(self, app: Any, responded: Callable[[int], None]) -> None:
        self._app = app
        self._responded = responded

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._responded(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            if not begun and scope["type"] == "http":
                self._responded(500)
            raise
