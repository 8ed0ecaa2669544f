"""The page of raft review, in a headless Chromium, by keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from review_live import reviewing

from raft.dataset.trail import trail_path
from raft.rows import read_rows
from tests.review_dataset import HOSTILE, questions, write_review_dataset

ASKED = [item.question for item in questions()]

pytestmark = pytest.mark.browser


class Desk:
    """A page under a reviewer's hands; its console errors and foreign requests are collected."""

    def __init__(self, browser, url: str, **settings) -> None:
        self.page = browser.new_page(**settings)
        self.page.set_default_timeout(15_000)
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith(url) else self.complaints.append(r.url))
        self.page.goto(url)
        self.page.wait_for_selector("#detail:not([hidden]), #status:not(:empty)")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def shows(self, question: str) -> None:
        self.page.locator("#question", has_text=question).wait_for()

    def says(self, text: str) -> None:
        self.page.locator("#status", has_text=text).wait_for()

    def counts(self, text: str) -> None:
        self.page.locator("#progress", has_text=text).wait_for()

    def chips(self) -> list[str]:
        return self.page.locator("#list .chip").all_inner_texts()


@pytest.fixture
def open_desk(browser) -> Iterator:
    opened: list[Desk] = []

    def open_it(url: str, **settings) -> Desk:
        opened.append(Desk(browser, url, **settings))
        return opened[-1]

    yield open_it
    for desk in opened:
        desk.page.close()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_review_dataset(tmp_path / "wards")


def test_a_question_is_shown_with_its_evidence_and_an_example(open_desk, dataset: Path) -> None:
    with reviewing(dataset) as url:
        desk = open_desk(url)
        desk.shows(ASKED[0])
        page = desk.page
        assert page.inner_text("#verdict") == "cupboard 40"
        assert page.inner_text("#evidence mark") == "The Ash ward keeps its spare keys in cupboard 40."
        assert "<ANSWER>: cupboard 40" in page.inner_text("#target")
        assert page.locator("#context li").count() == 4
        assert page.locator("#context .chip").count() == 1
        assert page.locator("#list li").count() == 6
        assert page.inner_text("#apply").endswith("wards --apply")
        desk.press("j")
        desk.shows(ASKED[1])
        assert "pii email" in page.inner_text("#chips")
        desk.press("ArrowLeft")
        desk.shows(ASKED[0])
        desk.press("k")
        desk.says("first question")
        assert desk.complaints == []


def test_accept_reject_and_undo_by_keyboard(open_desk, dataset: Path) -> None:
    with reviewing(dataset) as url:
        desk = open_desk(url)
        desk.press("a")
        desk.shows(ASKED[1])
        desk.counts("1 of 6 decided: 1 accepted, 0 edited, 0 rejected")
        desk.press("r", "2", "Tab")
        desk.page.keyboard.type("the page is missing")
        desk.press("Enter")
        desk.shows(ASKED[2])
        desk.press("r")
        desk.page.get_by_label("Other reason").fill("all my own words")
        desk.press("Enter")
        desk.shows(ASKED[3])
        desk.counts("3 of 6 decided: 1 accepted, 0 edited, 2 rejected")
        assert [chip for chip in desk.chips() if chip != "undecided"] == [
            "accepted",
            "rejected",
            "pii email",
            "rejected",
        ]
        desk.press("u")
        desk.says("undone")
        desk.shows(ASKED[2])
        desk.counts("2 of 6 decided: 1 accepted, 0 edited, 1 rejected")
        desk.press("r", "Escape")  # thought better of it
        assert not desk.page.is_visible("#reject-dialog")
        assert desk.complaints == []
    rows = list(read_rows(trail_path(dataset)))
    assert [(row["question_id"], row["decision"]) for row in rows] == [
        ("q/0", "accept"), ("q/1", "reject"), ("q/2", "reject"), ("q/2", "undo"),
    ]  # fmt: skip
    assert rows[1]["reason"] == "answer not in the documents: the page is missing"
    assert rows[2]["reason"] == "all my own words"


def test_edit_by_keyboard(open_desk, dataset: Path) -> None:
    with reviewing(dataset) as url:
        desk = open_desk(url)
        page = desk.page
        desk.shows(ASKED[0])
        desk.press("e")
        page.wait_for_selector("#editor:not([hidden])")
        assert page.evaluate("document.activeElement.id") == "edit-question"
        page.get_by_label("Answer", exact=True).fill("CUPBOARD 40")
        page.get_by_label("Quote 1", exact=True).fill("spare   KEYS in cupboard 4")
        desk.press("Control+Enter")
        page.locator("#edit-warnings", has_text="does not stand in").wait_for()
        page.get_by_label("Quote 1", exact=True).fill("spare   KEYS in cupboard 40")
        desk.press("Control+Enter")
        desk.says("Saved")
        assert page.inner_text("#evidence mark") == "spare keys in cupboard 40"
        assert page.inner_text("#verdict") == "CUPBOARD 40"
        assert "##begin_quote##spare keys in cupboard 40##end_quote##" in page.inner_text("#target")

        desk.press("e")
        page.get_by_label("Question", exact=True).fill("Where, Ash?")
        desk.press("Control+Enter")
        page.locator("#edit-warnings", has_text="question too short").wait_for()
        assert page.evaluate("document.activeElement.id") == "save-anyway"
        desk.press("Enter")
        desk.shows("Where, Ash?")
        desk.press("u")
        desk.shows(ASKED[0])
        desk.press("e", "j", "Escape")  # a letter in a field is a letter
        desk.press("u")
        desk.says("undone")
        desk.counts("0 of 6 decided")
        failed = [text for text in desk.complaints if "409" not in text and "422" not in text]
        assert failed == []  # the two refusals above are told on the console by the browser itself
    rows = list(read_rows(trail_path(dataset)))
    assert [row["decision"] for row in rows] == ["edit", "edit", "undo", "undo"]
    assert rows[1]["overridden"] == ["question_too_short"]


def test_a_quote_is_added_and_removed(open_desk, dataset: Path) -> None:
    with reviewing(dataset) as url:
        desk = open_desk(url)
        page = desk.page
        desk.shows(ASKED[0])
        page.get_by_role("button", name="Edit e").click()
        page.get_by_role("button", name="Add a quote").click()
        page.get_by_label("Quote 2", exact=True).fill("ask there")
        page.get_by_role("button", name="Save", exact=True).click()
        desk.says("Saved")
        assert page.locator("#evidence mark").all_inner_texts()[1] == "Ask there"
        page.get_by_role("button", name="Edit e").click()
        page.get_by_role("button", name="Remove quote 2").click()
        page.get_by_role("button", name="Save", exact=True).click()
        page.locator("#evidence mark").nth(1).wait_for(state="detached")
        assert page.locator("#evidence mark").count() == 1


def test_a_reload_and_a_restart_go_on_where_it_was(open_desk, dataset: Path) -> None:
    with reviewing(dataset) as url:
        desk = open_desk(url)
        desk.press("a")
        desk.shows(ASKED[1])
        desk.page.reload()
        desk.shows(ASKED[1])
        desk.counts("1 of 6 decided")
        port = int(url.rsplit(":", 1)[1])
    desk.press("a")
    desk.page.locator("#error", has_text="cannot be reached").wait_for()
    with reviewing(dataset, "bob", port=port):
        desk.press("a")
        desk.shows(ASKED[2])
        assert not desk.page.is_visible("#error")
        desk.page.reload()
        desk.shows(ASKED[2])
        assert desk.page.inner_text("#reviewer") == "bob"
    assert [row["who"] for row in read_rows(trail_path(dataset))] == ["ada", "bob"]


def test_filters_and_search(open_desk, dataset: Path) -> None:
    with reviewing(dataset) as url:
        desk = open_desk(url)
        desk.shows(ASKED[0])
        desk.press("/")
        desk.page.keyboard.type("elm")
        desk.press("Enter")
        desk.shows(ASKED[3])
        assert desk.page.locator("#list li").count() == 1
        desk.press("Escape", "a")
        desk.says("last question of this list")
        desk.page.get_by_label("Search").fill("")
        desk.page.get_by_label("Show").select_option("flagged")
        desk.shows(ASKED[1])
        desk.page.get_by_label("Show").select_option("edited")
        desk.says("No question passes")
        assert not desk.page.is_visible("#detail")
        desk.page.get_by_label("Show").select_option("")
        desk.page.get_by_label("Type").select_option("unanswerable")
        desk.page.locator("#verdict.abstained").wait_for()
        assert desk.complaints == []


def test_everything_decided_is_told(open_desk, dataset: Path) -> None:
    with reviewing(dataset, split="dev") as url:
        desk = open_desk(url)
        desk.shows(ASKED[4])
        desk.press("a")
        desk.counts("1 of 1 decided")
        desk.page.reload()
        desk.says("Nothing is left to decide")


def test_long_lists_come_in_pages(open_desk, tmp_path: Path) -> None:
    from dataclasses import replace

    many = [replace(questions()[n % 4], id=f"n{n}", question=f"Which is cupboard number {n}?") for n in range(230)]
    with reviewing(write_review_dataset(tmp_path / "many", many)) as url:
        desk = open_desk(url)
        page = desk.page
        desk.shows("number 0?")
        assert page.inner_text("#range") == "1–100 of 230"
        page.get_by_role("button", name="Which is cupboard number 99?").click()
        desk.shows("number 99?")
        desk.press("a")
        desk.shows("number 100?")
        assert page.inner_text("#range") == "100–199 of 229"
        desk.press("k")
        desk.shows("number 98?")  # the one between is decided, and this list is of undecided ones
        page.get_by_role("button", name="Later").click()
        desk.shows("number 100?")
        assert desk.complaints == []


def test_markup_of_questions_and_documents_is_inert(open_desk, dataset: Path) -> None:
    with reviewing(dataset) as url:
        desk = open_desk(url)
        page = desk.page
        page.get_by_role("button", name="Who painted the doors?").click()
        desk.shows("Who painted the doors?")
        assert HOSTILE in page.inner_text("#question")
        page.locator("#context summary").first.click()
        assert HOSTILE in page.inner_text("#context details[open] .words")
        assert page.locator("main img, main script").count() == 0
        assert page.evaluate("window.hacked") is None
        assert desk.complaints == []


def test_every_control_has_a_name_and_shows_its_focus(open_desk, dataset: Path) -> None:
    with reviewing(dataset) as url:
        desk = open_desk(url)
        desk.shows(ASKED[0])
        desk.press("?")
        assert desk.page.is_visible("#help")
        assert desk.page.evaluate("document.activeElement.id") == "help-close"
        desk.press("Escape", "e")
        unnamed = desk.page.evaluate(
            """[...document.querySelectorAll("button, input, select, textarea")].filter((c) =>
                 !(c.labels?.length || c.ariaLabel || c.textContent.trim())).map((c) => c.outerHTML)"""
        )
        assert unnamed == []
        desk.press("Tab")
        assert desk.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_a_phone(open_desk, tmp_path: Path, scheme: str) -> None:
    from dataclasses import replace

    long = [replace(item, question=item.question + " " + "A" * 300) for item in questions()]
    with reviewing(write_review_dataset(tmp_path / "long", long)) as url:
        desk = open_desk(url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
        desk.shows("A" * 300)
        assert desk.page.evaluate("document.documentElement.scrollWidth") <= 360
        desk.press("e")
        desk.page.wait_for_selector("#editor:not([hidden])")
        assert desk.page.evaluate("document.documentElement.scrollWidth") <= 360
