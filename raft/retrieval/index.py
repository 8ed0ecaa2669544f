"""The index: the searchable form of one corpus, as an artefact that is updated in place (raft/indexing makes it).

documents.jsonl  chunks.jsonl   the corpus; the order of chunks is that of the vectors and of BM25's rows
facets.jsonl                    source, date, tags and access labels of each document
sources.jsonl  outcomes.jsonl   each file with its hash, and what became of it or of its rows
dense.faiss  keys.npy  bm25/    the vectors with the hashes of what they encode, and the lexical search
cut.npy                         the chunks that are longer than the encoder reads
manifest.json                   encoder, dimension, counts, and the hash of every file above, each in the folder vN

index = open_index(Path("indexes/medical"), labels=("icu",))
index.search(["first dose of Corvalexin"], k=3, where=Filter(sources=("protocols/",)))
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from raft.artifacts import Manifest, open_artifact, read_manifest
from raft.config import SearchMode
from raft.corpus.store import Rows, corpus_fingerprint, open_chunks, open_documents
from raft.errors import ArtifactError, InputError, UsageError
from raft.records import EVERYTHING, Chunk, Document, Filter, Hit
from raft.retrieval.bm25 import Bm25Index, top
from raft.retrieval.dense import DenseIndex, Ranking
from raft.retrieval.encoder import Encoder
from raft.retrieval.filters import Facets
from raft.retrieval.fusion import fuse, sample_positions, spread_of
from raft.retrieval.rerank import Reranker

if TYPE_CHECKING:
    import numpy as np

_MAX_PREFIX_CHARS = 160  # some 40 tokens of English: seldom does a title push a chunk's end out of the window
_REMEMBERED_CHUNKS = 4096
_SAME_VECTOR = 0.95  # cosine; the same encoder on another machine or precision stays above, another one far below
_CANDIDATES = 50  # hits of each retriever that are fused; more change nothing (benchmarks/fusion_study.py)
RERANKED = 50  # fused hits that a reranker reads


class Retriever(Protocol):
    """What the rest of raft needs of a search."""

    def search(
        self, queries: Sequence[str], k: int, mode: SearchMode = "fused", where: Filter = EVERYTHING
    ) -> list[list[Hit]]:
        """For each query at most k hits that ``where`` allows, best first, ranks from 1."""
        ...


T = TypeVar("T", Chunk, Document)


class _Seen(Sequence[T], Generic[T]):
    """The rows that the labels of an index allow to be seen, in their order."""

    def __init__(self, rows: Rows[T], positions: np.ndarray) -> None:
        self._rows: Rows[T] = rows
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self._rows[int(position)] for position in self._positions[at]]
        return self._rows[int(self._positions[at])]

    def __iter__(self) -> Iterator[T]:
        return (self._rows[int(position)] for position in self._positions)


class Index:
    """An open index. It shows the documents whose labels it was opened with, and no others: neither in a search nor
    among ``chunks`` and ``documents``. Its encoder is loaded at the first search that needs it."""

    def __init__(self, folder: Path, manifest: Manifest, labels: Collection[str], reranker: Reranker | None) -> None:
        self.manifest = manifest
        self.labels = frozenset(labels)
        self._chunks, self._documents = open_chunks(folder), open_documents(folder)
        self._dense, self._bm25 = DenseIndex.load(folder), Bm25Index.load(folder)
        self._facets = Facets(folder, frozenset(manifest.facts["labels"]))
        self._reranker = reranker
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()
        self._chunk_at = lru_cache(maxsize=_REMEMBERED_CHUNKS)(self._chunks.__getitem__)  # hits come again
        self._sampled: np.ndarray | None = None  # the vectors of _sample where everything may be seen

    @property
    def fingerprint(self) -> str:
        """Hash of the corpus: datasets and questions made over one fit any index of equal fingerprint."""
        return corpus_fingerprint(self.manifest.files)

    @property
    def documents(self) -> Sequence[Document]:
        """All documents that may be seen, in the order of the source."""
        import numpy as np

        allowed = self._allowed(EVERYTHING)
        if allowed is None:
            return self._documents
        return _Seen(self._documents, np.unique(self._facets.chunk_documents[allowed]))

    @property
    def chunks(self) -> Sequence[Chunk]:
        """All chunks that may be seen, in the order of their documents. Each access parses a row: go through once."""
        import numpy as np

        allowed = self._allowed(EVERYTHING)
        return self._chunks if allowed is None else _Seen(self._chunks, np.flatnonzero(allowed))

    def chunk(self, chunk_id: str) -> Chunk:
        """Raises InputError for an id that is unknown or may not be seen."""
        row = self._chunks.find(chunk_id)
        allowed = self._allowed(EVERYTHING)
        if row is None or (allowed is not None and not allowed[row]):
            raise InputError(f"the index has no chunk {chunk_id!r}", "Use the index that the ids were taken from")
        return self._chunk_at(row)

    def document(self, document_id: str) -> Document:
        """Raises InputError for an id that is unknown or may not be seen."""
        row = self._documents.find(document_id)
        document = None if row is None else self._documents[row]
        if document is None or not self.labels.issuperset(document.metadata.get("labels", ())):
            raise InputError(f"the index has no document {document_id!r}", "Use the index that the ids were taken from")
        return document

    def search(
        self, queries: Sequence[str], k: int, mode: SearchMode = "fused", where: Filter = EVERYTHING
    ) -> list[list[Hit]]:
        """For each query at most k hits that ``where`` allows, best first; equal scores in the order of the corpus.

        ``score`` is the cosine (dense), the BM25 score (bm25; chunks without a word of the query are no hits), the
        two together (fused; see fusion.py), or the reranker's score of the best fused hits (reranked). ``parts`` holds
        the scores behind it. How rare a word is (BM25's idf), and so how much it counts, is taken from all documents,
        those that may not be seen too. Raises UsageError when k is below 1, a date of ``where`` is none, or there is no
        reranker to ask; ModelError and ArtifactError when the encoder cannot be loaded or does not fit.
        """
        if k < 1:
            raise UsageError(f"k is {k}; it must be at least 1")
        if not queries:
            return []
        if mode == "reranked":
            if self._reranker is None:
                raise UsageError("a reranked search needs a reranker", "Give --reranker MODEL, or search fused")
            fused = self.search(queries, max(k, RERANKED), "fused", where)
            return [rerank(self._reranker, query, hits, k) for query, hits in zip(queries, fused, strict=True)]
        allowed = self._allowed(where)
        if mode == "bm25":
            return [self._hits(top(scores, k), "bm25") for scores in self._lexical(queries, allowed)]
        vectors = self._load_encoder().encode_queries(queries)  # [queries, dimension]
        if mode == "dense":
            return [self._hits(ranking, "dense") for ranking in self._dense.search(vectors, k, allowed)]
        rankings = self._dense.search(vectors, candidates_for(k), allowed)
        sample = self._sample(allowed)
        return [
            self._fuse(vectors[i : i + 1], rankings[i], scores, k, sample)
            for i, scores in enumerate(self._lexical(queries, allowed))
        ]

    def _allowed(self, where: Filter) -> np.ndarray | None:
        """The chunks that may be returned, bool [chunks]; None for all."""
        held = self.labels if where.labels is None else self.labels & where.labels
        return self._facets.mask(replace(where, labels=held))

    def _lexical(self, queries: Sequence[str], allowed: np.ndarray | None) -> Iterator[np.ndarray]:
        """One query after another: float32 [chunks], 0 for chunks that may not be seen."""
        for scores in self._bm25.scores_of_each(queries):
            yield scores if allowed is None else scores * allowed

    def _hits(self, ranking: Ranking, part: str) -> list[Hit]:
        return [Hit(self._chunk_at(at), score, rank, {part: score}) for rank, (at, score) in enumerate(ranking, 1)]

    def _sample(self, allowed: np.ndarray | None) -> np.ndarray:
        """Vectors [chunks, dimension] over which a query's cosines are measured: of chunks that may be seen."""
        import numpy as np

        if allowed is not None:
            seen = np.flatnonzero(allowed)
            return self._dense.vectors(seen[np.array(sample_positions(len(seen)), dtype=np.int64)])
        if self._sampled is None:
            self._sampled = self._dense.vectors(np.array(sample_positions(len(self._dense)), dtype=np.int64))
        return self._sampled

    def _fuse(self, vector: Any, dense: Ranking, lexical: np.ndarray, k: int, sample: np.ndarray) -> list[Hit]:
        """The best of both rankings. Every score is computed for its query alone, so that hits do not depend on what
        is asked beside it."""
        found = dict.fromkeys(position for position, _ in (*dense, *top(lexical, candidates_for(k))))
        cosines = self._dense.scores(vector, [*found])
        scored = {at: (cosine, float(lexical[at])) for at, cosine in zip(found, cosines, strict=True)}
        spread = spread_of(sample @ vector[0])
        return [
            Hit(self._chunk_at(at), score, rank, {"dense": scored[at][0], "bm25": scored[at][1]})
            for rank, (at, score) in enumerate(fuse(scored, spread, k), 1)
        ]

    def _load_encoder(self) -> Encoder:
        with self._loading:
            if self._encoder is None:
                of_speed = {"batch_size", "workers", "ray_address"}
                recipe = self.manifest.recipe["encoder"]
                settings = {key: value for key, value in recipe.items() if key not in of_speed}
                encoder = Encoder.load(**settings, strict=False)
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
        cosine = self._dense.scores(encoder.encode_documents([search_text(self._chunks[0])]), [0])[0]
        if cosine < _SAME_VECTOR:
            raise ArtifactError(
                f"encoder {encoder.name} is not the one the index was built with: it gives the first chunk a vector of "
                f"cosine {cosine:.3f} to the stored one",
                remedy,
            )


def candidates_for(k: int) -> int:
    """How many hits of each retriever are fused to find the best k."""
    return max(k, _CANDIDATES)


def rerank(reranker: Reranker, query: str, hits: Sequence[Hit], k: int) -> list[Hit]:
    """The k hits that the reranker finds best; equal scores keep their order."""
    scores = reranker.scores(query, [search_text(hit.chunk) for hit in hits])
    best = sorted(zip(hits, scores, strict=True), key=lambda pair: (-pair[1], pair[0].rank))[:k]
    return [
        Hit(hit.chunk, score, rank, {**hit.parts, "fused": hit.score, "reranker": score})
        for rank, (hit, score) in enumerate(best, 1)
    ]


def search_text(chunk: Chunk) -> str:
    """The text under which a chunk is found: its title and headings, where its text does not open with them, go
    before it, because a clause seldom names its contract."""
    opening = chunk.text.lstrip("# ")
    path = [part for part in (chunk.title, *chunk.headings) if part and not opening.startswith(part)]
    prefix = " > ".join(path)[:_MAX_PREFIX_CHARS]
    return f"{prefix}\n{chunk.text}" if prefix else chunk.text


def open_index(
    path: Path, encoder_model: str | None = None, labels: Collection[str] = (), reranker: str | None = None
) -> Index:
    """The index at ``path``, every byte of it verified, showing the documents that these labels may see.

    Raises ArtifactError when it is missing, unfinished or damaged, its parts disagree, or it was built with another
    encoder than ``encoder_model`` (None takes whatever it was built with); ModelError when the reranker cannot be
    loaded.
    """
    loaded = None if reranker is None else Reranker.load(reranker)
    while True:
        before = read_manifest(path, "index")
        try:
            return _open(path, encoder_model, labels, loaded)
        except (InputError, OSError):
            if read_manifest(path, "index") == before:
                raise
            # It was updated while it was being opened: the old version's files are gone.


def _open(path: Path, encoder_model: str | None, labels: Collection[str], reranker: Reranker | None) -> Index:
    manifest = open_artifact(path, "index")
    built_with = manifest.recipe["encoder"]["model"]
    if encoder_model is not None and encoder_model != built_with:
        raise ArtifactError(
            f"{path} was built with the encoder {built_with}, not {encoder_model}",
            f"Use {built_with}, or build another index with --set encoder.model={encoder_model}",
        )
    index = Index(path / manifest.version, manifest, labels, reranker)
    counts = (len(index._chunks), len(index._dense), len(index._bm25))
    if len(set(counts)) > 1 or index._dense.dimension != manifest.facts["dimension"]:
        raise ArtifactError(
            f"{path} is inconsistent: {counts[0]} chunks, {counts[1]} vectors of {index._dense.dimension} dimensions "
            f"(expected {manifest.facts['dimension']}), {counts[2]} rows of BM25",
            "Make the index again",
        )
    return index
