"""Train, dev and test by document, so that no test question rests on a document that training has shown.

Questions that share a document stand on one side; a question over two documents ties these together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from raft.dataset.grounding import GroundedQuestion
from raft.records import Split

_ORDER: tuple[Split, ...] = ("test", "dev", "train")


def split_by_document(items: Sequence[GroundedQuestion], dev: float, test: float, seed: int) -> dict[str, Split]:
    """Question id -> split. A question that carries a split keeps it.

    The others go with their documents: a group of tied documents takes the split that its questions carry (the
    strictest of them), else one drawn by a hash of the seed and the documents, ``dev`` and ``test`` being the
    shares. So neither the order of questions nor the number of workers matters.
    """
    component = _components(items)
    carried: dict[str, Split] = {}
    for item in items:
        root = component[item.id]
        if item.split is not None:
            carried[root] = min(item.split, carried.get(root, item.split), key=_ORDER.index)
    return {
        item.id: item.split or carried.get(component[item.id]) or _drawn(component[item.id], dev, test, seed)
        for item in items
    }


def _drawn(name: str, dev: float, test: float, seed: int) -> Split:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if at < test else "dev" if at < test + dev else "train"


def _components(items: Iterable[GroundedQuestion]) -> dict[str, str]:
    """Question id -> the name of its component: the first of its tied documents (or itself, without documents)."""
    parent: dict[str, str] = {}

    def root(document: str) -> str:
        while parent.setdefault(document, document) != document:
            parent[document] = parent[parent[document]]
            document = parent[document]
        return document

    listed = list(items)
    for item in listed:
        for document in item.document_ids[1:]:
            one, other = sorted((root(item.document_ids[0]), root(document)))
            parent[other] = one
    return {item.id: root(item.document_ids[0]) if item.document_ids else f"question/{item.id}" for item in listed}


def leaks(items: Iterable[GroundedQuestion], splits: Mapping[str, Split], held_out: Mapping[str, Split]) -> set[str]:
    """The ids of questions that rest on a document of a stricter split (test before dev before train).

    ``held_out`` names documents of dev and test questions that are not among ``items``. Without the questions
    named here, no document of a dev or test question is one of a train question.
    """
    listed = list(items)
    strictest: dict[str, Split] = dict(held_out)
    for item in listed:
        for document in item.document_ids:
            strictest[document] = min(splits[item.id], strictest.get(document, "train"), key=_ORDER.index)
    return {item.id for item in listed if any(strictest[d] != splits[item.id] for d in item.document_ids)}
