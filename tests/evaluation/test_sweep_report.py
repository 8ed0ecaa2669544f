"""The report of sweeps as a page and as Markdown."""

from __future__ import annotations

import html.parser
import re

from raft.evaluation.cases import SYSTEMS
from raft.evaluation.contexts import POSITIONS
from raft.evaluation.sweep_report import SweepReport, to_html, to_markdown, told
from raft.evaluation.sweep_scores import SweepScores
from raft.prompts import render_refusal
from tests.evaluation.sweeping import right, scored


class Page(html.parser.HTMLParser):
    """Counts elements, and refuses a page whose elements are not closed in their order."""

    VOID = frozenset({"meta", "link", "line", "circle", "rect", "path", "polyline", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def report_of(*scores: SweepScores, name: str = "plain", model: str = "m") -> SweepReport:
    systems = {s: {"title": SYSTEMS[s].title, "model": model} for s in ("rag", "raft")}
    return SweepReport(name, {"confidence": 0.9, "resamples": 200, "seed": 0}, systems, scores, ())  # type: ignore[arg-type]


def test_the_page_plots_every_figure_with_its_interval_and_says_it_in_words() -> None:
    scores = scored("distractors", lambda question_id, point: right(question_id))
    text = to_html(report_of(scores))
    page = Page(text)
    plots = 2  # F1 and declined
    assert page.count["polyline"] == plots * 2
    assert page.count["svg"] == plots * (1 + 2)  # and two keys in each legend
    assert page.count["circle"] == page.count["rect"] == plots * (6 + 1)
    assert text.count('class="whisker') == plots * 2 * 6
    assert page.count["desc"] == plots
    assert "RAFT: 0: 1.00 [1.00, 1.00]; 1: 1.00 [1.00, 1.00]; " in text
    for heading in re.findall(r'aria-labelledby="([^"]+)"', text):
        assert all(f'id="{name}"' in text for name in heading.split())
    named = re.findall(r'\bid="([^"]+)"', text)
    assert len(named) == len(set(named))


def test_the_page_stands_alone_and_escapes_what_others_wrote() -> None:
    scores = scored("no_oracle", lambda question_id, point: right(question_id))
    evil = '<script>alert(1)</script>"&'
    text = to_html(report_of(scores, name=evil, model=evil))
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)") >= 3
    assert not re.search(r"https?://|@import|url\(", text)
    Page(text)


def test_markdown_has_a_row_for_each_system_and_point() -> None:
    scores = scored("position", lambda question_id, point: right(question_id), documents=5)
    lines = to_markdown(report_of(scores)).splitlines()
    for point in POSITIONS:
        assert sum(bool(re.match(rf"\| RAFT +\| {point} +\|", line)) for line in lines) == 1
    assert any("RAFT − RAG" in line and "first → last" in line and "+0.00" in line for line in lines)


def test_what_a_slope_means_is_said_in_a_sentence() -> None:
    def forgetful(question_id: str, point: str) -> str:
        return render_refusal() if point == "12" else right(question_id)

    (said,) = told(scored("distractors", forgetful), 0.9)
    assert said.startswith("From 0 to 12, token F1 changes by -1.00 for RAFT and +0.00 for RAG: RAG holds up better (")
    (said,) = told(scored("distractors", lambda question_id, point: right(question_id)), 0.9)
    assert "neither is shown to hold up better (difference +0.00 [+0.00, +0.00], p = 1.000" in said
    assert told(scored("similar", lambda question_id, point: right(question_id), documents=2), 0.9) == []
    assert said in to_markdown(report_of(scored("distractors", lambda question_id, point: right(question_id))))
