"""Chunks stand exactly where they say, cover the document, and fit the encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.corpus.chunking import split_documents
from raft.corpus.sections import find_sections
from raft.records import Chunk, Document


def word_offsets(text: str) -> list[tuple[int, int]]:
    """A tokenizer that one can count by hand: words and single marks."""
    return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


def spaced_offsets(text: str) -> list[tuple[int, int]]:
    """A tokenizer that counts white space to the token behind it, as byte-level ones do."""
    return [match.span() for match in re.finditer(r"\s*\w+|\s*[^\w\s]|\s+$", text)]


def split(text: str, max_tokens: int = 40, overlap: int = 0, title: str = "", offsets=word_offsets) -> list[Chunk]:
    return list(split_documents([Document("d", text, title)], offsets, max_tokens, overlap, False))


def uncovered(text: str, chunks: Sequence[Chunk]) -> str:
    left = list(text)
    for chunk in chunks:
        left[chunk.start : chunk.end] = " " * (chunk.end - chunk.start)
    return "".join(left).strip()


_PIECES = [
    "word ", "A sentence. ", "\n", "\n\n", "## Head\n", "# T\n", "Title\n=====\n", "```\n", "---\n", "x" * 90, "12.3 ",
    "ARTICLE IV\n\n", "4.2 Late Rent\n\n", "§ 12 ", "(a) he ", "- item\n", "a | b | c\n", "Dr. ", "No. 5 ", "TERM\n\n",
]  # fmt: skip
texts = st.lists(st.sampled_from(_PIECES) | st.characters(codec="utf-8"), max_size=120).map("".join)


@settings(max_examples=150, deadline=None)
@given(text=texts, max_tokens=st.integers(16, 40), overlap=st.integers(0, 12), spaced=st.booleans())
def test_chunks_are_exact_whole_unique_and_short(text: str, max_tokens: int, overlap: int, spaced: bool) -> None:
    offsets = spaced_offsets if spaced else word_offsets
    chunks = split(text, max_tokens, overlap, offsets=offsets)
    assert all(chunk.text == text[chunk.start : chunk.end] for chunk in chunks)
    assert all(chunk.text.strip() == chunk.text != "" for chunk in chunks)
    assert all(len(offsets(chunk.text)) <= max_tokens for chunk in chunks)
    assert [chunk.id for chunk in chunks] == [f"d#{n}" for n in range(len(chunks))]
    assert uncovered(text, chunks) == ""
    assert split(text, max_tokens, overlap, offsets=offsets) == chunks


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 15))
def test_neighbours_overlap_by_at_most_the_asked_tokens(lengths: list[int], overlap: int) -> None:
    text = " ".join(" ".join(f"w{i}x{j}" for j in range(n)) + "." for i, n in enumerate(lengths))
    chunks = split(text, 40, overlap)
    for left, right in pairwise(chunks):
        shared = text[right.start : left.end] if right.start < left.end else ""
        assert len(word_offsets(shared)) <= overlap
        assert right.start > left.start
        assert right.end > left.end


def test_overlap_prefers_the_start_of_a_sentence() -> None:
    text = "One two three four five six. Seven eight nine. " * 6
    chunks = split(text, 20, 8)
    assert len(chunks) > 2
    assert all(chunk.text.startswith(("One", "Seven")) for chunk in chunks)
    assert all(right.start < left.end for left, right in pairwise(chunks))


def test_cuts_fall_at_paragraphs_before_sentences_before_words() -> None:
    paragraph = "Alpha beta gamma delta. Epsilon zeta eta theta."  # 10 tokens
    chunks = split("\n\n".join([paragraph] * 6), 24)
    assert [chunk.text for chunk in chunks] == [f"{paragraph}\n\n{paragraph}"] * 3
    sentences = split("One two three four five six seven. " * 8, 18)
    assert all(chunk.text.endswith("seven.") for chunk in sentences)


def test_headings_are_the_path_at_the_start_without_the_title() -> None:
    body = "Enough words to make a section that stands for itself, quite surely so, and then some more."
    text = f"# Guide\n\n{body}\n\n## Dose\n\n{body}\n\n### Adults\n\n{body}\n\n## Storage\n\n{body}\n"
    chunks = split(text, 60, title="Guide")
    assert [chunk.headings for chunk in chunks] == [(), ("Dose",), ("Dose", "Adults"), ("Storage",)]
    assert chunks[2].text.startswith("### Adults")
    assert {chunk.title for chunk in chunks} == {"Guide"}
    assert {chunk.headings for chunk in split(f"GUIDE\n\n{body}", 60, title="Guide")} == {()}


def test_a_bare_heading_joins_what_lies_beneath_it_only() -> None:
    body = "Enough words to make a section that stands for itself, quite surely so, and then some more."
    chunks = split(f"## Dose\n\n### Adults\n\n{body}\n\n### Children\n\nNone.\n\n## Storage\n\n{body}")
    assert [chunk.headings for chunk in chunks] == [("Dose", "Adults"), ("Dose", "Children"), ("Storage",)]
    assert chunks[0].text.startswith("## Dose\n\n### Adults")


def test_sections_know_underlined_headings_and_code() -> None:
    text = "Fees\n====\n\nx\n\n2. Late\n-------\n\ny\n\n```\n# no heading\n```\n\nrow one\nrow two\n-------\n# Last #\n"
    assert [(s.path, text[s.start : s.end].split("\n")[0]) for s in find_sections(text)] == [
        (("Fees",), "Fees"), (("Fees", "2. Late"), "2. Late"), (("Last",), "# Last #"),
    ]  # fmt: skip


LEASE = """LEASE

This lease is made between the parties named in the schedule, who have read it and agree to what it says.

ARTICLE I
DEFINITIONS

1.1 Premises

"Premises" means the shop and the yard behind it, with all that is fixed to them on the day of the lease.

1.2 Rent

"Rent" means 400 marns a month, paid on the first day of each month to the lessor's bank.

ARTICLE II TERMINATION

Section 2.1 Notice. Either party may end the lease by 60 days' notice in writing, sent to the other party.

Section 2.2 Default

The lessor may end the lease at once where the rent is more than 30 days late, whatever the reason for it.

§ 9 Notices and Service

Notices are sent by registered post to the address that stands at the head of this lease, and nowhere else.

EXHIBIT A

The yard is the piece of land that is marked in green on the plan, with the right of way that leads to it.
"""


def test_legal_headings_of_plain_text_are_the_path() -> None:
    chunks = split(LEASE, 40)
    assert [chunk.headings for chunk in chunks] == [
        ("LEASE",),
        ("ARTICLE I", "1.1 Premises"), ("ARTICLE I", "1.2 Rent"),
        ("ARTICLE II TERMINATION",), ("ARTICLE II TERMINATION", "Section 2.2 Default"),
        ("ARTICLE II TERMINATION", "§ 9 Notices and Service"),
        ("EXHIBIT A",),
    ]  # fmt: skip
    assert chunks[1].text.startswith("ARTICLE I\nDEFINITIONS\n\n1.1 Premises")


BODY = "\n\nThe words beneath it are many enough to be a text, and they go on for a little while."


@pytest.mark.parametrize(
    "line",
    [
        "4.2 Termination", "4.2.1 Notice of default", "4. TERMINATION", "4. Governing Law", "IV. COMPENSATION",
        "Section 4.2 Termination", "Section 4.2. Termination.", "SECTION 12", "§ 12", "§12a Notice", "PART II",
        "ARTICLE IV", "ARTICLE IV. TERM AND TERMINATION", "Chapter 3: Doses", "Schedule 2", "Appendix B Doses",
        "Article 7 - Rent", "DEFINITIONS", "TERM AND TERMINATION:", "12 DATA PROTECTION", "3.2  Dose in adults",
    ],
)  # fmt: skip
def test_what_is_a_heading_of_plain_text(line: str) -> None:
    text = f"Some words before.\n\n{line}{BODY}"
    assert [section.path for section in find_sections(text)] == [(), (" ".join(line.rstrip(":").split()),)]


@pytest.mark.parametrize(
    "line",
    [
        "4.2 The tenant shall pay the rent.", "4. Wash your hands with soap", "4. Take one tablet", "2. Rinse.",
        "Section 4.2 of the Act applies here", "Section 4 does not apply", "Article 5 and the schedule", "5 mg daily",
        "Part of the rent", "12.5 mg", "2019 was a good year", "No. 5", "(a) the tenant", "IV fluids", "A. Smith",
        "SQUARE TWO GOLF, INC.", "NHS", "1. Definitions ........ 3", "DRUG | DOSE", "PAGE 5", "4.2 Rent, fees and",
        "A line of plain prose", "I. Introduction to it",
    ],
)  # fmt: skip
def test_what_is_none(line: str) -> None:
    assert [section.path for section in find_sections(f"Some words before.\n\n{line}{BODY}")] == [()]


def test_a_heading_stands_alone_and_has_text_beneath() -> None:
    line = "4.2 Late Rent"
    assert len(find_sections(f"The rent is governed by\n{line}{BODY}")) == 1  # no blank line before
    assert len(find_sections(f"Before.\n\n{line}\nis what the clause says, and it goes on.")) == 1
    assert len(find_sections(f"Before.\n\n{line}\n\n12\n")) == 1  # a page number is no text
    contents = "1. Rent\n\n2. Deposit\n\n2.1 Return\n\n3. Notice\n\n"
    texts = f"1. Rent{BODY}\n\n2. Deposit\n\n2.1 Return{BODY}\n\n3. Notice{BODY}"
    paths = [section.path for section in find_sections(contents + texts)]
    assert paths == [(), ("1. Rent",), ("2. Deposit",), ("2. Deposit", "2.1 Return"), ("3. Notice",)]
    running = f"EXECUTION COPY{BODY}\n\n" * 3
    assert [section.path for section in find_sections(running)] == [()]


def test_a_line_like_an_item_is_a_heading_among_numbered_headings() -> None:
    titles = ["1. Purpose", "2. What is told", "3. Duties", "4. Orders of a court", "5. Term"]
    text = "\n\n".join(f"{title}{BODY}" for title in titles)
    paths = [section.path for section in find_sections(text)]
    assert paths == [("1. Purpose",), (), ("3. Duties",), ("4. Orders of a court",), ("5. Term",)]
    items = "\n\n".join(f"{n}. Things on this table{BODY}" for n in range(1, 6))
    assert [s.path for s in find_sections(items)] == [()]


def test_a_clause_that_opens_with_its_text_ends_the_heading_above() -> None:
    text = f"""RECITALS{BODY}

1. Purpose. The parties agree on it, and they go on for a little while.

2. RENT{BODY}

2.1 The rent is due on the first day of each month, and it is paid in marns.

1. A list has numbers too, and they go on for a little while.

3. Term. The lease ends after ten years, and it goes on for a little while.

ARTICLE II{BODY}

4.1 Notices go to the address above.

ARTICLE III The parties agree on what follows, in full and at length."""
    assert [(section.path, text[section.start :].split()[0]) for section in find_sections(text)] == [
        (("RECITALS",), "RECITALS"), ((), "1."), (("2. RENT",), "2."), ((), "3."),
        (("ARTICLE II",), "ARTICLE"), ((), "ARTICLE"),
    ]  # fmt: skip


def test_clauses_that_open_with_their_text_stay_under_their_part() -> None:
    text = f"Part 1: Scope{BODY}\n\n4. The act holds for all who let a house.\n\n5. It holds for no boat."
    assert [section.path for section in find_sections(text)] == [("Part 1: Scope",)]


def test_whoever_marks_headings_marks_them_all() -> None:
    plain = f"DEFINITIONS{BODY}\n\n"
    assert [s.path for s in find_sections(f"# Lease\n\n{plain}")] == [("Lease",), ("Lease", "DEFINITIONS")]
    marked = find_sections(f"# Lease\n\n## Terms\n\n{plain}")
    assert [s.path for s in marked] == [("Lease",), ("Lease", "Terms")]


@pytest.mark.parametrize(
    "clause",
    ["Section 4.2 Rent is due", "ARTICLE IV Rent", "§ 12 Rent is due", "4.2.1 Rent is due", "(a) rent is due",
     "(iv) rent", "4) Rent is due", "IV. Rent is due", "RENT AND FEES\nThey are due", '2. 3. "Rent" means'],
)  # fmt: skip
def test_a_clause_is_a_better_place_to_cut_than_a_paragraph(clause: str) -> None:
    words = "Alpha beta gamma delta epsilon zeta eta theta."  # 9 tokens
    chunks = split(f"{words}\n\n{clause} {words}\n\n{words}", 29)
    assert [chunk.text for chunk in chunks] == [words, f"{clause} {words}\n\n{words}"]


def test_a_reference_at_the_start_of_a_line_is_no_clause() -> None:
    words = "Alpha beta gamma delta epsilon zeta eta theta"
    assert split(f"{words}.\n\n{words} as said in\nSection 4.2 {words}.", 24)[0].text == f"{words}."


def test_clauses_are_found_where_line_breaks_are_lost() -> None:
    clause = "Each party bears its own costs, and no other party bears them.      "
    chunks = split("".join(f"{n}. {clause}" for n in range(1, 7)), 40)
    assert [chunk.text[:2] for chunk in chunks] == ["1.", "3.", "5."]


@pytest.mark.parametrize("mark", ["- ", "* ", "• ", "{n}. ", "{n}) ", "| "])
def test_items_are_not_cut_inside_when_they_fit(mark: str) -> None:
    items = [f"{mark.format(n=n)}Alpha beta. Gamma delta.\n  Epsilon zeta. Eta theta {n}." for n in range(1, 9)]
    for max_tokens in (16, 20, 33, 50):
        chunks = split("\n".join(items), max_tokens, 0)
        assert all(item in "\n".join(chunk.text for chunk in chunks) for item in items)
        assert all(chunk.text.startswith(mark[0] if mark[0] != "{" else tuple("12345678")) for chunk in chunks)


def test_rows_of_a_table_are_not_cut_inside_when_they_fit() -> None:
    rows = ["Drug | Dose | Route", *(f"Drug{n} | {n}.5 mg. Twice | by mouth" for n in range(20))]
    for max_tokens in (16, 30, 64):
        chunks = split("The doses are these:\n\n" + "\n".join(rows), max_tokens, 4)
        lines = [line for chunk in chunks for line in chunk.text.split("\n")]
        assert set(lines) == {"The doses are these:", "", *rows} or set(lines) == {"The doses are these:", *rows}


def test_a_title_goes_with_the_paragraph_that_must_be_cut() -> None:
    """The splitter alone makes a chunk of a title, because the paragraph behind it fits into no chunk."""
    sentence = "Alpha beta gamma delta. "
    first, *others = split(f"Effects of beta\n\n{sentence * 30}", 40, 0)
    assert first.text.startswith("Effects of beta\n\nAlpha beta gamma")
    assert first.text.endswith("delta.")
    assert others
    texts = [(sentence * 3).strip(), (sentence * 6).strip()]
    assert [chunk.text for chunk in split("\n\n".join(texts), 30, 0)] == texts


def test_a_title_stands_with_the_text_behind_it_also_where_a_sentence_is_too_long() -> None:
    title, sentence = "Some words of a title", " ".join(["word"] * 50) + "."
    first = split(f"{title}\n\n{sentence} Then a short one.", 40, 4)[0]
    assert first.text.startswith(f"{title}\n\nword")
    short = "One two three four. Five six seven eight."
    assert any(short in chunk.text for chunk in split(f"{short}\n\n{' '.join(['word'] * 60)}", 40, 4))


def test_a_long_word_that_is_cut_does_not_make_a_chunk_too_long() -> None:
    """WordPiece makes one token of a word of more than 100 characters, and many of a shorter part of it."""

    def offsets(text: str) -> list[tuple[int, int]]:
        found = []
        for word in re.finditer(r"\S+", text):
            step = len(word[0]) if len(word[0]) > 100 else 2
            found += [(at, min(at + step, word.end())) for at in range(word.start(), word.end(), step)]
        return found

    for tail in range(1, 12):
        text = "a1b2" * (1440 + 8 * tail) + " " + "ab " * 175
        chunks = split(text, 200, 20, offsets=offsets)
        assert all(len(offsets(chunk.text)) <= 200 for chunk in chunks)


def test_neighbours_share_whole_sentences_or_nothing_where_a_sentence_ends() -> None:
    short, long = "Alpha beta.", "One two three four five six seven eight nine ten eleven twelve."
    for sentence, shares in ((short, True), (long, False)):
        chunks = split(" ".join([sentence] * 30), 40, 8)
        assert len(chunks) > 2
        assert all(chunk.text.startswith(sentence) and chunk.text.endswith(sentence) for chunk in chunks)
        assert all((b.start < a.end) == shares for a, b in pairwise(chunks))


def test_a_paragraph_that_fits_without_overlap_is_not_cut() -> None:
    paragraph = "Alpha beta gamma delta. " * 7 + "Omega."  # 37 tokens
    text = f"Some words that come before.\n\n{paragraph}\n\n{paragraph}"
    assert all(chunk.text.endswith((".", paragraph)) for chunk in split(text, 40, 10))
    assert sum(paragraph in chunk.text for chunk in split(text, 40, 10)) == 2


def test_the_words_above_a_list_open_it() -> None:
    text = "The lessor pays:\n\n" + "\n".join(f"- the cost of repair number {n} of the roof" for n in range(8))
    first = split(text, 40, 0)[0].text
    assert first.startswith("The lessor pays:\n\n- the cost")


@pytest.mark.parametrize(
    "safe",
    ["Dr. Smith", "No. 5", "Sec. 3", "e.g. this", "1.5 mg", "i.e. that", "J. R. Hart", "Art. IV", "pp. 3",
     "Acme Inc. Ltd", "approx. Five", "v. 2", "Fig. 7", "vs. Them", "U.S. Law", "Mrs. Lee", "b.i.d. Orally"],
)  # fmt: skip
def test_abbreviations_end_no_sentence(safe: str) -> None:
    """Cuts and overlaps fall at the end of the sentence, which the abbreviation stands nearest to."""
    sentence = f"One two three four five six {safe} seven eight nine ten eleven twelve thirteen."
    size = len(word_offsets(sentence))
    for chunk in split(" ".join([sentence] * 8), size + 2, 0):
        assert chunk.text == sentence
    for chunk in split(" ".join([sentence] * 8), 3 * size + 2, size + 1):
        assert chunk.text.startswith("One")


@pytest.mark.parametrize("end", ["six.", "six!", "six?", "six;", 'six."', "six.)", "in 2019.", "12 mg.", "say no."])
def test_sentences_end(end: str) -> None:
    sentence = f"One two three four five {end}"
    size = len(word_offsets(sentence))
    assert {chunk.text for chunk in split(" ".join([sentence] * 8), 2 * size + 1, 0)} <= {f"{sentence} {sentence}"}


def test_the_number_of_a_clause_is_no_sentence() -> None:
    text = "Alpha beta gamma delta epsilon zeta eta.\n12. theta iota kappa lambda mu nu xi omicron pi rho sigma tau."
    assert not any(chunk.text.endswith("12.") for chunk in split(text, 16, 4))


def test_lines_that_only_fill_the_page_are_not_preferred_to_sentences() -> None:
    lines = "The tenant pays the rent in advance, and on the first day\nof each month. The landlord keeps the roof."
    chunks = split("\n".join([lines] * 5), 30)
    assert all(chunk.text.startswith("The") and chunk.text.endswith(".") for chunk in chunks)


def test_tiny_texts_are_one_chunk() -> None:
    for text in ("x", "4.2 Rent", "ARTICLE IV\n\n4.1 Rent\n\nNone.", "a | b\n1 | 2", "- a\n- b\n\n(a) c\n\n(b) d"):
        assert [chunk.text for chunk in split(text)] == [text]


def test_a_tiny_tail_joins_the_chunk_before() -> None:
    text = " ".join(f"w{i}" for i in range(45))
    assert len(split(text, 50, 10)) == 1
    assert [len(word_offsets(c.text)) for c in split(text, 44, 0)] == [44, 1]


def test_pages_come_from_their_starts() -> None:
    text = "First page words.\n\nSecond page words.\n\nThird page words."
    document = Document("d", text, metadata={"page_starts": [0, 19, 39]})
    chunks = list(split_documents([document], lambda t: [(i, i + 1) for i in range(len(t))], 24, 0, False))
    assert [(chunk.page, chunk.text) for chunk in chunks] == [
        (1, "First page words."), (2, "Second page words."), (3, "Third page words."),
    ]  # fmt: skip
    late = Document("d", "Words.", metadata={"page_starts": [3]})
    assert [chunk.page for chunk in split_documents([late], word_offsets, 24, 0, False)] == [1]


def test_text_that_the_tokenizer_drops_is_kept() -> None:
    chunks = split(
        "\U000f0000\n\n## Dose\n\n\U000f0001", offsets=lambda text: [m.span() for m in re.finditer(r"\w+", text)]
    )
    assert uncovered("\U000f0000\n\n## Dose\n\n\U000f0001", chunks) == ""


def test_as_is_takes_the_text_whole() -> None:
    documents = [Document("a", " one \n\n# two " * 90), Document("b", "x")]
    chunks = list(split_documents(documents, word_offsets, 16, 4, True))
    assert [(c.id, c.text, c.start, c.end) for c in chunks] == [
        ("a#0", documents[0].text, 0, len(documents[0].text)), ("b#0", "x", 0, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ["#" * 50_000, "# " + "#" * 50_000 + "x", "\n" * 50_000, "a\n" + " " * 50_000 + "-", "\nA" * 50_000, "I" * 50_000,
     "4.2 Rent\n\n" * 20_000, "ARTICLE I\n\n" * 20_000 + "x", "1." * 50_000, "\n" + " \n" * 50_000 + "TERM\n"],
)  # fmt: skip
def test_odd_lines_do_not_stall_the_heading_search(line: str) -> None:
    sections = find_sections(line)
    assert "".join(line[s.start : s.end] for s in sections) == line
