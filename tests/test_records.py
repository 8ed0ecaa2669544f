"""How a chunk is cited, and what rows hold."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.records import Chunk, Quote, citation, to_row


def chunk(title: str = "Guideline 12", headings: tuple[str, ...] = (), page: int | None = None) -> Chunk:
    return Chunk("g/12.md#3", "g/12.md", "Give 12 mg.", 0, 11, title, headings, page)


@pytest.mark.parametrize(
    ("given", "cited"),
    [
        (chunk(headings=("3 Treatment", "3.2 Dose"), page=4), "Guideline 12, section 3.2 Dose, page 4"),
        (chunk(headings=("3.2.1. Dose in adults",)), "Guideline 12, section 3.2.1 Dose in adults"),
        (chunk(headings=("Dose", "Adults")), "Guideline 12, Dose > Adults"),
        (chunk(headings=("Part 1", "Dose", "Adults")), "Guideline 12, Dose > Adults"),
        (chunk(headings=("Schedule 1", "4. Rent")), "Guideline 12, Schedule 1 > section 4 Rent"),
        (chunk(headings=("ARTICLE II", "Section 2.1 Notice")), "Guideline 12, Section 2.1 Notice"),
        (chunk(headings=("Part 2", "§ 12 Notice")), "Guideline 12, § 12 Notice"),
        (chunk(headings=("ARTICLE IV", "TERMINATION")), "Guideline 12, ARTICLE IV > TERMINATION"),
        (chunk(headings=("GUIDELINE  12", "Dose")), "Guideline 12, Dose"),
        (chunk(headings=("Guideline 12",), page=1), "Guideline 12, page 1"),
        (chunk(headings=("", "***", "Dose", "Dose")), "Guideline 12, Dose"),
        (chunk(headings=("Dose\n in  adults",)), "Guideline 12, Dose in adults"),
        (chunk(headings=("2019",)), "Guideline 12, 2019"),
        (chunk(title=" ", page=2), "g/12.md, page 2"),
        (chunk(), "Guideline 12"),
    ],
)
def test_citations(given: Chunk, cited: str) -> None:
    assert citation(given) == cited


@given(st.text(max_size=300), st.lists(st.text(max_size=300), max_size=4), st.none() | st.integers(1, 99_999))
def test_citations_are_one_short_line_without_empty_parts(title: str, headings: list[str], page: int | None) -> None:
    cited = citation(chunk(title, tuple(headings), page))
    assert 0 < len(cited) <= 160
    assert "\n" not in cited
    assert cited.endswith(f", page {page}" if page is not None else "")
    assert not cited.startswith(", ")


def test_long_titles_leave_room_for_the_heading() -> None:
    cited = citation(chunk("word " * 60, ("3.2 Dose in adults and children",), 4))
    assert cited.endswith("word ..., section 3.2 Dose in adults and children, page 4")


def test_a_row_holds_plain_values_all_the_way_down():
    @dataclass(frozen=True)
    class Holder:
        quotes: tuple[Quote, ...]
        by_name: dict[str, Quote]

    quote = Quote("Twelve.", 1)
    plain = {"text": "Twelve.", "document": 1}
    assert to_row(Holder((quote,), {"one": quote})) == {"quotes": [plain], "by_name": {"one": plain}}
