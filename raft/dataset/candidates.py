"""Answers before questions: spans of a chunk that are worth being asked for, chosen by rules.

A small teacher writes a poor question when it must choose what to ask, and a fair one when sentence and answer are
given (Alberti et al. 2019, arXiv 1906.05416, section 2: answer, then question, then the question must lead back to the
answer). From one sentence of a formulary::

    After the first dose, Zelocillin is continued at 1.6 g every 8 hours.   -> "1.6 g every 8 hours" (number)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from raft.artifacts import digest
from raft.dataset.clauses import can_be_asked, opening, whole_answer
from raft.dataset.grounding import sentences
from raft.dataset.support import KNOWN_UNITS
from raft.records import Chunk

CandidateKind = Literal["number", "date", "name", "phrase"]

_LEAST_WORDS, _MOST_WORDS = 5, 60  # of a sentence
_MOST_ANSWER_WORDS = 10
_FOLLOWING = 2  # sentences that may set an answer aside
_LEAST_LEFT = 3  # words of a sentence that say what its answer is about
_WORTH: dict[CandidateKind, int] = {"number": 4, "date": 3, "name": 2, "phrase": 1}
_LIMIT_WORTH, _LONG_NAME_WORTH, _UNCLEAR_COST = 1, 1, 2

_AMOUNT = r"\d+(?:[.,\u2009\u202f]\d+)*"
_SPELLED = (
    r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty|ninety"
    r"|(?:one|two|three|five|six) hundred)\b"
)
_NO_UNIT = (  # words that may follow a bare number without saying what is counted
    r"(?:a|after|all|an|and|are|as|at|be|before|but|by|can|could|did|do|does|for|from|had|has|have|if"
    r"|in|into|is|may|might|must|no|not|nor|of|on|or|shall|should|so|than|that|the|then|there"
    r"|this|those|to|under|until|was|were|when|where|which|who|will|with|within|without|would|apply|applies|above"
    r"|because|since|while|whose|whatever"
    r"|below|only|per|each|every|needs?|means|receives?|gets?"
    r"|\w+(?:ed|ing|ly))\b"
)
_SORT = r"(?:\s(?:business|calendar|clear|consecutive|cubic|full|square|whole|working)(?=\s))?"  # of days, of metres
_UNIT = (
    rf"(?:\s?[%°‰](?:\s?[CF]\b)?|-[a-z]+ [a-z]+|\s(?!{_NO_UNIT})[a-zµ]\w*(?:/\w+)*|[a-zµ]\w*(?:/\w+)*|(?=\sper\s)"
    r"|\s(?:mmHg|kPa|IU|GB|MB|kW|V)\b)"
)
_RATE = (
    rf"(?:\s(?:per|an?|every|each)\s(?:(?:{_AMOUNT}|{_SPELLED})\s)?(?!{_NO_UNIT})[a-z]+"
    r"|\s(?:once|twice|three times)\s(?:a\s)?(?:day|daily|week|weekly|month|monthly|year|yearly))?"
)
_MONEY = rf"(?:[$€£¥]|USD |EUR |GBP )\s?{_AMOUNT}(?:\s(?:thousand|million|billion))?"
_RANGE = rf"{_AMOUNT}(?:\s?(?:-|–|to|and)\s?{_AMOUNT})?"
_NUMBER = re.compile(
    rf"(?<![\w.,:/-])(?:{_MONEY}|(?:{_RANGE}|{_SPELLED}(?:\s\({_AMOUNT}\))?){_SORT}{_UNIT}){_RATE}(?![\w/]|[-.,:]\d)"
)
_SINGULAR_WORD = re.compile(r"(?!one\b|1\b).*[\s-][a-z]+(?<!s)$", re.IGNORECASE | re.DOTALL)  # "two blood" (tests)
_PLURAL_WORD = re.compile(r"\s(?!unless\b)[a-z]{2,}s\b")
_YEAR = re.compile(r"(?:19|20)\d\d\s")
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)? {_MONTH}(?:,? \d{{4}})?|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?"
    rf"|{_MONTH} \d{{4}}|\d{{4}}-\d\d-\d\d|\d{{1,2}}/\d{{1,2}}/\d{{4}}|(?<=\b[Ii]n )(?:1[5-9]|20)\d\d)\b(?![/-]\d)"
)
_CAPITAL = r"[A-Z](?=[\w'’-]*[a-z0-9])[\w'’-]*+"
_NAME = re.compile(
    rf"\b[A-Z]{{2,}}(?:-[A-Z0-9]+)+\b|\b{_CAPITAL}(?: (?:(?:of|for|de|van) (?:the )?)?{_CAPITAL}){{0,5}}(?!\w|\s+[A-Z])"
)
_DONE = r"(?:\w+ed|given|held|kept|made|taken|sent|done|seen|paid|found|set|put|told)"
_PREPOSITION = r"(?:with|by|to|in|on|as|for|from|at|under|of)"
_PHRASE = re.compile(
    r"\b(?:(?P<be>(?:(?:must|shall|may|can|should|will)(?: not| never| only)? be|is|are)(?: only)?)"
    rf"(?: {_DONE} {_PREPOSITION})?"
    r"|means|consists? of|requires?|includes?|contains?|needs?|receives?)\s+(?P<answer>[^,;:.()]+)"
)
_PARTICIPLE = re.compile(
    r"(?!(?:seed|red|bed|speed|need|feed|breed)\b)(?:not |never |only )?"
    rf"(?:{_DONE}|thrown|begun|worn|left|lower|higher)\b"
)
_PHRASE_END = re.compile(r"\s(?:because|unless|if|when|which|who|that|where|while|until|but|so|or|and|whatever)\b")
_PHRASE_BEGIN = re.compile(r"(?!(?:at|by|for|from|in|of|on|so|time|to|with)\b)[^\W\d]")
_PLACE_END = re.compile(r"\s(?:after|at|before|by|during|every|from|in|on|under|with|within)\b")  # "keys at the office"
_HEAD = re.compile(r"(?P<answer>[A-Z][^:.\n]{2,60}):\s")  # "Allergy: ..." in a list
_ARTICLE = re.compile(r"(?:the|an?|not|never|only|any|also)\s+", re.IGNORECASE)
_TWO_CLAUSES = re.compile(r"\b(?:is|are|was|were|must|may|shall|will|receives?)\b")

_LABEL = re.compile(
    r"\b(?:section|article|clause|page|version|form|chapter|paragraph|rule|step|table|figure|part|no\.?|number|document"
    r"|schedule|annex|appendix|day|week|month|grade|stage|class)\s$",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"\b(?:within|every|for|exceed(?:s|ing)?|minimum of|maximum of|after|before|until|from|costs?|pays?|dose of)\s+"
    r"(?:the\s)?$",
    re.IGNORECASE,
)
_BOUND = re.compile(  # belongs to the amount behind it: "fewer than 5" is another answer than "5"
    r"\b(?:at least|at most|up to|below|under|above|over"
    r"|(?:not?\s)?(?:more|less|fewer|longer|shorter|earlier|later|sooner|older|younger|higher|lower|greater|wider)"
    r"\sthan)\s$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:no|not|never|nor|cannot|nobody|none)\b|n['’]t\b", re.IGNORECASE
)  # "no more than", said apart
_LONGEST_BOUND = 20  # characters
_POINTS_BACK = re.compile(
    r"\b(?:afterwards?|thereafter|thereby|therein|(?:after|before|in) that case)\b", re.IGNORECASE
)
_COUNTED = re.compile(rf"(?:{_AMOUNT}|\b{_SPELLED}) ?([^\W\d]+|%)")
_FOR_SOME = re.compile(
    r"\W*(?:after|at|before|between|but|during|for|from|if|in|on|other|otherwise|over|patients|under|when|where|with"
    r"|without)\b",
    re.IGNORECASE,
)
_SETS_ASIDE = re.compile(
    r"\b(?:instead|except|unless|however|waive\w*|shorten\w*|lengthen\w*|exempt\w*|(?:does|do|did) not apply)\b",
    re.IGNORECASE,
)
_UNCLEAR = re.compile(r"(?:it|they|this|that|these|those|he|she|both|such|here|there|otherwise)\b", re.IGNORECASE)
_NUMBERING = re.compile(  # "(4) An employee", "3.1 The Carrier", "2) Infuse"
    r"(?:\(\w{1,3}\)|\d{1,3}(?:\.\d{1,3})+[.)]?|\d{1,3}[.)])\s+(?=[A-Z])"
)
_HEADING_LINE = re.compile(r"(?P<line>[^\n]{2,60}\b)[ \t]*\n\s*(?=[A-Z])")
_HEADING_SHARE = 0.75  # of the longest line: what ends sooner was ended on purpose
_GOES_ON = re.compile(r"\b(?:a|an|and|any|at|by|each|every|for|from|in|no|of|on|or|the|to|with|your)$", re.IGNORECASE)
_LINE_MARKS = re.compile(r"(?:[ \t]*#[^\n]*\n\s*)*(?:[ \t]*(?:[-*•>]|\d{1,2}[.)])[ \t]+)?")
_ABOUT_ITSELF = re.compile(  # of a document's head and foot
    r"\b(?:next review|revised|version\W{1,4}\d|edition of"
    rf"|(?:in force|in effect|valid|effective)(?: from| since)? (?:\d{{1,2}} )?{_MONTH}"
    r"|all rights reserved|Act \d+ of \d{4})|^\W*(?:(?:document )?owner\W{0,4}:"
    r"|(?:adopted|applies|approved|issued|made|owned|prepared|published|reviewed|written)\s(?:by|in|on|to)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence of a chunk and an answer in it, as character offsets (start, end) in the chunk's text."""

    sentence: tuple[int, int]
    answer: tuple[int, int]
    kind: CandidateKind


def answer_candidates(chunk: Chunk, most: int, seed: int) -> list[Candidate]:
    """The ``most`` best answers of a chunk, at most one a sentence, in the order of the text.

    Amounts with a unit come first, most of all limits; then dates and names, then what a thing is or must be.
    Headings, table rows and questions are passed over, and a sentence about "it" costs: nobody could tell what the
    question is about. Of equals ``seed`` draws.
    """
    known = " ".join((chunk.title, *chunk.headings)).casefold()  # the prompt shows these: nothing to be asked for
    best: list[tuple[int, str, Candidate]] = []
    for sentence, following in _usable_sentences(chunk.text):
        found = [
            (-_worth(chunk, candidate), digest([seed, chunk.id, candidate.answer]), candidate)
            for candidate in _in_sentence(chunk.text, sentence)
            if chunk.text[slice(*candidate.answer)].casefold() not in known
            and not any(_is_contested(chunk.text[slice(*candidate.answer)], said) for said in following)
        ]
        best += [min(found, key=lambda each: each[:2])] if found else []
    chosen = sorted(best, key=lambda each: each[:2])[:most]
    return sorted((candidate for _, _, candidate in chosen), key=lambda candidate: candidate.sentence)


def opening_of(chunk: Chunk, candidate: Candidate) -> str:
    """The words with which a question for the answer asks (clauses.opening)."""
    return opening(chunk.text, candidate.sentence, candidate.answer, candidate.kind)


def _usable_sentences(text: str) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """The sentences that can stand alone, without the heading above them or the mark of their list item, each with the
    words of those that follow it; none that speaks of the document itself."""
    longest = max(map(len, text.splitlines()), default=0)
    spans = sentences(text)
    for n, (start, end) in enumerate(spans):
        marks = _LINE_MARKS.match(text, start, end)
        begin = _after_heading(text, (marks.end() if marks else start, end), longest)
        numbering = _NUMBERING.match(text, begin, end)
        begin = numbering.end() if numbering else begin
        if _stands_alone(text[begin:end]):
            yield (begin, end), [text[slice(*span)] for span in spans[n + 1 : n + 1 + _FOLLOWING]]


def _stands_alone(said: str) -> bool:
    """Whether a sentence is one: no heading, row of a table or question, no rest of a list or of the chunk before."""
    if "|" in said or said.startswith("#") or said[:1].islower() or said.endswith(("?", ":")):
        return False
    if _ABOUT_ITSELF.search(said) or _POINTS_BACK.search(said):
        return False
    return _LEAST_WORDS <= len(said.split()) <= _MOST_WORDS


def _is_contested(answer: str, following: str) -> bool:
    """Whether a later sentence sets the answer aside, or gives another amount of the same for some: "Over 70 years the
    rate is 20 mg" after "The rate is 40 mg"."""
    if _SETS_ASIDE.search(following):
        return True
    unit = _COUNTED.search(answer)
    if unit is None or not _FOR_SOME.match(following):
        return False
    return unit[1].removesuffix("s") in {found[1].removesuffix("s") for found in _COUNTED.finditer(following)}


def _after_heading(text: str, sentence: tuple[int, int], longest: int) -> int:
    """Where a sentence begins behind the short lines without a full stop that a page's layout has put before it."""
    begin, end = sentence
    while (found := _HEADING_LINE.match(text, begin, end)) and not _GOES_ON.search(found["line"]):
        if len(found["line"]) >= _HEADING_SHARE * longest:
            break
        begin = found.end()
    return begin


def _in_sentence(text: str, sentence: tuple[int, int]) -> Iterator[Candidate]:
    """Every span of a sentence that could be asked for; a number within a date is none of its own."""
    kinds: tuple[tuple[CandidateKind, list[tuple[int, int]]], ...] = (
        ("date", [match.span() for match in _DATE.finditer(text, *sentence)]),
        ("number", _numbers(text, sentence)),
        ("name", _names(text, sentence)),
        ("phrase", _phrases(text, sentence)),
    )
    taken: list[tuple[int, int]] = []
    for kind, spans in kinds:
        for found in spans:
            start, end = whole_answer(text, sentence, found) if kind == "number" else found
            fits = _fits(text[start:end], text[slice(*sentence)]) and can_be_asked(text, sentence, (start, end), kind)
            if not any(a < end and start < b for a, b in taken):
                taken.append((start, end))
                if fits:
                    yield Candidate(sentence, (start, end), kind)


def _fits(answer: str, sentence: str) -> bool:
    length = len(answer.split())
    return len(answer) > 1 and length <= _MOST_ANSWER_WORDS and length <= len(sentence.split()) - _LEAST_LEFT


def _numbers(text: str, sentence: tuple[int, int]) -> list[tuple[int, int]]:
    """Amounts with unit and bound ("at most 3 days"); the number of a section, a page or a version counts nothing."""
    spans = []
    for match in _NUMBER.finditer(text, *sentence):
        (start, end), unit = match.span(), match.group().rpartition(" ")[2]
        plain = unit.isalpha() and unit.islower() and unit.casefold() not in KNOWN_UNITS
        if _LABEL.search(text, max(0, start - 16), start) or (plain and _YEAR.match(match.group())):
            continue
        if plain and _SINGULAR_WORD.match(match.group()):
            following = _PLURAL_WORD.match(text, end, sentence[1])
            end = following.end() if following else end
        bound = _BOUND.search(text, max(sentence[0], start - _LONGEST_BOUND), start)
        denied = bound and bound.group()[:2].lower() != "no" and _DENIED.search(text, sentence[0], bound.start())
        spans.append((bound.start() if bound and not denied else start, end))
    return spans


def _names(text: str, sentence: tuple[int, int]) -> list[tuple[int, int]]:
    """Capitalised words within a sentence: at its beginning nothing tells a name from any other word."""
    found = (_without_article(text, match.span()) for match in _NAME.finditer(text, *sentence))
    return [(start, end) for start, end in found if start > sentence[0]]


def _phrases(text: str, sentence: tuple[int, int]) -> list[tuple[int, int]]:
    """What something is, means, needs or must be, up to where the clause ends; the head of a list item."""
    spans = []
    for match in _PHRASE.finditer(text, *sentence):
        start, end = match.span("answer")
        for stops in (_PHRASE_END, _PLACE_END)[: 2 if match["be"] else 1]:
            stop = stops.search(text, start, end)
            end = stop.start() if stop else end
        start, end = _without_article(text, (start, end))
        end -= len(" only") if text[start:end].endswith(" only") else 0
        after_be = match["be"] is not None and not text[match.end("be") : start].strip()
        if not _PHRASE_BEGIN.match(text, start, end):
            continue
        bare = after_be and " " not in text[start:end]  # "is yellow": an adjective, by all one can tell
        if not bare and not _TWO_CLAUSES.search(text, start, end) and not _PARTICIPLE.match(text, start, end):
            spans.append((start, end))
    head = _HEAD.match(text, *sentence)
    if head and text[: sentence[0]].endswith(("- ", "* ", "• ")):
        spans.append(head.span("answer"))
    return spans


def _without_article(text: str, span: tuple[int, int]) -> tuple[int, int]:
    start, end = span
    while (article := _ARTICLE.match(text, start, end)) is not None:
        start = article.end()
    return start, start + len(text[start:end].rstrip())


def _worth(chunk: Chunk, candidate: Candidate) -> int:
    """How good a question can be made of a candidate."""
    (start, end), text = candidate.answer, chunk.text
    said = text[slice(*candidate.sentence)]
    worth = _WORTH[candidate.kind]
    bounded = not _NUMBER.match(text, start) or _LIMIT.search(text, max(candidate.sentence[0], start - 24), start)
    if candidate.kind == "number" and bounded:
        worth += _LIMIT_WORTH
    if candidate.kind == "name" and " " in text[start:end]:
        worth += _LONG_NAME_WORTH
    return worth - _UNCLEAR_COST * bool(_UNCLEAR.match(said))
