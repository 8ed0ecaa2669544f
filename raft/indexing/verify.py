"""raft index verify: proof that an index is whole, and holds nothing but the documents that it lists.

    verify_index(Path("indexes/legal"), gone=["acts/leases.md"]).problems     ()

Deleting a person's record from the source and running ``raft index`` again must leave no trace of it. What holds
text or is derived from it is therefore checked against the documents: chunks, the words of the lexical index, the keys
of the vectors, and the files on the disk themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from raft.artifacts import open_artifact, read_rows
from raft.indexing.embeddings import key_of
from raft.indexing.previous import OUTCOMES, Previous
from raft.records import Document
from raft.retrieval.bm25 import title_of, words
from raft.retrieval.filters import CHUNK_DOCUMENTS, facets_of
from raft.versions import leftovers

_BATCH = 4096
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Verified:
    """``problems`` says in a line each what is wrong; none means that the index is whole."""

    documents: int
    chunks: int
    files: int
    bytes: int
    problems: tuple[str, ...]


def verify_index(path: Path, gone: Collection[str] = ()) -> Verified:
    """Check every byte of the index at ``path`` and every row against the others; ``gone`` names documents (ids) that
    must not be in it. Raises ArtifactError when it is missing or damaged."""
    manifest = open_artifact(path, "index")
    index = Previous(path, manifest)
    rows = list(_counts(index)) or [*_documents(index), *_chunks(index), *_words(index)]  # these go row by row
    problems = [*_leftovers(path), *_gone(index, set(gone)), *rows]
    sizes = [(index.folder / name).stat().st_size for name in manifest.files]
    return Verified(len(index.documents), len(index.chunks), len(sizes), sum(sizes), tuple(problems))


def _leftovers(path: Path) -> Iterator[str]:
    found = leftovers(path, "index")
    if found:
        names = ", ".join(str(item) for item in found[:_SHOWN])
        yield f"{len(found)} files or folders of stopped runs may hold text that was removed: {names}"


def _counts(index: Previous) -> Iterator[str]:
    """Each file has a row for each document, each chunk or each outcome."""
    import numpy as np

    owners = np.load(index.folder / CHUNK_DOCUMENTS)
    of_documents = {"documents": len(index.documents), "rows of facets": len(index.facets)}
    of_chunks = {
        "chunks": len(index.chunks), "vectors": len(index.dense), "rows of bm25": len(index.bm25),
        "keys": len(index.keys), "chunks of documents": len(owners),
    }  # fmt: skip
    told = sum(len(index.outcomes(name)) for name in index.names)
    of_outcomes = {"outcomes": sum(1 for _ in read_rows(index.folder / OUTCOMES)), "outcomes of files": told}
    for counts in (of_documents, of_chunks, of_outcomes):
        if len(set(counts.values())) > 1:
            yield ", ".join(f"{count} {name}" for name, count in counts.items())
    if (np.diff(owners) < 0).any() or not ((owners >= 0) & (owners < len(index.documents))).all():
        yield "the chunks do not stand in the order of their documents"


def _gone(index: Previous, gone: Collection[str]) -> Iterator[str]:
    for document in index.documents if gone else ():
        if document.id in gone:
            yield f"document {document.id!r} is in the index"
    for chunk in index.chunks if gone else ():
        if chunk.document_id in gone:
            yield f"chunk {chunk.id!r} is in the index"


def _documents(index: Previous) -> Iterator[str]:
    """Every document is one that outcomes.jsonl says was indexed, is found by its id, and has its own facets."""
    indexed = [row["document_id"] for name in index.names for row in index.outcomes(name) if row["document_id"]]
    labels: set[str] = set()
    ids = []
    for row, document in enumerate(index.documents):
        ids.append(document.id)
        labels.update(index.facets[row]["labels"])
        if index.facets[row] != facets_of(document):
            yield f"the facets of {document.id!r} are not its own"
        if index.documents.find(document.id) != row:
            yield f"document {document.id!r} is not found by its id"
    if indexed != ids:
        yield f"the documents are not those that {OUTCOMES} says were indexed"
    if sorted(labels) != list(index.manifest.facts["labels"]):
        yield "the labels that the manifest names are not those of the documents"


def _chunks(index: Previous) -> Iterator[str]:
    """Every chunk is a part of its document, and has the key of its text."""
    chunks = enumerate(index.chunks)
    for row, document in enumerate(index.documents):
        for _ in index.chunk_rows(row):
            at, chunk = next(chunks)
            if chunk.document_id != document.id or not _is_part(chunk.text, chunk.start, chunk.end, document):
                yield f"chunk {chunk.id!r} is no part of document {document.id!r}"
            if key_of(chunk) != index.keys[at].tobytes():
                yield f"the vector of chunk {chunk.id!r} is that of another text"
            if index.chunks.find(chunk.id) != at:
                yield f"chunk {chunk.id!r} is not found by its id"


def _is_part(text: str, start: int, end: int, document: Document) -> bool:
    return 0 <= start <= end <= len(document.text) and document.text[start:end] == text


def _words(index: Previous) -> Iterator[str]:
    """The lexical index knows the words of the chunks and no others."""
    found: set[bytes] = set()
    batch: list[str] = []
    for at, chunk in enumerate(index.chunks, 1):
        batch += (chunk.text, title_of(chunk))
        if at % _BATCH == 0 or at == len(index.chunks):
            found |= {word.encode("utf-8", "surrogatepass") for text in words(batch) for word in text}
            batch = []
    known = set(index.bm25.vocabulary())
    if known != found:
        surplus = len(known - found)
        yield f"the lexical index knows {surplus} words that no chunk holds, and lacks {len(found - known)}"
