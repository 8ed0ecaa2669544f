"""OpenTelemetry's spans of a request, through its own in-memory exporter."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from exchanges import QUESTION, exchange
from live import scripted, serving

from raft.serving.service import Timing
from raft.serving.tracing import Spans, open_tracing

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Spans(provider)


def test_a_request_is_a_span_with_its_search_and_its_answer(spans: Spans, exporter: InMemorySpanExporter) -> None:
    spans(exchange())
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert set(found) == {"raft chat", "retrieval", "generation"}
    whole, retrieval, generation = found["raft chat"], found["retrieval"], found["generation"]
    assert whole.parent is None
    assert {span.parent.span_id for span in (retrieval, generation)} == {whole.context.span_id}
    assert (whole.end_time - whole.start_time) / 1e9 == 2.75
    assert (retrieval.start_time, retrieval.end_time - retrieval.start_time) == (whole.start_time, 250_000_000)
    assert (generation.start_time, generation.end_time) == (retrieval.end_time, whole.end_time)
    [event] = generation.events
    assert (event.name, event.timestamp - generation.start_time) == ("first token", 500_000_000)
    assert dict(whole.attributes) == {
        "raft.request.id": "chatcmpl-4f", "raft.caller": "intranet", "raft.outcome": "answered",
        "gen_ai.request.model": "raft",
    }  # fmt: skip
    assert dict(generation.attributes) == {"gen_ai.usage.input_tokens": 388, "gen_ai.usage.output_tokens": 41}
    assert dict(retrieval.attributes) == {"raft.passages": 3}


def test_no_text_leaves_in_a_span(spans: Spans, exporter: InMemorySpanExporter) -> None:
    spans(exchange(model="x" * 5000))
    said = "".join(span.to_json() for span in exporter.get_finished_spans())
    for word in (QUESTION, "Adults", "mouth", "x" * 201):
        assert word not in said


def test_a_search_and_a_failure(spans: Spans, exporter: InMemorySpanExporter) -> None:
    spans(exchange(route="search", outcome="searched", served=None))
    assert [span.name for span in exporter.get_finished_spans()] == ["retrieval", "raft search"]
    exporter.clear()
    spans(exchange(outcome="failed", served=None, timing=Timing(0.25, None, 1.0)))
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert found["raft chat"].status.status_code is StatusCode.ERROR
    assert found["generation"].events == ()


def test_a_server_tells_its_requests(spans: Spans, exporter: InMemorySpanExporter) -> None:
    with serving(scripted(), listeners=[spans]) as server:
        asked = {"model": "raft", "messages": [{"role": "user", "content": "What dose?"}]}
        answer = httpx.post(f"{server}/v1/chat/completions", json=asked).json()
    whole = next(span for span in exporter.get_finished_spans() if span.name == "raft chat")
    assert whole.attributes["raft.request.id"] == answer["id"]


@pytest.mark.parametrize(
    "environment",
    [
        {}, {"OTEL_SERVICE_NAME": "raft"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
    ],
)  # fmt: skip
def test_without_an_endpoint_nothing_is_traced(environment: dict[str, str]) -> None:
    assert open_tracing(environment) is None


def test_without_an_endpoint_nothing_is_imported() -> None:
    program = (
        "import sys; from raft.serving.tracing import open_tracing; assert open_tracing({}) is None; "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_spans_arrive_at_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real collector's HTTP, as far as to what it is sent."""
    came: list[tuple[str, bytes]] = []
    arrived = threading.Event()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        tracing = open_tracing()
        assert tracing is not None
        tracing(exchange())
        assert arrived.wait(20)
        server.shutdown()
    path, body = came[0]
    assert path == "/v1/traces"
    assert b"raft chat" in body
    assert b"Corvalexin" not in body
