"""Endpoints that limit, break, run out of quota, or know no schemas: what the client makes of them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter

import pytest

from raft.errors import EndpointError, ModelError
from raft.llm.openai_compatible import OpenAICompatibleModel
from tests.llm.stub import completion, model_of, ok, request, sse

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}
SOON = {"Retry-After": "0.01"}


def asked_formats(stub):
    return [body.get("response_format", {}).get("type") for body in stub.bodies]


def test_a_schema_is_sent_whole_and_only_where_there_is_one(serve):
    stub = serve(ok)
    list(model_of(stub, concurrency=1).complete([request("a"), request("b", schema=SCHEMA)]))
    assert "response_format" not in stub.bodies[0]
    named = {"name": "reply", "schema": SCHEMA, "strict": True}
    assert stub.bodies[1]["response_format"] == {"type": "json_schema", "json_schema": named}


REFUSALS = [
    (400, {"error": {"message": "json_schema is not supported", "param": "response_format"}}),
    (400, {"error": {"message": "'response_format.type' must be one of \"text\"", "type": "invalid_request_error"}}),
    (422, {"detail": [{"loc": ["body", "response_format", "type"], "msg": "Input should be 'text'"}]}),
    (500, {"error": {"message": "failed to parse grammar"}}),
]


@pytest.mark.parametrize(("status", "body"), REFUSALS)
@pytest.mark.parametrize(("known", "expected"), [("json_object", ["json_schema", "json_object"]), (None, None)])
def test_a_form_of_answer_that_is_refused_is_not_asked_for_again(serve, status, body, known, expected):
    def behave(word, nth):
        asked = asked_formats(stub)[-1]
        return ok(word, nth) if asked == known else (status, {}, body)

    stub = serve(behave)
    replies = list(model_of(stub, concurrency=1).complete(request(w, schema=SCHEMA) for w in "ab"))
    assert [r.error for r in replies] == [None, None]
    assert asked_formats(stub) == [*(expected or ["json_schema", "json_object", None]), known]


def test_many_calls_that_meet_the_refusal_together_step_down_once(serve):
    together = threading.Barrier(8, timeout=10)

    def behave(word, nth):
        if asked_format(word) == "json_schema":
            together.wait()
            return REFUSALS[0][0], {}, REFUSALS[0][1]
        return ok(word, nth)

    def asked_format(word):
        return [b["response_format"]["type"] for b in stub.bodies if b["messages"][-1]["content"] == word][-1]

    stub = serve(behave)
    replies = list(model_of(stub, concurrency=8).complete(request(w, schema=SCHEMA) for w in "abcdefgh"))
    assert [r.error for r in replies] == [None] * 8
    assert Counter(asked_formats(stub)) == {"json_schema": 8, "json_object": 8}


def test_a_stream_steps_down_as_well(serve):
    def behave(word, nth):
        piece = {"choices": [{"index": 0, "delta": {"content": "12 mg"}, "finish_reason": "stop"}]}
        if nth == 1:
            return 400, {}, {"error": {"message": "no json_schema here"}}
        return 200, {"Content-Type": "text/event-stream"}, sse(piece)

    stub = serve(behave)
    assert "".join(model_of(stub).stream(request("a", schema=SCHEMA))) == "12 mg"
    assert asked_formats(stub) == ["json_schema", "json_object"]


def test_a_refusal_that_names_no_parameter_but_says_it(serve):
    def behave(word, nth):
        if "seed" in stub.bodies[-1]:
            return 422, {}, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs"}]}
        return ok(word, nth)

    stub = serve(behave)
    replies = model_of(stub, concurrency=1).complete(request(w, temperature=0.5) for w in "ab")
    assert [r.error for r in replies] == [None, None]
    assert ["seed" in body for body in stub.bodies] == [True, False, False]
    assert "temperature" in stub.bodies[-1]


def test_without_quota_the_run_ends_at_the_first_answer(serve):
    broke = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    stub = serve(lambda word, nth: (429, {}, broke))
    with pytest.raises(EndpointError, match="no quota left"):
        list(model_of(stub, concurrency=1).complete(map(request, "abc")))
    with pytest.raises(EndpointError, match="no quota left"):
        list(model_of(stub, max_retries=0).stream(request("a")))
    assert stub.calls == {"a": 2}


def test_an_endpoint_that_asks_to_come_back_tomorrow_ends_the_run(serve):
    stub = serve(lambda word, nth: (429, {"Retry-After": "86400"}, {"error": {"message": "daily limit"}}))
    with pytest.raises(EndpointError, match=r"come back in 86400 s .*daily limit"):
        list(model_of(stub, concurrency=1).complete(map(request, "abc")))
    assert stub.calls == {"a": 1}


def test_one_429_makes_all_wait(serve):
    starts, refused_at = [], []

    def behave(word, nth):
        starts.append(time.monotonic())
        if word == "b" and nth == 1:
            refused_at.append(time.monotonic())
            return 429, {"Retry-After": "0.4"}, {"error": {"message": "slow down"}}
        return ok(word, nth)

    replies = list(model_of(serve(behave), concurrency=1).complete(map(request, "abcdef")))
    assert [r.error for r in replies] == [None] * 6
    assert not [at for at in starts if 0 < at - refused_at[0] < 0.4]
    assert len(starts) == 7


def test_limits_do_not_end_a_run_that_gets_on(serve):
    """Every other call is refused: far more refusals than ``max_retries``, but answers between them."""
    counter = iter(range(10_000))

    def behave(word, nth):
        return ok(word, nth) if next(counter) % 2 else (429, {"Retry-After": "0.001"}, {"error": {"message": "no"}})

    replies = list(model_of(serve(behave), max_retries=3, concurrency=4).complete(request(f"w{n}") for n in range(40)))
    assert len(replies) == 40
    assert not [r.error for r in replies if r.error]


def test_a_connection_that_breaks_is_opened_again(serve):
    stub = serve(lambda word, nth: (200, {}, None) if nth == 1 else ok(word, nth))
    replies = list(model_of(stub).complete(map(request, "ab")))
    assert {r.text for r in replies} == {"about a", "about b"}
    assert set(stub.calls.values()) == {2}


def test_a_call_whose_connection_always_breaks_ends_no_run(serve):
    stub = serve(lambda word, nth: (200, {}, None) if word == "b" else ok(word, nth))
    replies = {r.key: r for r in model_of(stub, max_retries=1).complete(map(request, "abc"))}
    assert {key for key, reply in replies.items() if reply.error is None} == {"key-a", "key-c"}
    assert "disconnected" in replies["key-b"].error
    assert stub.calls["b"] == 2


def test_a_403_of_a_firewall_is_one_requests_own_even_where_it_is_the_first_answer(serve):
    def behave(word, nth):
        if word == "<script>":
            return 403, {}, "<html>blocked</html>"
        time.sleep(0.2)
        return ok(word, nth)

    stub = serve(behave)
    for at_once in (4, 1):
        replies = {r.key: r for r in model_of(stub, concurrency=at_once).complete(map(request, ["<script>", *"abc"]))}
        assert {key for key, reply in replies.items() if reply.error is None} == {"key-a", "key-b", "key-c"}
        assert replies["key-<script>"].error == "refused: 403 <html>blocked</html>"


def test_a_key_that_no_call_is_taken_with_ends_the_run(serve):
    stub = serve(lambda word, nth: (403, {}, {"error": {"message": "no access"}}))
    with pytest.raises(EndpointError, match=r"refuses the key \(403\)"):
        list(model_of(stub, max_retries=1).complete(map(request, "abcdef")))
    with pytest.raises(EndpointError, match=r"refuses the key \(403\)"):
        list(model_of(stub).stream(request("a")))


def test_a_run_that_has_failed_does_not_wait_for_a_call_that_is_to_be_tried_again_later(serve):
    asked = threading.Event()

    def behave(word, nth):
        if word == "later":
            asked.set()
            return 503, {"Retry-After": "60"}, "busy"
        asked.wait(10)
        time.sleep(0.3)
        return 401, {}, {"error": {"message": "no"}}

    began = time.monotonic()
    with pytest.raises(EndpointError, match="refuses the key"):
        list(model_of(serve(behave), concurrency=2).complete(map(request, ["later", "bad"])))
    assert time.monotonic() - began < 30


def test_a_service_that_is_overloaded_names_its_last_word_in_the_error(serve):
    stub = serve(lambda word, nth: (503, SOON, "<html>\n\nupstream is busy</html>"))
    [reply] = model_of(stub, max_retries=1).complete([request("a")])
    assert "upstream is busy" in reply.error
    assert "\n" not in reply.error
    assert stub.calls == {"a": 2}


def test_json_under_another_content_type_is_read(serve):
    stub = serve(lambda word, nth: (200, {"Content-Type": "text/plain"}, completion("12 mg")))
    assert [r.text for r in model_of(stub).complete([request("a")])] == ["12 mg"]


def test_a_reply_that_was_all_thinking_is_truncated_and_not_malformed(serve):
    stub = serve(lambda word, nth: (200, {}, completion(None, "length", reasoning_content="Let me see")))
    [reply] = model_of(stub).complete([request("a")])
    assert (reply.text, reply.truncated, reply.error) == ("", True, None)
    assert stub.calls == {"a": 1}


@pytest.mark.parametrize("usage", [None, {}, [], {"prompt_tokens": None}])
def test_an_endpoint_that_counts_no_tokens_gives_none(serve, usage):
    stub = serve(lambda word, nth: (200, {}, completion("12 mg") | {"usage": usage}))
    [reply] = model_of(stub).complete([request("a")])
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("12 mg", 0, 0)


@pytest.mark.parametrize("body", [[1], {"choices": [1]}, {"choices": [{"message": "12"}]}, {"choices": {}}, "null"])
def test_bodies_of_any_shape_are_malformed_and_no_crash(serve, body):
    [reply] = model_of(serve(lambda word, nth: (200, {}, body)), max_retries=0).complete([request("a")])
    assert "malformed" in reply.error


def test_an_exception_of_the_callers_requests_ends_the_run_and_leaves_no_thread(serve):
    def requests():
        yield request("a")
        raise ModelError("no more")

    with pytest.raises(ModelError, match="no more"):
        list(model_of(serve(ok)).complete(requests()))
    assert "raft-endpoint" not in {t.name for t in threading.enumerate()}


class Together(asyncio.Protocol):
    """Answers only when ``most`` calls wait at the same time."""

    waiting: list[asyncio.Transport]
    most: int

    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        head, _, body = self.data.partition(b"\r\n\r\n")
        if len(body) < int(head.lower().partition(b"content-length:")[2].split()[0]):
            return
        self.data = b""
        self.waiting.append(self.transport)
        if len(self.waiting) == self.most:
            answer = json.dumps(completion("12 mg")).encode()
            for transport in self.waiting:
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                transport.write(head % len(answer) + answer)
            self.waiting.clear()


def test_hundreds_of_calls_are_in_flight_at_once():
    in_flight = type("InFlight", (Together,), {"waiting": [], "most": 300})
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(in_flight, "127.0.0.1", 0, backlog=512))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        model = OpenAICompatibleModel("m", url, "RAFT_TEST_KEY", concurrency=300)
        replies = list(model.complete(request(f"w{n}") for n in range(600)))
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert {r.key for r in replies} == {f"key-w{n}" for n in range(600)}
    assert {r.text for r in replies} == {"12 mg"}
