"""The connections to an endpoint, opened with the ``openai`` package.

https://api.openai.com/v1                                            -> the plain client, Authorization: Bearer KEY
https://NAME.openai.azure.com/openai/v1/                             -> the same: Azure's newer form is OpenAI's
https://NAME.openai.azure.com?api-version=2024-10-21                 -> Azure's client, api-key: KEY, the model is the
https://NAME.openai.azure.com/openai/deployments/D?api-version=...      deployment unless the address names one
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from raft.errors import EndpointError

CALLS_PER_CLIENT = 16  # a client looks through all its connections at every call: few each, many clients
CONNECT_SECONDS = 30.0
SHORTEST_SECRET = 6  # characters
SPARE_FILES = 128  # open files besides the connections: models, journals, pipes


@dataclass(frozen=True)
class Endpoint:
    """An address with its key. ``base_url`` may carry a query, which goes with every call."""

    base_url: str
    api_key_env: str
    timeout_seconds: float

    @cached_property
    def shown(self) -> str:
        """The address without the user, password and query that it may carry."""
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @cached_property
    def _query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.base_url).query))

    @property
    def _key(self) -> str:
        return os.environ.get(self.api_key_env, "").strip()

    @property
    def secrets(self) -> list[str]:
        """What no message may repeat, the longest first. Shorter words would be struck out of innocent sentences."""
        others = [value for name, value in self._query.items() if name != "api-version"]
        held = {self._key, urlsplit(self.base_url).password or "", *others}
        return sorted((secret for secret in held if len(secret) >= SHORTEST_SECRET), key=len, reverse=True)

    def open(self, max_retries: int) -> Any:
        """A client for one thread, to be closed."""
        import openai

        kind, settings = (openai.AzureOpenAI if self._is_azure else openai.OpenAI), self._settings()
        return kind(**settings, timeout=self.timeout_seconds, max_retries=max_retries)

    def open_async(self, context: Any) -> Any:
        """A client for CALLS_PER_CLIENT calls at once that never asks again by itself and sets no deadline to an
        answer: the caller does both. ``context`` is the TLS context of all clients, whose loading takes long."""
        import openai

        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
            max_connections=CALLS_PER_CLIENT, max_keepalive_connections=CALLS_PER_CLIENT
        )
        timeout = openai.Timeout(None, connect=min(CONNECT_SECONDS, self.timeout_seconds))
        kind = openai.AsyncAzureOpenAI if self._is_azure else openai.AsyncOpenAI
        http = openai.DefaultAsyncHttpxClient(limits=limits, timeout=timeout, verify=context)
        return kind(**self._settings(), timeout=timeout, max_retries=0, http_client=http)

    @property
    def _is_azure(self) -> bool:
        return "api-version" in self._query and not urlsplit(self.base_url).path.rstrip("/").endswith("/v1")

    def _settings(self) -> dict[str, Any]:
        if not self._key.isascii():
            raise EndpointError(
                f"the key in {self.api_key_env} has characters other than ASCII, which no endpoint takes",
                f"Set {self.api_key_env} to the key as it was given",
            )
        parts = urlsplit(self.base_url)
        query, path = dict(self._query), parts.path
        settings: dict[str, Any] = {"api_key": self._key or "none"}
        if self._is_azure:
            settings["api_version"] = query.pop("api-version")
            path = path if path.strip("/") else "/openai"
        return {**settings, "base_url": urlunsplit(parts._replace(path=path, query="")), "default_query": query}


class Lanes:
    """The clients of ``most`` calls at once, opened as they are needed. Use from one event loop."""

    def __init__(self, endpoint: Endpoint, most: int) -> None:
        allow_open_files(most)
        self._endpoint = endpoint
        self._free = list(reversed(range(most)))
        self._clients: list[Any] = []
        self._context: Any = None

    def take(self) -> tuple[int, Any]:
        """(lane, its client): the lane used last, so that few connections serve few calls. Give it back."""
        lane = self._free.pop()
        while len(self._clients) <= lane // CALLS_PER_CLIENT:
            self._context = self._context or http_library().create_ssl_context()
            self._clients.append(self._endpoint.open_async(self._context))
        return lane, self._clients[lane // CALLS_PER_CLIENT]

    def give_back(self, lane: int) -> None:
        self._free.append(lane)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def http_library() -> Any:
    """httpx or httpx2, whichever this ``openai`` uses."""
    import openai

    return sys.modules[type(openai.DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0]]


def allow_open_files(connections: int) -> None:
    """Raises this process's limit of open files where ``connections`` need it. Raises EndpointError when the
    system's own limit is lower."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_FILES
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise EndpointError(
            f"{connections} calls at once need {needed} open files, and this system allows {hard}",
            f"Lower the concurrency to {max(1, hard - SPARE_FILES)} or raise the limit (ulimit -Hn)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
