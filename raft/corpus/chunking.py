"""From documents to chunks: pieces of at most ``max_tokens`` tokens with exact character offsets.

A chunk of the document ``protocols/sepsis.md``, whose title is "Sepsis"::

    {"id": "protocols/sepsis.md#3", "document_id": "protocols/sepsis.md", "text": "## Dose\\nGive 1.6 g.",
     "start": 410, "end": 429, "title": "Sepsis", "headings": ["Dose"], "page": null}

A document is divided at its headings first, and langchain's recursive splitter divides the sections: at paragraphs,
else lines, else sentences, else words, else tokens. The splitter works on a *score* of the section: a string with
one letter a token, which says how good a place to cut the end of that token is. So lengths are numbers of tokens
by construction, a document is tokenized once, and where a piece stands is known instead of searched for.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from raft.records import Chunk, Document

TokenOffsets = Callable[[str], Sequence[tuple[int, int]]]
"""The (start, end) character offsets of each token of a text, special tokens left out."""

TINY_TOKENS = 15  # a shorter piece says too little to be found: it joins its neighbour where that fits
_MAX_TOKEN_CHARS = 32  # WordPiece makes one [UNK] of a word of any length; such a token is divided

# The letters of a score, from the best place to cut to the worst.
_PARAGRAPH, _LINE, _SENTENCE, _WORD, _INSIDE = "plsw."


@dataclass(frozen=True, slots=True)
class Section:
    """From one heading (included) to the next: character offsets, and the headings above and its own."""

    start: int
    end: int
    path: tuple[str, ...] = ()


def split_documents(
    documents: Iterable[Document], token_offsets: TokenOffsets, max_tokens: int, overlap_tokens: int, as_is: bool
) -> Iterator[Chunk]:
    """The chunks of each document, in order; ``chunk.text == document.text[chunk.start:chunk.end]``.

    No chunk is empty or longer than ``max_tokens``; neighbours within a section share up to ``overlap_tokens``
    tokens, from the start of a sentence or word. ``as_is`` makes each document one chunk, whatever its length.
    """
    for document in documents:
        if as_is:
            pieces = [Section(0, len(document.text))]
        else:
            pieces = _split_text(document.text, token_offsets, max_tokens, overlap_tokens)
        for number, piece in enumerate(pieces):
            yield Chunk(
                id=f"{document.id}#{number}",
                document_id=document.id,
                text=document.text[piece.start : piece.end],
                start=piece.start,
                end=piece.end,
                title=document.title,
                headings=tuple(heading for heading in piece.path if heading != document.title),
                page=_page(document, piece.start),
            )


def _page(document: Document, offset: int) -> int | None:
    """The page (from 1) that holds a character offset; None for documents without pages."""
    starts = document.metadata.get("page_starts")
    return bisect_right(starts, offset) if starts else None


def _split_text(text: str, token_offsets: TokenOffsets, max_tokens: int, overlap_tokens: int) -> list[Section]:
    offsets = [part for start, end in token_offsets(text) for part in _divide_token(start, end)]
    score = _score(text, offsets)
    ends = [end for _, end in offsets]
    pieces = []
    for section in _join_tiny_sections(find_sections(text), ends):
        first, last = bisect_right(ends, section.start), bisect_right(ends, section.end)
        for a, b in _split_score(score[first:last], max_tokens, overlap_tokens):
            start = section.start if a == 0 else offsets[first + a][0]
            end = section.end if first + b == last else offsets[first + b][0]
            pieces += _fit(text, replace(section, start=start, end=end), token_offsets, max_tokens)
    return pieces


def _divide_token(start: int, end: int) -> list[tuple[int, int]]:
    return [(at, min(at + _MAX_TOKEN_CHARS, end)) for at in range(start, end, _MAX_TOKEN_CHARS)] or [(start, end)]


# --- sections --------------------------------------------------------------------------------------------------

_HEADING = re.compile(
    r"^(?:[ ]{0,3}(?P<fence>`{3,}|~{3,})[^\n]*"
    r"|(?P<marks>\#{1,6})[ \t]+(?P<atx>\S[^\n]{0,300})"
    r"|(?P<setext>[^\s|>#-][^\n]{0,119})\n[ \t]*(?P<line>={3,}|-{3,})[ \t]*)$",
    re.MULTILINE,
)


def find_sections(text: str) -> list[Section]:
    """The sections of a text, which tile it. Headings are lines such as ``## Dose``, or lines underlined with
    ``===`` or ``---`` behind a blank line; those inside code fences are none."""
    cuts: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    above: list[tuple[int, str]] = []  # level and words of the headings that hold here
    fence = ""
    for match in _HEADING.finditer(text):
        if match["fence"]:
            fence = "" if fence and match["fence"].startswith(fence) else fence or match["fence"]
        elif not fence and (match["marks"] or _follows_blank_line(text, match.start())):
            level = len(match["marks"]) if match["marks"] else 1 if match["line"][0] == "=" else 2
            above = [item for item in above if item[0] < level]
            above.append((level, (match["atx"] or match["setext"]).strip(" \t#")))
            cuts.append((match.start(), tuple(words for _, words in above if words)))
    ends = [start for start, _ in cuts[1:]] + [len(text)]
    return [Section(start, end, path) for (start, path), end in zip(cuts, ends, strict=True) if start < end]


def _follows_blank_line(text: str, at: int) -> bool:
    return at == 0 or text[max(0, at - 2) : at] in ("\n", "\n\n")


def _join_tiny_sections(sections: Sequence[Section], token_ends: Sequence[int]) -> list[Section]:
    """A tiny section (often a bare heading) opens the section below it: what lies beneath its own heading."""
    joined: list[Section] = []
    for section in sections:
        above = joined[-1] if joined else None
        if above is not None and section.path[: len(above.path)] == above.path:
            tokens = bisect_right(token_ends, above.end) - bisect_right(token_ends, above.start)
            if tokens < TINY_TOKENS:
                joined[-1] = replace(section, start=above.start)
                continue
        joined.append(section)
    return joined


# --- splitting a section ---------------------------------------------------------------------------------------


def _score(text: str, offsets: Sequence[tuple[int, int]]) -> str:
    """One letter a token: what separates it from the next one."""
    starts = [start for start, _ in offsets]
    score = [_INSIDE] * len(offsets)
    for gap in re.finditer(r"\s+", text):
        # The last token that begins before the white space; some tokenizers count the space to the token behind it.
        token = bisect_right(starts, gap.start() - 1) - 1
        if token >= 0:
            score[token] = _kind_of_gap(text, gap)
    return "".join(score)


def _kind_of_gap(text: str, gap: re.Match[str]) -> str:
    newlines = gap.group().count("\n")
    if newlines:
        return _PARAGRAPH if newlines > 1 else _LINE
    return _SENTENCE if text[gap.start() - 1] in ".!?;" else _WORD


def _split_score(score: str, max_tokens: int, overlap_tokens: int) -> list[tuple[int, int]]:
    """Token ranges (first, past the last) of at most ``max_tokens`` that cover the score."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(
        separators=[_PARAGRAPH, _LINE, _SENTENCE, _WORD, ""],
        keep_separator="end",
        chunk_size=max_tokens - overlap_tokens,
        chunk_overlap=0,  # added below, where its offsets are known
        strip_whitespace=False,
    )
    cuts = [0]
    for piece in splitter.split_text(score) or [""]:  # a tokenizer may drop all characters of a section
        cuts.append(cuts[-1] + len(piece))
    if len(cuts) > 2 and cuts[-1] - cuts[-2] < TINY_TOKENS and cuts[-1] - cuts[-3] <= max_tokens:
        del cuts[-2]
    return [(_overlap_from(score, a, max(a - overlap_tokens, b - max_tokens)), b) for a, b in pairwise(cuts)]


def _overlap_from(score: str, first: int, least: int) -> int:
    """Where a piece that begins at ``first`` begins with its overlap: a sentence, else a word, from ``least`` on."""
    places = range(max(least, 1), first)
    for good in (_PARAGRAPH + _LINE + _SENTENCE, _WORD):
        found = next((at for at in places if score[at - 1] in good), None)
        if found is not None:
            return found
    return first


def _fit(text: str, piece: Section, token_offsets: TokenOffsets, max_tokens: int) -> list[Section]:
    """The piece without white space around it; halved where it has too many tokens after all, because half a word
    can have more tokens than it had as part of the whole."""
    words = text[piece.start : piece.end]
    start = piece.start + len(words) - len(words.lstrip())
    end = start + len(words.strip())
    if start == end:
        return []
    offsets = token_offsets(text[start:end])
    middle = start + offsets[len(offsets) // 2][0] if offsets else start
    if len(offsets) <= max_tokens or middle == start:
        return [replace(piece, start=start, end=end)]
    halves = (replace(piece, start=start, end=middle), replace(piece, start=middle, end=end))
    return [part for half in halves for part in _fit(text, half, token_offsets, max_tokens)]
