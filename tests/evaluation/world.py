"""A small invented world: documents, questions, an in-memory index, and models that answer by script."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from raft.corpus.spans import normalize
from raft.llm.chat import ChatRequest
from raft.prompts import render_refusal, render_target
from raft.records import Chunk, Document, Evidence, Hit, QaItem, Quote

TOWNS = ("Arden", "Belmar", "Corvin", "Dunmore", "Estrel", "Farrow", "Gallin", "Hestor", "Ivrea", "Jorvik")


class MemoryIndex:
    """Ranks chunks by the number of words they share with the query; equal ones in the order of the corpus."""

    def __init__(self, documents: Sequence[Document], chunks: Sequence[Chunk]) -> None:
        self.chunks = tuple(chunks)
        self._documents = {document.id: document for document in documents}
        self.searches = 0

    def document(self, document_id: str) -> Document:
        return self._documents[document_id]

    def search(self, queries: Sequence[str], k: int, mode: str = "fused") -> list[list[Hit]]:
        self.searches += 1
        return [self._search(set(re.findall(r"\w+", normalize(query))), k) for query in queries]

    def _search(self, wanted: set[str], k: int) -> list[Hit]:
        scores = [len(wanted & set(re.findall(r"\w+", normalize(chunk.text)))) for chunk in self.chunks]
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
        return [Hit(self.chunks[i], float(scores[i]), rank) for rank, i in enumerate(best, 1)]


def toll(n: int) -> str:
    return f"{7 + 4 * n} crowns"


def town_text(n: int) -> str:
    return f"The bridge toll of {TOWNS[n]} is {toll(n)}. The market of {TOWNS[n]} opens on day {n + 2}."


def documents() -> list[Document]:
    return [Document(f"{town.lower()}.md", town_text(n), town) for n, town in enumerate(TOWNS)]


def chunks() -> list[Chunk]:
    """Two chunks a document: its first sentence and its second."""
    made = []
    for document in documents():
        cut = document.text.index(" The market") + 1
        for part, (start, end) in enumerate(((0, cut - 1), (cut, len(document.text)))):
            name = f"{document.id}#{part}"
            made.append(Chunk(name, document.id, document.text[start:end], start, end, document.title))
    return made


def index() -> MemoryIndex:
    return MemoryIndex(documents(), chunks())


def questions() -> list[QaItem]:
    """A toll question and a market question a town (the first three towns are of the train split), and two that
    cannot be answered."""
    items = []
    for n, town in enumerate(TOWNS):
        split = "train" if n < 3 else "test"
        name = f"{town.lower()}.md"
        first, second = town_text(n).split(". ")
        items.append(
            QaItem(
                f"toll-{n}", f"What is the bridge toll of {town}?", toll(n), "number", (),
                f"{town} asks for {toll(n)}.", (name,), (Evidence(name, first + "."),), split,
            )
        )  # fmt: skip
        items.append(
            QaItem(
                f"market-{n}", f"On which day does the market of {town} open?", f"day {n + 2}", "short", (str(n + 2),),
                "", (name,), (Evidence(name, second),), split,
            )
        )  # fmt: skip
    for n in (0, 1):
        asked = f"Who is the mayor of {TOWNS[n + 5]}?"
        items.append(QaItem(f"mayor-{n}", asked, "", "unanswerable", split="test"))
    return items


def write_questions(path: Path, items: Sequence[QaItem]) -> Path:
    rows = [
        {
            "id": item.id, "question": item.question, "answer": item.answer, "answer_type": item.answer_type,
            "aliases": list(item.aliases), "long_answer": item.long_answer,
            "gold_doc_ids": list(item.gold_document_ids),
            "evidence": [{"doc_id": e.document_id, "text": e.text} for e in item.evidence], "split": item.split,
        }
        for item in items
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_documents(folder: Path) -> Path:
    folder.mkdir()
    for document in documents():
        (folder / document.id).write_text(document.text, encoding="utf-8")
    return folder


def asked(request: ChatRequest) -> str:
    return request.messages[-1].content.rpartition("Question: ")[2]


def good_reader(request: ChatRequest) -> str:
    """Answers from its documents and quotes them; declines where they do not hold the answer."""
    question, prompt = asked(request), request.messages[-1].content
    for n, town in enumerate(TOWNS):
        if town not in question:
            continue
        for number, text in re.findall(r"Document \[(\d+)\][^\n]*\n([^\n]+)", prompt):
            for topic, answer in (("bridge toll", toll(n)), ("market", f"day {n + 2}")):
                if topic in question and topic in text and town in text:
                    return render_target(answer, "It is stated there.", [Quote(text, int(number))])
    return render_refusal()


def poor_reader(request: ChatRequest) -> str:
    """Answers every other town right, without the form asked for; never declines."""
    question = asked(request)
    n = next((n for n, town in enumerate(TOWNS) if town in question), 0)
    if n % 2:
        return "I think that it is 3 crowns"
    return toll(n) if "toll" in question else f"day {n + 2}"
