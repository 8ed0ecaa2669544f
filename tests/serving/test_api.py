"""The endpoint over a real socket, with the stock openai client."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Generator

import httpx
import openai
import pytest
from live import ANSWERED, DOSES, HOSTILE, DrippingModel, scripted, serving

from raft.errors import EndpointError, UsageError
from raft.llm.chat import ChatReply, ChatRequest, PromptTooLong
from raft.llm.local import LocalModel
from raft.llm.scripted import ScriptedModel
from raft.models import load_language_model
from raft.records import Document
from raft.serving.guard import check_host
from raft.serving.middleware import MAX_BODY_BYTES, SECURE_HEADERS
from raft.serving.schema import MAX_QUESTION_CHARACTERS

ASK = [{"role": "user", "content": "What is the first dose of Corvalexin?"}]


def client(server: str, **settings: object) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=30, **settings)


def ask(server: str, **settings: object):
    return client(server).chat.completions.create(**{"model": "raft", "messages": ASK, **settings})


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_completion_for_the_stock_client(server: str) -> None:
    completion = ask(server)
    choice = completion.choices[0]
    assert choice.message.content == ANSWERED
    assert choice.finish_reason == "stop"
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens > 0
    [annotation] = choice.message.annotations
    assert annotation.type == "url_citation"
    cited = annotation.url_citation
    assert choice.message.content[cited.start_index : cited.end_index] == "Adults start with 12 mg by mouth."
    assert cited.title == "Corvalexin, Dosing"
    assert cited.url == "raft:formulary/corvalexin.md#char=15,48"


def test_completion_carries_the_raft_object(server: str) -> None:
    raft = ask(server).raft
    assert {key: raft[key] for key in ("version", "answer", "abstained", "unverified_quotes")} == {
        "version": 1, "answer": "12 mg", "abstained": False, "unverified_quotes": 0,
    }  # fmt: skip
    [citation] = raft["citations"]
    assert DOSES.text[citation["start"] : citation["end"]] == citation["quote"]
    assert ANSWERED[citation["text_start"] : citation["text_end"]] == citation["quote"]
    assert [d["rank"] for d in raft["documents"]] == [1, 2, 3]
    assert raft["documents"][0]["text"] == DOSES.text[raft["documents"][0]["start"] : raft["documents"][0]["end"]]
    assert raft["documents"][1]["page"] == 3
    assert raft["documents"][2]["text"] == HOSTILE.text  # sent as data, letter for letter


def test_stream_for_the_stock_client_equals_the_whole(server: str) -> None:
    whole = ask(server)
    chunks = list(ask(server, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].raft == whole.raft
    assert [a["url_citation"] for a in chunks[-1].choices[0].delta.annotations] == [
        a.url_citation.model_dump() for a in whole.choices[0].message.annotations
    ]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage_ends_as_openai_ends_it(server: str) -> None:
    chunks = list(ask(server, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == ask(server).usage
    assert chunks[-1].raft["answer"] == "12 mg"
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_usage_tells_how_much_of_the_prompt_was_at_hand() -> None:
    class Warm(ScriptedModel):
        def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
            yield ANSWERED
            return ChatReply(request.key, ANSWERED, 388, 41, cached_tokens=320)

    with serving(Warm(lambda request: "")) as server:
        usage = ask(server).usage
        assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (388, 256)  # in steps of 128
        assert list(ask(server, stream=True, stream_options={"include_usage": True}))[-1].usage == usage


def test_stream_on_the_wire_ends_with_done(server: str) -> None:
    response = httpx.post(
        f"{server}/v1/chat/completions", json={"model": "raft", "messages": ASK, "stream": True}, timeout=30
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert "raft" in json.loads(events[-3].removeprefix("data: "))
    assert "0.123456" not in response.text  # a score stays on the server


def test_of_a_conversation_only_questions_and_final_answers_reach_the_model() -> None:
    model = scripted()
    history = [
        {"role": "system", "content": "Be a pirate."},
        {"role": "user", "content": "Which medicine?"},
        {"role": "assistant", "content": "It says ##begin_quote##secret##end_quote##.\n<ANSWER>: Corvalexin"},
        {"role": "tool", "content": "parrot", "tool_call_id": "1"},
        {"role": "user", "content": [{"type": "text", "text": "Which dose?"}]},
    ]
    with serving(model) as server:
        completion = ask(
            server, messages=history, temperature=0.7, user="someone", extra_body={"top_k": 1, "unheard_of": True}
        )
    [request] = model.requests
    prompt = "\n".join(message.content for message in request.messages)
    assert prompt.endswith("Question: Which medicine? (Corvalexin) Which dose?")
    assert not any(word in prompt for word in ("pirate", "secret", "parrot", "Document [2]"))
    assert completion.raft["query"] == "Which medicine? Which dose? Which dose?"


def test_abstention_is_an_answer() -> None:
    with serving(scripted("None of the documents holds the answer.\n<ANSWER>: not in the documents")) as server:
        completion = ask(server)
        assert completion.raft["abstained"] is True
        assert completion.raft["citations"] == completion.choices[0].message.annotations == []


def test_a_forged_quote_is_no_citation() -> None:
    with serving(scripted("[1] ##begin_quote##Adults start with 90 mg.##end_quote##\n<ANSWER>: 90 mg")) as server:
        completion = ask(server)
        assert completion.raft["citations"] == completion.choices[0].message.annotations == []
        assert completion.raft["unverified_quotes"] == 1


def test_models_and_search(server: str) -> None:
    assert [model.id for model in client(server).models.list()] == ["raft"]
    found = httpx.post(f"{server}/v1/search", json={"query": "dose", "top_k": 2}).json()
    assert [d["document_id"] for d in found["data"]] == ["formulary/corvalexin.md", "storage.pdf"]
    assert set(found["data"][0]) == {
        "id", "document_id", "title", "headings", "page", "start", "end", "text", "rank",
    }  # fmt: skip


def test_unknown_model(server: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(server, model="gpt-4o")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "expected a question"),
        ({"messages": [{"role": "system", "content": "x"}]}, "expected a question"),
        ({"messages": [{"role": "user", "content": "x" * (MAX_QUESTION_CHARACTERS + 1)}]}, "at most 4000"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "text"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"extra_body": {"top_k": 100000}}, "top_k"),
        ({"stream": True, "messages": []}, "messages"),
    ],
)
def test_bad_requests_are_400_in_openai_form(server: str, wrong: dict, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, **wrong)
    assert says in caught.value.body["message"]
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/search", 405),
        ("GET", "/static/../api.py", 404),
        ("POST", "/v1/search", 400),
    ],
)
def test_every_error_has_the_same_form(server: str, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{server}{path}", content=b"{")
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_every_response_has_the_secure_headers(server: str) -> None:
    for path in ("/", "/static/app.js", "/healthz", "/v1/models", "/v1/nothing"):
        headers = httpx.get(f"{server}{path}").headers
        assert {name: headers[name] for name in SECURE_HEADERS} == SECURE_HEADERS


def test_a_failing_model_is_an_error_without_details() -> None:
    def fail(request: ChatRequest) -> str:
        raise EndpointError("http://secret:9/ is gone")

    with serving(scripted(fail)) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(server)
        assert caught.value.status_code == 502
        assert "secret" not in str(caught.value.body)


def test_a_model_that_fails_midway_ends_the_stream_with_an_error() -> None:
    model = scripted()

    def breaking(request: ChatRequest) -> Generator[str, None, None]:
        yield "Some "
        raise EndpointError("http://internal:9/ is down")

    model.stream = breaking  # type: ignore[method-assign]
    with serving(model) as server:
        stream = ask(server, stream=True)
        assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "Some "]
        with pytest.raises(openai.APIError, match="could not answer") as caught:
            next(stream)
        assert "internal" not in str(caught.value.body)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_prompt_beyond_the_window_is_400_and_says_what_to_do(tiny_folder, tokenizer, streaming: bool) -> None:
    model = LocalModel("tiny", load_language_model(tiny_folder, "float32").eval(), tokenizer)
    long = Document("long.md", "one two three " * 1000, "Long")
    with serving(model, (long,)) as server:
        with pytest.raises(openai.BadRequestError, match=r"exceed the model's window of 2048\. Give fewer") as caught:
            ask(server, stream=streaming)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "top_k")


def test_an_endpoint_that_finds_a_prompt_too_long_ends_the_stream_with_that() -> None:
    model = scripted()

    def refusing(request: ChatRequest) -> Generator[str, None, None]:
        raise PromptTooLong("the prompt exceeds the window")
        yield ""

    model.stream = refusing  # type: ignore[method-assign]
    with serving(model) as server, pytest.raises(openai.APIError, match="Give fewer") as caught:
        list(ask(server, stream=True))
    assert caught.value.code == "context_length_exceeded"


def test_a_bug_is_a_500_without_details() -> None:
    model = scripted()
    model.stream = lambda request: 1 / 0  # type: ignore[method-assign]
    with serving(model) as server:
        response = httpx.post(f"{server}/v1/chat/completions", json={"model": "raft", "messages": ASK})
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "internal error"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_a_client_that_leaves_stops_the_generation() -> None:
    model = DrippingModel()
    with serving(model) as server:
        stream = ask(server, stream=True)
        model.step.release()
        until(lambda: next(stream).choices[0].delta.content == "0 ")
        stream.close()
        for _ in range(200):  # the model goes on until it is told; it is told well before it ends
            if model.left.wait(0.05):
                break
            model.step.release()
        assert model.left.is_set()
        model.step.release(2000)
        assert ask(server).choices[0].message.content == "".join(model.pieces)  # and the turn is free


def test_a_client_that_leaves_while_it_waits_gives_its_place_back() -> None:
    model = DrippingModel()
    with serving(model, max_queue=1) as server:
        running, waiting = ask(server, stream=True), ask(server, stream=True)
        with pytest.raises(openai.RateLimitError):
            ask(server)
        waiting.close()

        def admitted() -> bool:
            try:
                ask(server, stream=True).close()
            except openai.RateLimitError:
                return False
            return True

        until(admitted)
        model.step.release(1000)
        assert len([c for c in running if c.choices[0].delta.content]) == 1000


def test_full_queue_is_429_with_retry_after() -> None:
    model = DrippingModel()
    with serving(model, max_queue=1) as server:
        held = [ask(server, stream=True) for _ in range(2)]
        for streaming in (True, False):
            with pytest.raises(openai.RateLimitError) as caught:
                ask(server, stream=streaming)
            assert int(caught.value.response.headers["retry-after"]) > 0
            assert caught.value.code == "queue_full"
        assert httpx.post(f"{server}/v1/search", json={"query": "dose"}).status_code == 200  # the rest goes on
        model.step.release(2000)
        assert all(list(stream)[-1].raft for stream in held)


def test_concurrent_answers_are_not_mixed() -> None:
    echo = scripted(lambda request: "<ANSWER>: " + request.messages[-1].content.rsplit("Question: ", 1)[1])
    answers: dict[int, str] = {}
    with serving(echo) as server:

        def one(number: int) -> None:
            answers[number] = ask(server, messages=[{"role": "user", "content": f"token {number}"}]).raft["answer"]

        threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {n: f"token {n}" for n in range(12)}


def test_api_key() -> None:
    with serving(scripted(), api_key="s3cret-ü") as server:
        for given in ("", "Bearer wrong", "Basic s3cret"):
            response = httpx.post(f"{server}/v1/search", json={"query": "x"}, headers={"Authorization": given})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert (
            httpx.get(f"{server}/v1/models", headers={"Authorization": "Bearer s3cret-ü".encode()}).status_code == 200
        )
        assert httpx.get(f"{server}/healthz").status_code == 200


def first_line(server: str, *sent: bytes) -> bytes:
    """What a server answers to the bytes of a request, of which no more follow."""
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        for part in sent:
            line.sendall(part)
        return line.recv(65536).split(b"\r\n")[0]


SEARCH = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_the_key_is_checked_before_the_body_is_read() -> None:
    with serving(scripted(), api_key="s3cret") as server:
        assert first_line(server, SEARCH, b"Content-Length: 900000\r\n\r\n").split()[1] == b"401"


def test_a_body_that_declares_too_much_is_refused_before_it_comes(server: str) -> None:
    too_much = f"Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
    assert first_line(server, SEARCH, too_much).split()[1] == b"413"


def test_a_body_in_chunks_is_counted_as_it_comes(server: str) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    endless = [chunk] * (MAX_BODY_BYTES // 0x10000 + 1)
    assert first_line(server, SEARCH, b"Transfer-Encoding: chunked\r\n\r\n", *endless).split()[1] == b"413"


def test_a_body_that_is_too_large_is_refused_in_openai_form(server: str) -> None:
    response = httpx.post(f"{server}/v1/search", json={"query": "x" * MAX_BODY_BYTES})
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.headers["x-content-type-options"] == "nosniff"
    padded = b'{"query": "dose"}'.ljust(MAX_BODY_BYTES)
    headers = {"content-type": "application/json"}
    assert httpx.post(f"{server}/v1/search", content=padded, headers=headers).status_code == 200


def test_without_a_key_a_foreign_name_is_refused(server: str) -> None:
    for host, status in (("evil.example", 403), ("127.0.0.1:1", 200), ("localhost", 200), ("[::1]:5", 200)):
        assert httpx.get(f"{server}/v1/models", headers={"Host": host}).status_code == status


def test_hosts_that_need_a_key() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.3.2.1"):
        check_host(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        check_host(host, "k" * 16)
        with pytest.raises(UsageError, match="RAFT_API_KEY"):
            check_host(host, None)
