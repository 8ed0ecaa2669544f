"""Addresses, keys, and the open files that many connections need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raft.errors import EndpointError
from raft.llm.endpoint_client import SPARE_FILES, Endpoint, allow_open_files, proxy_of
from tests.llm.stub import EVENTS, model_of, ok, request, sse

resource = pytest.importorskip("resource")


def endpoint(base_url: str) -> Endpoint:
    return Endpoint(base_url, "RAFT_TEST_KEY", 5.0)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("?api-version=2024-10-21", "/openai/deployments/stub/chat/completions?api-version=2024-10-21"),
        ("/openai/?api-version=1", "/openai/deployments/stub/chat/completions?api-version=1"),
        ("/openai/deployments/mine?api-version=1", "/openai/deployments/mine/chat/completions?api-version=1"),
    ],
)
def test_azure_is_asked_in_its_own_way(serve, monkeypatch, address, path):
    monkeypatch.setenv("RAFT_TEST_KEY", "sk-12345678")
    stub = serve(ok)
    model = model_of(stub, stub.url.removesuffix("/v1") + address)
    assert [r.text for r in model.complete([request("a")])] == ["about a"]
    stub.behave = lambda word, nth: (200, {"Content-Type": "text/event-stream"}, sse({"choices": [PIECE]}))
    assert "".join(model.stream(request("a"))) == "12 mg"
    assert stub.paths == [path] * 2
    assert [headers["api-key"] for headers in stub.headers] == ["sk-12345678"] * 2


PIECE = {"index": 0, "delta": {"content": "12 mg"}, "finish_reason": "stop"}


@pytest.mark.parametrize("query", ["", "?api-version=preview", "?team=a"])
def test_every_other_address_is_asked_in_openais_way_with_its_query(serve, query):
    stub = serve(ok)
    list(model_of(stub, f"{stub.url}/{query}").complete([request("a")]))
    assert stub.paths == [f"/v1/chat/completions{query}"]
    assert stub.keys == {"Bearer none"}


def test_an_address_that_holds_user_and_password_is_asked_with_them(serve):
    stub = serve(ok)
    list(model_of(stub, stub.url.replace("://", "://me:p%C3%A4ss@")).complete([request("a")]))
    assert stub.keys == {"Basic bWU6cMOkc3M="}  # "me:päss" in UTF-8


def test_the_organisation_of_the_key_goes_with_every_call(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-ward")
    stub = serve(ok)
    list(model_of(stub).complete([request("a")]))
    assert stub.headers[0]["OpenAI-Organization"] == "org-ward"


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_calls_go_through_the_proxy_of_the_environment(serve, monkeypatch, name):
    stub = serve(ok)
    monkeypatch.setenv(name, stub.url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    asked = list(model_of(stub, "http://teacher.invalid/v1").complete([request("a")]))
    assert ([reply.text for reply in asked], stub.paths) == (
        ["about a"], ["http://teacher.invalid/v1/chat/completions"]
    )  # fmt: skip
    monkeypatch.setenv("no_proxy", "teacher.invalid")
    with pytest.raises(EndpointError, match="cannot be reached"):
        list(model_of(stub, "http://teacher.invalid/v1", max_retries=0).complete([request("a")]))


def test_a_proxy_never_sees_the_key(serve, monkeypatch):
    monkeypatch.setenv("RAFT_TEST_KEY", "sk-12345678")
    stub = serve(ok)
    monkeypatch.setenv("https_proxy", stub.url.removesuffix("/v1").replace("://", "://me:p%40ssword@"))
    monkeypatch.delenv("no_proxy", raising=False)
    for base_url in ("https://teacher.invalid/v1", "https://teacher.invalid?api-version=1"):
        with pytest.raises(EndpointError, match=r"cannot be reached .*407") as caught:
            list(model_of(stub, base_url, max_retries=0).complete([request("a")]))
        assert "ssword" not in str(caught.value)
    said = [value for headers in stub.headers for value in headers.values()]
    assert len(stub.headers) == 2
    assert not [value for value in said if "sk-12345678" in value]


@pytest.mark.parametrize(
    ("proxies", "url", "proxy"),
    [
        ({}, "http://10.1.2.3/v1", None),
        ({"http_proxy": "here:3128"}, "http://10.1.2.3/v1", "http://here:3128"),
        ({"http_proxy": "here:3128"}, "https://10.1.2.3/v1", None),
        ({"http_proxy": "here:3128", "no_proxy": "a, 10.0.0.0/8"}, "http://10.1.2.3/v1", None),
        ({"http_proxy": "here:3128", "no_proxy": "11.0.0.0/8"}, "http://10.1.2.3/v1", "http://here:3128"),
        ({"http_proxy": "here:3128", "no_proxy": "host:81,host:80"}, "http://host:80/v1", None),
    ],
)
def test_which_proxy_an_address_takes(monkeypatch, proxies, url, proxy):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == proxy


def test_a_proxy_of_another_kind_is_refused_before_anything_is_sent(monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1080")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(EndpointError, match=r"a proxy by socks5://.*NO_PROXY"):
        proxy_of("ftp://teacher.invalid/v1")


def test_the_key_of_azure_follows_no_redirect(serve, monkeypatch):
    monkeypatch.setenv("RAFT_TEST_KEY", "sk-12345678")
    elsewhere = serve(ok)
    stub = serve(lambda word, nth: (307, {"Location": f"{elsewhere.url}/chat/completions"}, {}))
    [reply] = model_of(stub, stub.url.removesuffix("/v1") + "?api-version=1", max_retries=0).complete([request("a")])
    assert reply.error
    assert elsewhere.headers == []
    [reply] = model_of(stub).complete([request("a")])
    assert reply.text == "about a"
    assert "Authorization" not in elsewhere.headers[0]


def test_no_cookie_ties_all_calls_to_one_server(serve):
    stub = serve(lambda word, nth: (200, {"Set-Cookie": "route=pod1"}, ok(word, nth)[2]))
    model = model_of(stub, stub.url.replace("127.0.0.1", "localhost"), concurrency=1)
    list(model.complete(map(request, "abc")))
    stub.behave = lambda word, nth: (200, {"Set-Cookie": "route=pod1", **EVENTS}, sse({"choices": [PIECE]}))
    for word in "abc":
        list(model.stream(request(word)))
    assert len(stub.headers) == 6
    assert not [headers for headers in stub.headers if "Cookie" in headers]


@pytest.mark.parametrize(
    ("base_url", "said"),
    [
        ("http://a..b/v1", "it is no http:// or https:// address"),
        ("localhost:8000/v1", "it is no http:// or https:// address"),
        ("ftp://host/v1", "it is no http:// or https:// address"),
        ("http://127.0.0.1:9/v1", "127.0.0.1"),
        ("http://teacher.invalid/v1", "not known|resolution"),
    ],
)
def test_an_address_where_nobody_answers_is_one_clear_line(serve, base_url, said):
    with pytest.raises(EndpointError, match=f"cannot be reached .*({said})"):
        list(model_of(serve(ok), base_url, max_retries=0).complete([request("a")]))


def test_all_calls_and_streams_send_the_same_beside_what_names_the_client(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-ward")
    stub = serve(ok)
    model = model_of(stub, f"{stub.url}?team=a")
    list(model.complete([request("a")]))
    stub.behave = lambda word, nth: (200, {"Content-Type": "text/event-stream"}, sse({"choices": [PIECE]}))
    list(model.stream(request("a")))
    once, streamed = (
        {name.lower(): value for name, value in headers.items() if not name.lower().startswith("x-stainless")}
        for headers in stub.headers
    )
    of_client = {"user-agent", "accept-encoding", "connection", "content-length"}
    assert {k: v for k, v in once.items() if k not in of_client} == {
        k: v for k, v in streamed.items() if k not in of_client
    }
    assert stub.paths[0] == stub.paths[1]


def test_what_is_shown_of_an_address_and_what_is_never_shown(monkeypatch):
    monkeypatch.setenv("RAFT_TEST_KEY", " sk-12345678\n")
    address = endpoint("https://me:password@host:8000/v1?token=abcdefgh&api-version=2024-10-21&n=1")
    assert address.shown == "https://host:8000/v1"
    assert sorted(address.secrets) == ["abcdefgh", "password", "sk-12345678"]


def test_neither_key_nor_address_secrets_stand_in_an_error(serve, monkeypatch):
    monkeypatch.setenv("RAFT_TEST_KEY", "sk-12345678")

    def behave(word, nth):
        return int(word), {}, {"error": {"message": f"bad: {stub.headers[-1]['Authorization']} at {stub.paths[-1]}"}}

    stub = serve(behave)
    model = model_of(stub, f"{stub.url}?token=abcdefgh", max_retries=0)
    said = [reply.error for reply in model.complete([request("400"), request("500")])]
    for status in ("401", "404", "429", "402"):
        with pytest.raises(EndpointError) as caught:
            list(model.complete([request(status)]))
        said.append(str(caught.value))
    with pytest.raises(EndpointError) as caught:
        list(model.stream(request("429")))
    assert len(said) == 6
    assert not [line for line in [*said, str(caught.value)] if "12345678" in line or "abcdefgh" in line]
    assert "***" in said[0]


@pytest.mark.parametrize("key", ["sk-ключ", "sk-abc\ndefghi"])
def test_a_key_that_no_header_can_carry_is_one_clear_line(serve, monkeypatch, key):
    monkeypatch.setenv("RAFT_TEST_KEY", key)
    with pytest.raises(EndpointError, match="RAFT_TEST_KEY has characters other than printable ASCII"):
        list(model_of(serve(ok)).complete([request("a")]))


def test_the_limit_of_open_files_is_raised_where_it_is_too_low():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 600:
        pytest.skip("this system allows too few open files")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        allow_open_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        allow_open_files(400)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (400 + SPARE_FILES, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_connections_than_the_system_allows_are_refused_before_any_is_opened():
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))\n"
        "from raft.llm.openai_compatible import OpenAICompatibleModel\n"
        "list(OpenAICompatibleModel('m', 'http://127.0.0.1:9/v1', concurrency=2000).complete([]))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"2000 calls at once need {2000 + SPARE_FILES} open files, and this system allows 300" in run.stderr
    assert "Lower the concurrency to 172" in run.stderr
