"""What a client is told when something goes wrong, in OpenAI's form: never a path, a host or a stack trace.

{"error": {"message": "the model 'x' does not exist", "type": "invalid_request_error", "param": "model",
           "code": "model_not_found"}}
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from raft.errors import RaftError
from raft.llm.chat import PromptTooLong
from raft.serving import schema
from raft.serving.gate import Overloaded
from raft.serving.limits import TimedOut
from raft.serving.middleware import SECURE_HEADERS

RETRY_AFTER_SECONDS = 5
MOST_MISTAKES = 5  # that one answer tells of
_CODES = {401: "invalid_api_key", 408: "request_timeout"}
log = logging.getLogger("raft.serving")


class Refused(Exception):
    """A request that a route refuses, with the status and the words that the client gets."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        kind: str = "invalid_request_error", headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind
        self.headers = headers


def error_response(
    status: int, message: str, *, kind: str = "invalid_request_error", param: str | None = None,
    code: str | None = None, headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    return JSONResponse(schema.error(message, type=kind, param=param, code=code).model_dump(), status, headers)


def add_handlers(app: FastAPI) -> None:
    """Turn every error of a route into OpenAI's form."""
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(Refused, _on_refused)
    app.add_exception_handler(RaftError, _on_raft_error)
    app.add_exception_handler(Exception, _on_bug)


def _on_invalid(request: Request, error: Any) -> JSONResponse:
    mistakes = [(_place(item, error.body), item["msg"]) for item in error.errors()[:MOST_MISTAKES]]
    message = "; ".join(f"{where}: {said}" if where else said for where, said in mistakes)
    return error_response(400, message.replace("Value error, ", ""), param=mistakes[0][0] or None)


def _place(mistake: Any, body: Any) -> str:
    """Where in the body a mistake is, like "input.0.role". What pydantic names beside that, the members of a union and
    the place at which JSON breaks off, stands in no body and is left out."""
    named, place = mistake["loc"][1:], []
    for part in named:
        if isinstance(body, dict | list) and part in (body if isinstance(body, dict) else range(len(body))):
            place.append(part)
            body = body[part]
    if mistake["type"] == "missing":
        place += named[-1:]
    return ".".join(map(str, place))


def _on_http_error(request: Request, error: Any) -> JSONResponse:
    code = _CODES.get(error.status_code)
    return error_response(error.status_code, str(error.detail), code=code, headers=error.headers)


def _on_refused(request: Request, error: Any) -> JSONResponse:
    return error_response(
        error.status, error.message, kind=error.kind, param=error.param, code=error.code, headers=error.headers
    )


def _on_raft_error(request: Request, error: Any) -> JSONResponse:
    if isinstance(error, Overloaded):
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return error_response(429, str(error), kind="rate_limit_error", code="queue_full", headers=headers)
    status = 400 if isinstance(error, PromptTooLong) else 504 if isinstance(error, TimedOut) else 502
    return JSONResponse(error_body(error).model_dump(), status)


def error_body(error: RaftError) -> schema.ErrorResponse:
    """What the client is told of a failure behind the server: that it failed. Why goes to the log, because it may
    name files or hosts. A prompt that is too long is the client's to mend, and told in full; so is lack of time."""
    if isinstance(error, PromptTooLong):
        kind, param, code = "invalid_request_error", "top_k", "context_length_exceeded"
        return schema.error(str(error), type=kind, param=param, code=code)
    if isinstance(error, TimedOut):
        return schema.error(str(error), type="server_error", code="timeout")
    log.error("request failed: %s", error)
    return schema.error("the model could not answer; try again later", type="server_error", code="model_error")


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    return error_response(500, "internal error", kind="server_error", headers=SECURE_HEADERS)
