"""What went wrong with a call to an endpoint, and whether asking again can help.

429 Retry-After: 2                               -> Failure(kind="limited", status=429, wait_seconds=2.0, ...)
429 {"error": {"code": "insufficient_quota"}}    -> Failure(kind="quota", ...)           ends the run
400 {"error": {"param": "seed", ...}}            -> Failure(kind="refused", param="seed", ...)
connection refused                               -> Failure(kind="unreachable", ...)    ends the run
connection broken                                -> Failure(kind="passing", ...)        concerns this request alone
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["limited", "passing", "unreachable", "malformed", "too_long", "refused", "key", "model", "quota"]

MALFORMED = "malformed: the answers were no chat completions"
LONGEST_SAID = 400  # characters of an error; a proxy's error page is longer
_NEVER_FITS = re.compile(r"request too large", re.IGNORECASE)  # OpenAI: above the limit of a whole minute
_TOO_LONG = re.compile(r"context_length_exceeded|exceed_context_size|maximum context length")  # OpenAI, llama.cpp, vLLM
_NO_QUOTA = re.compile(r"insufficient_quota|billing_hard_limit|credit balance|insufficient balance", re.IGNORECASE)
_CONNECTING = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}  # errors of httpx
_MODERATED = re.compile(r"moderation|flagged|content_filter", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Failure:
    """``said`` is one line without secrets; ``param`` the parameter that the endpoint names; ``wait_seconds`` what
    it asked to wait, if it did; ``alone_seconds`` how long this call waits while the others go on (pacing.py)."""

    kind: Kind
    said: str
    status: int | None = None
    param: str | None = None
    wait_seconds: float | None = None
    alone_seconds: float = 0.0


class StatusError(Exception):
    """An answer with a status from 400 on; the header names may be in any case."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{status} {text}")
        self.status, self.text, self.headers = status, text, headers


def failure_of(error: BaseException, secrets: Iterable[str] = ()) -> Failure:
    """The failure behind what a call raised: a StatusError, or an error of ``aiohttp``; a ValueError is a body that
    is not JSON."""
    import aiohttp

    if isinstance(error, StatusError):
        kind, wait_seconds = _kind_of_status(error.status, str(error)), retry_after_seconds(error.headers)
        return Failure(kind, one_line(str(error), secrets), error.status, _param(error.text), wait_seconds)
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
        return Failure("unreachable", "it is no http:// or https:// address that can be asked")
    if isinstance(error, aiohttp.ClientError):
        # a connection that stood and broke may have had to do with what went over it
        connecting = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
        kind = "unreachable" if isinstance(error, connecting) else "passing"
        return Failure(kind, one_line(_without_address(error), secrets))
    return Failure("malformed", MALFORMED)


def _without_address(error: Any) -> str:
    """What aiohttp says went wrong, without the address, which may hold a password or a key in any spelling."""
    name = type(error).__name__
    if hasattr(error, "status"):  # of a proxy, or of an answer that is no HTTP
        return f"{name}: {error.status} {error.message}".strip()
    if isinstance(error, TimeoutError):
        return f"{name}: no connection in time"
    return str(getattr(error, "os_error", error)) or name


def stream_failure_of(error: BaseException, secrets: Iterable[str] = ()) -> Failure:
    """The failure behind what a stream of the ``openai`` client raised."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return failure_of(StatusError(error.status_code, error.response.text, error.response.headers), secrets)
    said = one_line(f"{type(error).__name__}: {error}", secrets)
    if isinstance(error, openai.APIConnectionError):
        why = one_line(str(error.__cause__ or "") or str(error), secrets)
        return Failure("unreachable" if type(error.__cause__).__name__ in _CONNECTING else "passing", why)
    # an event of the stream that says what went wrong
    return Failure("too_long" if _TOO_LONG.search(str(error)) else "refused", said)


def _param(text: str) -> str | None:
    """The parameter that an error names: {"error": {"param": "seed", ...}}, with or without "error" around it."""
    try:
        said = json.loads(text)
    except ValueError:
        return None
    said = said.get("error", said) if isinstance(said, dict) else None
    param = said.get("param") if isinstance(said, dict) else None
    return param if isinstance(param, str) else None


def _kind_of_status(status: int, words: str) -> Kind:
    if status == 402 or (status == 429 and _NO_QUOTA.search(words)):
        return "quota"
    if status == 401 or (status == 403 and not _MODERATED.search(words)):
        return "key"
    if (status in (400, 413, 422) and _TOO_LONG.search(words)) or (status == 429 and _NEVER_FITS.search(words)):
        return "too_long"
    if status in (408, 409, 425) or status >= 500:
        return "passing"
    kinds: dict[int, Kind] = {404: "model", 429: "limited"}
    return kinds.get(status, "refused")


def one_line(said: str, secrets: Iterable[str] = ()) -> str:
    """At most LONGEST_SAID characters on one line; endpoints may repeat a key that they refuse."""
    for secret in secrets:
        said = said.replace(secret, "***")
    said = " ".join(said.split())
    return said if len(said) <= LONGEST_SAID else f"{said[:LONGEST_SAID]} ..."


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What the answer asks to wait: ``retry-after-ms``, else ``Retry-After`` in seconds or as a date (RFC 9110,
    10.2.3); None when it names no time that can be read. Never below 0."""
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / scale
        except ValueError:
            continue
        if seconds == seconds:  # "nan" is a float too
            return max(0.0, seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError, OSError):
        return None
