"""Where words stand in a text: verbatim search that forgives only what extraction changes.

White space, letter case, typographic quotes and dashes, and invisible characters differ between a PDF's text
and what a person or a model writes down; nothing else is forgiven.
"""

from __future__ import annotations

import unicodedata

_SAME = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2010": "-", "\u2011": "-", "\u2012": "-"}
    | {"\u2013": "-", "\u2014": "-", "\u2212": "-"}
)


class _Folding(dict[int, str]):
    """Character -> what it is compared as, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = "".join(_folded(chr(code)))
        return self[code]


_FOLDING = _Folding()


def normalize(text: str) -> str:
    """The text in the form in which two passages are compared: one space between words, lower case."""
    return " ".join(text.translate(_FOLDING).split())


def _folded(char: str) -> list[str]:
    """What a character is compared as: nothing for an invisible one, a space for any white space."""
    same = unicodedata.normalize("NFKC", char).translate(_SAME).lower()
    return [" " if part.isspace() else part for part in same if part.isspace() or unicodedata.category(part) != "Cf"]


def find_span(text: str, passage: str) -> tuple[int, int] | None:
    """Character offsets (start, end) of the first place where ``passage`` stands verbatim in ``text``.

    None when it does not stand there, or when it is empty. ``text[start:end]`` is the passage as written there.
    A passage that begins or ends inside a word of the text does not count.
    """
    wanted = normalize(passage)
    if not wanted:
        return None
    if (found := _as_written(text, passage.strip(), wanted)) is not None:
        return found
    folded, offsets = _normalize_with_offsets(text)
    at = folded.find(wanted)
    while at != -1:
        end = at + len(wanted)
        if not (_splits_word(folded, at) or _splits_word(folded, end)):
            return offsets[at], offsets[end - 1] + 1
        at = folded.find(wanted, at + 1)
    return None


def _as_written(text: str, passage: str, wanted: str) -> tuple[int, int] | None:
    """The span of a passage that stands in the text as it is, between plain characters, and no earlier in any other
    form: found without going through the text character by character."""
    at = text.find(passage)
    end = at + len(passage)
    edges = (text[at - 1 : at], passage[0], passage[-1], text[end : end + 1])
    if at == -1 or not all(edge.isascii() for edge in edges) or edges[0].isalnum() or edges[3].isalnum():
        return None
    up_to = normalize(text[:end])
    return (at, end) if up_to.find(wanted) == len(up_to) - len(wanted) else None


def _splits_word(text: str, at: int) -> bool:
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()


def _normalize_with_offsets(text: str) -> tuple[str, list[int]]:
    out: list[str] = []
    offsets: list[int] = []
    for index, char in enumerate(text):
        for folded in _FOLDING[ord(char)]:
            if folded == " " and out and out[-1] == " ":
                continue
            out.append(folded)
            offsets.append(index)
    return "".join(out), offsets
