"""Who may ask: every route but the page and the probes goes through here before its body is read."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from raft.errors import UsageError
from raft.serving.keys import LOCAL, Caller

API_KEY_ENV = "RAFT_API_KEY"


def check_host(host: str, api_key: str | None) -> None:
    """Raise UsageError when ``host`` can be reached from other machines and there is no key."""
    if api_key is None and not _is_loopback(host):
        raise UsageError(
            f"host {host} can be reached from other machines, and no key protects the documents",
            f"Set {API_KEY_ENV} in the environment, or serve on 127.0.0.1",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Says who sent a request. ``api_key`` is the one key of a server that knows no others."""

    def __init__(self, api_key: str | None = None) -> None:
        self._api_key = api_key

    def caller_of(self, request: Request) -> Caller:
        """Raises HTTPException 401 where no valid key was given, 403 where a server without keys is reached by another
        name than localhost."""
        if self._api_key is None:
            if not _is_loopback(request.url.hostname or ""):  # a foreign page may point its own name at 127.0.0.1
                raise HTTPException(403, f"without {API_KEY_ENV} this server is reached as localhost only")
            return LOCAL
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # header values arrive decoded as latin-1; encoding them so gives back the bytes that were sent
        sent, expected = given.strip().encode("latin-1"), self._api_key.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(sent, expected):
            raise HTTPException(401, "no valid API key was given", {"WWW-Authenticate": "Bearer"})
        return Caller("key")


class GuardedRoute(APIRoute):
    """A route that reads no body before the key is checked (a dependency would be asked after that). It leaves who
    asks in ``request.state.caller``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            request.state.caller = request.app.state.service.guard.caller_of(request)
            return await handle(request)

        return guarded
