"""An index of a small invented corpus that searches by shared words: fast, and exact about what it finds."""

from __future__ import annotations

import re

import pytest

from raft.errors import InputError
from raft.records import Chunk, Document, Hit

DRUGS = [
    "Alvoran",
    "Bentrazol",
    "Corvalexin",
    "Dunamil",
    "Estradek",
    "Fennolid",
    "Galtrex",
    "Hyvorin",
    "Istolan",
    "Jorvex",
]


class WordIndex:
    """The interface of retrieval.index.Index over given documents, each cut at blank lines."""

    fingerprint = "word-index"

    def __init__(self, documents):
        self._documents = {document.id: document for document in documents}
        self.chunks = []
        for document in documents:
            for n, part in enumerate(re.finditer(r"(?:[^\n]|\n(?!\n))+", document.text)):
                self.chunks.append(
                    Chunk(f"{document.id}#{n}", document.id, part.group(), part.start(), part.end(), document.title)
                )
        self._chunks = {chunk.id: chunk for chunk in self.chunks}
        self._words = {chunk.id: set(re.findall(r"\w+", chunk.text.lower())) for chunk in self.chunks}

    def chunk(self, chunk_id):
        if chunk_id not in self._chunks:
            raise InputError(f"no chunk {chunk_id}")
        return self._chunks[chunk_id]

    def document(self, document_id):
        if document_id not in self._documents:
            raise InputError(f"no document {document_id}")
        return self._documents[document_id]

    def search(self, queries, k, mode="fused"):
        found = []
        for query in queries:
            asked = set(re.findall(r"\w+", query.lower()))
            ranked = sorted(self.chunks, key=lambda chunk: (-len(asked & self._words[chunk.id]), chunk.id))[:k]
            found.append([Hit(c, float(len(asked & self._words[c.id])), n) for n, c in enumerate(ranked, 1)])
        return found


def dose(n):
    return 11 + 7 * n


def monograph(n, drug):
    other = DRUGS[(n + 1) % len(DRUGS)]
    return Document(
        f"{drug.lower()}.md",
        f"{drug} is given to adults of the Sorrel Hospital as a first dose of {dose(n)} mg by mouth.\n\n"
        f"In children {drug} is started with {dose(n) // 2} mg, and the ward pharmacist checks the weight twice.\n\n"
        f"{drug} is never combined with {other}, because both of them slow the heart of the patient at night.",
        title=drug,
    )


@pytest.fixture(scope="session")
def index():
    return WordIndex([monograph(n, drug) for n, drug in enumerate(DRUGS)])
