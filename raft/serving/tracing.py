"""OpenTelemetry: a span for each request, with its search and its answer as children.

OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 raft serve ...

The spans are made when the request has ended, of the times that were taken on the way, and hold no text.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raft.errors import UsageError
from raft.serving.service import Exchange, Listener

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def open_tracing(environment: Mapping[str, str] = os.environ) -> Listener | None:
    """A Listener that exports spans, as the standard OTEL_* variables say; None where they name no endpoint. Nothing
    is imported then. Raises UsageError when the packages are missing."""
    off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if off or not any(environment.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise UsageError("traces are asked for (OTEL_*), and OpenTelemetry is not installed",
                         "pip install 'raft-tune[otel]'") from None  # fmt: skip
    named = {} if environment.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "raft"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider)


class Spans:
    """A Listener that makes the spans of each request."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("raft.serving")

    def __call__(self, exchange: Exchange) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        end = time.time_ns()
        begin = end - _ns(exchange.timing.total)
        found = begin + _ns(exchange.timing.retrieval)
        span = self._tracer.start_span(
            f"raft {exchange.route}", kind=SpanKind.SERVER, start_time=begin, attributes=_attributes(exchange)
        )
        if exchange.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR))
        context = set_span_in_context(span)
        retrieval = self._tracer.start_span("retrieval", context, start_time=begin)
        retrieval.set_attribute("raft.passages", len(exchange.hits))
        retrieval.end(found)
        if exchange.route != "search" and exchange.hits:
            generation = self._tracer.start_span("generation", context, start_time=found)
            if exchange.timing.first_token is not None:
                generation.add_event("first token", timestamp=found + _ns(exchange.timing.first_token))
            generation.set_attributes(_usage(exchange))
            generation.end(end)
        span.end(end)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _attributes(exchange: Exchange) -> dict[str, Any]:
    return {
        "raft.request.id": exchange.id, "raft.caller": exchange.caller.name, "raft.outcome": exchange.outcome,
        "gen_ai.request.model": exchange.model_in_logs,
    }  # fmt: skip


def _usage(exchange: Exchange) -> dict[str, Any]:
    """Token counts, under the names of OpenTelemetry's conventions for generative models."""
    reply = exchange.served.reply if exchange.served else None
    if reply is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": reply.prompt_tokens, "gen_ai.usage.output_tokens": reply.completion_tokens,
    }  # fmt: skip
