"""/v1/responses and vector stores with the stock openai client."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import httpx
import openai
import pytest
from live import ANSWERED, DOSES, HOSTILE, STORAGE, scripted, serving

from raft.errors import EndpointError
from raft.llm.chat import ChatReply, ChatRequest, PromptTooLong
from raft.llm.scripted import ScriptedModel

QUESTION = "What is the first dose of Corvalexin?"


def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=30)


def ask(server: str, **settings: Any):
    return client(server).responses.create(**{"model": "raft", "input": QUESTION, **settings})


def test_a_response_for_the_stock_client(server: str) -> None:
    response = ask(server)
    assert (response.status, response.object, response.error) == ("completed", "response", None)
    assert response.output_text == ANSWERED
    search, message = response.output
    assert (search.type, search.status, search.queries) == ("file_search_call", "completed", [QUESTION])
    assert [result.file_id for result in search.results] == [DOSES.id, STORAGE.id, HOSTILE.id]
    assert [result.score for result in search.results] == [1, 1 / 2, 1 / 3]
    first = search.results[0]
    assert DOSES.text[int(first.attributes["start"]) : int(first.attributes["end"])] == first.text
    assert search.results[1].attributes["page"] == 3
    [citation] = message.content[0].annotations
    assert (citation.type, citation.file_id) == ("file_citation", DOSES.id)
    assert ANSWERED[: citation.index].endswith("Adults start with 12 mg by mouth.")
    assert DOSES.text[citation.start : citation.end] == citation.quote == "Adults start with 12 mg by mouth."
    assert (citation.title, citation.headings, citation.page) == ("Corvalexin", ["Dosing"], None)
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
    assert response.usage.input_tokens_details.cached_tokens == 0
    assert response.raft["answer"] == "12 mg"


def test_a_stream_for_the_stock_client_ends_with_the_whole(server: str) -> None:
    events = list(ask(server, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:8] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.file_search_call.in_progress",
        "response.file_search_call.searching",
        "response.file_search_call.completed",
        "response.output_item.done",
        "response.output_item.added",
    ]
    assert kinds[8] == "response.content_part.added"
    assert kinds[-5:] == [
        "response.output_text.annotation.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[9:-5]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == ANSWERED
    streamed, whole = events[-1].response, ask(server)
    assert streamed.raft == whole.raft
    assert streamed.usage == whole.usage
    assert [item.model_dump(exclude={"id"}) for item in streamed.output] == [
        item.model_dump(exclude={"id"}) for item in whole.output
    ]
    assert events[6].item == streamed.output[0]
    assert events[-2].item == streamed.output[1]
    assert {e.item_id for e in events if e.type == "response.output_text.delta"} == {streamed.output[1].id}
    assert events[0].response.id == streamed.id
    assert events[0].response.status == "in_progress"


def test_the_helper_of_the_stock_client_assembles_the_stream(server: str) -> None:
    with client(server).responses.stream(model="raft", input=QUESTION) as stream:
        assert stream.get_final_response().output_text == ANSWERED


def test_a_conversation_as_the_client_sends_it_back() -> None:
    model = scripted()
    with serving(model) as server:
        first = ask(server, instructions="Be a pirate.")
        history = [
            {"role": "developer", "content": "Be a parrot."},
            {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
            *(item.model_dump() for item in first.output),
            {"type": "message", "role": "user", "content": "And in children?"},
        ]
        second = ask(server, input=history)
    prompt = "\n".join(message.content for message in model.requests[1].messages)
    assert prompt.endswith(f"Question: {QUESTION} (12 mg) And in children?")
    assert "pirate" not in prompt
    assert "parrot" not in prompt
    assert second.output[0].queries == [f"{QUESTION} And in children? And in children?"]


def test_a_refusal_is_text() -> None:
    with serving(scripted("None of the documents holds the answer.\n<ANSWER>: not in the documents")) as server:
        response = ask(server)
        assert response.status == "completed"
        assert response.output_text.endswith("not in the documents")
        assert response.raft["abstained"] is True


def test_a_text_that_was_cut_is_incomplete() -> None:
    class Cut(ScriptedModel):
        def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
            yield "Some"
            return ChatReply(request.key, "Some", 300, 1, truncated=True, cached_tokens=255)

    with serving(Cut(lambda request: "")) as server:
        response = ask(server, max_output_tokens=1)
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert response.max_output_tokens == 1
        assert response.usage.input_tokens_details.cached_tokens == 128  # in steps of 128
        assert list(ask(server, stream=True))[-1].type == "response.incomplete"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (EndpointError("http://internal:9 is down"), "server_error", "could not answer"),
        (PromptTooLong("900 tokens exceed 800"), "invalid_prompt", "900 tokens exceed 800"),
    ],
)
def test_a_model_that_fails_midway_fails_the_response(error: Exception, code: str, says: str) -> None:
    model = scripted()

    def breaking(request: ChatRequest) -> Generator[str, None, None]:
        yield "Some "
        raise error

    model.stream = breaking  # type: ignore[method-assign]
    with serving(model) as server:
        last = list(ask(server, stream=True))[-1]
        assert (last.type, last.response.status, last.response.error.code) == ("response.failed", "failed", code)
        assert says in last.response.error.message
        assert "internal" not in last.model_dump_json()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"input": ""}, "expected a question"),
        ({"input": []}, "expected a question"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "expected a question"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input_text"),
        ({"previous_response_id": "resp_1"}, "keeps no conversations; send the earlier messages in input"),
        ({"conversation": "conv_1"}, "keeps no conversations"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream": True, "input": " "}, "expected a question"),
    ],
)
def test_bad_requests_are_400_in_openai_form(server: str, wrong: dict, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, **wrong)
    assert says in caught.value.body["message"]


def test_an_unknown_model_is_404(server: str) -> None:
    for streaming in (False, True):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(server, model="gpt-4o", stream=streaming)
        assert caught.value.code == "model_not_found"


def test_a_vector_store_is_searched_with_the_stock_client(server: str) -> None:
    page = client(server).vector_stores.search("raft", query=["first", "dose"], max_num_results=2)
    assert [result.file_id for result in page] == [DOSES.id, STORAGE.id]
    first = page.data[0]
    assert first.content[0].text == DOSES.text[int(first.attributes["start"]) : int(first.attributes["end"])]
    assert page.search_query == ["first", "dose"]
    assert [result.score for result in page.data] == [1, 0.5]
    with pytest.raises(openai.NotFoundError, match="'law' does not exist"):
        client(server).vector_stores.search("law", query="dose")


def test_no_similarity_leaves_the_server(server: str) -> None:
    for path, body in (("responses", {"input": "x"}), ("vector_stores/raft/search", {"query": "x"})):
        response = httpx.post(f"{server}/v1/{path}", json={"model": "raft", **body})
        assert response.status_code == 200
        assert "0.123456" not in response.text
