"""The client against a real server on loopback that answers well, late, badly or not at all."""

from __future__ import annotations

import threading
import time

import pytest

from raft.errors import EndpointError, ModelError
from raft.llm.chat import PromptTooLong
from raft.llm.openai_compatible import OpenAICompatibleModel
from tests.llm.stub import completion, heard, model_of, ok, request, sse


def test_every_request_is_answered_under_its_own_key_with_bounded_concurrency(serve):
    def behave(word, nth):
        time.sleep(0.01)
        return ok(word, nth)

    stub = serve(behave)
    replies = list(model_of(stub, concurrency=8).complete(request(f"w{n}") for n in range(60)))
    assert {r.key: r.text for r in replies} == {f"key-w{n}": f"about w{n}" for n in range(60)}
    assert all((r.prompt_tokens, r.completion_tokens, r.error) == (7, 3, None) for r in replies)
    assert 2 <= stub.most_running <= 8


def test_requests_are_pulled_only_when_there_is_room(serve):
    pulled = []

    def requests():
        for n in range(1000):
            pulled.append(n)
            yield request(f"w{n}")

    replies = model_of(serve(ok), concurrency=4).complete(requests())
    for taken in range(1, 50):
        next(replies)
        assert len(pulled) <= taken + 2 * 4
    replies.close()


def test_what_may_succeed_later_is_tried_again(serve):
    def behave(word, nth):
        bad = {
            "limited": (429, {"Retry-After": "0.01"}, {"error": {"message": "slow down"}}),
            "broken": (500, {"Retry-After": "0.01"}, "oops"),
            "garbage": (200, {}, '{"choices": [tru'),
            "page": (200, {"Content-Type": "text/html"}, "<html>login</html>"),
            "hollow": (200, {}, {"choices": []}),
            "null": (200, {}, completion(None)),
        }
        return bad[word] if nth == 1 else ok(word, nth)

    stub = serve(behave)
    words = ["limited", "broken", "garbage", "page", "hollow", "null"]
    replies = {r.key: r for r in model_of(stub).complete(map(request, words))}
    assert {k: r.text for k, r in replies.items()} == {f"key-{w}": f"about {w}" for w in words}
    assert set(stub.calls.values()) == {2}


def test_one_request_refused_for_good_is_one_reply_with_an_error(serve):
    def behave(word, nth):
        bad = {
            "long": (400, {}, {"error": {"message": "context length exceeded", "param": "messages"}}),
            "filtered": (200, {}, completion("", "content_filter")),
            "declined": (200, {}, completion(None, refusal="I cannot help with that")),
            "garbage": (200, {}, "not json"),
            "down": (503, {"Retry-After": "0.01"}, "busy"),
        }
        return bad.get(word) or ok(word, nth)

    words = ["long", "fine", "filtered", "declined", "garbage", "down", "also fine"]
    replies = {r.key.removeprefix("key-"): r for r in model_of(serve(behave)).complete(map(request, words))}
    assert {w for w, r in replies.items() if r.error is None} == {"fine", "also fine"}
    assert "context length exceeded" in replies["long"].error
    assert "content filter" in replies["filtered"].error
    assert "I cannot help" in replies["declined"].error
    assert "malformed" in replies["garbage"].error


def test_a_slow_answer_is_an_error_of_its_own_request(serve):
    def behave(word, nth):
        if word == "slow":
            time.sleep(1.0)
        return ok(word, nth)

    model = model_of(serve(behave), timeout_seconds=0.2, max_retries=0)
    replies = {r.key: r.error for r in model.complete([request("slow"), request("quick")])}
    assert replies["key-quick"] is None
    assert "Timeout" in replies["key-slow"]


@pytest.mark.parametrize(("status", "expected"), [(401, "refuses the key"), (404, "no model 'stub'"), (429, "429")])
def test_an_endpoint_that_refuses_everything_ends_the_run_after_what_is_running(serve, status, expected):
    def behave(word, nth):
        if word == "early":
            time.sleep(0.3)
            return ok(word, nth)
        return status, {"Retry-After": "0.01"}, {"error": {"message": "no"}}

    stub = serve(behave)
    replies = []
    with pytest.raises(EndpointError, match=expected):
        for reply in model_of(stub, concurrency=2).complete(map(request, ["early", *"abcdefgh"])):
            replies.append(reply)  # noqa: PERF402 (extend would lose them when it raises)
    assert [r.text for r in replies] == ["about early"]
    assert len(stub.calls) <= 3


def test_an_endpoint_that_is_down_is_one_clear_line():
    model = OpenAICompatibleModel("m", "http://127.0.0.1:9/v1", "RAFT_TEST_KEY", max_retries=0)
    with pytest.raises(EndpointError) as caught:
        list(model.complete([request("a")]))
    assert "http://127.0.0.1:9/v1 cannot be reached" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_closing_early_cancels_what_is_in_flight(serve):
    release = threading.Event()

    def behave(word, nth):
        if word != "first":
            release.wait(20)
        return ok(word, nth)

    replies = model_of(serve(behave), concurrency=4).complete(map(request, ["first", "b", "c", "d"]))
    assert next(replies).key == "key-first"
    before = threading.active_count()
    replies.close()  # returns although the server still holds three calls
    assert not release.is_set()
    assert "raft-endpoint" not in {t.name for t in threading.enumerate()}
    assert threading.active_count() <= before
    release.set()


def test_parameters_that_a_model_refuses_by_name_are_left_out_from_then_on(serve):
    def behave(word, nth):
        for name in ("max_tokens", "temperature"):
            if name in stub.bodies[-1]:
                return 400, {}, {"error": {"message": f"unsupported {name}", "param": name}}
        return ok(word, nth)

    stub = serve(behave)
    model = model_of(stub, concurrency=1)
    replies = list(model.complete(request(w, max_tokens=33) for w in "abc"))
    assert [r.error for r in replies] == [None] * 3
    assert len(stub.bodies) == 5
    assert stub.bodies[-1]["max_completion_tokens"] == 33


def with_logprobs(*tokens, text="12 mg"):
    answer = completion(text)
    answer["choices"][0]["logprobs"] = {"content": [{"token": said, "logprob": value} for said, value in tokens]}
    return 200, {}, answer


def test_log_probabilities_are_asked_for_and_read(serve):
    stub = serve(lambda word, nth: with_logprobs(("12", -0.5), (" mg", -0.25), ("<|im_end|>", -0.1)))
    model = model_of(stub)
    [asked] = model.complete([request("a", logprobs=True)])
    assert asked.logprobs == (("12", -0.5), (" mg", -0.25))
    [other] = model.complete([request("b")])
    assert other.logprobs is None
    assert [body.get("logprobs") for body in stub.bodies] == [True, None]


@pytest.mark.parametrize(
    "given", [None, {"content": None}, {"content": []}, {"tokens": ["12"]}, {"content": [{"token": "7", "logprob": 0}]}]
)
def test_an_endpoint_that_gives_no_log_probabilities_still_answers(serve, given):
    answer = completion("12 mg")
    answer["choices"][0]["logprobs"] = given
    stub = serve(lambda word, nth: (200, {}, answer))
    [reply] = model_of(stub).complete([request("a", logprobs=True)])
    assert (reply.text, reply.error, reply.logprobs) == ("12 mg", None, None)
    assert len(stub.bodies) == 1


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, {"message": "'logprobs' is not supported with this model.", "param": "logprobs"}),
        (403, {"message": "You are not allowed to request logprobs from this model", "code": None}),
        (422, {"message": "body.logprobs: Extra inputs are not permitted"}),
        (501, {"message": "logprobs are not implemented"}),
    ],
)
def test_an_endpoint_that_refuses_log_probabilities_is_asked_without_them_from_then_on(serve, status, said):
    def behave(word, nth):
        return (status, {}, {"error": said}) if "logprobs" in stub.bodies[-1] else ok(word, nth)

    stub = serve(behave)
    replies = list(model_of(stub, concurrency=1).complete(request(w, logprobs=True) for w in "abc"))
    assert sorted((r.text, r.error, r.logprobs) for r in replies) == [(f"about {w}", None, None) for w in "abc"]
    assert len(stub.bodies) <= 5  # those that were under way learn it by themselves


def test_other_refusals_are_not_taken_for_one_of_log_probabilities(serve):
    stub = serve(lambda word, nth: (403, {}, {"error": {"message": "this key is blocked"}}))
    with pytest.raises(EndpointError, match="refuses the key"):
        list(model_of(stub, max_retries=1).complete([request("a", logprobs=True)]))
    assert len(stub.bodies) == 2
    assert all(body["logprobs"] for body in stub.bodies)


def test_the_key_comes_from_the_environment_and_a_placeholder_stands_in_for_none(serve, monkeypatch):
    stub = serve(ok)
    list(model_of(stub).complete([request("a")]))
    monkeypatch.setenv("RAFT_TEST_KEY", "sk-7")
    list(model_of(stub).complete([request("a")]))
    assert stub.keys == {"Bearer none", "Bearer sk-7"}


def test_truncation_is_said(serve):
    [reply] = model_of(serve(lambda word, nth: (200, {}, completion("cut", "length")))).complete([request("a")])
    assert reply.truncated


def test_stream_yields_pieces_and_returns_the_reply(serve):
    pieces = [{"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in ("12", " mg")]
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    end = {"choices": [], "usage": usage}
    stub = serve(lambda word, nth: (200, {"Content-Type": "text/event-stream"}, sse(*pieces, end)))
    said, reply = heard(model_of(stub).stream(request("a")))
    assert said == ["12", " mg"]
    assert (reply.text, reply.completion_tokens, reply.cached_tokens) == ("12 mg", 2, 4)
    assert not reply.truncated


def test_a_stream_that_is_refused_raises(serve):
    with pytest.raises(ModelError, match="too long"):
        list(model_of(serve(lambda w, n: (400, {}, {"error": {"message": "too long"}}))).stream(request("a")))
    with pytest.raises(EndpointError, match="refuses the key"):
        list(model_of(serve(lambda w, n: (401, {}, {}))).stream(request("a")))


def test_a_stream_leaves_out_the_parameters_that_a_model_refuses_by_name(serve):
    def behave(word, nth):
        for name in ("max_tokens", "temperature", "seed"):
            if name in stub.bodies[-1]:
                return 400, {}, {"error": {"message": f"unsupported {name}", "param": name}}
        piece = {"choices": [{"index": 0, "delta": {"content": "12 mg"}, "finish_reason": "stop"}]}
        return 200, {"Content-Type": "text/event-stream"}, sse(piece)

    stub = serve(behave)
    model = model_of(stub)
    assert "".join(model.stream(request("a", max_tokens=33, temperature=0.5))) == "12 mg"
    assert stub.bodies[-1]["max_completion_tokens"] == 33
    assert len(stub.bodies) == 4
    assert "".join(model.stream(request("a", temperature=0.5))) == "12 mg"
    assert len(stub.bodies) == 5


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/event-stream", 'data: {"choices": [tru\n\n'),
        ("text/event-stream", "data: [1]\n\ndata: [DONE]\n\n"),
        ("text/html", "<html>login</html>"),
        ("application/json", '{"choices": []}'),
    ],
)
def test_a_stream_that_is_no_chat_completion_raises(serve, kind, body):
    stub = serve(lambda word, nth: (200, {"Content-Type": kind}, body))
    with pytest.raises(ModelError, match="malformed: the answers were no chat completions"):
        list(model_of(stub).stream(request("a")))


@pytest.mark.parametrize(
    "said",
    [
        {"message": "too many", "param": "messages", "code": "context_length_exceeded"},
        {"message": "request (9 tokens) exceeds", "type": "exceed_context_size_error", "code": 400},
        {"message": "This model's maximum context length is 8 tokens", "param": "max_tokens", "code": 400},
    ],
)
def test_a_prompt_beyond_the_window_is_told_from_other_refusals(serve, said):
    model = model_of(serve(lambda w, n: (400, {}, {"error": said})))
    model.check(request("a"))
    [reply] = model.complete([request("a", max_tokens=33)])
    assert reply.too_long
    assert "33 tokens to write exceed the window" in reply.error
    with pytest.raises(PromptTooLong, match="33 tokens to write exceed the window"):
        list(model.stream(request("a", max_tokens=33)))


def test_replies_are_kept_while_their_caller_is_busy_with_another(serve):
    kept = []
    model = model_of(serve(ok), concurrency=2)
    replies = model.complete_and_keep((request(f"w{n}") for n in range(8)), kept.append)
    first = next(replies)
    until = time.monotonic() + 10
    while len(kept) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert {reply.key for reply in kept} == {f"key-w{n}" for n in range(4)}  # two in flight, two ready behind them
    assert {first.key, *(reply.key for reply in replies)} == {reply.key for reply in kept}


def test_what_cannot_be_kept_ends_the_run(serve):
    def keep(reply):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(model_of(serve(ok)).complete_and_keep(map(request, "abc"), keep))
