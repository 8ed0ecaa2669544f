"""The page for everybody: keyboard, screen reader, phone, dark, paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live import DOSES, FINGERPRINT, DrippingModel, MemoryIndex, scripted, serving
from pages import PHONE, REFUSED, keeping

from raft.serving.engine import AnswerEngine
from raft.serving.feedback import read_feedback

pytestmark = pytest.mark.browser


def test_the_keyboard_is_enough(open_page, tmp_path: Path) -> None:
    with keeping(tmp_path) as (url, path):
        watched = open_page(url)
        page = watched.page
        watched.ask()
        watched.done()
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "question"
        page.keyboard.type("a/b")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("c")
        assert page.input_value("#question") == "a/b\nc"
        outlines: dict[str, str] = {}
        page.locator("#new").focus()
        for _ in range(20):
            page.keyboard.press("Tab")
            name = page.evaluate("document.activeElement.className || document.activeElement.id")
            outlines[name] = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert {"cite", "source", "more", "up", "down", "question", "filter-toggle"} <= outlines.keys()
        del outlines["question"]  # whose whole box lights up
        outlines.pop(page.evaluate("document.body.className"), None)  # behind the last control
        assert "none" not in outlines.values()
        page.locator(".up").focus()
        page.keyboard.press("Enter")
        page.get_by_text("Thank you.").wait_for()
        assert read_feedback(path)[0].opinion.rating == "up"


def test_what_streams_is_not_read_aloud_word_by_word(open_page) -> None:
    model = DrippingModel([f"word{n} " for n in range(30)] + ["\n<ANSWER>: 12 mg"])
    with serving(model) as url:
        watched = open_page(url)
        page = watched.page
        page.evaluate(
            """() => {
              window.spoken = [];
              const live = "[aria-live], [role=status], [role=alert]";
              new MutationObserver((changes) => {
                for (const change of changes) {
                  const region = change.target.parentElement?.closest(live) ?? change.target.closest?.(live);
                  if (region) window.spoken.push(region.textContent);
                }
              }).observe(document.body, { subtree: true, childList: true, characterData: true });
            }"""
        )
        watched.ask()
        model.step.release(31)
        watched.done()
        spoken = list(dict.fromkeys(text for text in page.evaluate("window.spoken") if text))
        assert len(spoken) == 2
        assert spoken[0] == "Reading the documents."
        assert spoken[1].startswith("Answer: 12 mg. 0 of 3 passages quoted.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("settings", [{}, PHONE], ids=["desk", "phone"])
def test_no_rule_of_accessibility_is_broken(open_page, tmp_path: Path, scheme: str, settings: dict) -> None:
    from axe_playwright_python.sync_playwright import Axe

    more = {"raft:legal": AnswerEngine(MemoryIndex(), scripted(REFUSED), FINGERPRINT)}
    with keeping(tmp_path, more=more) as (url, _):
        watched = open_page(url, color_scheme=scheme, **settings)
        page = watched.page
        page.get_by_label("Collection").wait_for()

        def broken() -> list[Any]:
            found = Axe().run(page).response["violations"]
            return [(rule["id"], rule["nodes"][0]["html"][:200], rule["nodes"][0]["failureSummary"]) for rule in found]

        page.get_by_role("button", name="Filter").click()
        page.get_by_label("that bear the tag").fill("icu")
        assert broken() == []
        page.get_by_role("button", name="Clear").click()
        watched.ask()
        watched.done()
        page.get_by_role("button", name="Bad answer").click()
        page.get_by_text("You may add a correction.").wait_for()
        page.get_by_role("button", name="Show 2 more").click()
        page.get_by_label("Collection").select_option("raft:legal")
        watched.ask("Who owns the moon?")
        watched.done(2)
        page.route("**/v1/chat/completions", lambda route: route.abort())
        watched.ask("And now?")
        watched.done(3)
        assert broken() == []
        page.locator(".cite").first.click()
        assert broken() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_a_phone(open_page, tmp_path: Path, scheme: str) -> None:
    with keeping(tmp_path, scripted(f"{'a' * 300} ##begin_quote##{'b' * 200}##end_quote##\n<ANSWER>: {'c' * 200}")) as (
        url,
        _,
    ):
        watched = open_page(url, color_scheme=scheme, **PHONE)
        watched.ask("A" * 200)
        watched.done()
        watched.page.get_by_role("button", name="Filter").click()
        watched.page.get_by_label("that bear the tag").fill("t" * 200)
        watched.page.get_by_role("button", name="Bad answer").click()
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_theme_can_be_chosen_and_stays(open_page, server: str) -> None:
    watched = open_page(server, color_scheme="light")
    page = watched.page
    bright = "Math.min(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)) > 200"
    assert page.evaluate(bright)
    page.get_by_role("button", name="Theme: system. Change to light").click()
    page.get_by_role("button", name="Theme: light. Change to dark").click()
    assert not page.evaluate(bright)
    page.reload()
    assert not page.evaluate(bright)
    page.emulate_media(media="print")
    assert page.evaluate(bright)


def test_paper_has_questions_answers_and_all_sources(open_page, tmp_path: Path) -> None:
    with keeping(tmp_path) as (url, _):
        watched = open_page(url)
        page = watched.page
        watched.ask()
        watched.done()
        page.emulate_media(media="print")
        assert page.locator(".source").last.is_visible()
        for hidden in (".composer", ".tools", ".rating", ".more"):
            assert not page.locator(hidden).first.is_visible()
        assert DOSES.title in page.inner_text(".sources")
        assert page.pdf().startswith(b"%PDF")
