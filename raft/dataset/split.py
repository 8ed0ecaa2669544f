"""Train, dev and test by document, so that no test question rests on a document that training has shown.

Questions that share a document stand on one side; a question over two documents ties these together, and so do two
documents that say mostly the same (another edition, a page that was filed twice).
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from raft.records import Chunk, Split

_ORDER: tuple[Split, ...] = ("test", "dev", "train")
_SAME_DOCUMENT = 0.5  # share of the shorter one's chunks that two editions of a document have in common
_BOILERPLATE = 20  # documents: what more of them hold says nothing about any two


class Resting(Protocol):
    """A question, as far as a split goes: the documents that it rests on, and the split that it came with."""

    @property
    def id(self) -> str: ...

    @property
    def document_ids(self) -> tuple[str, ...]: ...

    @property
    def split(self) -> Split | None: ...


@dataclass(frozen=True, slots=True)
class Likeness:
    """Which chunks and documents of a corpus say nearly the same.

    ``groups`` has the group of each chunk that has near-duplicates, ``by_document`` those groups of each document that
    holds such chunks, ``ties`` the pairs of documents that say mostly the same.
    """

    groups: Mapping[str, int]
    by_document: Mapping[str, frozenset[int]]
    ties: tuple[tuple[str, str], ...]


def likeness_of(chunks: Iterable[Chunk], groups: Mapping[str, int]) -> Likeness:
    """What the near-duplicates among the chunks say about their documents."""
    lengths: Counter[str] = Counter()
    documents: dict[int, set[str]] = defaultdict(set)
    by_document: dict[str, set[int]] = defaultdict(set)
    for chunk in chunks:
        name = sys.intern(chunk.document_id)
        lengths[name] += 1
        if chunk.id in groups:
            documents[groups[chunk.id]].add(name)
            by_document[name].add(groups[chunk.id])
    shared = Counter(
        pair
        for names in documents.values()
        if len(names) <= _BOILERPLATE
        for pair in itertools.combinations(sorted(names), 2)
    )
    ties = tuple(
        pair for pair, count in shared.items() if count >= _SAME_DOCUMENT * min(lengths[pair[0]], lengths[pair[1]])
    )
    return Likeness(groups, {name: frozenset(found) for name, found in by_document.items()}, ties)


def split_by_document(
    items: Iterable[Resting],
    dev: float,
    test: float,
    seed: int,
    ties: Iterable[tuple[str, str]] = (),
) -> dict[str, Split]:
    """Question id -> split. ``items`` are gone through twice. A question that carries a split keeps it.

    The others go with their documents: a group of tied documents takes the split that its questions carry (the
    strictest of them), else one drawn by a hash of the seed and the documents, ``dev`` and ``test`` being the
    shares. So neither the order of questions nor the number of workers matters.
    """
    root = _roots(items, ties)
    component: dict[str, str] = {}
    own: dict[str, Split] = {}
    carried: dict[str, Split] = {}
    for item in items:
        name = component[item.id] = root(item.document_ids[0]) if item.document_ids else f"question/{item.id}"
        if item.split is not None:
            own[item.id] = item.split
            carried[name] = min(item.split, carried.get(name, item.split), key=_ORDER.index)
    return {key: own.get(key) or carried.get(name) or _drawn(name, dev, test, seed) for key, name in component.items()}


def _drawn(name: str, dev: float, test: float, seed: int) -> Split:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if at < test else "dev" if at < test + dev else "train"


def _roots(items: Iterable[Resting], ties: Iterable[tuple[str, str]]) -> Callable[[str], str]:
    """A function from a document to the first of those it is tied to, by ``ties`` or by a question on both."""
    parent: dict[str, str] = {}

    def root(document: str) -> str:
        while parent.setdefault(document, document) != document:
            parent[document] = parent[parent[document]]
            document = parent[document]
        return document

    of_questions = ((item.document_ids[0], name) for item in items for name in item.document_ids[1:])
    for pair in itertools.chain(of_questions, ties):
        one, other = sorted(map(root, pair))
        parent[other] = one
    return root


def leaks(items: Iterable[Resting], splits: Mapping[str, Split], held_out: Mapping[str, Split]) -> set[str]:
    """The ids of questions that rest on a document of a stricter split (test before dev before train).

    ``held_out`` names documents of dev and test questions that are not among ``items``, which are gone through twice.
    Without the questions named here, no document of a dev or test question is one of a train question.
    """
    strictest: dict[str, Split] = dict(held_out)
    for item in items:
        for document in item.document_ids:
            strictest[document] = min(splits[item.id], strictest.get(document, "train"), key=_ORDER.index)
    return {item.id for item in items if any(strictest[d] != splits[item.id] for d in item.document_ids)}
