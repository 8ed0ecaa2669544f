"""Chunks stand exactly where they say, cover the document, and fit the encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.corpus.chunking import find_sections, split_documents
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


@pytest.mark.parametrize("line", ["#" * 50_000, "# " + "#" * 50_000 + "x", "\n" * 50_000, "a\n" + " " * 50_000 + "-"])
def test_odd_lines_do_not_stall_the_heading_search(line: str) -> None:
    sections = find_sections(line)
    assert "".join(line[s.start : s.end] for s in sections) == line
