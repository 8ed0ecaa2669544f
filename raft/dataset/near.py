"""The retriever's best chunks for each question: near misses that stand beside its oracle, or the oracle itself.

A teacher at an endpoint leaves this machine waiting; the questions are searched meanwhile, on a thread of their own,
those among them that the gate will refuse too.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from raft.config import SearchMode
from raft.dataset.background import Background
from raft.dataset.teacher import Progress
from raft.records import Chunk, Document, Hit

_QUERIES_AT_ONCE = 256  # the encoder takes those of like length together: the more, the less it pads
_TOLD_SECONDS = 0.5  # how often a caller that waits is told how far the search is
_SWITCH_SECONDS = 0.0001  # Python's own 5 ms would keep each reply waiting far longer for its turn


class SearchableIndex(Protocol):
    """The part of an index that a dataset is made from."""

    @property
    def chunks(self) -> Sequence[Chunk]: ...

    @property
    def fingerprint(self) -> str: ...

    def chunk(self, chunk_id: str) -> Chunk: ...

    def document(self, document_id: str) -> Document: ...

    def search(self, queries: Sequence[str], k: int, mode: SearchMode = "fused") -> list[list[Hit]]: ...


class NearMisses:
    """Question id -> ids of its ``k`` best chunks. Use as a context: leaving it ends the search in the background."""

    def __init__(self, index: SearchableIndex, k: int) -> None:
        self._index, self._k = index, k
        self._found: dict[str, tuple[str, ...]] = {}
        self._names: dict[str, str] = {}  # each id once, however many questions come near it
        self._ending = threading.Event()
        self._searching: Background[None] | None = None

    def __enter__(self) -> NearMisses:
        """Loads the encoder in the background: where it is missing, that shows before answers are paid for."""
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._run(iter([("", "What is this about?")]))
        return self

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self._interval)
        self._ending.set()
        self.rest()

    def rest(self) -> bool:
        """Waits until nothing goes on in the background: no encoder is loaded, nothing searched. False at the end."""
        if self._searching is not None:
            self._searching.wait()
        return not self._ending.is_set()

    def begin(self, questions: Iterable[tuple[str, str]]) -> None:
        """Search for these (id, question) pairs in the background. Raises what the search before has raised."""
        self._wait()
        self._run(iter(questions))

    def _run(self, questions: Iterator[tuple[str, str]]) -> None:
        def run() -> None:
            for _ in self._search(questions):
                if self._ending.is_set():
                    return

        self._searching = Background("raft-near-misses", run)

    def _wait(self) -> None:
        if self._searching is not None:
            self._searching.result()

    def of(self, questions: Sequence[tuple[str, str]], progress: Progress) -> dict[str, tuple[str, ...]]:
        """The hits of these questions, those searched for now that are not there yet."""
        while self._searching is not None and not self._searching.wait(_TOLD_SECONDS):
            progress("distractors", min(len(self._found), len(questions)), len(questions))
        self._wait()
        missing = [(key, question) for key, question in questions if key not in self._found]
        for done in self._search(iter(missing)):
            progress("distractors", len(questions) - len(missing) + done, len(questions))
        return {key: self._found[key] for key, _ in questions}

    def _search(self, questions: Iterator[tuple[str, str]]) -> Iterator[int]:
        """Search batch by batch; gives how many are done."""
        done = 0
        while batch := list(itertools.islice(questions, _QUERIES_AT_ONCE)):
            hits = self._index.search([question for _, question in batch], self._k)
            for (key, _), row in zip(batch, hits, strict=True):
                self._found[key] = tuple(self._names.setdefault(hit.chunk.id, hit.chunk.id) for hit in row)
            done += len(batch)
            yield done
