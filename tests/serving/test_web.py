"""The page, in a headless Chromium."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import ANSWERED, STORAGE, DrippingModel, scripted, serving

CHROMIUM = "/usr/bin/chromium"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if not Path(CHROMIUM).exists():
        if os.environ.get("RAFT_REQUIRE_BROWSER") == "1":
            pytest.fail(f"no browser at {CHROMIUM}, and RAFT_REQUIRE_BROWSER=1 asks for one")
        pytest.skip(f"no browser at {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield launched
        launched.close()


class Watched:
    """A page whose console errors and foreign requests are collected."""

    def __init__(self, browser, url: str, **settings) -> None:
        self.page = browser.new_page(**settings)
        self.page.set_default_timeout(15_000)
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith(url) else self.complaints.append(r.url))
        self.page.goto(url)

    def ask(self, question: str = "What is the first dose?") -> None:
        self.page.get_by_label("Question").fill(question)
        self.page.keyboard.press("Enter")

    def done(self) -> None:
        self.page.wait_for_selector("#result[aria-busy=false]")


@pytest.fixture
def open_page(browser) -> Iterator:
    opened: list[Watched] = []

    def open_it(url: str, **settings) -> Watched:
        opened.append(Watched(browser, url, **settings))
        return opened[-1]

    yield open_it
    for watched in opened:
        watched.page.close()


def test_ask_stream_cite_and_read_the_source(open_page, server: str) -> None:
    watched = open_page(server)
    page = watched.page
    watched.ask()
    watched.done()
    assert page.inner_text("#asked") == "What is the first dose?"
    assert page.inner_text("#verdict") == "12 mg"
    assert page.inner_text("#reasoning q") == "Adults start with 12 mg by mouth."
    assert page.locator("#source-list li").count() == 3
    page.get_by_role("button", name="Show the quote in source 1").click()
    assert page.inner_text("#passage-title") == "Corvalexin"
    assert page.inner_text("#passage-text mark") == "Adults start with 12 mg by mouth."
    assert page.evaluate("document.activeElement.id") == "passage-text"
    page.keyboard.press("Escape")
    assert not page.is_visible("#passage")
    page.locator(".source").nth(1).click()
    assert page.text_content("#passage-text") == STORAGE.text
    assert page.locator("#passage-text mark").count() == 0
    assert watched.complaints == []


@pytest.mark.parametrize(
    ("cut", "shown"),
    [
        (ANSWERED.index("ote##"), "Document [1] says"),
        (ANSWERED.index("12 mg by"), "Adults start with"),
        (ANSWERED.index("d_quote##"), "12 mg by mouth."),
        (ANSWERED.index("WER>"), "adult dose at 12 mg."),
        (len(ANSWERED) - 1, "12 m"),
    ],
)
def test_markers_are_never_shown_while_the_answer_streams(open_page, cut: int, shown: str) -> None:
    model = DrippingModel([ANSWERED[:cut], ANSWERED[cut:]])
    with serving(model) as url:
        watched = open_page(url)
        watched.ask()
        model.step.release()
        watched.page.locator("#result", has_text=shown).wait_for()
        assert not any(torn in watched.page.inner_text("#result") for torn in ("#", "quote", "<", "ANSW"))
        model.step.release()
        watched.done()
        assert watched.page.inner_text("#verdict") == "12 mg"
        assert watched.page.inner_text("#reasoning q") == "Adults start with 12 mg by mouth."
        assert watched.complaints == []


def test_markup_of_documents_and_models_is_inert(open_page) -> None:
    script = "<script>window.hacked=1</script>"
    text = f'<img src=x onerror="window.hacked=1"> ##begin_quote##{script}##end_quote##\n<ANSWER>: <b>x</b>'
    with serving(scripted(text)) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        page = watched.page
        assert page.inner_text("#verdict") == "<b>x</b>"
        assert '<img src=x onerror="window.hacked=1">' in page.inner_text("#reasoning")
        page.get_by_role("button", name="Show the quote in source 3").click()
        assert page.inner_text("#passage-text mark") == script
        assert page.inner_text("#passage-title") == "<b onclick=alert(1)>Hostile</b>"
        assert page.locator("#result img, #result b, #result script, dialog img, dialog b, dialog script").count() == 0
        assert page.evaluate("window.hacked") is None
        assert watched.complaints == []


def test_a_forged_quote_is_marked_and_cannot_be_opened(open_page) -> None:
    with serving(scripted("[1] ##begin_quote##Adults start with 90 mg.##end_quote##\n<ANSWER>: 90 mg")) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        assert watched.page.locator("q.unverified").count() == 1
        assert watched.page.locator(".cite").count() == 0
        assert "do not stand in the documents" in watched.page.inner_text("#caution")


def test_an_abstention_is_plain_to_see(open_page) -> None:
    with serving(scripted("None of the documents holds the answer.\n<ANSWER>: not in the documents")) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        assert watched.page.inner_text("#verdict.abstained") == "The documents do not hold the answer."
        assert watched.page.inner_text("#sources-title").lower() == "passages that were read"
        assert watched.complaints == []


def test_an_answer_without_its_marker_is_shown_with_its_quotes(open_page) -> None:
    with serving(scripted("[1] says ##begin_quote##Adults start with 12 mg by mouth.##end_quote## \U0001f48a")) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        assert watched.page.inner_text("#verdict q") == "Adults start with 12 mg by mouth."
        assert watched.page.locator("#verdict .cite").count() == 1


def test_offsets_hold_behind_characters_outside_the_basic_plane(open_page) -> None:
    with serving(
        scripted("\U0001f48a\U0001f48a [1] ##begin_quote##12 mg by mouth##end_quote##\n<ANSWER>: 12 mg")
    ) as url:
        watched = open_page(url)
        watched.ask()
        watched.done()
        watched.page.locator(".cite").click()
        assert watched.page.inner_text("#passage-text mark") == "12 mg by mouth"


def test_the_key_is_asked_for_once(open_page) -> None:
    with serving(scripted(), api_key="s3cret") as url:
        watched = open_page(url)
        watched.ask()
        watched.page.get_by_label("This server asks for an API key").fill("s3cret")
        watched.page.keyboard.press("Enter")
        watched.page.wait_for_selector("#source-list li")
        assert watched.page.inner_text("#verdict") == "12 mg"


def test_stop_and_failure_are_told(open_page) -> None:
    model = DrippingModel()
    with serving(model) as url:
        watched = open_page(url)
        watched.ask()
        model.step.release(2)
        watched.page.locator("#reasoning", has_text="0 1").wait_for()
        watched.page.get_by_role("button", name="Stop").click()
        watched.done()
        model.step.release(1)
        assert model.left.wait(20)
        assert "Stopped" in watched.page.inner_text("#status")
    watched.ask()  # the server is gone by now
    watched.done()
    assert "cannot be reached" in watched.page.inner_text("#error")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_a_phone(open_page, server: str, scheme: str) -> None:
    watched = open_page(server, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    watched.ask("A" * 200)
    watched.done()
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
