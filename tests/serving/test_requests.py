"""Requests as clients send them: what is too long, what is wrong and where, what is taken without being used."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from live import ANSWERED
from pydantic import ValidationError

from raft.serving.chat_schema import ChatCompletionRequest
from raft.serving.responses_schema import ResponsesRequest
from raft.serving.schema import MOST_MESSAGES, MOST_PARTS

SAID = {"role": "user", "content": "What is the first dose?"}
PART = {"type": "input_text", "text": "x"}


def post(server: str, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server}/v1/{path}", json={"model": "raft", **body}, timeout=30)


@pytest.mark.parametrize(
    "long",
    [
        [{}] * 60_000,
        [{"type": "message"}] * 30_000,
        [SAID, *[{"content": [{}]}] * 30_000],
        [{"role": "user", "content": [{}] * 60_000}],
        [{"role": "user", "content": [{}] * MOST_PARTS}] * MOST_MESSAGES,
        [SAID] * (MOST_MESSAGES + 1),
        [{"role": "user", "content": [PART] * (MOST_PARTS + 1)}],
    ],
)
def test_a_long_list_is_refused_after_a_few_mistakes(server: str, long: list[dict[str, Any]]) -> None:
    """Each mistake that is noted takes time in which nobody else is answered."""
    for request, path, name in (
        (ResponsesRequest, "responses", "input"), (ChatCompletionRequest, "chat/completions", "messages"),
    ):  # fmt: skip
        with pytest.raises(ValidationError) as caught:
            request.model_validate({"model": "raft", name: long})
        assert caught.value.error_count() <= 5
        assert post(server, path, {name: long}).status_code == 400


def test_as_much_as_is_allowed_is_read(server: str) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "What is the dose?"}] * MOST_PARTS}
    for path, name in (("responses", "input"), ("chat/completions", "messages")):
        assert post(server, path, {name: [SAID] * (MOST_MESSAGES - 1) + [parts]}).json()["raft"]["answer"] == "12 mg"


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("responses", {"input": [SAID, {**SAID, "role": "boss"}]}, "input.1.role", "input.1.role: Input should be"),
        ("responses", {"input": [{"role": "user"}]}, "input.0.content", "input.0.content: Field required"),
        ("responses", {"input": [{"type": 5}]}, "input.0.type", "input.0.type: Input should be a valid string"),
        ("chat/completions", {"messages": [{"content": "x"}]}, "messages.0.role", "messages.0.role: Field required"),
        ("chat/completions", {"messages": [{**SAID, "content": 5}]}, "messages.0.content", "messages.0.content: "),
        ("search", {"query": "x", "filters": {"tag": ["x"]}}, "filters.tag", "filters.tag: Extra inputs"),
        ("vector_stores/raft/search", {"query": []}, "query", "query: List should have at least 1 item"),
        ("vector_stores/raft/search", {}, "query", "query: Field required"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_in_the_request(
    server: str, path: str, body: dict[str, Any], param: str, says: str
) -> None:
    error = post(server, path, body).json()["error"]
    assert says in error["message"]
    assert param.startswith(error["param"])
    for name_of_a_type in ("[union", "list[", "InputMessage", "TextPart", "constrained"):
        assert name_of_a_type not in error["message"]


def test_what_is_no_json_has_no_place(server: str) -> None:
    headers = {"content-type": "application/json"}
    error = httpx.post(f"{server}/v1/search", content=b'{"query": "dose",', headers=headers).json()["error"]
    assert (error["message"], error["param"]) == ("JSON decode error", None)


def test_items_that_clients_send_back_are_ignored_whatever_they_are(server: str) -> None:
    items = [{"type": kind, "id": "x"} for kind in ("item_reference", "reasoning", "mcp_call", "of another year")]
    response = post(server, "responses", {"input": [*items, SAID, *items]}).json()
    assert response["output"][1]["content"][0]["text"] == ANSWERED
    assert response["output"][0]["queries"] == [SAID["content"]]


@pytest.mark.parametrize("path", ["v1/models/", "v1/search/", "healthz/"])
def test_a_slash_too_many_redirects_nowhere(server: str, path: str) -> None:
    response = httpx.get(f"{server}/{path}", headers={"Host": "evil.example"})
    assert response.status_code == 404
    assert "location" not in response.headers
    assert "evil" not in response.text
