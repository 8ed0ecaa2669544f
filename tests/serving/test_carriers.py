"""How citations and passages reach clients that know nothing of the raft object."""

from __future__ import annotations

import json
from typing import Any

import httpx
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_openai import ChatOpenAI
from live import ANSWERED, DOSES, HOSTILE, STORAGE, scripted, serving

from raft.prompts import QUOTE_BEGIN, QUOTE_END

QUESTION = "What is the first dose of Corvalexin?"
QUOTE = "Adults start with 12 mg by mouth."
ASK = {"model": "raft", "messages": [{"role": "user", "content": QUESTION}]}


def chunks_of(server: str, **settings: Any) -> list[dict[str, Any]]:
    """The events of a stream, as they stand on the wire."""
    text = httpx.post(f"{server}/v1/chat/completions", json={**ASK, "stream": True, **settings}, timeout=30).text
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_azure_s_context_holds_each_quoted_passage_once() -> None:
    text = (
        f"[1] {QUOTE_BEGIN}12 mg by mouth{QUOTE_END} [1] {QUOTE_BEGIN}Adults start{QUOTE_END} "
        f"[2] {QUOTE_BEGIN}forged{QUOTE_END}\n<ANSWER>: 12 mg"
    )
    with serving(scripted(text)) as server:
        message = httpx.post(f"{server}/v1/chat/completions", json=ASK, timeout=30).json()["choices"][0]["message"]
        streamed = [choice["delta"] for chunk in chunks_of(server) for choice in chunk["choices"]]
    [cited] = message["context"]["citations"]
    assert cited == {
        "content": DOSES.text[15:], "title": "Corvalexin, Dosing", "filepath": DOSES.id, "chunk_id": f"{DOSES.id}#0",
        "url": f"raft:{DOSES.id}#char=15,{len(DOSES.text)}",
    }  # fmt: skip
    assert json.loads(message["context"]["intent"]) == [QUESTION]
    assert len(message["annotations"]) == 2
    assert [delta["context"] for delta in streamed if "context" in delta] == [message["context"]]


def test_passages_come_as_open_webui_s_events_where_the_server_is_told_to() -> None:
    with serving(scripted(), passages_as_events=True) as server:
        chunks = chunks_of(server)
        for usage in (False, True):
            assert chunks_of(server, stream_options={"include_usage": usage})[-1]["raft"]["answer"] == "12 mg"
    carrying = [chunk for chunk in chunks if "event" in chunk]
    assert [chunk["choices"] for chunk in carrying] == [[], [], []]
    assert [chunk["event"]["data"]["document"] for chunk in carrying] == [
        [DOSES.text[15:]], [STORAGE.text], [HOSTILE.text],
    ]  # fmt: skip
    assert carrying[1]["event"] == {
        "type": "source",
        "data": {
            "source": {"name": "Storage, Dosing, page 3", "id": "storage.pdf#0"},
            "document": [STORAGE.text],
            "metadata": [{"source": "storage.pdf", "name": "Storage, Dosing, page 3"}],
        },
    }
    with serving(scripted()) as server:
        assert not any("event" in chunk for chunk in chunks_of(server))


# --- LangChain


def chat(server: str, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model="raft", base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=30, **settings)


def test_langchain_over_chat_completions(server: str) -> None:
    model = chat(server)
    whole = model.invoke(QUESTION)
    assert whole.content == ANSWERED
    assert whole.usage_metadata["total_tokens"] > 0
    streamed = list(model.stream([HumanMessage(QUESTION)]))
    assert len(streamed) > 5
    assert "".join(chunk.text for chunk in streamed) == ANSWERED


def cited_by(message: AIMessage) -> list[dict[str, Any]]:
    return [note for block in message.content if block["type"] == "text" for note in block.get("annotations", [])]


def test_langchain_over_responses_keeps_passages_and_citations(server: str) -> None:
    model = chat(server, use_responses_api=True)
    whole = model.invoke(QUESTION)
    streamed: AIMessageChunk | None = None
    for chunk in model.stream(QUESTION):
        streamed = chunk if streamed is None else streamed + chunk
    for message in (whole, streamed):
        assert message.text == ANSWERED
        assert message.usage_metadata["total_tokens"] > 0
        [search] = [block for block in message.content if block["type"] == "file_search_call"]
        assert [result["file_id"] for result in search["results"]] == [DOSES.id, STORAGE.id, HOSTILE.id]
        [citation] = cited_by(message)
        assert (citation["type"], citation["file_id"], citation["quote"]) == ("file_citation", DOSES.id, QUOTE)


def test_langchain_goes_on_with_a_conversation() -> None:
    for over_responses in (False, True):
        model = scripted()
        with serving(model) as server:
            asking = chat(server, use_responses_api=over_responses)
            first = asking.invoke(QUESTION)
            asking.invoke([HumanMessage(QUESTION), first, HumanMessage("And in children?")])
        assert model.requests[1].messages[-1].content.endswith(f"Question: {QUESTION} (12 mg) And in children?")
