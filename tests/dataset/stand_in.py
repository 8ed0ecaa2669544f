"""A small invented corpus, an index of it that searches by shared words, and a teacher who knows it by heart."""

from __future__ import annotations

import re

from raft.errors import InputError
from raft.prompts import render_target
from raft.records import Chunk, Document, Hit, Quote

DRUGS = "Alvoran Bentrazol Corvalexin Dunamil Estradek Fennolid Galtrex Hyvorin Istolan Jorvex".split()  # noqa: SIM905


class WordIndex:
    """The interface of retrieval.index.Index over given documents, each cut at blank lines."""

    def __init__(self, documents, fingerprint="word-index"):
        self.fingerprint = fingerprint
        self._documents = {document.id: document for document in documents}
        self.chunks = [
            Chunk(f"{document.id}#{n}", document.id, part.group(), part.start(), part.end(), document.title)
            for document in documents
            for n, part in enumerate(re.finditer(r"(?:[^\n]|\n(?!\n))+", document.text))
        ]
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


def teach(request):
    """A strong teacher's reply: questions about a chunk, a quoted answer, or a reason for a reference answer."""
    asked = request.messages[-1].content
    if request.key.startswith("questions/"):
        drug = asked.split("\n")[0]
        if "adults" in asked:
            return (
                f"1. What is the first dose of {drug} in adults of the hospital?\n2. Who wrote the text above, and why?"
            )
        if "children" in asked:
            asks = f"With how many mg is {drug} started in children?"
            return f"Sure!\n1) {asks}\n2) {asks}"
        return f"- Which drug is never combined with {drug} at night?"
    if request.key.startswith("reasoning/"):
        return "The first dose in adults is given by mouth."
    text, question = asked.rsplit("\n\nQuestion: ", 1)
    sentence = text.split("\n", 1)[1].strip()
    if question.startswith("Which"):
        return render_target(re.search(r"combined with (\w+)", sentence).group(1), "", [Quote(sentence, 1)])
    return render_target(re.search(r"\d+ mg", sentence).group(), "That is the first dose.", [Quote(sentence, 1)])


def question_rows():
    """Rows of a questions.jsonl: one of every drug's adult dose, three that nothing answers."""
    rows = [
        {
            "id": f"q-{drug}", "question": f"What is the first dose of {drug} in adults?", "answer": f"{dose(n)} mg",
            "answer_type": "number", "long_answer": f"The monograph sets {dose(n)} mg.",
            "gold_doc_ids": [f"{drug.lower()}.md"], "split": "dev" if n >= 8 else "train",
            "evidence": [{"doc_id": f"{drug.lower()}.md", "text": f"as a first dose of {dose(n)} mg by mouth."}],
        }
        for n, drug in enumerate(DRUGS)
    ]  # fmt: skip
    lost = [
        {"id": f"u-{n}", "question": f"What does {word} cost in the shop?", "answer": "", "answer_type": "unanswerable"}
        for n, word in enumerate(DRUGS[:3])
    ]
    return rows + [row | {"split": "train"} for row in lost]
