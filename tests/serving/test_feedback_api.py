"""POST /v1/feedback over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live import ANSWERED, FINGERPRINT, MemoryIndex, scripted, serving

from raft.serving.engine import AnswerEngine
from raft.serving.feedback import FeedbackStore, Opinion, read_feedback
from raft.serving.guard import Guard
from raft.serving.keys import Caller
from raft.serving.recent import Feedback


class TwoCallers(Guard):
    """A key of two letters is its caller's name."""

    def caller_of(self, request):  # type: ignore[no-untyped-def]
        return Caller(request.headers["authorization"].removeprefix("Bearer "))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeedbackStore]:
    store = FeedbackStore(tmp_path_factory.mktemp("feedback") / "f.sqlite")
    yield store
    store.close()


@pytest.fixture(scope="module")
def url(store: FeedbackStore) -> Iterator[str]:
    with serving(scripted(), guard=TwoCallers(), feedback=Feedback(store)) as url:
        yield url


def path_of(store: FeedbackStore) -> Path:
    return Path(store._connection.execute("PRAGMA database_list").fetchone()[2])


def client(url: str, caller: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {caller}"}, timeout=20)


def ask(http: httpx.Client, *questions: str) -> str:
    messages = [{"role": "user", "content": question} for question in questions]
    said = http.post("/v1/chat/completions", json={"model": "raft", "messages": messages})
    return str(said.raise_for_status().json()["id"])


def test_a_rating_lies_in_the_file_with_all_that_was_shown(url: str, store: FeedbackStore) -> None:
    with client(url, "aa") as http:
        answer_id = ask(http, "What is the first dose?", "And in children?")
        said = http.post(
            "/v1/feedback", json={"id": answer_id, "rating": "down", "correction": " none ", "comment": ""}
        )
        assert said.status_code == 201
        [row] = [row for row in read_feedback(path_of(store)) if row.given.id == answer_id]
        assert said.json() == {"id": row.id, "object": "feedback", "answer_id": answer_id}
        assert row.opinion == Opinion("down", "none", None)
        given = row.given
        assert (given.caller, given.model, given.index, given.text) == ("aa", "raft", FINGERPRINT, ANSWERED)
        assert (given.question, given.earlier) == ("And in children?", (("What is the first dose?", ""),))
        assert given.asked == "What is the first dose? And in children?"
        assert [shown.chunk_id for shown in given.shown] == [
            "formulary/corvalexin.md#0", "storage.pdf#0", "notes/hostile.html#0",
        ]  # fmt: skip
        again = http.post("/v1/feedback", json={"id": answer_id, "rating": "up"})
        assert (again.status_code, again.json()["id"]) == (201, row.id)
        assert [r.opinion for r in read_feedback(path_of(store)) if r.id == row.id] == [Opinion("up")]


class Ward(Guard):
    def caller_of(self, request):  # type: ignore[no-untyped-def]
        return Caller("ward", frozenset({"icu", "hr"}))


def test_a_row_says_whose_labels_its_words_may_need(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    tuned = AnswerEngine(MemoryIndex(), scripted(), FINGERPRINT, needs=frozenset({"hr"}))
    settings = {"guard": Ward(), "feedback": Feedback(store), "more": {"raft@hr": tuned}}
    with serving(scripted(), **settings) as url, httpx.Client(base_url=url, timeout=20) as http:
        for model, questions in (("raft", "a"), ("raft", "ab"), ("raft@hr", "c")):
            messages = [{"role": "user", "content": question} for question in questions]
            said = http.post("/v1/chat/completions", json={"model": model, "messages": messages}).json()
            assert http.post("/v1/feedback", json={"id": said["id"], "rating": "up"}).status_code == 201
    store.close()
    kept = [row.given.labels for row in read_feedback(tmp_path / "f.sqlite")]
    assert kept == [(), ("hr", "icu"), ("hr",)]


def test_a_streamed_answer_may_be_rated_as_soon_as_it_is_whole(url: str) -> None:
    with client(url, "aa") as http:
        body = {"model": "raft", "stream": True, "messages": [{"role": "user", "content": "What dose?"}]}
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            events = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
            answer_id = json.loads(next(events))["id"]
            assert "[DONE]" in events
            assert http.post("/v1/feedback", json={"id": answer_id, "rating": "up"}).status_code == 201


def test_only_who_was_answered_may_rate(url: str) -> None:
    with client(url, "aa") as asker, client(url, "bb") as other:
        answer_id = ask(asker, "What dose?")
        mine, unknown = (
            other.post("/v1/feedback", json={"id": name, "rating": "up"}) for name in (answer_id, "chatcmpl-0")
        )
        assert mine.status_code == unknown.status_code == 404
        assert mine.text.replace(answer_id, "X") == unknown.text.replace("chatcmpl-0", "X")  # alike in every word
        assert mine.json()["error"]["code"] == "answer_not_found"


@pytest.mark.parametrize(
    "body",
    [
        {"rating": "up"},
        {"id": "x", "rating": "sideways"},
        {"id": "x", "rating": "down", "corection": "12 mg"},
        {"id": "x", "rating": "down", "correction": "x" * 4001},
        {"id": "", "rating": "up"},
    ],
)
def test_what_is_no_feedback_is_refused(url: str, body: dict) -> None:
    with client(url, "aa") as http:
        said = http.post("/v1/feedback", json=body)
        assert said.status_code == 400
        assert said.json()["error"]["type"] == "invalid_request_error"


def test_a_file_that_cannot_be_written_is_told_without_its_name(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    with serving(scripted(), feedback=Feedback(store)) as url, httpx.Client(base_url=url, timeout=20) as http:
        answer_id = ask(http, "What dose?")
        store._connection.execute("PRAGMA query_only = ON")
        said = http.post("/v1/feedback", json={"id": answer_id, "rating": "up"})
        assert (said.status_code, said.headers["retry-after"]) == (503, "5")
        assert "sqlite" not in said.text
        store._connection.execute("PRAGMA query_only = OFF")
        assert http.post("/v1/feedback", json={"id": answer_id, "rating": "up"}).status_code == 201
    store.close()


def test_a_server_that_keeps_no_feedback_says_so(server: str) -> None:
    with httpx.Client(base_url=server, timeout=20) as http:
        said = http.post("/v1/feedback", json={"id": ask(http, "What dose?"), "rating": "up"})
    assert (said.status_code, said.json()["error"]["code"]) == (404, "feedback_off")


def test_after_a_restart_an_answer_is_no_longer_known(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    with serving(scripted(), feedback=Feedback(store)) as url, httpx.Client(base_url=url, timeout=20) as http:
        answer_id = ask(http, "What dose?")
    with serving(scripted(), feedback=Feedback(store)) as url, httpx.Client(base_url=url, timeout=20) as http:
        assert http.post("/v1/feedback", json={"id": answer_id, "rating": "up"}).status_code == 404
    assert read_feedback(tmp_path / "f.sqlite") == []
    store.close()
