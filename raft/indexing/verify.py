"""raft index verify: proof that an index is whole, and holds nothing but the documents that it lists.

    verify_index(Path("indexes/legal"), gone=["acts/leases.md"]).problems     ()
    verify_index(Path("indexes/legal"), gone=["people.csv"]).gone             {"people.csv": "2 documents, 5 chunks"}

Deleting a person's record from the source and running ``raft index`` again must leave no trace of it. What holds
text or is derived from it is therefore checked against the documents: chunks, the words of the lexical index, the keys
of the vectors, and the files on the disk themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from raft.artifacts import open_artifact, read_manifest
from raft.corpus.store import load_array
from raft.errors import ArtifactError
from raft.indexing.embeddings import JOURNAL, key_of
from raft.indexing.previous import OUTCOMES, Previous
from raft.records import Document
from raft.retrieval.bm25 import title_of, words
from raft.retrieval.filters import CHUNK_DOCUMENTS, facets_of
from raft.rows import read_rows
from raft.versions import leftovers, strangers

_BATCH = 4096
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Verified:
    """``problems`` says in a line each what is wrong; none means that the index is whole. ``gone`` says of each name
    that was asked for what is in the index of it, "" for nothing; ``not_of_raft`` names what else lies in its folder,
    which is no fault of the index."""

    documents: int
    chunks: int
    files: int
    bytes: int
    problems: tuple[str, ...]
    gone: Mapping[str, str]
    not_of_raft: tuple[str, ...]


def verify_index(path: Path, gone: Collection[str] = ()) -> Verified:
    """Check every byte of the index at ``path`` and every row against the others; ``gone`` names what must not be in
    it: ids of documents, their sources, files. Raises ArtifactError when it is missing or damaged."""
    manifest = open_artifact(path, "index")
    try:
        return _verify(Previous(path, manifest), path, gone)
    except FileNotFoundError:
        if read_manifest(path, "index") == manifest:
            raise
        raise ArtifactError(f"{path} was brought up to date while it was verified", "Verify it again") from None


def _verify(index: Previous, path: Path, gone: Collection[str]) -> Verified:
    rows = list(_counts(index)) or [*_documents(index), *_chunks(index), *_words(index)]  # these go row by row
    found = _gone(index, gone)
    there = [f"{name!r} is in the index: {what}" for name, what in found.items() if what]
    problems = [*_leftovers(path), *there, *rows]
    others = tuple(str(item) for item in strangers(path, "index", (JOURNAL,)))
    sizes = [(index.folder / name).stat().st_size for name in index.manifest.files]
    return Verified(len(index.documents), len(index.chunks), len(sizes), sum(sizes), tuple(problems), found, others)


def _leftovers(path: Path) -> Iterator[str]:
    found = leftovers(path, "index", (JOURNAL,))
    if found:
        names = ", ".join(str(item) for item in found[:_SHOWN])
        yield f"{len(found)} files or folders of stopped runs, or of one at work, may hold removed text: {names}"


def _counts(index: Previous) -> Iterator[str]:
    """Each file has a row for each document, each chunk or each outcome."""
    import numpy as np

    owners = load_array(index.folder / CHUNK_DOCUMENTS, mapped=False)
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


def _gone(index: Previous, gone: Collection[str]) -> dict[str, str]:
    """What is in the index of each name: documents of this id, this source or this file, and their chunks."""
    listed = _listed(index) if gone else {}
    asked: dict[str, set[str]] = {}  # names by the ids and sources that they stand for
    for name in gone:
        for known in {name, *listed.get(name.removeprefix("./"), ())}:
            asked.setdefault(known, set()).add(name)
    documents, chunks = Counter[str](), Counter[str]()
    owners: dict[str, set[str]] = {}
    for document in index.documents if gone else ():
        names = asked.get(document.id, set()) | asked.get(document.source, set()).intersection({document.source})
        documents.update(names)
        owners[document.id] = names
    for chunk in index.chunks if gone else ():
        chunks.update(owners.get(chunk.document_id) or asked.get(chunk.document_id) or ())
    return {
        name: f"{documents[name]} documents, {chunks[name]} chunks"
        if documents[name] or chunks[name]
        else ("no document, but the list of the source's files names it" if name.removeprefix("./") in listed else "")
        for name in gone
    }


def _listed(index: Previous) -> dict[str, set[str]]:
    """The ids of the documents of each file, under its path in the source and its bare name, and of each row."""
    found: dict[str, set[str]] = {}
    for file in index.names:
        for name in {file, PurePosixPath(file).name}:
            found.setdefault(name, set())
        for outcome in index.outcomes(file):
            for name in {file, PurePosixPath(file).name, outcome["source"]}:
                found.setdefault(name, set()).update({outcome["document_id"]} - {None})
    return found


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
