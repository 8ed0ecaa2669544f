"""The index: the searchable form of one corpus, as an artefact.

    documents.jsonl  chunks.jsonl   the corpus; the order of chunks is that of the vectors and of BM25's rows
    outcomes.jsonl                  what became of each file or row of the source
    dense.faiss      bm25/          the two searches
    manifest.json                   encoder, dimension, counts, and the hash of every file above

One line of ``outcomes.jsonl``::

    {"source": "guides/scan.pdf", "status": "refused", "document_id": null, "reason": "has no text layer ..."}
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raft.artifacts import Draft, Manifest, check_free, hash_file, open_artifact, write_rows, writing
from raft.config import ChunkingRecipe, EncoderRecipe, SearchMode
from raft.corpus.chunking import split_documents
from raft.corpus.readers import ReadOutcome, read_source
from raft.corpus.store import DOCUMENTS, corpus_fingerprint, read_chunks, read_documents, write_chunks, write_documents
from raft.errors import ArtifactError, InputError, RecipeError, UsageError
from raft.records import Chunk, Document, Hit
from raft.retrieval.bm25 import Bm25Index, top
from raft.retrieval.dense import DenseIndex, Ranking
from raft.retrieval.encoder import Encoder
from raft.retrieval.fusion import reciprocal_rank_fusion

OUTCOMES = "outcomes.jsonl"
_MAX_PREFIX_CHARS = 160  # about 40 tokens, so that a long title does not push a chunk's end out of the encoder's window
_SAME_VECTOR = 0.99  # cosine; the same encoder on another machine or precision stays above, another one far below

OnProgress = Callable[[str, int, int | None], None]
"""Told a stage ("reading", "chunking", "encoding"), how much of it is done, and of how much (None: unknown)."""


class Retriever(Protocol):
    """What the rest of raft needs of a search."""

    def search(self, queries: Sequence[str], k: int, mode: SearchMode = "fused") -> list[list[Hit]]:
        """For each query at most k hits, best first, ranks from 1."""
        ...


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """What ``build_index`` made. ``left_out`` holds the outcomes of all that was skipped or refused; ``cut`` counts
    the chunks that are longer than the encoder reads (only a user's own chunks can be)."""

    path: Path
    documents: int
    chunks: int
    cut: int
    left_out: tuple[ReadOutcome, ...]
    seconds: float


class Index:
    """An open index. Its encoder is loaded at the first search that needs it."""

    def __init__(
        self, manifest: Manifest, documents: Iterable[Document], chunks: Iterable[Chunk], dense: DenseIndex,
        bm25: Bm25Index,
    ) -> None:  # fmt: skip
        self.manifest = manifest
        self.chunks = tuple(chunks)
        self._documents = {document.id: document for document in documents}
        self._positions = {chunk.id: position for position, chunk in enumerate(self.chunks)}
        self._dense = dense
        self._bm25 = bm25
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """Hash of the corpus: datasets and questions made over one fit any index of equal fingerprint."""
        return corpus_fingerprint(self.manifest.files)

    @property
    def documents(self) -> tuple[Document, ...]:
        """All documents, in the order of the source."""
        return tuple(self._documents.values())

    def chunk(self, chunk_id: str) -> Chunk:
        """Raises InputError for an unknown id."""
        if chunk_id not in self._positions:
            raise InputError(f"the index has no chunk {chunk_id!r}", "Use the index that the ids were taken from")
        return self.chunks[self._positions[chunk_id]]

    def document(self, document_id: str) -> Document:
        """Raises InputError for an unknown id."""
        if document_id not in self._documents:
            raise InputError(f"the index has no document {document_id!r}", "Use the index that the ids were taken from")
        return self._documents[document_id]

    def search(self, queries: Sequence[str], k: int, mode: SearchMode = "fused") -> list[list[Hit]]:
        """For each query at most k hits, best first; equal scores in the order of the corpus.

        ``score`` is the cosine (dense), the BM25 score (bm25; chunks without a word of the query are no hits), or
        the sum of reciprocal ranks (fused). ``parts`` holds the cosine and the BM25 score behind it. Raises
        UsageError when k is below 1, ModelError and ArtifactError when the encoder cannot be loaded or does not fit.
        """
        if k < 1:
            raise UsageError(f"k is {k}; it must be at least 1")
        if not queries:
            return []
        if mode == "bm25":
            return [self._hits(top(self._bm25.scores(query), k), "bm25") for query in queries]
        vectors = self._load_encoder().encode_queries(queries)  # [queries, dimension]
        if mode == "dense":
            return [self._hits(ranking, "dense") for ranking in self._dense.search(vectors, k)]
        candidates = max(5 * k, 50)
        rankings = self._dense.search(vectors, candidates)
        return [self._fuse(query, vectors[i : i + 1], rankings[i], k, candidates) for i, query in enumerate(queries)]

    def _hits(self, ranking: Ranking, part: str) -> list[Hit]:
        return [
            Hit(self.chunks[position], score, rank, {part: score}) for rank, (position, score) in enumerate(ranking, 1)
        ]

    def _fuse(self, query: str, vector: Any, dense: Ranking, k: int, candidates: int) -> list[Hit]:
        lexical = self._bm25.scores(query)
        rankings = [[position for position, _ in ranking] for ranking in (dense, top(lexical, candidates))]
        fused = reciprocal_rank_fusion(rankings)[:k]
        cosines = self._dense.scores(vector, [position for position, _ in fused])
        return [
            Hit(self.chunks[position], score, rank, {"dense": cosine, "bm25": float(lexical[position])})
            for rank, ((position, score), cosine) in enumerate(zip(fused, cosines, strict=True), 1)
        ]

    def _load_encoder(self) -> Encoder:
        with self._loading:
            if self._encoder is None:
                settings = self.manifest.recipe["encoder"]
                encoder = Encoder.load(settings["model"], settings["query_prompt"], settings["document_prompt"])
                self._check_encoder(encoder)
                self._encoder = encoder
            return self._encoder

    def _check_encoder(self, encoder: Encoder) -> None:
        remedy = f"Restore the encoder {encoder.name} as it was, or build the index again"
        if encoder.dimension != self._dense.dimension:
            raise ArtifactError(
                f"encoder {encoder.name} gives {encoder.dimension} dimensions; the index has {self._dense.dimension}",
                remedy,
            )
        cosine = self._dense.scores(encoder.encode_documents([search_text(self.chunks[0])]), [0])[0]
        if cosine < _SAME_VECTOR:
            raise ArtifactError(
                f"encoder {encoder.name} is not the one the index was built with: it gives the first chunk a vector of "
                f"cosine {cosine:.3f} to the stored one",
                remedy,
            )


def search_text(chunk: Chunk) -> str:
    """The text under which a chunk is found: its title and headings, where its text does not open with them, go
    before it, because a clause seldom names its contract."""
    opening = chunk.text.lstrip("# ")
    path = [part for part in (chunk.title, *chunk.headings) if part and not opening.startswith(part)]
    prefix = " > ".join(path)[:_MAX_PREFIX_CHARS]
    return f"{prefix}\n{chunk.text}" if prefix else chunk.text


def open_index(path: Path, encoder_model: str | None = None) -> Index:
    """The index at ``path``, every byte of it verified.

    Raises ArtifactError when it is missing, unfinished or damaged, its parts disagree, or it was built with another
    encoder than ``encoder_model`` (None takes whatever it was built with).
    """
    manifest = open_artifact(path, "index")
    built_with = manifest.recipe["encoder"]["model"]
    if encoder_model is not None and encoder_model != built_with:
        raise ArtifactError(
            f"{path} was built with the encoder {built_with}, not {encoder_model}",
            f"Use {built_with}, or build another index with --set encoder.model={encoder_model}",
        )
    chunks = read_chunks(path)
    dense, bm25 = DenseIndex.load(path), Bm25Index.load(path)
    if not len(chunks) == len(dense) == len(bm25) or dense.dimension != manifest.facts["dimension"]:
        raise ArtifactError(
            f"{path} is inconsistent: {len(chunks)} chunks, {len(dense)} vectors of {dense.dimension} dimensions "
            f"(expected {manifest.facts['dimension']}), {len(bm25)} rows of BM25",
            "Make the index again",
        )
    return Index(manifest, read_documents(path), chunks, dense, bm25)


def build_index(
    source: Path,
    out: Path,
    *,
    chunking: ChunkingRecipe = ChunkingRecipe(),  # type: ignore[call-arg]
    encoder: EncoderRecipe = EncoderRecipe(),  # type: ignore[call-arg]
    overwrite: bool = False,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> IndexSummary:
    """Read, chunk, encode and index the documents of ``source`` into the artefact ``out``.

    Raises InputError when there is nothing to index or the disk fails, ArtifactError when ``out`` is taken,
    ModelError when the encoder cannot be loaded, RecipeError when chunks would be longer than it reads.
    """
    check_free(out, overwrite)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"--out {out} lies inside the source {source}", "Name a folder outside of the documents")
    began = time.monotonic()
    recipe = {"source": source, "chunking": chunking.model_dump(), "encoder": encoder.model_dump()}
    with writing(out, "index", recipe, {}, overwrite=overwrite) as draft:
        documents, left_out = _read(source, draft, on_progress)
        loaded = Encoder.load(encoder.model, encoder.query_prompt, encoder.document_prompt)
        _check_window(chunking.max_tokens, loaded, chunking.as_is)
        counted = _counted(documents, on_progress)
        chunks = list(split_documents(counted, loaded.token_offsets, **chunking.model_dump()))
        write_chunks(draft.folder, chunks)
        _index(chunks, loaded, encoder.batch_size, draft, on_progress)
        cut = _count_cut(chunks, loaded) if chunking.as_is else 0
        statuses = Counter(outcome.status for outcome in left_out)
        draft.facts |= {
            "documents": len(documents), "chunks": len(chunks), "cut": cut, "refused": statuses["refused"],
            "skipped": statuses["skipped"], "encoder": encoder.model, "dimension": loaded.dimension,
        }  # fmt: skip
    return IndexSummary(out, len(documents), len(chunks), cut, tuple(left_out), time.monotonic() - began)


def _read(source: Path, draft: Draft, on_progress: OnProgress) -> tuple[list[Document], list[ReadOutcome]]:
    outcomes = []
    for outcome in read_source(source):
        outcomes.append(outcome)
        on_progress("reading", len(outcomes), None)
    documents = [outcome.document for outcome in outcomes if outcome.document is not None]
    left_out = [outcome for outcome in outcomes if outcome.document is None]
    if not documents:
        first = f" (the first: {left_out[0].source} {left_out[0].reason})" if left_out else ""
        raise InputError(
            f"nothing to index in {source}: {len(left_out)} files or rows were left out{first}",
            "Give a folder or file of documents",
        )
    write_rows(draft.folder / OUTCOMES, (_outcome_row(outcome) for outcome in outcomes))
    write_documents(draft.folder, documents)
    draft.inputs[str(source)] = hash_file(draft.folder / DOCUMENTS)
    return documents, left_out


def _outcome_row(outcome: ReadOutcome) -> dict[str, Any]:
    document_id = outcome.document.id if outcome.document is not None else None
    return {
        "source": outcome.source, "status": outcome.status, "document_id": document_id, "reason": outcome.reason,
    }  # fmt: skip


def _check_window(max_tokens: int, encoder: Encoder, as_is: bool) -> None:
    if max_tokens > encoder.max_tokens and not as_is:
        raise RecipeError(
            f"chunking.max_tokens = {max_tokens}: the encoder {encoder.name} reads at most {encoder.max_tokens} tokens",
            f"Set chunking.max_tokens to {encoder.max_tokens} or less, or choose another encoder",
        )


def _counted(documents: Sequence[Document], on_progress: OnProgress) -> Iterator[Document]:
    for done, document in enumerate(documents, 1):
        yield document
        on_progress("chunking", done, len(documents))


def _index(chunks: Sequence[Chunk], encoder: Encoder, batch_size: int, draft: Draft, on_progress: OnProgress) -> None:
    texts = [search_text(chunk) for chunk in chunks]
    Bm25Index.build(texts).save(draft.folder)
    vectors = encoder.encode_documents(texts, batch_size, lambda done, total: on_progress("encoding", done, total))
    DenseIndex.build(vectors).save(draft.folder)


def _count_cut(chunks: Sequence[Chunk], encoder: Encoder) -> int:
    return sum(len(encoder.token_offsets(search_text(chunk))) > encoder.max_tokens for chunk in chunks)
