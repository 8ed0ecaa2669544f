"""The quality gate: small pure rules, each with the name under which a refusal is recorded.

One row of ``rejected.jsonl``::

    {"id": "teacher-3f0a...", "question": "What does the text above say?", "answer": "12 mg",
     "reasons": ["question_speaks_of_text"], "said": "<the teacher's reply>"}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from raft.corpus.spans import find_span, normalize
from raft.dataset.grounding import CLOSED_TYPES, GroundedQuestion, content_words, words
from raft.dataset.support import (
    all_stems,
    computed,
    has_names,
    has_numbers,
    quantities,
    same_answer,
    same_units,
    stems,
    support,
)
from raft.prompts import is_refusal
from raft.records import Answer, Chunk

_ALSO_ANSWERS = 0.6  # share of the question's content words that a chunk with the answer must hold
_REMEMBERED = 4096  # questions, and texts of chunks

_SHORTEST_DEFINITION = 3  # words
_LEAST_AROUND = 2  # content words that a clause must have beside the answer to say what it is about

_SPEAKS_OF_TEXT = re.compile(
    r"\b(?:the|this|that) (?:(?:above|given|provided|following|previous) )?(?:text|passage|excerpt|paragraph|snippet)\b"
    r"|\b(?:the|this) (?:(?:above|given|provided) )?context\b(?! of\b)"
    r"|\b(?:according to|in|from|by|does|do) (?:the|this) (?:(?:above|given|provided) )?"
    r"(?:documents?|article|author|source|information)\b(?! of\b| \d)"
    r"|\b(?:mentioned|described|stated|given|listed|discussed|shown) (?:above|below|here)\b"
    r"|\bthe (?:above|words above)\b",
    re.IGNORECASE,
)

_NAMED = re.compile(r"(?<=\w )[A-Z]\w*[a-z]|[A-Z]{2,}")  # a capital that does not begin the question
_ASKING = (
    "what which who whom whose when where why how name number amount figure kind type time date duration length "
    "many much long often soon old far high low age year people percentage according happen"
)
_EXTREMES = "maximum minimum least most limit highest lowest longest shortest largest"
_LITTLE = (
    "give given take taken use need get receive find found follow go come call tell keep kept make made put let allow "
    "own current also between up celsius"
)


@cache
def _extreme_stems() -> frozenset[str]:
    """What a question may say of an amount that its quote bounds in other words."""
    return stems(_EXTREMES)


@cache
def _little_stems() -> frozenset[str]:
    """What a clause can lose without saying anything else."""
    return stems(_LITTLE)


@cache
def _asking_stems() -> frozenset[str]:
    """What a question asks with: words that say nothing of what it asks about."""
    return stems(_ASKING)


_MODALS = re.compile(r"\b(?:may|might|must|can|could|should|shall|will|would|needs?)\b")  # not the month
_MAY_STAND_FOR = {"must": ("shall",), "can": ("may",), "may": ("can",), "should": ("must", "shall")}
_PAST = re.compile(r"\b(?:was|were|had|did|could|might|would)\b", re.IGNORECASE)
_IN_WORD = re.compile(r"\w")
_CLAUSE_END = re.compile(r"[,;:()](?=\s|$)|[.!?]\s")
_EXCEPTION = re.compile(
    r"\b(?:not|no|never|cannot|without|except|unless|only|others?|otherwise)\b|n't\b", re.IGNORECASE
)
_BOUND = re.compile(  # "must not exceed 40 mg": a bound like "up to 40 mg"
    r"\b(?:not|no|never)(?: \w+)? (?:more|less|fewer|greater|higher|lower|longer|shorter|later|earlier|sooner|older"
    r"|younger|exceed|before|until|above|below|over|under)\b",
    re.IGNORECASE,
)

_BOUND_BEFORE = re.compile(
    r"\b(at least|at most|within|up to|below|under|above|over"
    r"|(?:more|less|fewer|longer|later|earlier|older|younger) than)\W+$",
    re.IGNORECASE,
)
_EXTREME = re.compile(
    r"\b(?:maximum|minimum|most|least|highest|lowest|longest|shortest|largest|limit)\b", re.IGNORECASE
)
_BOUNDED = re.compile(  # what makes a "maximum" or a "minimum" of an amount
    r"\b(?:at least|at most|up to|exceed\w*|limit\w*"
    r"|(?:no|not)(?: \w+){0,2} (?:more|less|fewer|longer|later|earlier|sooner)"
    r"|highest|lowest|longest|shortest|largest|smallest|greatest)\b",
    re.IGNORECASE,
)

_ASKS_AGAIN = re.compile(
    r"\?.*\w.*\?"  # two question marks
    r"|,? (?:and|or) (?:what|who|whom|whose|where|why|how (?:much|many|long|often|soon)) "
    r"(?:is|are|was|were|do|does|did|must|may|can|should|will)\b",
    re.IGNORECASE | re.DOTALL,
)


def question_faults(question: str, min_words: int, max_words: int) -> list[str]:
    """What is wrong with a question by itself: its length, or that it points at a text its reader cannot see."""
    length = len(question.split())
    faults = []
    if length < min_words:
        faults.append("question_too_short")
    if length > max_words:
        faults.append("question_too_long")
    if _SPEAKS_OF_TEXT.search(question):
        faults.append("question_speaks_of_text")
    return faults


def reply_faults(answer: Answer, kept_quotes: int) -> list[str]:
    """What is wrong with the form of a teacher's reply, of whose quotes ``kept_quotes`` stand in the oracle."""
    faults = [] if answer.well_formed else ["answer_malformed"]
    if answer.quotes and not kept_quotes:
        faults.append("quote_not_in_oracle")
    return faults


def opening_faults(question: str, opening: str) -> list[str]:
    """ "question_asks_otherwise" when the words that it was to ask with ("within how many hours of") are not in it."""
    asked = not opening or f" {same_units(opening)} " in f" {same_units(question)} "
    return [] if asked else ["question_asks_otherwise"]


def answer_faults(
    item: GroundedQuestion, chunk_texts: Mapping[str, str], max_words: int, min_overlap: float
) -> list[str]:
    """What is wrong with an answer and its quotes. ``chunk_texts`` holds the oracle chunks by id.

    Answers out of a closed set (yes, no, a label) need a quote, but need not stand in it. An unanswerable
    question has neither answer nor quote, and nothing to find fault with.
    """
    if item.answer_type == "unanswerable":
        return []
    faults = []
    if is_refusal(item.answer):
        faults.append("answer_refuses")
    if len(item.answer.split()) > max_words:
        faults.append("answer_too_long")
    if not item.quotes:
        return [*faults, "quote_missing"]
    if any(normalize(quote.text) not in normalize(chunk_texts[quote.chunk_id]) for quote in item.quotes):
        faults.append("quote_not_in_oracle")
    if item.answer_type not in CLOSED_TYPES:
        oracles = "\n".join(chunk_texts[chunk_id] for chunk_id in item.oracle_ids)
        faults += support_faults(item, oracles, min_overlap)
    return faults


def support_faults(item: GroundedQuestion, oracles: str, min_overlap: float) -> list[str]:
    """Why the answer is not borne out: of the answer and its aliases, the one with the least against it counts.

    Its numbers must stand in the quotes or the question ("number_not_in_quote"), its names in the oracles or the
    question ("name_not_in_oracle"), and at least ``min_overlap`` of its content words in the quotes
    ("answer_not_in_quote"; support.support). A bound of 0 switches all three off.
    """
    if not min_overlap:
        return []
    quoted = _quoted(item)
    found = []
    for answer in (item.answer, *item.aliases):
        faults = [] if has_numbers(answer, item.question, quoted) else ["number_not_in_quote"]
        if not has_names(answer, item.question, oracles):
            faults.append("name_not_in_oracle")
        if support(answer, item.question, quoted) < min_overlap:
            faults.append("answer_not_in_quote")
        found.append(faults)
    return min(found, key=len)


def _quoted(item: GroundedQuestion) -> str:
    """What the quotes say, and what two numbers come to where there are two quotes (how many days more, say)."""
    said = "\n".join(quote.text for quote in item.quotes)
    return f"{said}\n{' ; '.join(computed(said))}" if len(item.quotes) > 1 else said


def form_faults(item: GroundedQuestion) -> list[str]:
    """What is wrong with question and answer as a pair: one question a row, an answer of the form that its type
    asks for, and one that says more than the question does. For questions of a teacher: people ask in other ways."""
    faults = ["several_questions"] if _ASKS_AGAIN.search(item.question) else []
    if item.answer_type == "unanswerable" or item.question_type == "unanswerable":
        return faults
    first = words(item.answer)[:1]
    if item.question_type == "yesno" and first not in (["yes"], ["no"]):
        faults.append("answer_not_yesno")
    if item.question_type == "numeric" and not quantities(item.answer):
        faults.append("answer_not_numeric")
    if item.question_type == "definition" and len(item.answer.split()) < _SHORTEST_DEFINITION:
        faults.append("definition_too_short")
    if item.question_type in ("multihop", "comparison") and len(item.oracle_ids) < 2:
        faults.append(f"{item.question_type}_single_chunk")
    return faults + _echo_faults(item)


def _echo_faults(item: GroundedQuestion) -> list[str]:
    """Whether the answer is in the question already. Choices ("A or B?") and yes or no have to be."""
    if item.answer_type in CLOSED_TYPES or item.question_type in ("yesno", "comparison"):
        return []
    asked, said = words(item.question), words(item.answer)
    if not said or ("or" in asked and item.answer_type != "number"):
        return []
    if f" {' '.join(said)} " in f" {' '.join(asked)} ":
        return ["answer_in_question"]
    return ["answer_restates_question"] if all_stems(item.answer) <= all_stems(item.question) else []


def subject_faults(item: GroundedQuestion, chunks: Mapping[str, Chunk], min_overlap: float, named: bool) -> list[str]:
    """Whether question and quotes speak of the same. ``chunks`` has the oracle chunks by id.

    "question_beside_quote": less than ``min_overlap`` of what the question speaks of stands in the quotes or is its
    document's title (a dose for children, from a quote about adults). "question_names_no_subject", where ``named``: it
    has no word of the title and no name, so that who searches the whole store cannot tell what it is about.
    """
    asked, beside = _spoken_of(item, chunks)
    if item.answer_type == "unanswerable" or not asked:
        return []
    titles = stems(" ".join(chunks[name].title for name in item.oracle_ids))
    unnamed = named and not asked & titles and not _NAMED.search(item.question)
    faults = ["question_beside_quote"] if len(asked) - len(beside) < min_overlap * len(asked) else []
    return faults + ["question_names_no_subject"] * unnamed


def _spoken_of(item: GroundedQuestion, chunks: Mapping[str, Chunk]) -> tuple[frozenset[str], frozenset[str]]:
    """The stems of what the question speaks of, and those of them that are neither in the quotes nor name a title: by
    its first word, or by more than half of its words."""
    quoted = _quoted(item)
    asked = stems(same_units(item.question)) - _asking_stems() - _little_stems()
    asked -= _extreme_stems() if _BOUNDED.search(quoted) else frozenset()
    known = stems(same_units(quoted))
    for title in {chunks[name].title for name in item.oracle_ids}:
        whole, first = (
            stems(title),
            stems(" ".join([word for word in words(title) if word in content_words(title)][:1])),
        )
        if first <= asked or 2 * len(whole & asked) > len(whole):
            known |= whole
    return asked, asked - known


def strange_words(item: GroundedQuestion, chunks: Mapping[str, Chunk]) -> list[str]:
    """The words of the question for which it is refused as "question_beside_quote", in their order."""
    beside = _spoken_of(item, chunks)[1]
    return [word for word in dict.fromkeys(words(item.question)) if stems(same_units(word)) & beside]


def missing_words(item: GroundedQuestion) -> list[str]:
    """The words of the quotes for which the question is refused as "question_leaves_out", in their order."""
    said = stems(f"{item.question} {item.answer}") | _little_stems()
    quoted = " ".join(quote.text for quote in item.quotes)
    return [word for word in dict.fromkeys(words(quoted)) if word in content_words(quoted) and not stems(word) <= said]


def omission_faults(item: GroundedQuestion, min_overlap: float) -> list[str]:
    """Whether the question leaves out what its quote says beside the answer. Off with a bound of 0.

    "question_leaves_out": of the content words of the quote with the answer, or of the clause around it, question and
    answer hold less than ``min_overlap``; or there is an exception (not, only, unless, other) or, before the answer, a
    bound (at least) that neither of them has: "Do not give it if more than 3 hours have passed" does not answer "How
    long must have passed?".
    """
    if not min_overlap or item.answer_type in (*CLOSED_TYPES, "unanswerable"):
        return []
    said = f"{item.question} {item.answer}"
    places = ((quote.text, find_span(quote.text, item.answer)) for quote in item.quotes)
    text, span = next(((text, span) for text, span in places if span is not None), ("", (0, 0)))
    parts = [stems(part) - _little_stems() for part in (text, _clause(text, span, item.answer))]
    dropped = any(len(part & stems(said)) < min_overlap * len(part) for part in parts)
    exception = _EXCEPTION.search(_BOUND.sub(" ", text)) and not _EXCEPTION.search(_BOUND.sub(" ", said))
    bound = _BOUND_BEFORE.search(text, 0, span[0])
    unbound = bound is not None and normalize(bound[1]) not in normalize(said) and not _EXTREME.search(item.question)
    return ["question_leaves_out"] if dropped or exception or unbound else []


def force_faults(item: GroundedQuestion) -> list[str]:
    """ "question_changes_force" when the question says "must" of what its quote says "may", or puts into the present
    what its quote tells of the past: a rule that was repealed, say."""
    if item.answer_type in CLOSED_TYPES:
        return []
    quoted = " ".join(quote.text for quote in item.quotes)
    asked = set(_MODALS.findall(item.question[:1].lower() + item.question[1:]))
    there = {modal.removesuffix("s") for modal in _MODALS.findall(quoted)}
    weaker = there and any(not {modal.removesuffix("s"), *_MAY_STAND_FOR.get(modal, ())} & there for modal in asked)
    past = _PAST.search(quoted) and not _PAST.search(item.question)
    return ["question_changes_force"] if weaker or past else []


def _clause(quote: str, span: tuple[int, int], answer: str) -> str:
    """The clause of a quote around its answer; the whole quote where the clause has little else."""
    start = max((match.end() for match in _CLAUSE_END.finditer(quote, 0, span[0])), default=0)
    ending = _CLAUSE_END.search(quote, span[1])
    clause = quote[start : ending.start() if ending else len(quote)]
    return clause if len(stems(clause) - stems(answer)) >= _LEAST_AROUND else quote


def retrieval_flag(oracle_ids: Sequence[str], hit_ids: Sequence[str], k: int) -> str | None:
    """ "oracle_not_retrieved" when none of the oracles is among the first ``k`` hits of the question, else None."""
    return None if not oracle_ids or set(oracle_ids) & set(hit_ids[:k]) else "oracle_not_retrieved"


def round_trip_faults(item: GroundedQuestion, with_oracle: Answer | None, without_oracle: Answer | None) -> list[str]:
    """What asking the teacher again shows, given the oracle among distractors, and given the distractors alone.

    None stands for a side that was not asked, and shows nothing. From distractors a right yes, no or label may be
    luck: it counts only with a quote beside it. An unanswerable question must be refused on both sides.
    """
    asked = [answer for answer in (with_oracle, without_oracle) if answer is not None]
    if item.answer_type == "unanswerable":
        return [] if all(answer.abstained for answer in asked) else ["unanswerable_is_answered"]
    faults = []
    if with_oracle is not None and not _agrees(item, with_oracle):
        faults.append("oracle_does_not_answer")
    if without_oracle is not None and _agrees(item, without_oracle):
        luck = item.answer_type in CLOSED_TYPES and not without_oracle.quotes
        faults += [] if luck else ["distractors_answer"]
    return faults


def _agrees(item: GroundedQuestion, answer: Answer) -> bool:
    known = (item.answer, *item.aliases)
    return not answer.abstained and any(same_answer(each, answer.final, item.answer_type) for each in known)


def _stands_in(said: str, text: str) -> bool:
    """Whether the words stand in the text, between word boundaries."""
    at = text.find(said)
    while at != -1:
        before, after = text[at - 1 : at], text[at + len(said) : at + len(said) + 1]
        if not _IN_WORD.match(before) and not _IN_WORD.match(after):
            return True
        at = text.find(said, at + 1)
    return False


@dataclass(frozen=True, slots=True)
class _Told:
    """By what a question's answer is told in a chunk; ``closed`` when its answer alone tells nothing."""

    quotes: tuple[str, ...]
    answer: str
    asked: frozenset[str]
    closed: bool
    groups: frozenset[int]


def also_answers(
    question: Callable[[str], GroundedQuestion], chunk_text: Callable[[str], str], alike: Mapping[str, int]
) -> Callable[[str, str], bool]:
    """A test (question id, chunk id) -> whether a chunk that is not its oracle answers the question too.

    It does when it is a near-duplicate of an oracle, when it holds a quote of the question, or the answer at word
    boundaries together with most of the question's content words. Closed-set answers are told by the first two alone.
    ``alike`` has the group of each chunk that has near-duplicates. A few thousand questions and texts are remembered.
    """

    @lru_cache(maxsize=_REMEMBERED)
    def told(question_id: str) -> _Told:
        item = question(question_id)
        return _Told(
            tuple(normalize(quote.text) for quote in item.quotes),
            normalize(item.answer),
            content_words(item.question),
            item.answer_type in (*CLOSED_TYPES, "unanswerable"),
            frozenset(alike[chunk_id] for chunk_id in item.oracle_ids if chunk_id in alike),
        )

    @lru_cache(maxsize=_REMEMBERED)
    def text_of(chunk_id: str) -> str:
        return normalize(chunk_text(chunk_id))

    def answers(question_id: str, chunk_id: str) -> bool:
        sought, text = told(question_id), text_of(chunk_id)
        if alike.get(chunk_id) in sought.groups or any(quote in text for quote in sought.quotes):
            return True
        if sought.closed or not _stands_in(sought.answer, text):
            return False
        return len(sought.asked & frozenset(words(text))) >= _ALSO_ANSWERS * len(sought.asked)

    return answers
