"""Who may ask: every route but the page and the probes goes through here before its body is read."""

from __future__ import annotations

import ipaddress
import logging
import math
import re
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from raft.errors import UsageError
from raft.serving.http_errors import Refused
from raft.serving.keys import LOCAL, Caller, KeyFile, Known, find_caller, hash_of
from raft.serving.limits import Allowance, RateLimits

API_KEY_ENV = "RAFT_API_KEY"
LIMIT_HEADERS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
SHORTEST_KEY = 16  # characters of RAFT_API_KEY where other machines may try them
_ORIGIN = re.compile(r"https?://[^/\s*?#@]+")
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:]+))(?::[0-9]*)?")
log = logging.getLogger("raft.serving")


def check_host(host: str, api_key: str | None, keys: Path | None = None) -> None:
    """Raise UsageError when ``host`` can be reached from other machines and there are no keys, or a short one."""
    if is_loopback(host):
        return
    if api_key is None and keys is None:
        raise UsageError(
            f"host {host} can be reached from other machines, and no key protects the documents",
            f"Make a key (raft keys add NAME --keys FILE; --set keys=FILE), set {API_KEY_ENV} in the environment, or "
            "serve on 127.0.0.1",
        )
    if api_key is not None and len(api_key) < SHORTEST_KEY:
        what = f"{API_KEY_ENV} has {len(api_key)} characters, and host {host} can be reached from other machines"
        raise UsageError(what, f"Give at least {SHORTEST_KEY} random ones: openssl rand -hex 32")


def check_origins(origins: Sequence[str], has_keys: bool) -> None:
    """Raise UsageError for what is no origin (a browser would never send it), and for "*" where no key stands between
    every page of the web and the documents."""
    for origin in origins:
        if origin == "*" and not has_keys:
            raise UsageError("cors_origins has '*', and no key protects the documents", "Name the pages' hosts")
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            remedy = "Give scheme and host alone, without a slash at the end: https://intranet.example"
            raise UsageError(f"cors_origins has {origin!r}", remedy)


def is_loopback(host: str) -> bool:
    """Whether this address, or this name, is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_addressed_here(host: str) -> bool:
    """Whether a Host header, as it came, names this machine: a foreign page may point its own name at 127.0.0.1.
    ``request.url`` is of no use here: for a header that is malformed it names the server's own address."""
    found = _HOST.fullmatch(host)
    return found is not None and is_loopback(found[1] or found[2])


class Guard:
    """Says who sent a request, and whether they ask too often. ``api_key`` holds all labels of the server; each key of
    ``keys`` holds its own. Without both, the server is this machine's own."""

    def __init__(
        self, api_key: str | None = None, keys: KeyFile | None = None, requests_per_minute: int | None = None
    ) -> None:
        """``requests_per_minute`` is for each key that has no limit of its own; None is no limit."""
        self._own = () if api_key is None else (Known(hash_of(api_key.encode()), None, Caller(API_KEY_ENV)),)
        self._keys = keys
        self._per_minute = requests_per_minute
        self._limits = RateLimits()

    def caller_of(self, request: Request) -> Caller:
        """Raises HTTPException 401 where no valid key was given, 403 where a server without keys is reached by another
        name than localhost."""
        if not self._own and self._keys is None:
            if not is_addressed_here(request.headers.get("host", "")):
                raise HTTPException(403, "without keys this server is reached as localhost only")
            return LOCAL
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # header values arrive decoded as latin-1; encoding them so gives back the bytes that were sent
        secret = given.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
        known = (*self._own, *(self._keys.known() if self._keys else ()))
        caller = find_caller(known, secret, datetime.now(UTC).date())
        if caller is None:
            raise HTTPException(401, "no valid API key was given", {"WWW-Authenticate": "Bearer"})
        return caller

    def keys_unreadable(self) -> bool:
        """Whether the key file cannot be read now, so that older keys stay in force."""
        return self._keys is not None and self._keys.unreadable

    def admit(self, caller: Caller) -> dict[str, str]:
        """Count a request; returns the headers that tell the caller what is left. Raises Refused 429."""
        per_minute = caller.requests_per_minute or self._per_minute
        if per_minute is None:
            return {}
        allowance = self._limits.take(caller.name, per_minute)
        headers = _limit_headers(allowance)
        if allowance.wait:
            wait = math.ceil(allowance.wait)
            message = f"this key may send {per_minute} requests a minute; try again in {wait} s"
            raise Refused(
                429, message, kind="rate_limit_error", code="rate_limit_exceeded",
                headers={"Retry-After": str(wait), **headers},
            )  # fmt: skip
        return headers


def _limit_headers(allowance: Allowance) -> dict[str, str]:
    """What is left, in the headers that OpenAI's clients know."""
    values = (str(allowance.limit), str(allowance.remaining), f"{math.ceil(allowance.reset)}s")
    return dict(zip(LIMIT_HEADERS, values, strict=True))


class GuardedRoute(APIRoute):
    """A route that reads no body before the key is checked (a dependency would be asked after that). It leaves who
    asks in ``request.state.caller``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            headers = self._admit(request)
            response = await handle(request)
            response.headers.update(headers)
            return response

        return guarded

    def _admit(self, request: Request) -> dict[str, str]:
        service = request.app.state.service
        caller = None
        try:
            caller = request.state.caller = service.guard.caller_of(request)
            headers: dict[str, str] = service.guard.admit(caller)
            if service.audit is not None:
                service.audit.check()
        except (HTTPException, Refused) as refusal:
            status = refusal.status_code if isinstance(refusal, HTTPException) else refusal.status
            address = request.client.host if request.client else None
            fields = {"status": status, "path": self.path, "caller": caller and caller.name, "address": address}
            log.warning("request refused", extra={"fields": fields})
            raise
        return headers
