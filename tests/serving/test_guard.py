"""Who is let in: keys over a real socket, limits of each key, pages of other hosts."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
from pathlib import Path

import httpx
import openai
import pytest
from fastapi import HTTPException
from live import ANSWERED, MemoryIndex, scripted, serving
from starlette.requests import Request

from raft.errors import UsageError
from raft.serving.guard import API_KEY_ENV, Guard, check_host, check_origins
from raft.serving.keys import LOCAL, Caller, KeyFile, add_key, revoke_key

ASK = [{"role": "user", "content": "What is the first dose of Corvalexin?"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


def request(authorization: bytes | None = None, host: str = "example.org") -> Request:
    headers = [(b"host", host.encode())]
    if authorization is not None:
        headers.append((b"authorization", authorization))
    return Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers,
                    "scheme": "http", "server": ("0.0.0.0", 80)})  # fmt: skip


def expire(path: Path, name: str) -> None:
    """Put the day on which a key expires into the past."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | {"expires": "2020-01-01"} if row["name"] == name else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_key_says_who_asks_and_what_they_hold(path: Path) -> None:
    ward = add_key(path, "ward", labels=["icu", "ward"], requests_per_minute=7)
    open_documents = add_key(path, "open")
    guard = Guard("from-the-environment", KeyFile(path))
    assert guard.caller_of(request(f"Bearer {ward}".encode())) == Caller("ward", frozenset({"icu", "ward"}), 7)
    assert guard.caller_of(request(f"bearer  {open_documents} ".encode())) == Caller("open", frozenset())
    assert guard.caller_of(request(b"Bearer from-the-environment")) == Caller(API_KEY_ENV)  # all that the server holds
    assert Guard().caller_of(request(host="localhost")) == LOCAL


def test_refused_keys_are_all_told_the_same(path: Path) -> None:
    good, expired, revoked = (add_key(path, name) for name in ("good", "expired", "revoked"))
    expire(path, "expired")
    revoke_key(path, "revoked")
    [key_hash] = [row["hash"] for row in map(json.loads, path.read_text().splitlines()) if row["name"] == "good"]
    assert key_hash == hashlib.sha256(good.encode()).hexdigest()
    wrong = [
        expired, revoked, key_hash, good[:-1], good + "x", good.upper(), "raft-good-", "\xff\xfe", "x" * 5000, "null",
    ]  # fmt: skip
    given = [
        None, b"", b"Bearer", f"Basic {good}".encode(), good.encode(),
        f"Bearer {good} {good}".encode(), *(b"Bearer " + secret.encode("latin-1") for secret in wrong),
    ]  # fmt: skip
    with serving(scripted(), guard=Guard(None, KeyFile(path))) as server:
        answers = []
        for authorization in given:
            headers = {} if authorization is None else {b"Authorization": authorization}
            response = httpx.get(f"{server}/v1/models", headers=headers)
            kept = {name: value for name, value in response.headers.items() if name != "date"}
            answers.append((response.status_code, response.text, kept))
        assert {answer[0] for answer in answers} == {401}
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][2]["www-authenticate"] == "Bearer"
        assert json.loads(answers[0][1])["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{server}/v1/models", headers={"Authorization": f"Bearer {good}"}).status_code == 200


def test_a_server_without_any_key_in_its_file_lets_nobody_in(path: Path) -> None:
    add_key(path, "a")
    revoke_key(path, "a")
    with serving(scripted(), guard=Guard(None, KeyFile(path))) as server:
        assert httpx.get(f"{server}/v1/models").status_code == 401
        assert httpx.get(f"{server}/v1/models", headers={"Authorization": "Bearer"}).status_code == 401
        guard = Guard("own", KeyFile(path))
        for nothing in (b"Bearer ", b"Bearer  ", b" ", b"\t"):  # which this client would not send
            with pytest.raises(HTTPException, match="401"):
                guard.caller_of(request(nothing))


def test_the_stock_client_with_a_key_and_a_key_that_is_revoked_meanwhile(path: Path) -> None:
    key = add_key(path, "a")
    add_key(path, "b")
    clock = [0.0]
    with serving(scripted(), guard=Guard(None, KeyFile(path, lambda: clock[0]))) as server:
        client = openai.OpenAI(base_url=f"{server}/v1", api_key=key, max_retries=0, timeout=30)
        assert client.chat.completions.create(model="raft", messages=ASK).choices[0].message.content == ANSWERED
        revoke_key(path, "a")
        clock[0] += 1
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="raft", messages=ASK)


def test_the_labels_of_a_key_reach_the_search(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    search = MemoryIndex.search
    monkeypatch.setattr(
        MemoryIndex, "search", lambda self, queries, k, mode, where: seen.append(where) or search(self, queries, k)
    )
    ward, plain = add_key(path, "ward", labels=["icu"]), add_key(path, "plain")
    with serving(scripted(), guard=Guard("own", KeyFile(path))) as server:
        for key in (ward, plain, "own"):
            headers = {"Authorization": f"Bearer {key}"}
            for path_, body in (("search", {"query": "x"}), ("chat/completions", {"model": "raft", "messages": ASK})):
                assert httpx.post(f"{server}/v1/{path_}", json=body, headers=headers).status_code == 200
    assert [where.labels for where in seen] == [frozenset({"icu"})] * 2 + [frozenset()] * 2 + [None] * 2


# --- how often


def test_each_key_has_its_own_limit_and_is_told_what_is_left(path: Path) -> None:
    few, usual = add_key(path, "few", requests_per_minute=2), add_key(path, "usual")
    with serving(scripted(), guard=Guard("own", KeyFile(path), requests_per_minute=3)) as server:

        def ask(key: str) -> httpx.Response:
            return httpx.get(f"{server}/v1/models", headers={"Authorization": f"Bearer {key}"})

        assert [ask(few).headers["x-ratelimit-remaining-requests"] for _ in range(2)] == ["1", "0"]
        refused = ask(few)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-limit-requests"] == "2"
        assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
        for key in (usual, "own"):
            assert [ask(key).status_code for _ in range(4)] == [200, 200, 200, 429]
        client = openai.OpenAI(base_url=f"{server}/v1", api_key=few, max_retries=0, timeout=30)
        with pytest.raises(openai.RateLimitError, match="may send 2 requests a minute"):
            client.chat.completions.create(model="raft", messages=ASK)


def test_requests_without_a_valid_key_take_nothing_from_anybody(path: Path) -> None:
    key = add_key(path, "a", requests_per_minute=1)
    with serving(scripted(), guard=Guard(None, KeyFile(path))) as server:
        for _ in range(5):
            assert httpx.get(f"{server}/v1/models", headers={"Authorization": "Bearer raft-a-x"}).status_code == 401
        assert httpx.get(f"{server}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_a_server_without_keys_may_have_a_limit_too() -> None:
    with serving(scripted(), guard=Guard(requests_per_minute=1)) as server:
        assert [httpx.get(f"{server}/v1/models").status_code for _ in range(2)] == [200, 429]


def test_without_a_limit_there_are_no_limits_in_the_headers(server: str) -> None:
    assert not [name for name in httpx.get(f"{server}/v1/models").headers if "ratelimit" in name]


# --- addresses and pages


def test_hosts_that_need_keys() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        check_host(host, None, Path("keys.jsonl"))
        check_host(host, "k" * 16, None)
        with pytest.raises(UsageError, match="has 15 characters"):
            check_host(host, "k" * 15, Path("keys.jsonl"))
        with pytest.raises(UsageError, match="raft keys add"):
            check_host(host, None, None)


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example", b"a{b.evil.example:%d", b'a"b.evil.example:%d', b"a`b.evil.example:%d", b"a{b.evil.example",
        b"", b":%d", b"[::1", b"[::1:%d", b"\xff.evil.example:%d", "löcalhost:%d".encode(), b"0.0.0.0:%d",
        b"evil.example#@localhost", b"localhost@evil.example:%d", b"localhost.evil.example:%d", b"/localhost",
        b"evil.example:%d@localhost", b"127.0.0.1 evil.example", b"evil.example:%d/localhost",
    ],
)  # fmt: skip
def test_whatever_else_a_host_header_holds_it_is_not_this_machine(server: str, host: bytes) -> None:
    """A page that points its own name at 127.0.0.1 chooses that name, malformed ones too."""
    address, port = server.removeprefix("http://").split(":")
    with socket.create_connection((address, int(port)), timeout=20) as line:
        named = host.replace(b"%d", port.encode())
        line.sendall(b"GET /v1/models HTTP/1.1\r\nHost: " + named + b"\r\nConnection: close\r\n\r\n")
        assert line.recv(65536).split()[1] == b"403"


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8011", "127.0.0.1:8011", "127.3.2.1", "[::1]", "[::1]:8011"])
def test_the_names_of_this_machine(host: str) -> None:
    assert Guard().caller_of(request(host=host)) == LOCAL


def test_origins_that_no_browser_sends_are_refused() -> None:
    check_origins(("https://intranet.example", "http://localhost:3000"), has_keys=False)
    check_origins(("*",), has_keys=True)
    with pytest.raises(UsageError, match=r"no key protects"):
        check_origins(("*",), has_keys=False)
    for wrong in ("https://intranet.example/", "intranet.example", "https://*.example", "null", "https://a b", ""):
        with pytest.raises(UsageError, match="scheme and host alone"):
            check_origins((wrong,), has_keys=True)


def test_pages_of_other_hosts_may_not_call_unless_they_are_named(server: str) -> None:
    asks = {"Origin": "https://intranet.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{server}/v1/chat/completions", headers=asks).status_code == 405
    response = httpx.get(f"{server}/v1/models", headers={"Origin": "https://intranet.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_named_pages_may_call_and_no_others() -> None:
    ours, foreign = "https://intranet.example", "https://evil.example"
    with serving(scripted(), cors_origins=(ours,)) as server:
        for origin, allowed in ((ours, True), (foreign, False), (ours + ".evil.example", False), ("null", False)):
            asks = {
                "Origin": origin, "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
            }  # fmt: skip
            preflight = httpx.options(f"{server}/v1/chat/completions", headers=asks)
            plain = httpx.get(f"{server}/v1/models", headers={"Origin": origin})
            assert preflight.status_code == (200 if allowed else 400)
            for response in (preflight, plain):
                assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)
                assert "access-control-allow-credentials" not in response.headers
                assert response.headers["x-content-type-options"] == "nosniff"
        # whoever calls: without keys this server is reached as localhost only
        rebound = httpx.get(f"{server}/v1/models", headers={"Origin": ours, "Host": "evil.example"})
        assert rebound.status_code == 403


def test_a_named_page_reads_why_it_was_refused(path: Path) -> None:
    add_key(path, "a")
    with serving(scripted(), guard=Guard(None, KeyFile(path)), cors_origins=("https://a.example",)) as server:
        refused = httpx.get(f"{server}/v1/models", headers={"Origin": "https://a.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"


def test_refusals_are_logged_without_what_was_given(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = add_key(path, "a", requests_per_minute=1)
    caplog.set_level(logging.INFO, "raft.serving")
    with serving(scripted(), guard=Guard(None, KeyFile(path))) as server:
        httpx.get(f"{server}/v1/models?x=1", headers={"Authorization": "Bearer guessed"})
        for _ in range(2):
            httpx.get(f"{server}/v1/models", headers={"Authorization": f"Bearer {key}"})
    told = [record.fields for record in caplog.records if record.getMessage() == "request refused"]
    assert [(row["status"], row["path"], row["caller"]) for row in told] == [
        (401, "/v1/models", None), (429, "/v1/models", "a"),
    ]  # fmt: skip
    assert "guessed" not in caplog.text
    assert key not in caplog.text
