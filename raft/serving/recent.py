"""The answers that may still be rated: the last ones, in memory.

recent = Recent()
create_app(..., feedback=Feedback(FeedbackStore(path), recent))
recent.find("chatcmpl-4f", caller)      # GivenAnswer(...), or None

Nothing of what people ask lies on a disk unless they say something about the answer; after a restart nothing is known.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raft.serving.feedback import FeedbackStore, GivenAnswer, Shown, text_hash

if TYPE_CHECKING:
    from raft.serving.keys import Caller
    from raft.serving.service import Exchange

MOST_ANSWERS = 1000
MOST_BYTES = 64_000_000
_OF_A_RECORD = 300  # bytes that Python takes for a record beside its texts, about
_OF_A_CHUNK = 400


class Recent:
    """A listener that keeps the answers that were served last: at most ``answers`` of them, in about ``size`` bytes.
    ``labels`` are those that the server holds, None where that is not known."""

    def __init__(
        self, answers: int = MOST_ANSWERS, size: int = MOST_BYTES, labels: Collection[str] | None = None
    ) -> None:
        self._answers, self._size = answers, size
        self._labels = None if labels is None else frozenset(labels)
        self._given: OrderedDict[str, GivenAnswer] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        if (given := given_answer(exchange, self._labels)) is None:
            return
        with self._lock:
            self._given[given.id] = given
            self._held += _bytes(given)
            while len(self._given) > self._answers or self._held > self._size:
                _, oldest = self._given.popitem(last=False)
                self._held -= _bytes(oldest)

    def find(self, answer_id: str, caller: Caller) -> GivenAnswer | None:
        """The answer of this id, if it was given to this caller and is still known."""
        given = self._given.get(answer_id)
        return given if given is not None and given.caller == caller.name else None


def given_answer(exchange: Exchange, of_server: frozenset[str] | None = None) -> GivenAnswer | None:
    """What is kept of an exchange with a server that holds these labels (None: not known); None where no whole answer
    was served."""
    served, asked = exchange.served, exchange.asked
    if served is None:
        return None
    return GivenAnswer(
        exchange.id, exchange.caller.name, exchange.model, exchange.fingerprint, asked.question,
        served.question or asked.question, tuple((turn.question, turn.answer) for turn in asked.earlier),
        tuple(Shown(hit.chunk.id, hit.chunk.document_id, text_hash(hit.chunk.text)) for hit in served.hits),
        served.answer.text, _labels(exchange, of_server),
    )  # fmt: skip


def _labels(exchange: Exchange, of_server: frozenset[str] | None) -> tuple[str, ...] | None:
    """The labels of what else than the documents shown may stand in an answer: what its model was tuned on, and what
    the caller may have been shown in earlier turns. None where that is not known."""
    labels: frozenset[str] | None = exchange.needs
    if exchange.asked.earlier:
        held = of_server if exchange.caller.labels is None else exchange.caller.labels
        labels = None if held is None else exchange.needs | held
    return None if labels is None else tuple(sorted(labels))


def _bytes(given: GivenAnswer) -> int:
    """About what an answer takes, at four bytes a character."""
    texts = [given.question, given.asked, given.text, *(text for turn in given.earlier for text in turn)]
    return _OF_A_RECORD + 4 * sum(map(len, texts)) + _OF_A_CHUNK * len(given.shown)


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a server needs to take feedback: the file, and the answers that may be rated."""

    store: FeedbackStore
    recent: Recent = field(default_factory=Recent)
