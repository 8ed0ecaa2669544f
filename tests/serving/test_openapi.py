"""/openapi.json says what the server does: requests made from it, right and wrong ones, against a live server."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from live import scripted, serving
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from raft.serving.feedback import FeedbackStore
from raft.serving.recent import Feedback

KEY = {"Authorization": "Bearer s3cret"}
ROUTES = {
    "/v1/chat/completions", "/v1/responses", "/v1/models", "/v1/models/{model}", "/v1/search", "/v1/feedback",
    "/v1/vector_stores/{vector_store_id}/search", "/healthz", "/readyz", "/metrics",
}  # fmt: skip


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    feedback = Feedback(FeedbackStore(tmp_path_factory.mktemp("feedback") / "feedback.sqlite"))
    with serving(scripted(), api_key="s3cret", feedback=feedback) as url:
        yield url


@pytest.fixture(scope="module")
def described(keyed: str) -> Any:
    found = schemathesis.openapi.from_url(f"{keyed}/openapi.json", headers=KEY)
    found.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    return found


def test_the_description_is_guarded_and_names_every_route(keyed: str) -> None:
    assert httpx.get(f"{keyed}/openapi.json").status_code == 401
    found = httpx.get(f"{keyed}/openapi.json", headers=KEY).json()
    assert set(found["paths"]) == ROUTES
    for path, operations in found["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert ("401" in operation["responses"]) == (path not in ("/healthz", "/readyz"))


@pytest.mark.parametrize("path", sorted(ROUTES - {"/healthz", "/readyz"}))
def test_without_a_valid_key_there_is_nothing_but_401(described: Any, keyed: str, path: str) -> None:
    [(method, _)] = httpx.get(f"{keyed}/openapi.json", headers=KEY).json()["paths"][path].items()
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert httpx.request(method, f"{keyed}{path}", json={}, headers=headers).status_code == 401


def answerable(case: Any, answered: str) -> Any:
    """The case about something that the server has, a given answer too; what is drawn by chance it seldom has."""
    if isinstance(case.body, dict):
        case.body |= {"id": answered} if "rating" in case.body else {}
        case.body |= {"model": "raft"} if "model" in case.body else {}
        if "messages" in case.body:
            case.body["messages"] = [*case.body["messages"], {"role": "user", "content": "Dose?"}]
        if "input" in case.body:
            case.body["input"] = "Dose?" if isinstance(case.body["input"], str) else [*case.body["input"], ASK]
    for name in case.path_parameters:
        case.path_parameters[name] = "raft"
    return case


ASK = {"role": "user", "content": "Dose?"}


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_the_server_does_as_it_is_described(described: Any, keyed: str, path: str) -> None:
    [operation] = described[path].values()
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    asked = {"model": "raft", "input": "Dose?"}
    answered = httpx.post(f"{keyed}/v1/responses", json=asked, headers=KEY).json()["id"]
    statuses = set()

    @given(case=st.one_of(right, right.map(partial(answerable, answered=answered)), wrong))
    @settings(max_examples=60, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        lacking = [checks.positive_data_acceptance]  # a model, or an answer to be rated, may not exist all the same
        statuses.add(case.call_and_validate(base_url=keyed, headers=KEY, excluded_checks=lacking).status_code)

    ask()
    assert statuses <= {200, 201, 400, 404, 405}
    assert statuses & {200, 201}
