"""What a server logs: JSON lines on stderr, one a request, without a word of question, answer or document.

{"time": "2026-03-02T10:15:00.123+00:00", "level": "info", "message": "request", "id": "chatcmpl-4f", "route": "chat",
 "caller": "intranet", "model": "raft", "outcome": "answered", "seconds": 3.1, "retrieval_seconds": 0.02,
 "first_token_seconds": 0.6, "prompt_tokens": 388, "cached_tokens": 350, "completion_tokens": 64, "documents": 4,
 "citations": 2, "unverified_quotes": 0}
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from raft.serving.audit import texts_of
from raft.serving.service import Exchange

log = logging.getLogger("raft.serving")


class JsonLines(logging.Formatter):
    """A record as one line; ``extra={"fields": {...}}`` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "message": record.getMessage(), **getattr(record, "fields", {}),
        }  # fmt: skip
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, ensure_ascii=True, default=str)


def log_as_json(stream: TextIO | None = None) -> logging.Handler:
    """From now on this process logs JSON lines to ``stream`` (stderr): raft.serving all, others warnings. Returns the
    handler. uvicorn's own loggers follow when its config is given ``log_config=None``."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(logging.INFO)
    return handler


class RequestLog:
    """A Listener that logs one line a request. ``texts`` adds question and answer."""

    def __init__(self, *, texts: bool = False) -> None:
        self._texts = texts

    def __call__(self, exchange: Exchange) -> None:
        fields = _fields(exchange)
        log.info("request", extra={"fields": fields | texts_of(exchange) if self._texts else fields})


def _fields(exchange: Exchange) -> dict[str, Any]:
    timing, served = exchange.timing, exchange.served
    fields: dict[str, Any] = {
        "id": exchange.id, "route": exchange.route, "caller": exchange.caller.name,
        "model": exchange.model_in_logs, "outcome": exchange.outcome, "seconds": round(timing.total, 4),
        "retrieval_seconds": round(timing.retrieval, 4),
        "first_token_seconds": None if timing.first_token is None else round(timing.first_token, 4),
        "documents": len(exchange.hits),
    }  # fmt: skip
    if served is not None:
        fields |= {"citations": len(served.citations), "unverified_quotes": served.unverified}
    if served is not None and (reply := served.reply) is not None:
        fields |= {
            "prompt_tokens": reply.prompt_tokens, "cached_tokens": reply.cached_tokens,
            "completion_tokens": reply.completion_tokens,
        }  # fmt: skip
    return fields
