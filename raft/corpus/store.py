"""The corpus on disk: ``documents.jsonl`` and ``chunks.jsonl`` in an artefact's folder.

One line of ``documents.jsonl``::

    {"id": "protocols/sepsis.md", "text": "# Sepsis\\n\\nGive ...", "title": "Sepsis",
     "source": "protocols/sepsis.md", "metadata": {}}

and of ``chunks.jsonl``, whose order is the order of the vectors in the index::

    {"id": "protocols/sepsis.md#0", "document_id": "protocols/sepsis.md", "text": "# Sepsis", "start": 0,
     "end": 8, "title": "Sepsis", "headings": [], "page": null}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from raft.artifacts import digest, read_rows, write_rows
from raft.errors import ArtifactError
from raft.records import Chunk, Document, chunk_from_row, to_row

DOCUMENTS = "documents.jsonl"
CHUNKS = "chunks.jsonl"


def write_documents(folder: Path, documents: Iterable[Document]) -> int:
    """Write the documents; returns how many."""
    return write_rows(folder / DOCUMENTS, (to_row(document) for document in documents))


def write_chunks(folder: Path, chunks: Iterable[Chunk]) -> int:
    """Write the chunks in their order; returns how many."""
    return write_rows(folder / CHUNKS, (to_row(chunk) for chunk in chunks))


def read_documents(folder: Path) -> list[Document]:
    """The documents in the order they were written. Raises ArtifactError when a row is not a document."""
    try:
        return [Document(**row) for row in read_rows(folder / DOCUMENTS)]
    except TypeError as error:
        raise ArtifactError(f"{folder / DOCUMENTS} does not hold documents ({error})", "Make the index again") from None


def read_chunks(folder: Path) -> list[Chunk]:
    """The chunks in the order they were written. Raises ArtifactError when a row is not a chunk."""
    try:
        return [chunk_from_row(row) for row in read_rows(folder / CHUNKS)]
    except (TypeError, KeyError) as error:
        raise ArtifactError(f"{folder / CHUNKS} does not hold chunks ({error})", "Make the index again") from None


def corpus_fingerprint(files: Mapping[str, str]) -> str:
    """Hash of a corpus, from the hashes of its files (a manifest's ``files``): equal ones mean equal documents
    and chunks, whatever index was built over them."""
    return digest({name: files[name] for name in (DOCUMENTS, CHUNKS)})
