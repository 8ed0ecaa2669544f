"""The sections of a document: where each begins and ends, and which headings stand above it.

Of the text ``ARTICLE IV\\n\\n4.2 Termination\\n\\nThe lessee may leave. ...``::

    Section(start=12, end=58, path=("ARTICLE IV", "4.2 Termination"))

Markdown headings count always. Text without them may still have headings: "Section 4.2 Termination", "ARTICLE IV",
"§ 12 Notice", "4.2.1 Notice of default", "DEFINITIONS". They are guessed, and a wrong one would stand above all that
follows: so a line is one only when it stands alone, says no sentence, and has something beneath it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """From one heading (included) to the next: character offsets, and the headings above and its own."""

    start: int
    end: int
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Heading:
    """A line that is, or may be, a heading. ``level`` counts from 1, the highest; ``end`` is where the line ends.

    One without words is a clause that opens with its text ("7. The parties agree"): under no heading of clause 6.
    """

    start: int
    end: int
    level: int
    words: str
    number: tuple[int, ...] = ()

    def holds_for(self, other: _Heading) -> bool:
        """Whether this heading, which stands above, still holds where the other one begins."""
        if other.words or not (self.number and other.number):
            return self.level < other.level
        return other.number <= self.number or other.number[: len(self.number)] == self.number


def find_sections(text: str) -> list[Section]:
    """The sections of a text, which tile it."""
    marked = _marked_headings(text)
    # Whoever marks headings marks them all; a single mark may be a title that a reader has put above plain text.
    headings = marked if len(marked) > 1 else _with_clauses(text, [*marked, *_plain_headings(text)])
    cuts: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    above: list[_Heading] = []  # the headings that hold here
    for heading in headings:
        above = [item for item in above if item.holds_for(heading)]
        if heading.words:
            above.append(heading)
        path = tuple(item.words for item in above)
        if heading.words or path != cuts[-1][1]:
            cuts.append((heading.start, path))
    ends = [start for start, _ in cuts[1:]] + [len(text)]
    return [Section(start, end, path) for (start, path), end in zip(cuts, ends, strict=True) if start < end]


# --- headings that are marked ----------------------------------------------------------------------------------

_MARKED = re.compile(
    r"^(?:[ ]{0,3}(?P<fence>`{3,}|~{3,})[^\n]*"
    r"|(?P<marks>\#{1,6})[ \t]+(?P<atx>\S[^\n]{0,300})"
    r"|(?P<setext>[^\s|>#-][^\n]{0,119})\n[ \t]*(?P<line>={3,}|-{3,})[ \t]*)$",
    re.MULTILINE,
)


def _marked_headings(text: str) -> list[_Heading]:
    """Lines such as ``## Dose``, or underlined with ``===`` or ``---`` behind a blank line; those inside code
    fences are none."""
    found = []
    fence = ""
    for match in _MARKED.finditer(text):
        if match["fence"]:
            fence = "" if fence and match["fence"].startswith(fence) else fence or match["fence"]
        elif not fence and (match["marks"] or _follows_blank_line(text, match.start())):
            level = len(match["marks"]) if match["marks"] else 1 if match["line"][0] == "=" else 2
            words = (match["atx"] or match["setext"]).strip(" \t#")
            found.append(_Heading(match.start(), match.end(), level, words))
    return found


def _follows_blank_line(text: str, at: int) -> bool:
    """Whether the line that begins at ``at`` is the first one, or the line before it is blank."""
    return at == 0 or not text[text.rfind("\n", 0, at - 1) + 1 : at].strip()


# --- headings of plain text ------------------------------------------------------------------------------------

_SHORT_LINE = re.compile(r"^[ \t]{0,80}(?P<words>\S[^\n]{0,99})$", re.MULTILINE)
_LEVELS = {"Schedule": 7, "Exhibit": 7, "Annex": 7, "Appendix": 7, "Part": 8, "Title": 8, "Chapter": 9, "Article": 10}
_SECTION_LEVEL = 11  # of "Section 4" and "4."; each further number ("4.2") is one level lower. Markdown has 1 to 6
_CAPITALS_LEVEL = 11  # "RECITALS" ends where "1. Definitions" begins; "DEFINITIONS" holds for "1.1 Premises"
_NAMED = re.compile(
    rf"(?P<kind>{'|'.join(f'{kind}|{kind.upper()}' for kind in (*_LEVELS, 'Section', 'Clause'))}|Sec\.|§)[ \t]*"
    r"(?P<number>\d{1,4}(?:\.\d{1,3})*[A-Za-z]?|[IVXLC]{1,7}|[A-Z])(?![\w(])[.:]?[ \t]*[-–—:]?[ \t]*(?P<title>.*)"
)
_NUMBERED = re.compile(r"(?P<number>\d{1,2}(?:\.\d{1,3}){0,4})[.)]?[ \t]+(?P<title>.*)")
_LETTERED = re.compile(r"(?:(?P<roman>[IVX]{1,6})|[A-H])[.)][ \t]+(?P<title>.*)")
_CAPITALS = re.compile(r"(?!PAGE\b|TABLE OF CONTENTS)[A-Z][A-Z0-9 \t,&/()'’–-]{3,}")
_COMPANY = re.compile(r"\b(?:INC|LTD|LLC|LLP|LP|CORP|CORPORATION|LIMITED|COMPANY|PLC|GMBH|CO)\b\.?$")
_SAYS_A_SENTENCE = re.compile(
    r"\b(?:shall|must|may|will|would|can|should|is|are|was|were|has|have|had|do|does|did|agrees?|means|take|give|use)\b"
    r"|\b(?:and|or|of|the|to|for|in|on|at|by|with|from|an?)$|[.;!?]\s|[,;:?!|]$|\.{3,}|…"
)
_RUN_IN = re.compile(
    rf"^[ \t]{{0,80}}(?:(?P<kind>{'|'.join(f'{kind}|{kind.upper()}' for kind in _LEVELS)})[ \t]+"
    r"(?:\d|[IVXLC]+\b|[A-Z]\b)"
    r"|(?:(?:Section|SECTION|Clause|CLAUSE|§)[ \t]*)?(?P<number>\d{1,3}(?:\.\d{1,3}){0,4})[.)]?[ \t]+[\"“(]?[A-Z])",
    re.MULTILINE,
)
_MOST_WORDS = 12
_UNSURE = -_SECTION_LEVEL
_LEAST_NUMBERED = 2  # sure headings such as "4. Rent" that make those likely that look like an item of a list
_LEAST_BODY_WORDS = 5  # fewer are a page number or a running head
_MOST_REPEATS = 2  # once in the table of contents, once above the text; more often, it is a running head


def _plain_headings(text: str) -> list[_Heading]:
    candidates, unsure = [], set()
    for match in _SHORT_LINE.finditer(text):
        line = match["words"].rstrip()
        level = _plain_level(line) or _UNSURE * _is_unsure(line)
        if level and _follows_blank_line(text, match.start()) and not _goes_on(text, match.end()):
            words = " ".join(line.strip(" \t:=_").split())
            number = _number(words) if abs(level) >= _SECTION_LEVEL else ()
            candidates.append(_Heading(match.start(), match.end(), abs(level), words, number))
            if level == _UNSURE:
                unsure.add(words)
    repeats = Counter(candidate.words for candidate in candidates)
    numbered = sum(c.words[0].isdigit() and c.level == _SECTION_LEVEL and c.words not in unsure for c in candidates)
    if numbered >= _LEAST_NUMBERED:
        unsure = set()
    kept = [c for c in candidates if repeats[c.words] <= _MOST_REPEATS and c.words not in unsure]
    return _with_text_beneath(text, kept)


def _with_clauses(text: str, headings: Sequence[_Heading]) -> list[_Heading]:
    """The headings, and the clauses that end what a heading holds for, in the order of the text."""
    if not headings:
        return []
    known = {heading.start for heading in headings}
    clauses = []
    for match in _RUN_IN.finditer(text):
        if match.start() not in known and _follows_blank_line(text, match.start()):
            number = _number(match["number"] or "")
            level = _LEVELS[match["kind"].capitalize()] if match["kind"] else _SECTION_LEVEL + len(number) - 1
            clauses.append(_Heading(match.start(), match.end(), level, "", number))
    return sorted([*headings, *clauses], key=lambda heading: heading.start)


def _number(words: str) -> tuple[int, ...]:
    """The number that a heading begins with: (4, 2) of "Section 4.2 Notice"; empty when there is none."""
    match = re.match(r"(?:[A-Za-z]+\.?|§)?[ \t]*(\d{1,4}(?:\.\d{1,3})*)", words)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def _plain_level(line: str) -> int:
    """The level of a line as a heading of plain text; 0 when its words are none."""
    if match := _NAMED.fullmatch(line):
        level = _LEVELS.get(match["kind"].capitalize(), _SECTION_LEVEL + match["number"].count("."))
        return level if not match["title"] or _is_title(match["title"].rstrip(".")) else 0
    if match := _NUMBERED.fullmatch(line):
        depth = match["number"].count(".")
        # "4. Take one tablet" may be an item of a list: with one number, every word must look like a title's.
        return _SECTION_LEVEL + depth if _is_title(match["title"], every_word=depth == 0) else 0
    if match := _LETTERED.fullmatch(line):
        return _SECTION_LEVEL + (not match["roman"]) if _is_capitals(match["title"]) else 0
    return _CAPITALS_LEVEL if _is_capitals(line.rstrip(":")) else 0


def _is_unsure(line: str) -> bool:
    """Whether the line is a heading such as "4. What is confidential" if the document has more that are numbered."""
    match = _NUMBERED.fullmatch(line)
    return match is not None and line[len(match["number"])] == "." and len(line) <= 60 and _is_title(match["title"])


def _is_title(words: str, every_word: bool = False) -> bool:
    """Whether the words may be a title: begun with a capital, few, and no sentence."""
    if _is_capitals(words.rstrip(".:")):
        return True
    parts = words.split()
    if not words[:1].isupper() or len(parts) > _MOST_WORDS or _SAYS_A_SENTENCE.search(words):
        return False
    return not words.endswith(".") and not (every_word and any(len(w) > 4 and w[0].islower() for w in parts))


def _is_capitals(words: str) -> bool:
    """Whether the words are a title in capitals: not a company's name, nor an abbreviation alone."""
    return (
        bool(_CAPITALS.fullmatch(words))
        and len(words.split()) <= _MOST_WORDS
        and not _COMPANY.search(words)
        and sum(map(str.isalpha, words)) >= max(4, len(words) // 2)
    )


def _goes_on(text: str, end: int) -> bool:
    """Whether the next line carries the line that ends here on: it begins in the middle of a sentence."""
    following = text[end + 1 : end + 80].lstrip(" \t")[:1]
    return following.islower() or following in (",", ";", "|")


def _with_text_beneath(text: str, candidates: Sequence[_Heading]) -> list[_Heading]:
    """The candidates with text beneath them, or straight above a lower heading that is kept: so not the lines of a
    table of contents, nor the items of a list."""
    kept: list[_Heading] = []
    upto = len(text)
    for candidate in reversed(candidates):
        has_text = len(text[candidate.end : min(upto, candidate.end + 400)].split()) >= _LEAST_BODY_WORDS
        if has_text or (kept and kept[-1].level > candidate.level):
            kept.append(candidate)
        upto = candidate.start
    return kept[::-1]
