"""Replies that Ray's workers write are those of this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raft.cluster import one_line_failures
from raft.errors import EndpointError, ModelError
from raft.llm.chat import ChatReply, ChatRequest, PromptTooLong
from raft.llm.open import open_chat_model
from raft.llm.ray_workers import RayModel, _request, _row, _tables, _Worker
from raft.prompts import Message

ray = pytest.importorskip("ray", reason="needs raft-tune[ray]")
pytest.importorskip("pyarrow", reason="needs raft-tune[ray]")


def requests(count: int = 5) -> list[ChatRequest]:
    asked = [ChatRequest(f"r{n}", (Message("user", f"Count from {n} on: Grüße"),), 4) for n in range(count)]
    asked[0] = replace(asked[0], logprobs=True)
    return [*asked, ChatRequest("long", (Message("user", "word " * 3000),), 4)]


def test_two_workers_write_the_replies_of_this_process(tiny_folder: Path) -> None:
    """One run for all that needs Ray: starting it and opening the model twice takes its time."""
    shared = open_chat_model(str(tiny_folder), workers=2)
    assert isinstance(shared, RayModel)
    replies = {reply.key: reply for reply in shared.complete(iter(requests()))}
    assert not ray.is_initialized()  # what was started is stopped
    assert {reply.key for reply in replies.values() if reply.logprobs} == {"r0"}
    alone = open_chat_model(str(tiny_folder))
    assert shared.name == alone.name
    assert replies == {reply.key: reply for reply in alone.complete(requests())}
    assert replies["long"].too_long
    assert "".join(shared.stream(requests()[0])) == replies["r0"].text
    with pytest.raises(PromptTooLong, match="window"):
        shared.check(requests()[-1])
    assert list(shared.complete([])) == []


def test_a_worker_without_its_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"answering through Ray failed \(.*holds no config.json.*Set model.workers to 0"
    ):
        list(RayModel({"model": str(tmp_path)}, workers=1).complete(requests(1)))


def test_a_request_comes_out_as_it_went_in() -> None:
    schema = {"type": "object", "properties": {"q": {"enum": ["ä", None, 1.5]}}}
    request = ChatRequest("k", (Message("system", "s"), Message("user", "\ud7ff\n")), 7, 0.5, 3, schema)
    assert _request(_row(request)) == request


def test_a_block_is_answered_where_the_model_was_opened_once(tiny_folder: Path) -> None:
    import json

    worker = _Worker({"model": str(tiny_folder)})
    [first], [second] = (worker({"request": [_row(requests()[n])]})["reply"] for n in (0, 1))
    assert [ChatReply(**json.loads(reply)).key for reply in (first, second)] == ["r0", "r1"]


def test_requests_are_cut_into_a_block_a_worker_or_more() -> None:
    rows = [str(n) for n in range(31)]
    assert [table.num_rows for table in _tables(rows, 2)] == [16, 15]
    assert [table.num_rows for table in _tables(rows * 5, 2)] == [64, 64, 27]
    assert [row for table in _tables(rows, 7) for row in table["request"].to_pylist()] == rows


def test_what_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"answering through Ray failed \(MemoryError: x\)\. Set model.workers to 0"
    with pytest.raises(ModelError, match=said), one_line_failures(ray, "answering", "model"):
        raise ray.exceptions.RayError("Traceback:\n  line\nMemoryError: x\n")
    monkeypatch.setattr("raft.cluster.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'raft-tune\[ray\]'"):
        list(RayModel({"model": "m"}, 2).complete(requests()))


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**_: object) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(EndpointError, match=r"Ray at ray://x:10001 cannot be reached .*Check model.ray_address"):
        list(RayModel({"model": "m"}, 2, "ray://x:10001").complete(requests()))
