"""What every request and response goes through, whatever its route."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

MAX_BODY_BYTES = 1_000_000
SECURE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class BodyLimit:
    """ASGI middleware: a body above ``max_bytes`` is refused with 413, by the length it declares or, when it declares
    none, as soon as more has come; one that has not come whole after ``receive_seconds`` (None: no limit) with 408,
    however steadily it trickles in."""

    def __init__(self, app: Any, max_bytes: int = MAX_BODY_BYTES, receive_seconds: float | None = None) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = receive_seconds
        self._too_large = f"the body of the request is larger than {max_bytes} bytes"

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max_bytes:
            detail = {"message": self._too_large, "type": "invalid_request_error", "param": None, "code": None}
            await JSONResponse({"error": detail}, 413)(scope, receive, send)  # type: ignore[arg-type]
        else:
            await self._app(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        came, whole = 0, False
        end = None if self._seconds is None else time.monotonic() + self._seconds

        async def receiving() -> MutableMapping[str, Any]:
            nonlocal came, whole
            left = None if whole or end is None else max(0.0, end - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), left)
            except TimeoutError:
                raise HTTPException(408, "the request did not arrive in time", {"Connection": "close"}) from None
            came += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if came > self._max_bytes:
                raise HTTPException(413, self._too_large)
            return message

        return receiving


class SecureHeaders:
    """ASGI middleware: SECURE_HEADERS on every response."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in SECURE_HEADERS.items()]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, sending)
