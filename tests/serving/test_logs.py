"""What a server logs: JSON lines, and no word of what people ask."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from exchanges import QUESTION, exchange
from live import ANSWERED, scripted, serving

from raft.llm.chat import ChatRequest
from raft.serving.logs import RequestLog, log_as_json
from raft.serving.service import Timing


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the process logs meanwhile."""
    root, ours = logging.getLogger(), logging.getLogger("raft.serving")
    before = (root.handlers[:], root.level, ours.level)
    written = io.StringIO()
    try:
        root.handlers[:] = []
        log_as_json(written)
        yield written
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])


def rows(written: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_one_line_a_request(lines: io.StringIO) -> None:
    RequestLog()(exchange())
    [row] = rows(lines)
    assert row.pop("time").endswith("+00:00")
    assert row == {
        "level": "info", "message": "request", "id": "chatcmpl-4f", "route": "chat", "caller": "intranet",
        "model": "raft", "outcome": "answered", "seconds": 2.75, "retrieval_seconds": 0.25,
        "first_token_seconds": 0.5, "prompt_tokens": 388, "cached_tokens": 320, "completion_tokens": 41,
        "documents": 3, "citations": 1, "unverified_quotes": 1,
    }  # fmt: skip


def test_a_request_that_failed_says_what_there_is_to_say(lines: io.StringIO) -> None:
    RequestLog()(exchange(outcome="failed", served=None, hits=(), timing=Timing(0.0, None, 1.0)))
    [row] = rows(lines)
    assert (row["outcome"], row["first_token_seconds"], row["documents"]) == ("failed", None, 0)
    assert "prompt_tokens" not in row


def test_texts_stand_in_it_only_where_that_was_chosen(lines: io.StringIO) -> None:
    RequestLog(texts=True)(exchange())
    [row] = rows(lines)
    assert (row["question"], row["answer"]) == (QUESTION, ANSWERED)


def test_whatever_is_logged_is_one_line_of_json(lines: io.StringIO) -> None:
    RequestLog()(exchange(model='raft"\n{"level": "forged"}\r\u2028' + "x" * 5000))
    log = logging.getLogger("elsewhere")
    log.info("not told")
    log.warning("two\nlines %s", "\x1b[2J")
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        log.exception("broken")
    found = rows(lines)
    assert len(lines.getvalue().splitlines()) == len(found) == 3
    assert [row["level"] for row in found] == ["info", "warning", "error"]
    assert len(found[0]["model"]) <= 200
    assert "ZeroDivisionError" in found[2]["traceback"]


def test_a_server_logs_no_word_of_question_answer_or_document(lines: io.StringIO) -> None:
    replies = iter([ANSWERED, ANSWERED])

    def reply(request: ChatRequest) -> str:
        return next(replies)  # and then it breaks

    asked = {"model": "raft", "messages": [{"role": "user", "content": "Is my name Zebulon Quux?"}]}
    with serving(scripted(reply), listeners=[RequestLog()]) as server:
        for streaming in (False, True, False):
            httpx.post(f"{server}/v1/chat/completions", json={**asked, "stream": streaming}, timeout=30)
        httpx.post(f"{server}/v1/search", json={"query": "Zebulon"})
        httpx.post(f"{server}/v1/chat/completions", json={**asked, "messages": "Zebulon"})
        httpx.post(f"{server}/v1/chat/completions", json={**asked, "model": "other"})
    told = [row for row in rows(lines) if row["message"] == "request"]
    assert [row["route"] for row in told] == ["chat"] * 3 + ["search", "chat"]
    assert [row["outcome"] for row in told[:4]] == ["answered", "answered", "failed", "searched"]
    assert len({row["id"] for row in told}) == len(told)
    for word in ("Zebulon", "Quux", "Adults", "Corvalexin", "12 mg", "mouth"):
        assert word not in lines.getvalue()
