"""What a request may say of its search: how many passages, of which documents, with which labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from live import DOSES, FINGERPRINT, STORAGE, MemoryIndex, scripted, serving
from pydantic import ValidationError

from raft.records import Document, Filter
from raft.serving.engine import AnswerEngine
from raft.serving.schema import Options

PAY = Document("hr/pay.md", "The bonus is 400 euros.", "Pay", "hr/pay.md", {"labels": ["hr"], "tags": ["pay"]})
OPEN = (replace(DOSES, source="formulary/corvalexin.md", metadata={"tags": ["dosing"]}), STORAGE)
ROUTES = ["/v1/chat/completions", "/v1/responses", "/v1/search", "/v1/vector_stores/raft/search"]


@pytest.fixture(scope="module")
def index() -> MemoryIndex:
    return MemoryIndex((*OPEN, PAY), labels=["hr"])


@pytest.fixture(scope="module")
def server(index: MemoryIndex) -> Iterator[str]:
    tuned = AnswerEngine(index, scripted("<ANSWER>: 400 euros"), FINGERPRINT, needs=frozenset({"hr"}))
    with serving(scripted(), index=index, more={"raft@hr": tuned}) as url:
        yield url


def send(server: str, route: str, **options: Any) -> httpx.Response:
    asked = {"model": "raft", "messages": [{"role": "user", "content": "Dose?"}], "input": "Dose?", "query": "Dose?"}
    return httpx.post(f"{server}{route}", json={**asked, **options}, timeout=30)


def shown(response: httpx.Response) -> list[str]:
    """The documents that a response shows."""
    body = response.raise_for_status().json()
    passages = body["data"] if "data" in body else body["raft"]["documents"]
    return [row.get("document_id") or row["file_id"] for row in passages]


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_takes_top_k_filters_and_labels(server: str, route: str) -> None:
    assert shown(send(server, route)) == [DOSES.id, STORAGE.id, PAY.id]
    assert shown(send(server, route, top_k=1)) == [DOSES.id]
    assert shown(send(server, route, filters={"sources": ["hr/", "formulary/"]})) == [DOSES.id, PAY.id]
    assert shown(send(server, route, filters={"tags": ["pay"]})) == [PAY.id]
    assert shown(send(server, route, labels=[])) == [DOSES.id, STORAGE.id]
    assert shown(send(server, route, labels=["hr", "unheard-of"])) == [DOSES.id, STORAGE.id, PAY.id]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"filters": {"since": "2026-13"}}, "since"),
        ({"filters": {"until": "yesterday"}}, "until"),
        ({"filters": {"until": "2026-02-30"}}, "until"),
        ({"filters": {"source": ["hr/"]}}, "source"),
        ({"filters": {"type": "eq", "key": "tag", "value": "pay"}}, "filters"),
        ({"filters": {"tags": [""]}}, "tags"),
        ({"labels": "hr"}, "labels"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_what_cannot_be_searched_by_is_400(server: str, route: str, wrong: dict[str, Any], says: str) -> None:
    response = send(server, route, **wrong)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


def test_dates_reach_the_index(server: str, index: MemoryIndex) -> None:
    send(server, "/v1/search", filters={"since": "2025", "until": "2026-03-01"})
    assert index.wheres[-1] == Filter(None, since="2025", until="2026-03-01")


@pytest.mark.parametrize(
    ("held", "asked", "searched"),
    [
        (None, None, None),
        (None, ["hr"], {"hr"}),
        (None, [], set()),
        ({"hr", "it"}, None, {"hr", "it"}),
        ({"hr", "it"}, ["hr", "law"], {"hr"}),
        (set(), ["hr"], set()),
    ],
)
def test_labels_may_only_narrow(held: set[str] | None, asked: list[str] | None, searched: set[str] | None) -> None:
    where = Options(labels=asked).where(None if held is None else frozenset(held))
    assert where.labels == (None if searched is None else frozenset(searched))


def test_a_model_tuned_on_labelled_documents_does_not_exist_for_a_request_without_the_label(server: str) -> None:
    for route in ROUTES[:3]:
        assert send(server, route, model="raft@hr").status_code == 200
        response = send(server, route, model="raft@hr", labels=[])
        assert response.status_code == 404
        assert "raft@hr" not in response.json()["error"]["message"].removeprefix("the model 'raft@hr' does not exist")


def test_nothing_found_is_a_refusal(server: str) -> None:
    raft = send(server, ROUTES[0], filters={"tags": ["none"]}).json()["raft"]
    assert (raft["abstained"], raft["documents"], raft["dropped"]) == (True, [], 0)


def test_filters_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Options.model_validate({"filters": {"sinse": "2025"}})
