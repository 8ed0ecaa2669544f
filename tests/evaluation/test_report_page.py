"""The page of a report in a headless Chromium, opened from its file: what it shows, asks for, says and keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raft.evaluation import sweep_report
from raft.evaluation.report import Report, write
from raft.evaluation.systems import SYSTEMS
from tests.evaluation.reported import HOSTILE, embedded, make_report
from tests.evaluation.sweeping import right, scored

CHROMIUM = Path("/usr/bin/chromium")
MANY = 10_000
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        message = f"{CHROMIUM} is not installed"
        if os.environ.get("RAFT_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield launched
        launched.close()


class Opened:
    """A page, and everything that its console or the network said."""

    def __init__(self, browser: Any, url: str, **settings: Any) -> None:
        self.page = browser.new_page(**settings)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        own = url.partition("#")[0]
        self.page.on("request", lambda r: None if r.url.partition("#")[0] == own else self.said.append(r.url))
        self.page.goto(url)

    def cards(self) -> Any:
        return self.page.locator(".question")

    def ids(self) -> list[str]:
        return [card.get_attribute("data-id") for card in self.cards().all()]

    def choose(self, name: str) -> None:
        self.page.check(f"input[value={name}]")

    def address(self, holds: str) -> str:
        """The address, once it holds this."""
        self.page.wait_for_function("part => location.hash.includes(part)", arg=holds)
        return str(self.page.url)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write(make_report(), folder)
    return (folder / "report.html").as_uri()


@pytest.fixture
def open_page(browser: Any, url: str) -> Iterator[Any]:
    opened: list[Opened] = []

    def open_it(address: str = url, **settings: Any) -> Opened:
        opened.append(Opened(browser, address, **settings))
        return opened[-1]

    yield open_it
    for each in opened:
        each.page.close()


def expected_ids(data: Any, first: str, second: str) -> dict[str, list[str]]:
    """What each filter must show, from the embedded rows."""

    def row(name: str, system: str) -> Any:
        return next(r for r in data["results"][name] if r["system"] == system)

    keeps: dict[str, Any] = {
        "all": lambda q: True,
        "wrong": lambda q: not row(q["id"], first)["right"],
        "gained": lambda q: row(q["id"], first)["right"] and not row(q["id"], second)["right"],
        "lost": lambda q: row(q["id"], second)["right"] and not row(q["id"], first)["right"],
        "nowhere": lambda q: not any(r["right"] for r in data["results"][q["id"]]),
        "declined": lambda q: row(q["id"], first)["abstained"],
        "unanswerable": lambda q: q["answer_type"] == "unanswerable",
        "missed": lambda q: bool(q["oracle_ids"]) and not row(q["id"], "rag")["oracle_given"],
        "failed": lambda q: any(r["error"] is not None for r in data["results"][q["id"]]),
    }
    return {name: [q["id"] for q in data["questions"] if keep(q)] for name, keep in keeps.items()}


@pytest.mark.parametrize(("first", "second"), [("raft", "rag"), ("rag", "raft"), ("raft_oracle", "closed_book")])
def test_every_filter_shows_the_questions_that_belong_to_it(open_page: Any, first: str, second: str) -> None:
    opened = open_page()
    assert opened.page.input_value("#first") == "raft"
    assert opened.page.input_value("#second") == "rag"
    opened.page.select_option("#first", first)
    opened.page.select_option("#second", second)
    wanted = expected_ids(embedded(opened.page.content()), first, second)
    assert wanted["gained"] if first == "raft" else True
    shown = {name: (opened.choose(name), opened.ids())[1] for name in wanted}
    assert shown == wanted
    counts = {name: int(opened.page.inner_text(f"[data-filter={name}] .count")) for name in wanted}
    assert counts == {name: len(ids) for name, ids in wanted.items()}
    assert opened.said == []


def test_choosing_one_system_twice_swaps_them(open_page: Any) -> None:
    opened = open_page()
    opened.page.select_option("#first", "rag")
    assert opened.page.input_value("#second") == "raft"
    assert opened.page.inner_text("[data-filter=gained]").startswith("RAG right, RAFT wrong")


def test_search_narrows_the_filter_and_says_how_many_are_left(open_page: Any) -> None:
    opened = open_page()
    opened.page.fill("#find", "ZIMMER")
    assert opened.ids() == ["evil"]
    assert opened.page.inner_text("#shown") == "1 of 17 questions"
    opened.choose("failed")
    assert opened.ids() == []
    opened.page.fill("#find", "")
    assert opened.ids() == ["market-9"]
    assert opened.said == []


def test_a_view_can_be_sent(open_page: Any, url: str) -> None:
    sender = open_page()
    assert "#" not in sender.page.url
    sender.page.select_option("#second", "closed_book")
    sender.choose("gained")
    sender.page.fill("#find", "day & 9")
    sender.page.fill("#find", "day")
    found = sender.ids()
    assert found
    receiver = open_page(sender.address("find=day"))
    assert receiver.ids() == found
    assert receiver.page.is_checked("input[value=gained]")
    assert receiver.page.input_value("#second") == "closed_book"
    assert receiver.page.input_value("#find") == "day"
    for strange in (
        "#filter=%3Cimg%3E&first=nobody&second=raft",
        "#filter",
        "#questions",
        "#%",
        "#first=rag&second=rag",
    ):
        odd = open_page(url + strange)
        assert len(odd.ids()) == 17
        assert odd.page.input_value("#first") != odd.page.input_value("#second")
        assert odd.said == []


def test_keys_lead_through_the_questions(open_page: Any) -> None:
    opened = open_page()
    page = opened.page
    page.focus("input[value=all]")
    page.keyboard.press("ArrowRight")  # native radio buttons
    assert page.is_checked("input[value=wrong]")
    page.keyboard.press("ArrowLeft")
    first, second = opened.cards().nth(0), opened.cards().nth(1)
    page.keyboard.press("Tab")
    focused = "document.activeElement.parentElement.dataset.id"
    assert page.evaluate(focused) == first.get_attribute("data-id")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == second.get_attribute("data-id")
    page.keyboard.press("Enter")
    second.locator(".answer").nth(3).wait_for()  # filled when the browser tells that it is open
    assert second.locator(".answer").count() == 4
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")  # nothing above the first
    assert page.evaluate(focused) == first.get_attribute("data-id")
    assert opened.said == []


def test_drill_down_shows_documents_quotes_answers_and_reference_as_text(open_page: Any) -> None:
    opened = open_page()
    question = opened.page.locator('.question[data-id="evil"]')
    question.locator("summary").first.click()
    assert question.locator(".reference .value").inner_text() == "99 crowns"
    assert question.locator(".document").count() == 3
    marks = question.locator("mark").all_inner_texts()
    assert sorted(marks) == ["The toll of Zimmer is 99 crowns.", "😀"]  # offsets hold after an astral character
    assert question.locator("mark").first.get_attribute("title") == "quoted by RAFT, RAFT, oracle given"
    texts = question.locator(".document .text").all_inner_texts()
    assert any(HOSTILE.replace("\u2028", "") in text.replace("\u2028", "").replace("\n", "") for text in texts)
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.locator("img").count() == 0
    assert opened.said == []


def test_the_contrasted_systems_answer_first_also_in_open_questions(open_page: Any) -> None:
    opened = open_page()
    question = opened.cards().first
    question.locator("summary").first.click()
    assert question.locator(".answer b").all_inner_texts()[:2] == ["RAFT", "RAG"]
    assert "confidence 0.50" in question.locator(".answer .who").first.inner_text()
    assert "confidence" not in question.locator(".answer .who", has_text="Closed book").inner_text()
    opened.page.select_option("#first", "closed_book")
    assert question.locator(".answer b").all_inner_texts() == ["Closed book", "RAG", "RAFT", "RAFT, oracle given"]
    assert question.get_attribute("open") is not None


def test_the_risk_plot_names_each_line(open_page: Any) -> None:
    opened = open_page()
    assert opened.page.locator("#risk .curve").count() == 3
    assert {"RAG", "RAFT", "RAFT, oracle given"} <= set(opened.page.locator("#risk text").all_text_contents())
    label = opened.page.get_attribute("#risk", "aria-label")
    assert "RAFT, oracle given: " in label
    looks = [
        opened.page.evaluate("n => { const s = getComputedStyle(n); return s.stroke + s.strokeDasharray }", line)
        for line in opened.page.locator("#risk .curve").element_handles()
    ]
    assert len(set(looks)) == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(open_page: Any, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    opened = open_page(color_scheme=scheme)
    for question in opened.cards().all()[-2:]:
        question.locator("summary").first.click()
    found = Axe().run(opened.page).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"][:200], rule["nodes"][0]["failureSummary"]) for rule in found] == []
    assert opened.said == []


def test_dark_mode_is_dark_and_print_is_not(open_page: Any) -> None:
    opened = open_page(color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.body).color"
    bright = "colour => Math.min(...colour.match(/\\d+/g).slice(0, 3).map(Number)) > 200"
    assert not opened.page.evaluate(bright, opened.page.evaluate(paper))
    assert opened.page.evaluate(bright, opened.page.evaluate(ink))
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate(bright, opened.page.evaluate(paper))
    assert not opened.page.evaluate(bright, opened.page.evaluate(ink))


def test_print_has_tables_plots_and_the_open_questions_alone(open_page: Any) -> None:
    opened = open_page()
    opened.cards().nth(2).locator("summary").first.click()
    opened.page.emulate_media(media="print")
    assert [card.get_attribute("data-id") for card in opened.cards().all() if card.is_visible()] == [opened.ids()[2]]
    assert not opened.page.locator(".tools").first.is_visible()
    assert opened.page.locator("#risk").is_visible()
    assert opened.page.pdf().startswith(b"%PDF")


def test_a_report_of_one_system_has_nothing_to_contrast(open_page: Any, tmp_path: Path) -> None:
    report = make_report()
    alone = replace(
        report, systems=report.systems[1:2], differences=(),
        results=tuple(r for r in report.results if r.system == "rag"),
    )  # fmt: skip
    write(alone, tmp_path)
    opened = open_page((tmp_path / "report.html").as_uri())
    assert not opened.page.locator("#contrast").is_visible()
    assert opened.page.locator("[data-filter=gained], [data-filter=lost]").count() == 0
    opened.choose("wrong")
    assert len(opened.ids()) == sum(not r.right for r in alone.results)
    assert opened.said == []


def many(report: Report) -> Report:
    """The report with its first question again and again, each with a name of its own."""
    question = report.questions[0]
    rows = [r for r in report.results if r.question_id == question["id"]]
    names = [f"q-{n:05}" for n in range(MANY)]
    return replace(
        report, questions=tuple({**question, "id": name} for name in names),
        results=tuple(replace(row, question_id=name, right=n % 4 == 0) for n, name in enumerate(names) for row in rows),
    )  # fmt: skip


def test_ten_thousand_questions_are_filtered_searched_and_shown_by_the_hundred(open_page: Any, tmp_path: Path) -> None:
    write(many(make_report()), tmp_path)
    opened = open_page((tmp_path / "report.html").as_uri())
    page = opened.page
    assert opened.cards().count() == 100
    assert page.inner_text("#shown") == "10000 of 10000 questions, the first 100 shown"
    page.click("#more")
    assert opened.cards().count() == 200
    assert page.evaluate("document.activeElement.parentElement.dataset.id") == "q-00100"
    opened.choose("nowhere")
    assert page.inner_text("#shown").startswith("7500 of 10000")
    page.fill("#find", "q-0999")
    assert opened.ids() == [f"q-0999{n}" for n in range(10) if (9990 + n) % 4]
    assert not page.is_visible("#more")
    page.fill("#find", "Q-09999")
    opened.cards().first.locator("summary").first.click()
    opened.cards().first.locator(".answer").nth(3).wait_for()
    assert opened.cards().first.locator(".answer").count() == 4
    assert opened.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_sweeps_breaks_no_rule_of_accessibility(open_page: Any, tmp_path: Path, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    scores = scored("distractors", lambda question_id, point: right(question_id))
    systems: Any = {name: {"title": SYSTEMS[name].title, "model": HOSTILE} for name in ("rag", "raft")}
    settings = {"confidence": 0.9, "resamples": 200, "seed": 0}
    sweep_report.write(sweep_report.SweepReport(HOSTILE, settings, systems, (scores,), (HOSTILE,)), tmp_path)
    opened = open_page((tmp_path / "sweep.html").as_uri(), color_scheme=scheme)
    found = Axe().run(opened.page).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"][:200], rule["nodes"][0]["failureSummary"]) for rule in found] == []
    fills = [
        opened.page.evaluate("n => getComputedStyle(n).fill", mark)
        for mark in opened.page.locator("figcaption .mark").element_handles()
    ]
    assert len(set(fills)) == 2
    assert opened.said == []
