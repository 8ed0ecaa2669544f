"""What a teacher is told about a question that the rules refuse, so that it may write it once more.

complaint(item, chunk, ["question_leaves_out"], "For how many days")
'It leaves out of the sentence: "adults", "tapering".'
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.dataset.grounding import GroundedQuestion
from raft.dataset.quality import missing_words, strange_words
from raft.records import Chunk


def complaint(item: GroundedQuestion, chunk: Chunk, faults: Sequence[str], opening: str) -> str:
    """One sentence for each fault that the teacher can mend; "" where there is another one."""
    told = {
        "question_leaves_out": lambda: _left_out(missing_words(item)),
        "question_beside_quote": lambda: _beside(strange_words(item, {chunk.id: chunk})),
        "question_names_no_subject": lambda: f"It does not say that it is about: {chunk.title}.",
        "question_asks_otherwise": lambda: f"It does not ask with the words: {opening}.",
        "question_changes_force": lambda: "It changes the sentence's may, must, is or was.",
        "answer_in_question": lambda: f"It gives the answer away: {item.answer}.",
        "answer_restates_question": lambda: f"It gives the answer away: {item.answer}.",
    }
    return "" if set(faults) - told.keys() else " ".join(dict.fromkeys(told[fault]() for fault in faults))


def _left_out(missing: Sequence[str]) -> str:
    if missing:
        return f"It leaves out of the sentence: {_listed(missing)}."
    return "It leaves out a not, an only, an unless or a bound of the sentence."


def _beside(strange: Sequence[str]) -> str:
    return f"The sentence does not speak of {_listed(strange)}."


def _listed(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)
