"""From documents to chunks: pieces of at most ``max_tokens`` tokens with exact character offsets.

A chunk of the document ``protocols/sepsis.md``, whose title is "Sepsis"::

    {"id": "protocols/sepsis.md#3", "document_id": "protocols/sepsis.md", "text": "## Dose\\nGive 1.6 g.",
     "start": 410, "end": 429, "title": "Sepsis", "headings": ["Dose"], "page": null}

A document is divided at its headings first (``sections.py``), and langchain's recursive splitter divides the sections:
where a numbered clause begins, else at paragraphs, else between list items and table rows, else at lines, sentences,
words, tokens. The splitter works on a *score* of the section: a string with one letter a token, which says how good
a place to cut the end of that token is. So lengths are numbers of tokens by construction, a document is tokenized
once, and where a piece stands is known instead of searched for.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from raft.corpus.sections import Section, find_sections
from raft.records import Chunk, Document

TokenOffsets = Callable[[str], Sequence[tuple[int, int]]]
"""The (start, end) character offsets of each token of a text, special tokens left out."""

TINY_TOKENS = 15  # a shorter piece says too little to be found: it joins its neighbour where that fits
_MARGIN = 16  # tokens; a piece cut between words has no more than so many tokens more than it had within the text
_MAX_TOKEN_CHARS = 32  # WordPiece makes one [UNK] of a word of any length; such a token is divided

# The letters of a score, from the best place to cut to the worst.
_CLAUSE, _PARAGRAPH, _ITEM, _LINE, _SENTENCE, _WORD, _INSIDE = "cpilsw."
_BETWEEN = _CLAUSE + _PARAGRAPH + _ITEM
_LETTERS = _BETWEEN + _LINE + _SENTENCE + _WORD
_SHORT = 4  # a paragraph of less than a quarter of a chunk is short


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
        title = document.title.casefold()
        for number, piece in enumerate(pieces):
            yield Chunk(
                id=f"{document.id}#{number}",
                document_id=document.id,
                text=document.text[piece.start : piece.end],
                start=piece.start,
                end=piece.end,
                title=document.title,
                headings=tuple(heading for heading in piece.path if heading.casefold() != title),
                page=_page(document, piece.start),
            )


def _page(document: Document, offset: int) -> int | None:
    """The page (from 1) that holds a character offset; None for documents without pages."""
    starts = document.metadata.get("page_starts")
    return max(1, bisect_right(starts, offset)) if starts else None


def _split_text(text: str, token_offsets: TokenOffsets, max_tokens: int, overlap_tokens: int) -> list[Section]:
    offsets = _divide_long_tokens(token_offsets(text))
    score = _score(text, offsets)
    ends = [end for _, end in offsets]
    pieces = []
    for section in _join_tiny_sections(find_sections(text), ends):
        first, last = bisect_right(ends, section.start), bisect_right(ends, section.end)
        for a, b in _split_score(score[first:last], max_tokens, overlap_tokens):
            start = section.start if a == 0 else offsets[first + a][0]
            end = section.end if first + b == last else offsets[first + b][0]
            piece = replace(section, start=start, end=end)
            between_words = _INSIDE not in (score[first : first + a][-1:], score[first + b - 1 : last - 1][:1])
            sure = between_words and b - a <= max_tokens - _MARGIN
            pieces += _without_space(text, piece) if sure else _fit(text, piece, token_offsets, max_tokens)
    return pieces


def _divide_long_tokens(offsets: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    if all(end - start <= _MAX_TOKEN_CHARS for start, end in offsets):
        return offsets
    parts = []
    for start, end in offsets:
        at = range(start, end, _MAX_TOKEN_CHARS) or (start,)
        parts += [(a, min(a + _MAX_TOKEN_CHARS, end)) for a in at]
    return parts


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
            plain = gap.group() == " " and text[gap.start() - 1].isalnum()  # the most by far, so they come first
            score[token] = _WORD if plain else _kind_of_gap(text, gap)
    return "".join(score)


_CLAUSE_START = re.compile(
    r"(?i:part|chapter|article|section|clause|schedule|exhibit|annex|appendix)[ \t]+(?:\d|[IVXLC]+\b|[A-Z]\b)"
    r"|§"
    r"|\d{1,3}(?:\.[ ]?\d{1,3}){0,5}(?:[.)]|(?=[ \t]))[ \t]*[\"'“(\[]?[A-Z]"  # 4.2.1 Notice; not: 12 of the members
    r"|[IVX]{1,5}\.[ \t]+[A-Z]"
    r"|\((?:[a-z]{1,2}|[ivx]{1,5}|[A-Z]|\d{1,2})\)[ \t]*\S"
    r"|[A-Z][A-Z0-9 \t,&/()'’–-]{3,79}:?[ \t]*(?:\n|\Z)"
)
_ITEM_START = re.compile(r"[-*•–‣◦▪][ \t]+\S|(?:\d{1,3}|[A-Za-z])[.)][ \t]+\S|\|")
_INDENT = 3  # so many spaces within a line stand for a line break that the reader of a page has lost
_LONG_LINE = 40  # characters


def _kind_of_gap(text: str, gap: re.Match[str]) -> str:
    """How good a place to cut white space is, by what stands before and after it."""
    newlines = gap.group().count("\n")
    ends = _ends_sentence(text, gap)
    if not newlines:
        begins = len(gap.group()) >= _INDENT and ends and _CLAUSE_START.match(text, gap.end())
        return _CLAUSE if begins else _SENTENCE if ends else _WORD
    if text[gap.start() - 1] == ":":
        return _ITEM  # what is announced goes with the words that announce it
    # Where a sentence goes on in the next line, "Section 4" at its start is a reference.
    if (newlines > 1 or ends) and _CLAUSE_START.match(text, gap.end()):
        return _CLAUSE
    if newlines > 1:
        return _PARAGRAPH
    if _ITEM_START.match(text, gap.end()) or _is_row(text, gap.end()):
        return _ITEM
    return _WORD if _is_wrapped(text, gap) and not ends else _LINE


def _is_wrapped(text: str, gap: re.Match[str]) -> bool:
    """Whether the line break before the gap's end only fills the page: a long line goes on in small letters."""
    line = text.rfind("\n", max(0, gap.start() - _LONG_LINE), gap.start())
    return line < 0 and gap.start() >= _LONG_LINE and text[gap.end() : gap.end() + 1].islower()


def _is_row(text: str, start: int) -> bool:
    """Whether the line that begins here is a row of a table: ``Drug | Dose | Route``."""
    end = text.find("\n", start)
    return " | " in text[start : len(text) if end < 0 else end]


_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Za-z]"  # an initial, or the last letter of "e.g."
    r"|Dr|Drs|Mr|Mrs|Ms|Prof|St|Messrs|Hon|Jr|Sr|vs|viz|cf|ca|al|approx|resp|incl|excl|max|min"
    r"|Inc|Ltd|Co|Corp|Bros|dept|est|[Tt]el|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)"
    r"|(?:\A|\n|\s{2}|\.)[ \t]*\d{1,3})\.\Z"  # the number of a clause
)
_BEFORE_NUMBER = re.compile(
    r"\b(?:no|nos|art|arts|sec|secs|par|para|paras|cl|reg|regs|ch|vol|fig|figs|tab|app|ex|p|pp|ed|div|pt|v)\.\Z",
    re.IGNORECASE,
)
_CLOSING = "\"')]}”’»*_"
_LOOK_BACK = 16  # characters, more than an abbreviation has


def _ends_sentence(text: str, gap: re.Match[str]) -> bool:
    """Whether a sentence (or a part that a semicolon ends) ends before the gap: not at "Dr. Smith" or "No. 5"."""
    at = gap.start()
    while at > max(0, gap.start() - 3) and text[at - 1] in _CLOSING:
        at -= 1
    mark, following = text[at - 1 : at], text[gap.end() : gap.end() + 1]
    if mark != ".":
        return bool(mark) and mark in "!?;。"
    if following.islower():
        return False
    before = text[max(0, at - _LOOK_BACK) : at]
    if _ABBREVIATION.search(before):
        return False
    return not (_BEFORE_NUMBER.search(before) and (following.isdigit() or following in "IVXLC(§"))


def _split_score(score: str, max_tokens: int, overlap_tokens: int) -> list[tuple[int, int]]:
    """Token ranges (first, past the last) of at most ``max_tokens`` that cover the score."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    room = max_tokens - overlap_tokens
    splitter = RecursiveCharacterTextSplitter(
        separators=[*_LETTERS, ""],
        keep_separator="end",
        chunk_size=room,
        chunk_overlap=0,  # added below, where its offsets are known
        strip_whitespace=False,
    )
    found = splitter.split_text(_with_openings(score, room, max_tokens))
    cuts = [0]
    for piece in found or [""]:  # a tokenizer may drop all characters of a section
        cuts.append(cuts[-1] + len(piece))
    cuts = _join_tiny_pieces(_join_whole(score, cuts, max_tokens), max_tokens)
    return [(_overlap_from(score, a, max(a - overlap_tokens, b - max_tokens)), b) for a, b in pairwise(cuts)]


def _with_openings(score: str, room: int, max_tokens: int) -> str:
    """The score with a short paragraph, before one that must be cut, as the first sentence of that one: cut off, it
    would be a chunk that is nothing but a title."""
    cuts = [match.end() for match in re.finditer(f"[{_BETWEEN}]", score[:-1])]
    rank = f"{_LETTERS}{_INSIDE}".index
    letters = list(score)
    for a, b, c in zip([0, *cuts], cuts, [*cuts[1:], len(score)], strict=False):
        if score[b - 1] == _PARAGRAPH and b - a < max_tokens // _SHORT and c - b > max_tokens:
            first_cut = min(score[b : min(c - 1, a + room)], key=rank)  # the best one that leaves room for both
            if all(rank(inner) >= rank(first_cut) for inner in score[a : b - 1]):  # else the short one would be cut
                letters[b - 1] = first_cut
    return "".join(letters)


def _join_whole(score: str, cuts: Sequence[int], max_tokens: int) -> list[int]:
    """The cuts without those inside a paragraph, item or row that fits into one chunk once it has no overlap."""
    outer = [cuts[0], *(cut for cut in cuts[1:-1] if score[cut - 1] in _BETWEEN), cuts[-1]]
    whole = [(a, b) for a, b in pairwise(outer) if b - a <= max_tokens]
    inside = {cut for a, b in whole for cut in cuts[bisect_right(cuts, a) : bisect_left(cuts, b)]}
    return [cut for cut in cuts if cut not in inside]


def _join_tiny_pieces(cuts: Sequence[int], max_tokens: int) -> list[int]:
    """The cuts without those around tiny pieces, where the room allows: a tiny piece (a heading, a few words between
    long paragraphs) opens the piece behind it; the last one joins the piece before."""
    joined = [cuts[0]]
    for at, cut in enumerate(cuts[1:-1], 1):
        if cut - joined[-1] >= TINY_TOKENS or cuts[at + 1] - joined[-1] > max_tokens:
            joined.append(cut)
    if len(joined) > 1 and cuts[-1] - joined[-1] < TINY_TOKENS and cuts[-1] - joined[-2] <= max_tokens:
        del joined[-1]
    return [*joined, cuts[-1]]


def _overlap_from(score: str, first: int, least: int) -> int:
    """Where a piece that begins at ``first`` begins with its overlap, from ``least`` on: at an item or row before an
    item or row, else at a sentence. Only a piece that begins within a sentence may begin at a word instead; where a
    sentence has ended, and no whole one fits, there is no overlap."""
    places = range(max(least, 1), first)
    before, sentences = score[first - 1 : first], _LETTERS[:-1]
    for good in (_BETWEEN,) if before == _ITEM else (sentences,) if before in sentences else (sentences, _WORD):
        found = next((at for at in places if score[at - 1] in good), None)
        if found is not None:
            return found
    return first


def _fit(text: str, piece: Section, token_offsets: TokenOffsets, max_tokens: int) -> list[Section]:
    """The piece without white space around it; halved where it has too many tokens after all, because half a word
    can have more tokens than it had as part of the whole."""
    for part in _without_space(text, piece):
        offsets = token_offsets(text[part.start : part.end])
        middle = part.start + offsets[len(offsets) // 2][0] if offsets else part.start
        if len(offsets) <= max_tokens or middle == part.start:
            return [part]
        halves = (replace(part, end=middle), replace(part, start=middle))
        return [fitting for half in halves for fitting in _fit(text, half, token_offsets, max_tokens)]
    return []


def _without_space(text: str, piece: Section) -> list[Section]:
    """The piece without white space around it; none of a piece that is nothing else."""
    words = text[piece.start : piece.end]
    start = piece.start + len(words) - len(words.lstrip())
    end = start + len(words.strip())
    return [replace(piece, start=start, end=end)] if start < end else []
