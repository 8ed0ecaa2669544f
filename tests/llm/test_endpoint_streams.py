"""Streams from an endpoint that is silent, breaks off, is left, or sends what no other does."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from raft.errors import EndpointError, ModelError
from raft.llm.chat import PromptTooLong
from tests.llm.stub import EVENTS, Silent, heard, model_of, piece, request, sse, wait_until_left

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(text):
    return b"%x\r\n%s\r\n" % (len(text.encode()), text.encode())


BEGUN = HEAD + chunk(sse(piece("12"), end=""))
WHOLE = sse(piece("12"), piece(" mg", "stop"))


def streamed(serve, body):
    return model_of(serve(lambda word, nth: (200, EVENTS, body))).stream(request("a"))


@pytest.mark.parametrize(("beginning", "said"), [(b"", ""), (HEAD, ""), (BEGUN, "12")], ids=["at all", "begun", "amid"])
def test_whoever_leaves_a_silent_endpoint_is_gone_and_does_not_ask_again(beginning, said):
    with Silent(beginning) as endpoint:
        stream = model_of(endpoint, timeout_seconds=20).stream(request("a"))
        assert next(stream) == ""
        line = endpoint.take_call()
        assert "".join(next(stream) for _ in range(3)) == said
        stream.close()
        wait_until_left(line)
        with pytest.raises(TimeoutError):
            endpoint.take_call(1)


def test_whoever_leaves_before_a_call_is_tried_again_ends_it(serve):
    stub = serve(lambda word, nth: (503, {"Retry-After": "0.7"}, "busy"))
    stream = model_of(stub).stream(request("a"))
    while not stub.calls:
        assert next(stream) == ""
    stream.close()
    time.sleep(1)
    assert stub.calls == {"a": 1}


@pytest.mark.parametrize("status", [429, 503])
def test_what_may_succeed_later_is_tried_again_before_the_first_word(serve, status):
    stub = serve(lambda word, nth: (status, {"Retry-After": "0.01"}, "busy") if nth < 3 else (200, EVENTS, WHOLE))
    said, reply = heard(model_of(stub).stream(request("a")))
    assert (said, reply.text, reply.truncated) == (["12", " mg"], "12 mg", False)
    assert stub.calls == {"a": 3}


def test_streams_go_one_after_the_other_over_one_connection(serve):
    stub = serve(lambda word, nth: (200, EVENTS, WHOLE))
    model = model_of(stub)
    assert [heard(model.stream(request(word)))[1].text for word in "abc"] == ["12 mg"] * 3
    assert len(stub.callers) == 1


def test_many_threads_stream_at_once_each_its_own(serve):
    together = threading.Barrier(8, timeout=20)

    def behave(word, nth):
        together.wait()
        return 200, EVENTS, sse(piece("about "), piece(word, "stop"))

    model, words = model_of(serve(behave)), [f"w{n}" for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda word: heard(model.stream(request(word)))[1], words)
        assert [(reply.key, reply.text) for reply in found] == [(f"key-{word}", f"about {word}") for word in words]


def streaming_threads():
    return {thread for thread in threading.enumerate() if thread.name == "raft-endpoint-streams"}


def test_the_thread_ends_with_its_model_and_hangs_up():
    before = streaming_threads()
    with Silent(BEGUN) as endpoint:
        model = model_of(endpoint)
        stream = model.stream(request("a"))
        next(stream)
        line = endpoint.take_call()
        [thread] = streaming_threads() - before
        del model, stream
        gc.collect()
        wait_until_left(line)
        for _ in range(200):
            gc.collect()  # what the other thread had of them
            thread.join(0.1)
            if not thread.is_alive():
                return
        pytest.fail("the thread goes on without its model")


def test_a_process_that_ends_amid_a_stream_ends_at_once_and_without_a_word():
    with Silent(BEGUN) as endpoint:
        program = (
            "from tests.llm.stub import model_of, request\n"
            f"model = model_of(type('Stub', (), {{'url': {endpoint.url.replace('127.0.0.1', 'localhost')!r}}}))\n"
            "stream = model.stream(request('a'))\n"
            "while not next(stream): pass\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
            line = endpoint.take_call()
            assert process.communicate(timeout=60) == (None, "")
            assert process.returncode == 0
        line.close()


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([piece("12 mg is a"), piece("", "content_filter")], "content filter"),
        ([{"choices": [{"index": 0, "finish_reason": "content_filter"}]}], "content filter"),
        ([piece(None, refusal="I cannot"), piece(None, "stop", refusal=" help")], "I cannot help"),
    ],
)
def test_a_stream_that_a_filter_stops_or_the_model_declines_is_no_answer(serve, pieces, why):
    with pytest.raises(ModelError, match=f"refused: {why}"):
        list(streamed(serve, sse(*pieces)))


def test_azures_choices_without_words_of_their_own_are_passed_over(serve):
    filtered = {"index": 0, "finish_reason": None, "content_filter_results": {}, "content_filter_offsets": {}}
    body = sse({"choices": [], "prompt_filter_results": []}, piece("12"), {"choices": [filtered]}, piece(" mg", "stop"))
    said, reply = heard(streamed(serve, body))
    assert (said, reply.text, reply.truncated) == (["12", " mg"], "12 mg", False)


@pytest.mark.parametrize("choices", [None, 5, "12 mg", {"a": 1}, [5], [None], [{"index": 0}], [{"delta": 5}]])
def test_choices_of_any_shape_are_malformed_and_no_crash(serve, choices):
    with pytest.raises(ModelError, match=r"gave no answer \(malformed"):
        list(streamed(serve, sse({"choices": choices, "usage": [1]})))


@pytest.mark.parametrize(
    ("body", "is_cut"),
    [
        (sse(piece("12 mg"), end=""), True),
        (sse(piece("12 mg", "stop"), end=""), False),
        (sse(piece("12 mg"), {"choices": [], "usage": {"completion_tokens": 2}}), False),
        (sse(piece("12 mg", "length")), True),
    ],
)
def test_a_stream_that_just_ends_is_cut(serve, body, is_cut):
    said, reply = heard(streamed(serve, body))
    assert (said, reply.text, reply.truncated) == (["12 mg"], "12 mg", is_cut)


def test_a_connection_that_breaks_amid_a_stream_is_no_endpoint_that_is_down():
    with Silent(BEGUN) as endpoint:
        stream = model_of(endpoint).stream(request("a"))
        next(stream)
        endpoint.take_call().close()
        with pytest.raises(ModelError, match="gave no answer") as caught:
            list(stream)
    assert not isinstance(caught.value, EndpointError)


def test_an_endpoint_that_nobody_answers_at_is_down(serve):
    with pytest.raises(EndpointError, match="cannot be reached"):
        list(model_of(serve(None), "http://127.0.0.1:9/v1", max_retries=0).stream(request("a")))


def test_only_what_an_endpoint_refuses_is_called_refused(serve):
    model = model_of(serve(lambda word, nth: (int(word), {}, "busy")), max_retries=0)
    with pytest.raises(ModelError, match=r"gave no answer \(503 busy"):
        list(model.stream(request("503")))
    with pytest.raises(ModelError, match="refused: 422 busy"):
        list(model.stream(request("422")))


def test_an_event_may_say_that_the_prompt_is_too_long(serve):
    said = {"error": {"message": "This model's maximum context length is 8 tokens"}}
    with pytest.raises(PromptTooLong):
        list(streamed(serve, f"data: {json.dumps(said)}\n\n"))
