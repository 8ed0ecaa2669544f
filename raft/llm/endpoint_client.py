"""The connections to an endpoint: ``openai`` for a stream, ``aiohttp`` for thousands of calls at once.

openai's client needs several times the computing for a call that aiohttp does, and while a teacher answers that is most
of what there is to do.

https://api.openai.com/v1                                            -> the plain client, Authorization: Bearer KEY
https://NAME.openai.azure.com/openai/v1/                             -> the same: Azure's newer form is OpenAI's
https://NAME.openai.azure.com?api-version=2024-10-21                 -> Azure's client, api-key: KEY, the model is the
https://NAME.openai.azure.com/openai/deployments/D?api-version=...      deployment unless the address names one
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from raft.errors import EndpointError
from raft.llm.endpoint_errors import StatusError

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 30.0
KEPT_SECONDS = 5.0  # an idle connection; many servers close theirs after so long
SHORTEST_SECRET = 6  # characters
_OF_ACCOUNT = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
_LONGEST_HEADER = 65536  # bytes
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
        """A client for one event loop, to be closed on it."""
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import openai

        kind, settings = (openai.AsyncAzureOpenAI if self._is_azure else openai.AsyncOpenAI), self._settings()
        none = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # a balancer's would send all calls to one server
        connections = openai.DefaultAsyncHttpxClient(cookies=none)
        return kind(**settings, timeout=self.timeout_seconds, max_retries=max_retries, http_client=connections)

    def request(self, model: str) -> tuple[str, dict[str, str]]:
        """Where a chat completion of ``model`` is asked for, query and all, and the headers that go with it: what
        ``openai`` would send, whose import takes longer than many a call."""
        settings = self._settings()
        address, query = urlsplit(settings["base_url"]), settings["default_query"]
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        headers |= {name: os.environ[env] for name, env in _OF_ACCOUNT.items() if os.environ.get(env)}
        path = address.path.rstrip("/")
        if self._is_azure:
            headers["api-key"] = settings["api_key"]
            query = {"api-version": settings["api_version"], **query}
            path += "" if "/deployments" in path else f"/deployments/{quote(model, safe='')}"
        elif address.username or address.password:  # such an address says by itself who asks
            headers["Authorization"] = _basic(unquote(address.username or ""), unquote(address.password or ""))
        else:
            headers["Authorization"] = f"Bearer {settings['api_key']}"
        place = address.netloc.rpartition("@")[2]
        return urlunsplit((address.scheme, place, f"{path}/chat/completions", urlencode(query), "")), headers

    @property
    def _is_azure(self) -> bool:
        return "api-version" in self._query and not urlsplit(self.base_url).path.rstrip("/").endswith("/v1")

    def _settings(self) -> dict[str, Any]:
        if not self._key.isascii() or not (self._key or "none").isprintable():
            raise EndpointError(
                f"the key in {self.api_key_env} has characters other than printable ASCII, which no endpoint takes",
                f"Set {self.api_key_env} to the key as it was given",
            )
        parts = urlsplit(self.base_url)
        query, path = dict(self._query), parts.path
        settings: dict[str, Any] = {"api_key": self._key or "none"}
        if self._is_azure:
            settings["api_version"] = query.pop("api-version")
            path = path if path.strip("/") else "/openai"
        return {**settings, "base_url": urlunsplit(parts._replace(path=path, query="")), "default_query": query}


class Connections:
    """Up to ``most`` connections, opened as they are needed and used again. Use from one event loop."""

    def __init__(self, endpoint: Endpoint, model: str, most: int) -> None:
        allow_open_files(most)
        self._endpoint = endpoint
        self._model = model
        self._most = most
        self._session: aiohttp.ClientSession | None = None
        self._url = ""
        self._headers: dict[str, str] = {}
        self._proxy: str | None = None

    async def post(self, call: Mapping[str, Any]) -> Any:
        """The JSON body of the answer. Raises StatusError for a status of a refusal, aiohttp's ClientError for an
        address or a connection that fails, ValueError for a body that is no JSON. There is no deadline but to connect.
        """
        import aiohttp

        if self._session is None:
            self._session = self._open()
        redirects = "api-key" not in self._headers  # aiohttp takes only Authorization from what goes elsewhere
        try:
            # not the session's headers: those would go to a proxy too
            answering = self._session.post(
                self._url, data=json.dumps(call).encode(), headers=self._headers, proxy=self._proxy,
                allow_redirects=redirects,
            )  # fmt: skip
            async with answering as answer:
                body = await answer.read()
        except aiohttp.ClientError:  # some of which are ValueErrors as well
            raise
        except ValueError as error:
            raise aiohttp.InvalidURL(self._endpoint.shown) from error
        if answer.status >= 300:
            raise StatusError(answer.status, body.decode(errors="replace"), answer.headers)
        return json.loads(body)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        self._url, self._headers = self._endpoint.request(self._model)
        self._proxy = proxy_of(self._url)
        trust: Any = _trust() if self._url.startswith("https:") or (self._proxy or "").startswith("https:") else True
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_SECONDS, self._endpoint.timeout_seconds))
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._most, keepalive_timeout=KEPT_SECONDS, ssl=trust),
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),  # a balancer's cookie would send all calls to one server
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _trust() -> ssl.SSLContext:
    """The system's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR; certifi's where the system has none.
    Raises EndpointError when they cannot be read."""
    import certifi

    try:
        context = ssl.create_default_context()
        if not os.environ.get("SSL_CERT_FILE") and not context.cert_store_stats()["x509_ca"]:
            context.load_verify_locations(certifi.where())
    except OSError as error:
        raise EndpointError(f"the certificates cannot be read ({error})", "Check SSL_CERT_FILE") from None
    return context


def proxy_of(url: str) -> str | None:
    """The proxy that the environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY) or the system names for an
    address. Raises EndpointError for a kind of proxy other than HTTP."""
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or parts.hostname is None or _goes_direct(parts.hostname, parts.netloc, proxies.get("no", "")):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise EndpointError(
            f"the environment names a proxy by {urlsplit(proxy).scheme}://, and many calls at once need one by http://",
            "Set HTTPS_PROXY to an HTTP proxy, or NO_PROXY to the endpoint's host",
        )
    return proxy


def _goes_direct(host: str, place: str, exceptions: str) -> bool:
    """By name (python's own rule), by name and port, or by a range of addresses (10.0.0.0/8)."""
    if urllib.request.proxy_bypass(host) or place.rpartition("@")[2] in exceptions.replace(" ", "").split(","):
        return True
    for entry in filter(lambda each: "/" in each, exceptions.split(",")):
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip(), strict=False):
                return True
    return False


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
