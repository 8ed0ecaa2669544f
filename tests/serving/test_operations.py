"""The probes, and the figures for Prometheus."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from exchanges import QUESTION, exchange
from live import ANSWERED, DrippingModel, MemoryIndex, scripted, serving
from prometheus_client.parser import text_string_to_metric_families

from raft.llm.chat import ChatReply
from raft.records import Hit
from raft.serving.gate import Gate
from raft.serving.guard import Guard
from raft.serving.keys import KeyFile, add_key
from raft.serving.metrics import Metrics
from raft.serving.service import Exchange, Timing

ASK = [{"role": "user", "content": "What is the first dose of Corvalexin?"}]


def client(server: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key=key, max_retries=0, timeout=30)


def figures(text: str) -> dict[str, float]:
    """Each sample under its name and labels: {'raft_requests_total{outcome="answered",route="chat"}': 1.0}."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def scraped(server: str, **headers: str) -> dict[str, float]:
    response = httpx.get(f"{server}/metrics", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return figures(response.text)


# --- probes


def test_probes_need_no_key_and_tell_nothing_more(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.jsonl", "a")
    with serving(scripted(), guard=Guard(None, KeyFile(tmp_path / "keys.jsonl"))) as server:
        assert httpx.get(f"{server}/healthz").json() == {"status": "alive"}
        assert httpx.get(f"{server}/readyz", headers={"Host": "10.0.0.7"}).json() == {"status": "ready"}


def test_a_server_whose_queue_is_full_is_not_ready() -> None:
    model = DrippingModel()
    with serving(model, max_queue=1) as server:
        held = [client(server).chat.completions.create(model="raft", messages=ASK, stream=True) for _ in range(2)]
        response = httpx.get(f"{server}/readyz")
        assert (response.status_code, response.json()) == (503, {"status": "not ready"})
        assert httpx.get(f"{server}/healthz").status_code == 200
        model.step.release(2000)
        assert all([*stream][-1].raft for stream in held)
        assert httpx.get(f"{server}/readyz").status_code == 200


def test_a_server_that_can_take_no_search_is_not_ready() -> None:
    index = SlowIndex()
    with serving(scripted(), index=index, max_queue=0) as server, ThreadPoolExecutor(1) as thread:
        searching = thread.submit(httpx.post, f"{server}/v1/search", json={"query": "dose"})
        assert index.begun.wait(20)
        assert httpx.get(f"{server}/readyz").status_code == 503
        index.go_on.set()
        assert searching.result().status_code == 200
        assert httpx.get(f"{server}/readyz").status_code == 200


class SlowIndex(MemoryIndex):
    """Says when a search has begun, and ends it when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def search(self, *given: Any) -> list[list[Hit]]:
        self.begun.set()
        assert self.go_on.wait(20)
        return super().search(*given)


# --- what is counted


def test_one_answer_is_counted() -> None:
    metrics = Metrics()
    metrics(exchange())
    found = figures(metrics.text().decode())
    expected = {
        'raft_requests_total{outcome="answered",route="chat"}': 1, "raft_retrieval_seconds_sum": 0.25,
        "raft_first_token_seconds_sum": 0.5, "raft_answer_seconds_sum": 2.75, "raft_prompt_tokens_total": 388,
        "raft_cached_prompt_tokens_total": 320, "raft_completion_tokens_total": 41, "raft_citations_total": 1,
        "raft_unverified_quotes_total": 1, "raft_tokens_per_second_sum": 20, "raft_tokens_per_second_count": 1,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("outcome", ["failed", "cancelled", "refused"])
def test_what_was_not_answered_counts_as_that_alone(outcome: str) -> None:
    metrics = Metrics()
    metrics(exchange(outcome=outcome, served=None, hits=(), timing=Timing(0.0, None, 0.1)))
    found = figures(metrics.text().decode())
    assert found[f'raft_requests_total{{outcome="{outcome}",route="chat"}}'] == 1
    counted = [name for name, value in found.items() if value and name.startswith("raft_") and "_created" not in name]
    assert counted == [f'raft_requests_total{{outcome="{outcome}",route="chat"}}']


def test_an_answer_without_counts_or_of_one_token_has_no_speed() -> None:
    metrics = Metrics()
    made = exchange()
    one = ChatReply("served", ANSWERED, prompt_tokens=9, completion_tokens=1)
    for reply in (None, one):
        metrics(exchange(served=replace(made.served, reply=reply)))
    found = figures(metrics.text().decode())
    assert found["raft_tokens_per_second_count"] == 0
    assert found["raft_answer_seconds_count"] == 2


def test_each_server_counts_for_itself() -> None:
    first, second = Metrics(), Metrics()
    for metrics in (first, second):
        metrics.watch(answers=Gate(1, 1))
    first(exchange())
    assert figures(first.text().decode())["raft_citations_total"] == 1
    assert figures(second.text().decode())["raft_citations_total"] == 0


def test_the_figures_of_a_server_that_answered_failed_and_refused() -> None:
    replies = iter([ANSWERED, "None of the documents holds the answer.\n<ANSWER>: not in the documents", ANSWERED])
    with serving(scripted(lambda request: next(replies))) as server:
        for _ in range(2):
            client(server).chat.completions.create(model="raft", messages=ASK)
        list(client(server).chat.completions.create(model="raft", messages=ASK, stream=True))
        httpx.post(f"{server}/v1/search", json={"query": "dose"})
        httpx.get(f"{server}/v1/models", headers={"Host": "evil.example"})
        httpx.get(f"{server}/v1/nothing")
        found = scraped(server)
    assert found['raft_requests_total{outcome="answered",route="chat"}'] == 2
    assert found['raft_requests_total{outcome="abstained",route="chat"}'] == 1
    assert found['raft_requests_total{outcome="searched",route="search"}'] == 1
    assert found["raft_first_token_seconds_count"] == 3
    assert found["raft_retrieval_seconds_count"] == 4
    assert found["raft_citations_total"] == 2
    assert found["raft_prompt_tokens_total"] > found["raft_completion_tokens_total"] > 0
    assert [found[f'raft_http_responses_total{{status="{status}"}}'] for status in (200, 403, 404)] == [4, 1, 1]
    assert found["process_resident_memory_bytes"] > 0


def test_what_waits_and_runs_is_shown() -> None:
    model = DrippingModel()
    with serving(model) as server:
        held = [client(server).chat.completions.create(model="raft", messages=ASK, stream=True) for _ in range(3)]
        found = scraped(server)
        assert found['raft_requests_running{gate="answers"}'] == 1
        assert found['raft_requests_waiting{gate="answers"}'] == 2
        assert found['raft_requests_waiting{gate="searches"}'] == 0
        model.step.release(4000)
        for stream in held:
            list(stream)
        found = scraped(server)
        assert found['raft_requests_running{gate="answers"}'] == found['raft_requests_waiting{gate="answers"}'] == 0


def test_a_bug_counts_as_500() -> None:
    model = scripted()
    model.stream = lambda request: 1 / 0  # type: ignore[method-assign]
    with serving(model) as server:
        assert httpx.post(f"{server}/v1/chat/completions", json={"model": "raft", "messages": ASK}).status_code == 500
        assert scraped(server)['raft_http_responses_total{status="500"}'] == 1


def test_a_listener_that_breaks_takes_no_answer_from_its_client(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Exchange] = []

    def breaking(made: Exchange) -> None:
        raise OSError("gone")

    with serving(scripted(), listeners=[breaking, told.append]) as server:
        for streaming in (False, True):
            answer = client(server).chat.completions.create(model="raft", messages=ASK, stream=streaming)
            assert ([*answer][-1] if streaming else answer).raft["answer"] == "12 mg"
    assert len(told) == 2
    assert "a listener broke" in caplog.text


# --- who may read them, and what stands in them


def test_figures_need_a_key_where_there_are_keys(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.jsonl", "prometheus", requests_per_minute=1)
    with serving(scripted(), guard=Guard(None, KeyFile(tmp_path / "keys.jsonl"))) as server:
        assert httpx.get(f"{server}/metrics").status_code == 401
        for _ in range(3):  # scraping takes nothing from what the key may ask
            scraped(server, Authorization=f"Bearer {key}")
    with serving(scripted()) as server:
        assert httpx.get(f"{server}/metrics", headers={"Host": "evil.example"}).status_code == 403


def test_a_key_file_that_cannot_be_read_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    headers = {"Authorization": f"Bearer {add_key(path, 'a')}"}
    good, clock = path.read_bytes(), count()
    with serving(scripted(), guard=Guard(None, KeyFile(path, lambda: float(next(clock))))) as server:
        assert scraped(server, **headers)["raft_keys_unreadable"] == 0
        path.write_text("garbage")
        assert scraped(server, **headers)["raft_keys_unreadable"] == 1
        path.write_bytes(good)
        assert scraped(server, **headers)["raft_keys_unreadable"] == 0


def test_clients_can_neither_add_labels_nor_put_words_into_figures(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.jsonl", "a")
    with serving(scripted(), guard=Guard(None, KeyFile(tmp_path / "keys.jsonl"))) as server:

        def names() -> set[str]:
            response = httpx.get(f"{server}/metrics", headers={"Authorization": f"Bearer {key}"})
            for word in (key, QUESTION, "Corvalexin", "invented", "made-up"):
                assert word not in response.text
            return {*figures(response.text)}

        def disturb(n: int) -> None:
            for model in ("raft", f"invented-{n}"):
                with contextlib.suppress(openai.NotFoundError):
                    client(server, key).chat.completions.create(
                        model=model, messages=[{"role": "user", "content": QUESTION}], user=f"invented-{n}"
                    )
            headers = {"Authorization": f"Bearer made-up-{n}", "X-Request-Id": f"invented-{n}"}
            httpx.request(f"INVENTED{n}", f"{server}/v1/invented-{n}", headers=headers)
            httpx.get(f"{server}/v1/models", headers=headers)

        disturb(0)
        names()
        before = names()
        for n in range(1, 6):
            disturb(n)
        assert names() == before
