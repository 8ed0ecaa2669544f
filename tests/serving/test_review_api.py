"""The review server over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest
from review_live import reviewing

from raft.dataset.review import open_review
from raft.dataset.trail import trail_path
from raft.errors import UsageError
from raft.rows import read_rows
from raft.serving.middleware import MAX_BODY_BYTES, SECURE_HEADERS
from raft.serving.review import check_loopback, create_review_app
from tests.review_dataset import HOSTILE, questions, write_review_dataset

IDS = [item.id for item in questions()]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_review_dataset(tmp_path / "my wards")


@pytest.fixture
def server(dataset: Path) -> Iterator[str]:
    with reviewing(dataset) as url:
        yield url


def listed(server: str, **filters: object) -> list[str]:
    answer = httpx.get(f"{server}/api/questions", params=filters)
    assert answer.status_code == 200, answer.text
    return [row["id"] for row in answer.json()["questions"]]


def decide(server: str, question_id: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server}/api/questions/{question_id.replace('/', '%2F')}/decision", json=body)


def test_the_dataset_tells_what_is_reviewed(server: str) -> None:
    told = httpx.get(f"{server}/api/dataset").json()
    assert (told["name"], told["reviewer"], told["types"]) == ("my wards", "ada", ["numeric", "unanswerable"])
    assert told["apply"].endswith("my wards' --apply")
    assert told["progress"] == {
        "total": 6, "undecided": 6, "accepted": 0, "edited": 0, "rejected": 0, "last_decided": None,
    }  # fmt: skip


def test_filters(server: str) -> None:
    decide(server, "q/0", decision="accept")
    decide(server, "q/2", decision="reject", reason="wrong answer")
    assert listed(server) == IDS
    assert listed(server, status="undecided") == ["q/1", "q/3", "q/4", "u/0"]
    assert listed(server, status="accepted") == ["q/0"]
    assert listed(server, status="rejected") == ["q/2"]
    assert listed(server, status="flagged") == ["q/1"]
    assert listed(server, type="unanswerable") == ["u/0"]
    assert listed(server, document="WARDS/3") == ["q/3"]
    assert listed(server, search="cedar") == ["q/2"]
    assert listed(server, search="cupboard 43", type="numeric", status="undecided") == ["q/3"]
    assert listed(server, search="no such words") == []


def test_pages_stand_still_while_what_they_list_is_decided_on(server: str) -> None:
    first = httpx.get(f"{server}/api/questions", params={"status": "undecided", "limit": 2}).json()
    assert [row["id"] for row in first["questions"]] == IDS[:2]
    assert (first["first"], first["total"]) == (0, 6)
    for row in first["questions"]:
        decide(server, row["id"], decision="accept")
    second = httpx.get(f"{server}/api/questions", params={"status": "undecided", "limit": 2, "after": IDS[1]}).json()
    assert [row["id"] for row in second["questions"]] == IDS[2:4]
    assert (second["first"], second["total"]) == (0, 4)
    assert listed(server, limit=2, before=IDS[5]) == IDS[3:5]
    assert listed(server, after=IDS[5]) == []
    assert listed(server, before=IDS[0]) == []
    assert httpx.get(f"{server}/api/questions", params={"limit": 100_000}).status_code == 400


def test_a_question_is_told_with_its_evidence_and_an_example(server: str) -> None:
    told = httpx.get(f"{server}/api/questions/q%2F1").json()
    [oracle] = told["oracles"]
    [(start, end)] = oracle["spans"]
    assert oracle["text"][start:end] == told["words"]["quotes"][0]["text"]
    assert oracle["place"] == "Wards, Keys"
    assert (told["flags"], told["split"], told["warnings"], told["status"]) == (["pii_email"], "train", [], "undecided")
    example = told["example"]
    assert example["oracle_present"]
    assert "<ANSWER>: cupboard 41" in example["target"]
    assert [chunk["chunk_id"] for chunk in example["context"] if chunk["oracle"]] == ["wards/1.md#0"]
    assert len(example["context"]) == 4
    assert HOSTILE in httpx.get(f"{server}/api/questions/u%2F0").json()["question"]  # sent as data, letter for letter
    assert httpx.get(f"{server}/api/questions/q%2F99").status_code == 404


def test_decisions(server: str, dataset: Path) -> None:
    accepted = decide(server, "q/0", decision="accept").json()
    assert accepted["question"]["status"] == "accepted"
    assert accepted["progress"]["accepted"] == 1
    assert accepted["progress"]["last_decided"] == "q/0"
    refused = decide(server, "q/1", decision="reject", reason="")
    assert (refused.status_code, "reason" in refused.json()["error"]["message"]) == (422, True)
    assert decide(server, "q/99", decision="accept").status_code == 404
    decide(server, "q/1", decision="reject", reason="wrong answer")
    undone = decide(server, "q/1", decision="undo").json()
    assert undone["question"]["status"] == "undecided"
    assert undone["progress"]["last_decided"] == "q/0"
    assert [row["decision"] for row in read_rows(trail_path(dataset))] == ["accept", "reject", "undo"]


def test_an_edit_changes_what_the_student_sees(server: str) -> None:
    words = asdict(questions()[0]) | {"answer": "40", "reasoning": "It is named there."}
    words = {name: words[name] for name in ("question", "answer", "reasoning", "quotes")}
    told = decide(server, "q/0", decision="edit", words=words).json()["question"]
    assert (told["status"], told["answer"], told["made"]["answer"]) == ("edited", "40", "cupboard 40")
    assert told["example"]["target"].endswith("It is named there.\n<ANSWER>: 40")

    warned = decide(server, "q/0", decision="edit", words=words | {"question": "Which?"})
    assert (warned.status_code, warned.json()["error"]["warnings"]) == (409, ["question_too_short"])
    taken = decide(server, "q/0", decision="edit", words=words | {"question": "Which?"}, override=True)
    assert taken.json()["question"]["decisions"][-1]["overridden"] == ["question_too_short"]
    broken = decide(server, "q/0", decision="edit", words=words | {"quotes": [{"chunk_id": "x", "text": "y"}]})
    assert (broken.status_code, "no oracle chunk" in broken.json()["error"]["message"]) == (422, True)


@pytest.mark.parametrize(
    "body",
    [
        {"decision": "drop"}, {}, {"decision": "accept", "more": 1}, {"decision": "reject", "reason": "x" * 1001},
        {"decision": "edit", "words": {"question": "x" * 20_001, "answer": "", "reasoning": "", "quotes": []}},
        {"decision": "edit", "words": {"question": "x", "answer": "", "reasoning": "", "quotes": [{}] * 21}},
    ],
)  # fmt: skip
def test_malformed_decisions_are_refused(server: str, dataset: Path, body: dict) -> None:
    assert decide(server, "q/0", **body).status_code == 400
    assert trail_path(dataset).read_bytes() == b""


def test_only_the_own_page_may_decide(server: str, dataset: Path) -> None:
    url, port = f"{server}/api/questions/q%2F0/decision", server.rsplit(":", 1)[1]
    good = '{"decision": "accept"}'

    def post(**headers: str) -> int:
        sent = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return httpx.post(url, content=good, headers=sent).status_code

    assert post(host=f"raft.example:{port}") == 403  # a name that was pointed at 127.0.0.1
    assert post(host=f"a{{b.raft.example:{port}") == 403
    assert post(host="127.0.0.1:1") == 403
    assert post(host="127.0.0.1") == 403
    assert post(origin="http://raft.example") == 403
    assert post(origin="null") == 403
    assert post(origin=f"http://localhost:{port}") == 403
    assert post(content_type="text/plain") == 415  # what a form of another site can send
    assert httpx.get(f"{server}/api/dataset", headers={"host": f"raft.example:{port}"}).status_code == 403
    assert trail_path(dataset).read_bytes() == b""
    assert post(origin=server, content_type="application/json; charset=utf-8") == 200
    assert post(host=f"localhost:{port}", origin=f"http://localhost:{port}") == 200


def test_headers_and_sizes(server: str) -> None:
    for path in ("/", "/static/review.js", "/api/dataset", "/nowhere", "/api/questions/none"):
        answer = httpx.get(server + path)
        assert {name: answer.headers[name] for name in SECURE_HEADERS} == SECURE_HEADERS
    long = b'{"reason": "' + b"x" * MAX_BODY_BYTES + b'"}'
    url = f"{server}/api/questions/q%2F0/decision"
    assert httpx.post(url, content=long, headers={"content-type": "application/json"}).status_code == 413


def test_a_split_and_a_sample_are_all_that_is_shown(dataset: Path) -> None:
    with reviewing(dataset, split="dev") as url:
        assert listed(url) == ["q/4"]
    with reviewing(dataset, sample=3) as url:
        some = listed(url)
        assert len(some) == 3
        assert httpx.get(f"{url}/api/dataset").json()["progress"]["total"] == 3
    with reviewing(dataset, sample=3) as url:
        assert listed(url) == some
    with open_review(dataset, "ada") as review, pytest.raises(UsageError, match="no question in test"):
        create_review_app(review, split="test")


def test_ten_thousand_questions_come_in_pages(tmp_path: Path) -> None:
    many = [replace(questions()[n % 4], id=f"n{n}", split="train") for n in range(10_000)]
    with reviewing(write_review_dataset(tmp_path / "many", many)) as url:
        found = httpx.get(f"{url}/api/questions", params={"after": "n9000", "limit": 50}).json()
        assert [row["id"] for row in found["questions"]] == [f"n{n}" for n in range(9001, 9051)]
        assert (found["first"], found["total"]) == (9001, 10_000)
        assert httpx.get(f"{url}/api/questions/n9001").json()["warnings"] == ["duplicate_question"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org"])
def test_another_machine_cannot_be_served(host: str) -> None:
    with pytest.raises(UsageError, match="has no keys"):
        check_loopback(host)
    for here in ("127.0.0.1", "localhost", "::1"):
        check_loopback(here)
