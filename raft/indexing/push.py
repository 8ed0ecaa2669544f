"""raft index push: a local index -> a collection in Milvus, or its next state.

    push_index(Path("indexes/medical"), "./medical.db", "medical")              # every chunk goes in
    push_index(Path("indexes/medical"), "./medical.db", "medical")              # again: only what changed since

A chunk whose row is there already is not sent again, one that is gone or has changed (its labels, for one) is deleted
before anything is put in. A push that was stopped goes on with the next one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.corpus.store import corpus_fingerprint, load_array
from raft.errors import ArtifactError, InputError
from raft.indexing.previous import Previous, open_previous
from raft.retrieval.bm25 import Bm25Index
from raft.retrieval.dense import choose_kind
from raft.retrieval.filters import CHUNK_DOCUMENTS
from raft.retrieval.fusion import sample_positions
from raft.retrieval.milvus_rows import (
    MOST_BYTES,
    MOST_TAGS,
    NO_WORD,
    TOKEN_ENV,
    Collections,
    Facts,
    days_of,
    hash_of,
    idf,
    to_hex,
    word_number,
)

if TYPE_CHECKING:
    import numpy as np

_BATCH = 500  # rows sent at once: at most 64 MB, what Milvus takes
_DELETED_AT_ONCE = 1000
_MEAN_DRIFT = 0.005  # of chunks' mean length, up to which their weights stay: no score is off by more than twice it

OnPushed = Callable[[int, int], None]
"""Told how many rows of how many are sent."""


@dataclass(frozen=True, slots=True)
class PushSummary:
    """What ``push_index`` did. ``kept`` rows were there already; ``anew`` is True when the collection was made anew."""

    collection: str
    chunks: int
    inserted: int
    deleted: int
    kept: int
    anew: bool
    seconds: float


def push_index(
    index: Path,
    uri: str,
    collection: str,
    *,
    token_env: str = TOKEN_ENV,
    overwrite: bool = False,
    on_progress: OnPushed = lambda done, total: None,
) -> PushSummary:
    """Bring the collection to the state of the index. ``token_env`` names the environment variable with the token.

    Raises ArtifactError when the index is damaged, or the collection is not raft's, or was made with another encoder
    and ``overwrite`` is not set; InputError for a chunk that Milvus cannot hold; EndpointError when Milvus fails;
    ModelError when pymilvus is not installed.
    """
    began = time.monotonic()
    source = _Source(open_previous(index))
    milvus = Collections(uri, collection, token_env)
    there = milvus.facts()
    if there is not None and not overwrite:
        _check_encoder(there, source, f"collection {collection} at {uri}")
    present = set() if there is None or overwrite else {row["key"] for row in milvus.all_rows(collection)}
    gone = present - set(source.keys)
    # The embedded file keeps the bytes of deleted rows: only a collection that is made anew has none of them.
    anew = there is None or overwrite or (milvus.is_embedded and bool(gone))
    if anew:
        milvus.drop()
        milvus.create(source.dimension, source.vector_index)
        milvus.write_facts(source.facts(finished=False))
        there, present = None, set()
    _delete(milvus, [] if anew else sorted(gone))
    stale = there is not None and abs(there.mean_words - source.mean_words) > _MEAN_DRIFT * there.mean_words
    wanted = [at for at, key in enumerate(source.keys) if stale or key not in present]
    _send(milvus, source, wanted, stale, on_progress)
    mean = source.mean_words if there is None or stale else there.mean_words
    milvus.write_facts(source.facts(mean_words=mean))
    _settle(milvus, bool(gone) and not anew)
    kept = len(source.keys) - len(wanted)
    return PushSummary(collection, len(source.keys), len(wanted), len(gone), kept, anew, time.monotonic() - began)


def _check_encoder(there: Facts, source: _Source, name: str) -> None:
    was, now = there.encoder, source.encoder
    if there.encoder_fingerprint != source.encoder_fingerprint:
        raise ArtifactError(
            f"{name} was made with the encoder {was['model']}, the index with {now['model']}"
            + (" of other files or prompts" if was["model"] == now["model"] else ""),
            "Name another --collection, or make it anew with --overwrite",
        )


def _delete(milvus: Collections, keys: Sequence[str]) -> None:
    with milvus.failing():
        for at in range(0, len(keys), _DELETED_AT_ONCE):
            milvus.client.delete(milvus.name, ids=list(keys[at : at + _DELETED_AT_ONCE]))


def _send(milvus: Collections, source: _Source, rows: Sequence[int], replace: bool, on_progress: OnPushed) -> None:
    send = milvus.client.upsert if replace else milvus.client.insert
    for at in range(0, len(rows), _BATCH):
        batch = list(source.rows(rows[at : at + _BATCH]))
        with milvus.failing():
            send(milvus.name, batch)
        on_progress(at + len(batch), len(rows))


def _settle(milvus: Collections, compact: bool) -> None:
    """Have the rows written and indexed; compaction takes deleted ones off a cluster's disks (after its retention)."""
    with milvus.failing():
        for name in (milvus.name, milvus.facts_name):
            milvus.client.flush(name)
            if compact:
                milvus.client.compact(name)


class _Source:
    """The index as rows of Milvus."""

    def __init__(self, index: Previous) -> None:
        import numpy as np

        self._index = index
        self._documents = load_array(index.folder / CHUNK_DOCUMENTS, mapped=False)
        manifest = index.manifest
        self.encoder: Mapping[str, Any] = manifest.recipe["encoder"]
        self.encoder_fingerprint: str = manifest.facts["encoder_fingerprint"]
        self.dimension = index.dense.dimension
        self.vector_index = "FLAT" if choose_kind(len(index.chunks)) == "flat" else "AUTOINDEX"
        self.mean_words = max(float(index.bm25.lengths.mean()), 1e-9)
        self._word_idf = idf(np.diff(index.bm25.columns), len(index.chunks))
        self._numbers = np.array([word_number(word) for word in index.bm25.vocabulary()], dtype=np.int64)
        self._weights = _by_chunk(index.bm25, self._word_idf)
        self.keys = [self._key(at) for at in range(len(index.chunks))]

    def _key(self, at: int) -> str:
        """Raises InputError for a chunk that does not fit into a row."""
        line, facets = self._index.chunks.line(at), self._facets(at)
        longest = max(len(line), 2 * len(facets["source"].encode()))
        if longest > MOST_BYTES or len(facets["tags"]) > MOST_TAGS:
            raise InputError(
                f"chunk {self._index.chunks[at].id!r} has {longest} bytes and {len(facets['tags'])} tags; Milvus holds "
                f"{MOST_BYTES} and {MOST_TAGS}",
                "Make the index with smaller chunks",
            )
        parts = (line, json.dumps(facets, sort_keys=True).encode(), self._index.keys[at].tobytes())
        return hashlib.blake2b(b"".join(hashlib.blake2b(part).digest() for part in parts), digest_size=16).hexdigest()

    def _facets(self, at: int) -> dict[str, Any]:
        return self._index.facets[int(self._documents[at])]

    def rows(self, positions: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The chunks at these positions as Milvus takes them."""
        import numpy as np

        vectors = self._index.dense.vectors(np.asarray(positions, dtype=np.int64))
        for at, vector in zip(positions, vectors, strict=True):
            line, facets = self._index.chunks.line(at).decode(), self._facets(at)
            chunk = json.loads(line)
            first, last = days_of(facets["date"]) if facets["date"] else (0, 0)
            yield {
                "key": self.keys[at], "chunk": line, "document_id": chunk["document_id"], "start": chunk["start"],
                "source": to_hex(facets["source"]), "labels": hash_of(facets["labels"]),
                "tags": [hash_of(tag) for tag in facets["tags"]], "first_day": first, "last_day": last,
                "vector": vector, "words": self._words(at),
            }  # fmt: skip

    def _words(self, at: int) -> dict[int, float]:
        """The weights of the chunk's words without their idf, by the words' numbers."""
        held = slice(self._weights.indptr[at], self._weights.indptr[at + 1])
        numbers = self._numbers[self._weights.indices[held]].tolist()
        found: dict[int, float] = {}
        for number, weight in zip(numbers, self._weights.data[held].tolist(), strict=True):
            found[number] = found.get(number, 0.0) + weight
        return found or {NO_WORD: 1.0}

    def facts(self, mean_words: float | None = None, finished: bool = True) -> Facts:
        import numpy as np

        index = self._index
        numbers, places = np.unique(self._numbers, return_inverse=True)
        sample = np.asarray(sample_positions(len(index.chunks)), dtype=np.int64)
        return Facts(
            encoder=self.encoder, encoder_fingerprint=self.encoder_fingerprint,
            corpus=corpus_fingerprint(index.manifest.files) if finished else "", chunks=len(index.chunks),
            label_sets=tuple(sorted({tuple(row["labels"]) for row in index.facets})),
            mean_words=self.mean_words if mean_words is None else mean_words, numbers=numbers,
            holding=np.bincount(places, np.diff(index.bm25.columns), minlength=len(numbers)).astype(np.int64),
            sample=index.dense.vectors(sample),
        )  # fmt: skip


def _by_chunk(bm25: Bm25Index, word_idf: np.ndarray) -> Any:
    """The chunk's factor of every BM25 weight, sparse [chunks, words]."""
    import numpy as np
    from scipy import sparse

    factors = (bm25.weights / np.repeat(word_idf, np.diff(bm25.columns))).astype(np.float32)
    return sparse.csc_matrix((factors, bm25.rows, bm25.columns), shape=(len(bm25), len(bm25.ends))).tocsr()
