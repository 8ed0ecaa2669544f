"""The sample corpora keep what their READMEs promise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from raft.corpus.spans import find_span
from raft.dataset.importers import read_questions
from raft.readers.source import read_source

CORPORA = Path(__file__).resolve().parent.parent / "corpora"


@pytest.fixture(scope="module", params=["medical", "legal"])
def corpus(request: pytest.FixtureRequest) -> Path:
    return CORPORA / request.param


@pytest.fixture(scope="module")
def documents(corpus: Path) -> dict[str, str]:
    outcomes = [outcome for file in read_source(corpus / "documents") for outcome in file.outcomes or ()]
    assert all(outcome.status == "indexed" for outcome in outcomes)
    return {outcome.document.id: outcome.document.text for outcome in outcomes if outcome.document}


def test_at_least_forty_documents_in_five_formats_each_said_to_be_fictional(documents: dict[str, str]) -> None:
    assert len(documents) >= 40
    assert {Path(name).suffix for name in documents} == {".md", ".txt", ".html", ".pdf", ".docx"}
    for name, text in documents.items():
        assert "Fictional sample document written for the raft project" in text[:400], name


def test_every_evidence_stands_verbatim_in_its_document(corpus: Path, documents: dict[str, str]) -> None:
    for item in read_questions(corpus / "questions.jsonl"):
        for evidence in item.evidence:
            assert find_span(documents[evidence.document_id], evidence.text), (item.id, evidence.text)


def test_no_document_is_evidence_in_two_splits(corpus: Path) -> None:
    splits: dict[str, set[str | None]] = {}
    for item in read_questions(corpus / "questions.jsonl"):
        for name in (*item.gold_document_ids, *(e.document_id for e in item.evidence)):
            splits.setdefault(name, set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values())


def test_there_are_enough_questions_of_each_kind(corpus: Path) -> None:
    items = read_questions(corpus / "questions.jsonl")
    assert len(items) >= 120
    assert len({item.id for item in items}) == len({item.question for item in items}) == len(items)
    assert sum(len(set(item.gold_document_ids)) == 2 for item in items) >= 15
    assert sum(item.answer_type == "unanswerable" for item in items) >= 15
    assert Counter(item.split for item in items).keys() == {"train", "dev", "test"}
