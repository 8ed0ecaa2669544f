"""The baseline that reads nothing: always the commonest answer of the train split. On questions whose answers are
labels it is what a system must beat before anything else is said of it::

    train answers "yes" x 6, "no" x 3, "maybe" x 1   ->   Always("yes")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from raft.errors import InputError
from raft.evaluation.metrics import normalize_answer
from raft.evaluation.replies import gold_label
from raft.llm.chat import ChatReply, ChatRequest
from raft.prompts import REFUSAL
from raft.records import QaItem


def commonest_answer(items: Sequence[QaItem], asked: Sequence[QaItem], labels: Sequence[str]) -> str:
    """The commonest of ``labels``, or without labels the commonest reference after SQuAD's normalization (an
    unanswerable question's is the refusal), of the questions of the train split or without a split that are not asked;
    of equals the first in the alphabet, as it is first written.

    Raises InputError when there are no such questions.
    """
    known = {item.id for item in asked}
    pool = [item for item in items if item.split in ("train", None) and item.id not in known]
    if labels:
        said = [label for item in pool if (label := gold_label(item, labels)) is not None]
    else:
        said = [REFUSAL if item.answer_type == "unanswerable" else item.answer for item in pool]
    counts = Counter(normalize_answer(answer) for answer in said if answer.strip())
    if not counts:
        raise InputError(
            f"none of {len(pool)} questions of the train split has {'a label' if labels else 'an answer'}, so that"
            " nothing says which is commonest",
            "Leave constant out of systems, or add such questions to the file",
        )
    best = min(counts, key=lambda answer: (-counts[answer], answer))
    return next(answer for answer in said if normalize_answer(answer) == best)


@dataclass(frozen=True, slots=True)
class Always:
    """A ChatModel that says the same to everything. It reads and writes no tokens."""

    answer: str

    @property
    def name(self) -> str:
        return f"always {self.answer!r}"

    @property
    def concurrency(self) -> int:
        return 1

    def check(self, request: ChatRequest) -> None:
        """Nothing is too long for what is not read."""

    def complete(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        return (ChatReply(request.key, self.answer) for request in requests)

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        yield self.answer
        return ChatReply(request.key, self.answer)
