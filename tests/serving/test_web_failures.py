"""The page, when something goes wrong: keys, limits, broken streams."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from live import DrippingModel, scripted, serving

from raft.config_serve import LimitsRecipe

pytestmark = pytest.mark.browser


def test_the_key_is_asked_for_once(open_page) -> None:
    with serving(scripted(), api_key="s3cret") as url:
        watched = open_page(url)
        page = watched.page
        assert page.evaluate("document.activeElement.id") == "key"
        assert watched.complaints == []  # nothing was asked for that would have been refused
        watched.ask()
        page.get_by_label("This server asks for an API key").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("The server does not know this key.").wait_for()
        page.get_by_label("This server asks for an API key").fill("s3cret")
        page.keyboard.press("Enter")
        watched.done()  # the question that waited for it is answered
        assert watched.text(".verdict") == "12 mg"
        assert not page.is_visible("#key-form")
        assert not page.is_visible("#error")
        page.reload()
        watched.ask()
        watched.done()


def test_stop_and_failure_are_told(open_page) -> None:
    model = DrippingModel()
    with serving(model) as url:
        watched = open_page(url)
        watched.ask()
        model.step.release(2)
        watched.page.locator(".reasoning", has_text="0 1").wait_for()
        watched.page.keyboard.press("Escape")
        watched.done()
        for _ in range(100):  # the server learns at its own time that the client has left
            model.step.release()
            if model.left.wait(0.2):
                break
        assert model.left.is_set()
        assert "Stopped" in watched.text(".caution")
        assert watched.status() == "Stopped."
    watched.ask()  # the server is gone by now
    watched.done(2)
    assert "cannot be reached" in watched.text(".failure")
    assert [message["content"] for message in watched.bodies[1]["messages"]] == ["What is the first dose?"]


def test_a_busy_server_is_asked_again_when_it_said(open_page) -> None:
    model = DrippingModel(["<ANSWER>: 12", " mg"])
    with serving(model, max_queue=0) as url:
        first, second = open_page(url), open_page(url)
        first.ask()
        model.step.release()
        first.page.locator(".verdict", has_text="12").wait_for()
        second.page.clock.install()
        second.page.route("**/v1/chat/completions", longer_wait)
        second.ask()
        second.done()
        assert "as much to do as it can" in second.text(".failure")
        again = second.page.locator(".again")
        assert again.is_disabled()
        assert re.fullmatch(r"Ask again in (60|[45]\d) s", again.inner_text())
        model.step.release(10)
        first.done()
        second.page.clock.run_for(60_000)
        second.page.get_by_role("button", name="Ask again", exact=True).click()
        second.page.locator(".verdict", has_text="12 mg").wait_for()
        second.done()


def longer_wait(route: Any) -> None:
    """What the server says, but for how long to wait."""
    response = route.fetch()
    headers = response.headers
    if "retry-after" in headers:
        headers["retry-after"] = "60"
    route.fulfill(response=response, headers=headers)


def test_what_is_too_much_is_told(open_page) -> None:
    with serving(scripted(), limits=LimitsRecipe(max_body_kb=1)) as url:
        watched = open_page(url)
        watched.ask("x " * 900)
        watched.done()
        assert "more than the server reads at once" in watched.text(".failure")


def test_a_broken_stream_is_no_answer(open_page, server: str) -> None:
    watched = open_page(server)
    half = {"id": "x", "choices": [{"delta": {"content": "Document [1] says"}, "finish_reason": None}]}
    watched.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=200, content_type="text/event-stream", body=f"data: {json.dumps(half)}\n\ndata: {{"
        ),
    )
    watched.ask()
    watched.done()
    assert "broke before the answer was complete" in watched.text(".failure")
    assert "not complete" in watched.text(".caution")
    watched.page.unroute("**/v1/chat/completions")
    watched.page.get_by_role("button", name="Ask again").click()
    watched.page.locator(".verdict", has_text="12 mg").wait_for()
    watched.done()
    assert watched.page.locator(".turn").count() == 1


def test_a_failure_inside_a_stream_is_told(open_page) -> None:
    def fail(request: Any) -> str:
        raise_model_error()
        return ""

    with serving(scripted(fail)) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        assert "The server failed: the model could not answer" in watched.text(".failure")


def raise_model_error() -> None:
    from raft.errors import ModelError

    raise ModelError("weights at /secret/path are gone")
