"""What a teacher is told when the rules refuse its question, so that it may write it once more.

complaint(item, chunk, ["question_leaves_out"], "For how many days")
'Keep these words of the sentence: "adults", "tapering".'
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.dataset.grounding import GroundedQuestion
from raft.dataset.quality import missing_words, strange_words
from raft.records import Chunk


def complaint(item: GroundedQuestion, chunk: Chunk, faults: Sequence[str], opening: str) -> str:
    """One wish for each fault that the teacher can mend; "" where there is another one.

    Said as a part of the request: told what was wrong with its words, a small model asks about these.
    """
    if not chunk.title.strip() and "question_names_no_subject" in faults:
        return ""
    told = {
        "question_leaves_out": lambda: _keep(missing_words(item)),
        "question_beside_quote": lambda: f"Do not use: {_listed(strange_words(item, {chunk.id: chunk}))}.",
        "question_names_no_subject": lambda: f"Name the subject: {chunk.title}.",
        "question_asks_otherwise": lambda: f"Begin with: {opening}.",
        "question_changes_force": lambda: "Keep the sentence's may, must, is or was.",
        "answer_in_question": lambda: f'Do not use: "{item.answer}".',
        "answer_restates_question": lambda: f'Do not use: "{item.answer}".',
    }
    return "" if set(faults) - told.keys() else " ".join(dict.fromkeys(told[fault]() for fault in faults))


def _keep(missing: Sequence[str]) -> str:
    if missing:
        return f"Keep these words of the sentence: {_listed(missing)}."
    return "Keep every not, only, unless and bound of the sentence."


def _listed(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)
