"""The quality gate: small pure rules, each with the name under which a refusal is recorded.

One row of ``rejected.jsonl``::

    {"id": "teacher-3f0a...", "question": "What does the text above say?", "answer": "12 mg",
     "reasons": ["question_speaks_of_text"], "said": "<the teacher's reply>"}
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from raft.corpus.spans import normalize
from raft.dataset.grounding import CLOSED_TYPES, GroundedQuestion, content_words, words
from raft.prompts import is_refusal
from raft.records import Answer

NEAR_DUPLICATE = 0.9  # Jaccard similarity of content words
_ALSO_ANSWERS = 0.6  # share of the question's content words that a chunk with the answer must hold

_SPEAKS_OF_TEXT = re.compile(
    r"\b(?:the|this|that) (?:(?:above|given|provided|following|previous) )?(?:text|passage|excerpt|paragraph|snippet)\b"
    r"|\b(?:the|this) (?:(?:above|given|provided) )?context\b(?! of\b)"
    r"|\b(?:according to|in|from|by|does|do) (?:the|this) (?:(?:above|given|provided) )?"
    r"(?:documents?|article|author|source|information)\b(?! of\b| \d)"
    r"|\b(?:mentioned|described|stated|given|listed|discussed|shown) (?:above|below|here)\b"
    r"|\bthe (?:above|words above)\b",
    re.IGNORECASE,
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


def answer_faults(
    item: GroundedQuestion, chunk_texts: Mapping[str, str], max_words: int, min_overlap: float
) -> list[str]:
    """What is wrong with an answer and its quotes. ``chunk_texts`` holds the oracle chunks by id.

    At least ``min_overlap`` of the content words of the answer (or of an alias) must stand in the quotes.
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
    if item.answer_type not in CLOSED_TYPES and answer_overlap(item) < min_overlap:
        faults.append("answer_not_in_quote")
    return faults


def answer_overlap(item: GroundedQuestion) -> float:
    """The share of the answer's content words that the quotes hold; the best of the answer and its aliases."""
    quoted = frozenset(words(" ".join(quote.text for quote in item.quotes)))
    wanted = [content_words(answer) for answer in (item.answer, *item.aliases)]
    return max((len(each & quoted) / len(each) for each in wanted if each), default=0.0)


def duplicates(questions: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The ids of (id, question) pairs that repeat an earlier one -> "duplicate_question" (same words) or
    "near_duplicate_question" (Jaccard similarity of content words at least ``NEAR_DUPLICATE``).

    Prefix filtering (Chaudhuri et al. 2006): two sets that are so similar share one of their few rarest words,
    so only questions that do are compared.
    """
    rarity = Counter(word for _, question in questions for word in content_words(question))
    seen: set[tuple[str, ...]] = set()
    by_rare_word: dict[str, list[frozenset[str]]] = defaultdict(list)
    found: dict[str, str] = {}
    for key, question in questions:
        exact, has = tuple(words(question)), content_words(question)
        rarest = sorted(has, key=lambda word: (rarity[word], word))[
            : len(has) - math.ceil(NEAR_DUPLICATE * len(has)) + 1
        ]
        if exact in seen:
            found[key] = "duplicate_question"
        elif any(_jaccard(has, other) >= NEAR_DUPLICATE for word in rarest for other in by_rare_word[word]):
            found[key] = "near_duplicate_question"
        else:
            seen.add(exact)
            for word in rarest:
                by_rare_word[word].append(has)
    return found


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def also_answers(
    items: Iterable[GroundedQuestion], chunk_text: Callable[[str], str], alike: Mapping[str, int]
) -> Callable[[str, str], bool]:
    """A test (question id, chunk id) -> whether a chunk that is not its oracle answers the question too.

    It does when it is a near-duplicate of an oracle, when it holds a quote of the question, or the answer at word
    boundaries together with most of the question's content words. Closed-set answers are told by the first two alone.
    ``alike`` has the group of each chunk that has near-duplicates.
    """
    known = {item.id: item for item in items}
    passages = {
        item.id: (
            [normalize(quote.text) for quote in item.quotes],
            normalize(item.answer),
            content_words(item.question),
        )
        for item in known.values()
    }
    oracle_groups = {
        item.id: {alike[chunk_id] for chunk_id in item.oracle_ids if chunk_id in alike} for item in known.values()
    }
    texts: dict[str, str] = {}

    def answers(question_id: str, chunk_id: str) -> bool:
        if chunk_id in alike and alike[chunk_id] in oracle_groups[question_id]:
            return True
        text = texts[chunk_id] if chunk_id in texts else texts.setdefault(chunk_id, normalize(chunk_text(chunk_id)))
        quotes, answer, asked = passages[question_id]
        if any(quote in text for quote in quotes):
            return True
        if known[question_id].answer_type in (*CLOSED_TYPES, "unanswerable") or answer not in text:
            return False
        if not re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text):
            return False
        return len(asked & frozenset(words(text))) >= _ALSO_ANSWERS * len(asked)

    return answers
