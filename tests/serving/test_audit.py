"""The audit trail: complete, or nothing is answered."""

from __future__ import annotations

import json
import resource
import stat
from collections.abc import Generator
from pathlib import Path

import httpx
import openai
import pytest
from exchanges import QUESTION, exchange
from live import ANSWERED, DrippingModel, scripted, serving

from raft.errors import InputError
from raft.llm.chat import ChatReply, ChatRequest, PromptTooLong
from raft.llm.scripted import ScriptedModel
from raft.serving.audit import Audit
from raft.serving.guard import Guard
from raft.serving.http_errors import Refused
from raft.serving.keys import KeyFile, add_key

ASK = [{"role": "user", "content": "What is the first dose of Corvalexin?"}]
FULL = Path("/dev/full")
needs_a_full_disk = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_a_row_says_who_asked_and_what_was_shown(path: Path) -> None:
    Audit(path)(exchange(outcome="abstained"))
    [row] = rows(path)
    assert row.pop("time").endswith("+00:00")
    assert row == {
        "id": "chatcmpl-4f", "caller": "intranet", "route": "chat", "model": "raft", "outcome": "abstained",
        "documents": ["formulary/corvalexin.md", "storage.pdf"],
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_texts_are_kept_only_where_that_was_chosen(path: Path, tmp_path: Path) -> None:
    Audit(path)(exchange())
    assert QUESTION not in path.read_text()
    assert "12 mg" not in path.read_text()
    with_texts = Audit(tmp_path / "texts.jsonl", texts=True)
    with_texts(exchange())
    with_texts(exchange(served=None, outcome="failed"))
    assert [(row["question"], row["answer"]) for row in rows(tmp_path / "texts.jsonl")] == [
        (QUESTION, ANSWERED), (QUESTION, None),
    ]  # fmt: skip


def test_a_trail_goes_on_where_it_was_after_a_line_that_was_cut_short_too(path: Path) -> None:
    first = Audit(path)
    first(exchange(id="a"))
    first.close()
    path.write_bytes(path.read_bytes() + b'{"time": "20')  # the machine stopped
    Audit(path)(exchange(id="b"))
    lines = path.read_text().splitlines()
    assert [json.loads(lines[n])["id"] for n in (0, 2)] == ["a", "b"]
    assert len(lines) == 3


def test_names_of_clients_break_no_row(path: Path) -> None:
    audit = Audit(path)
    audit(exchange(model='x"\n{"id": "forged"}\n' + "y" * 5000, id="a\ud800"))
    [row] = rows(path)
    assert row["caller"] == "intranet"
    assert len(row["model"]) <= 200


def test_a_trail_that_was_moved_away_is_begun_anew(path: Path) -> None:
    audit = Audit(path)
    for number, moved in enumerate((path.with_suffix(".1"), path.with_suffix(".2"))):
        audit(exchange(id=f"before {number}"))
        path.rename(moved)
    audit(exchange(id="after"))
    found = [rows(p)[0]["id"] for p in (path.with_suffix(".1"), path.with_suffix(".2"), path)]
    assert found == ["before 0", "before 1", "after"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_trail_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written .*--set audit=FILE"):
        Audit(tmp_path / "none" / "audit.jsonl")


@needs_a_full_disk
def test_rows_that_cannot_be_written_are_kept_and_nothing_new_is_answered(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(path)
    audit.check()
    audit(exchange(id="1"))
    good = path.rename(path.with_suffix(".good"))
    path.symlink_to(FULL)
    for name in ("2", "3"):  # both were in work when the disk filled up
        audit(exchange(id=name))
    assert "No space left" in caplog.text
    with pytest.raises(Refused) as caught:
        audit.check()
    assert (caught.value.status, caught.value.code) == (503, "audit_unavailable")
    path.unlink()
    good.rename(path)
    audit.check()
    assert [row["id"] for row in rows(path)] == ["1", "2", "3"]
    audit(exchange(id="4"))
    assert [row["id"] for row in rows(path)] == ["1", "2", "3", "4"]


def test_a_disk_that_fills_up_in_the_middle_of_a_row_leaves_no_half_of_it(path: Path) -> None:
    audit = Audit(path)
    audit(exchange(id="1"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        audit(exchange(id="2"))
        assert [row["id"] for row in rows(path)] == ["1"]
        with pytest.raises(Refused):
            audit.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    audit.check()
    assert [row["id"] for row in rows(path)] == ["1", "2"]


# --- a server


def ask(server: str, key: str = "none", **settings: object):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key=key, max_retries=0, timeout=30)
    return client.chat.completions.create(**{"model": "raft", "messages": ASK, **settings})


def test_every_request_leaves_a_row_before_its_answer_has_come(path: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.jsonl"
    ward, desk = add_key(keys, "ward"), add_key(keys, "desk")
    with serving(scripted(), guard=Guard(None, KeyFile(keys)), audit=Audit(path)) as server:
        whole = ask(server, ward)
        assert [row["id"] for row in rows(path)] == [whole.id]
        stream = list(ask(server, desk, stream=True))
        assert rows(path)[-1]["id"] == stream[0].id
        httpx.post(f"{server}/v1/search", json={"query": "x"}, headers={"Authorization": f"Bearer {desk}"})
        httpx.post(f"{server}/v1/search", json={"query": "x"}, headers={"Authorization": "Bearer wrong"})
    assert [(row["caller"], row["route"], row["outcome"]) for row in rows(path)] == [
        ("ward", "chat", "answered"), ("desk", "chat", "answered"), ("desk", "search", "searched"),
    ]  # fmt: skip
    assert all(row["documents"][0] == "formulary/corvalexin.md" for row in rows(path))


def test_an_answer_that_its_reader_left_stands_in_the_trail(path: Path) -> None:
    model = DrippingModel()
    with serving(model, audit=Audit(path)) as server:
        stream = ask(server, stream=True)
        next(stream)
        stream.close()
        model.step.release(1000)
        assert model.left.wait(20)
    [row] = rows(path)
    assert row["outcome"] == "cancelled"
    assert row["documents"]


class SmallEndpoint(ScriptedModel):
    """Says only when it is asked that it reads one passage and no more."""

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        if "Document [2]" in request.messages[-1].content:
            raise PromptTooLong("the prompt has 900 tokens; the model reads 500")
        return (yield from super().stream(request))


def test_passages_that_were_sent_stand_in_the_trail_whatever_the_model_read(path: Path) -> None:
    with serving(SmallEndpoint(lambda request: ANSWERED), audit=Audit(path)) as server:
        client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=30)
        events = list(client.responses.create(model="raft", input="What is the first dose?", stream=True))
        ask(server)
    sent = next(event.item for event in events if event.type == "response.output_item.done")
    found = [result.file_id for result in sent.results]
    assert [row["documents"] for row in rows(path)] == [found, found[:1]]  # a chat shows what was read alone
    assert len(found) == 3


@needs_a_full_disk
def test_a_server_without_room_for_its_trail_answers_nothing_until_there_is(path: Path) -> None:
    with serving(scripted(), audit=Audit(path)) as server:
        path.unlink()
        path.symlink_to(FULL)
        held = ask(server).id  # the answer during which the disk fills up
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as caught:
                ask(server)
            assert (caught.value.status_code, caught.value.code) == (503, "audit_unavailable")
            assert int(caught.value.response.headers["retry-after"]) > 0
            assert str(path) not in str(caught.value.body)
        assert httpx.post(f"{server}/v1/search", json={"query": "dose"}).status_code == 503
        assert httpx.get(f"{server}/healthz").status_code == 200
        assert httpx.get(f"{server}/metrics").status_code == 200
        path.unlink()
        answered = ask(server).id
        assert [row["id"] for row in rows(path)] == [held, answered]
