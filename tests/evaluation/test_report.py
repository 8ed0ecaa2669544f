"""The report as JSON, Markdown and a page, with hostile text in it; test_report_page.py has the page in a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.evaluation.report import (
    differences_table,
    markdown_table,
    question_set_hash,
    systems_table,
    to_html,
    to_markdown,
    write,
)
from raft.evaluation.report_figures import figures_note, figures_table
from raft.evaluation.report_plots import LEFT, RIGHT, TOP, risk_plot, spread
from raft.evaluation.statistics import Interval
from raft.evaluation.verdict import show, show_p
from tests.evaluation.reported import HOSTILE, embedded, make_cases, make_report


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


def test_a_bar_in_a_cell_ends_no_cell() -> None:
    table = markdown_table(["system", "F1"], [["A | B", "0.5"], ["RAG", "0.25"]]).splitlines()
    assert [line.replace("\\|", "").count("|") for line in table] == [3] * 4
    assert table[2] == "| A \\| B | 0.5  |"
    assert len({len(line) for line in table}) == 1


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


def test_more_figures_have_the_columns_that_a_system_has_and_their_meaning() -> None:
    systems = make_report().systems
    header, rows = figures_table(systems)
    assert {"ROUGE-L", "truthfulness", "calibration error", "AUROC", "citations P / R"} <= set(header)
    assert not {"relevance", "grounded (NLI)"} & set(header)  # nobody asked for them
    rouge = systems[2].rouge_l
    assert rouge is not None
    assert rows[2][header.index("ROUGE-L")] == show(rouge)
    assert rows[0][header.index("AUROC")] == "–"
    note = figures_note(systems)
    assert all(f"{title}: " in note for title in header[1:])
    assert "which calibration error, Brier, risk-coverage area and AUROC leave out: 1 of 17 (RAFT), 1 of 17 " in note
    assert "over few questions it comes out too high" in note
    judged = [replace(systems[0], nli_groundedness=Interval(0.5, None, None)), *systems[1:]]
    assert "grounded (NLI)" in figures_table(judged)[0]
    assert "## More figures\n\n" + markdown_table(header, rows) in to_markdown(make_report())


def test_a_figure_over_fewer_questions_says_over_how_many() -> None:
    report = make_report()
    header, rows = figures_table(report.systems)
    for scores, cells in zip(report.systems, rows, strict=True):
        results = [r for r in report.results if r.system == scores.system]
        shown = dict(zip(header, cells, strict=True))
        for title, name in (("ROUGE-L", "rouge_l"), ("numbers", "numeric"), ("grounded (words)", "groundedness")):
            n = sum(getattr(r, name) is not None for r in results)
            assert shown[title] == show(getattr(scores, name)) + (f" (n = {n})" if 0 < n < 17 else "")
        sure = sum(r.confidence is not None for r in results)
        assert shown["Brier"].endswith("(n = 16)") == (sure == 16)
    raft = dict(zip(header, rows[2], strict=True))
    quotes = sum(len(r.quotes) for r in report.results if r.system == "raft" and not r.question_id.startswith("mayor"))
    cited = sum(r.citation_recall is not None for r in report.results if r.system == "raft")
    assert raft["citations P / R"].endswith(f"(n = {cited})")
    assert (f"({quotes} quotes)" in raft["citations P / R"]) == (quotes < 17)
    assert "(n = " not in raft["ROUGE-L"]
    one = [replace(report.systems[2], counts={"numeric": 1, "quotes_in_oracle": 1})]
    header, (cells,) = figures_table(one)
    assert "(n = 1)" in cells[header.index("numbers")]
    assert "(1 quote) / " in cells[header.index("citations P / R")]


def test_the_second_test_of_differences_is_shown_where_there_is_one() -> None:
    report = make_report()
    assert differences_table(report)[0][4] == "p right (Holm)"
    older = replace(report, differences=tuple(replace(d, p_right_holm=None) for d in report.differences))
    header, rows = differences_table(older)
    assert "p right (Holm)" not in header
    assert {len(row) for row in rows} == {len(header)}


def test_risk_curves_stand_where_their_figures_are() -> None:
    systems = make_report().systems
    plot = risk_plot(systems)
    assert plot is not None
    assert [curve.system for curve in plot.curves] == ["rag", "raft", "raft_oracle"]
    assert plot.unsure == {"raft": 1, "raft_oracle": 1}
    assert "left out: 1 (RAFT), 1 (RAFT, oracle given)." in to_html(make_report())
    alike = risk_plot([replace(s, title="RAFT") for s in systems])
    assert alike is not None
    assert alike.unsure == plot.unsure  # also where two have one title
    for curve in plot.curves:
        scores = next(s for s in systems if s.system == curve.system)
        assert scores.calibration is not None
        points = [tuple(map(float, point.split(","))) for point in curve.points.split()]
        for (x, y), found in zip(points, scores.calibration.curve, strict=True):
            assert (x - LEFT) / (RIGHT - LEFT) == pytest.approx(found.coverage, abs=1e-3)
            assert (plot.bottom - y) / (plot.bottom - TOP) == pytest.approx(found.risk, abs=1e-3)
        assert curve.end == pytest.approx(points[-1], abs=0.06)
    assert risk_plot([replace(s, calibration=None) for s in systems]) is None


@given(st.lists(st.floats(0, 100), min_size=1, max_size=10))
def test_labels_keep_order_distance_and_frame(heights: list[float]) -> None:
    placed = spread(heights, 10.0, 0.0, 100.0)
    ranked = [placed[i] for i in sorted(range(len(heights)), key=lambda i: heights[i])]
    assert all(b - a >= 10.0 - 1e-9 for a, b in pairwise(ranked))
    assert all(-1e-9 <= at <= 100.0 + 1e-9 for at in placed)
