"""The search of an index served by Milvus: its embedded file, or a cluster of any size behind the same client.

    raft index push indexes/medical --uri ./medical.db --collection medical       # or --uri http://host:19530

    found = open_retriever("milvus:./medical.db#medical", labels=("icu",))
    found.search(["first dose of Corvalexin"], k=3, where=Filter(sources=("protocols/",)))

``raft index push`` fills the collection, and ``raft/retrieval/milvus_rows.py`` says what lies in it. Dense scores are
the cosines of the local index, lexical ones its BM25 scores, and the same code fuses them.
"""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.config import SearchMode
from raft.errors import ArtifactError, UsageError
from raft.records import EVERYTHING, Filter, Hit
from raft.retrieval.bm25 import words
from raft.retrieval.encoder import Encoder, encoder_fingerprint
from raft.retrieval.fusion import fuse, spread_of
from raft.retrieval.index import RERANKED, Index, candidates_for, open_index, rerank
from raft.retrieval.milvus_rows import (
    TOKEN_ENV,
    Collections,
    Facts,
    days_of,
    hash_of,
    idf,
    is_embedded,
    to_hex,
    word_number,
)
from raft.retrieval.rerank import Reranker

if TYPE_CHECKING:
    import numpy as np

PREFIX = "milvus:"
_MOST_HITS = 16_384  # of one search in Milvus
_SAMPLES_KEPT = 32
_CANDIDATES_AT_ONCE = 10_000  # with their vectors some 30 MB: below the 64 MB that Milvus sends at once

Row = dict[str, Any]


class MilvusRetriever:
    """A ``Retriever`` over a pushed index. It shows the documents whose labels it was opened with, and of those that
    are pushed later only such whose label set was there when it was opened."""

    def __init__(self, collections: Collections, facts: Facts, labels: Collection[str], reranker: Reranker | None):
        self.labels = frozenset(labels)
        self._collections, self._facts, self._idf = collections, facts, idf(facts.holding, facts.chunks)
        self._reranker = reranker
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()
        every_label = frozenset(label for labels in facts.label_sets for label in labels)
        self._everything = expression_of(Filter(labels=every_label), facts.label_sets)
        self._samples: dict[str, np.ndarray] = {}

    @classmethod
    def open(
        cls, uri: str, collection: str, labels: Collection[str] = (), *, token_env: str = TOKEN_ENV,
        reranker: str | None = None,
    ) -> MilvusRetriever:  # fmt: skip
        """Raises ArtifactError when the collection is missing or its first push has not finished, EndpointError when
        Milvus cannot be asked, ModelError when pymilvus is not installed or the reranker cannot be loaded."""
        remedy = f"Type raft index push INDEX --uri {uri} --collection {collection}"
        if is_embedded(uri) and not Path(uri).exists():  # opening it would make it
            raise ArtifactError(f"there is no file {uri}", remedy)
        collections = Collections(uri, collection, token_env)
        facts = collections.facts()
        if facts is None or not facts.corpus:
            state = "there is no" if facts is None else "the push has not finished to"
            raise ArtifactError(f"{state} collection {collection} at {uri}", remedy)
        return cls(collections, facts, labels, None if reranker is None else Reranker.load(reranker))

    @property
    def fingerprint(self) -> str:
        """That of the index when it was pushed."""
        return self._facts.corpus

    def search(
        self, queries: Sequence[str], k: int, mode: SearchMode = "fused", where: Filter = EVERYTHING
    ) -> list[list[Hit]]:
        """What ``Index.search`` gives; see there. Raises EndpointError when Milvus cannot be asked."""
        if k < 1:
            raise UsageError(f"k is {k}; it must be at least 1")
        expression = self._expression(where)
        if not queries or expression is None:
            return [[] for _ in queries]
        if mode == "reranked":
            return self._reranked(queries, k, where)
        ranked = {"dense": self._dense, "bm25": self._bm25, "fused": self._fused}[mode]
        limit = candidates_for(k) if mode == "fused" else k
        at_once = max(1, _CANDIDATES_AT_ONCE // min(limit, _MOST_HITS))
        blocks = [queries[at : at + at_once] for at in range(0, len(queries), at_once)]
        rows = [hits for block in blocks for hits in ranked(block, k, min(limit, _MOST_HITS), expression)]
        chunks = self._collections.chunks([row["key"] for hits in rows for row in hits])
        return [
            [
                Hit(chunks[row["key"]], row["score"], rank, row["parts"])
                for rank, row in enumerate((row for row in hits if row["key"] in chunks), 1)
            ]
            for hits in rows
        ]

    def _expression(self, where: Filter) -> str | None:
        held = self.labels if where.labels is None else self.labels & where.labels
        return expression_of(replace(where, labels=held), self._facts.label_sets)

    def _dense(self, queries: Sequence[str], k: int, limit: int, expression: str) -> list[list[Row]]:
        vectors = self._load_encoder().encode_queries(queries)
        found = self._collections.search("vector", list(vectors), limit, expression)
        return [[{**row, "parts": {"dense": row["score"]}} for row in hits] for hits in found]

    def _bm25(self, queries: Sequence[str], k: int, limit: int, expression: str) -> list[list[Row]]:
        found = self._lexical([self._weights(query) for query in queries], limit, expression)
        return [[{**row, "parts": {"bm25": row["score"]}} for row in hits] for hits in found]

    def _fused(self, queries: Sequence[str], k: int, limit: int, expression: str) -> list[list[Row]]:
        """Each search brings what the other one needs to score its hits too: the vector, or the words."""
        vectors = self._load_encoder().encode_queries(queries)
        weights = [self._weights(query) for query in queries]
        dense = self._collections.search("vector", list(vectors), limit, expression, ["words"])
        lexical = self._lexical(weights, limit, expression, ["vector"])
        sample = self._sample(expression)
        return [self._fuse(*query, k, sample) for query in zip(vectors, weights, dense, lexical, strict=True)]

    def _sample(self, expression: str) -> np.ndarray:
        """The vectors that a query's spread of cosines is measured on, of chunks that may be seen: those of the facts
        where that is all, others in the order of their keys, which is one by chance; fetched once for a filter."""
        import numpy as np

        if expression == self._everything:
            return self._facts.sample
        with self._loading:
            if expression not in self._samples:
                client, most = self._collections.client, len(self._facts.sample)
                with self._collections.failing():
                    rows = client.query(self._collections.name, filter=expression, output_fields=["vector"], limit=most)
                if len(self._samples) == _SAMPLES_KEPT:
                    del self._samples[next(iter(self._samples))]
                vectors = np.array([row["vector"] for row in rows], dtype=np.float32)
                self._samples[expression] = vectors.reshape(-1, self._facts.sample.shape[1])
            return self._samples[expression]

    def _fuse(
        self, vector: np.ndarray, weights: Mapping[int, float], dense: list[Row],
        lexical: list[Row], k: int, sample: np.ndarray,
    ) -> list[Row]:  # fmt: skip
        import numpy as np

        scores = {row["key"]: (row["score"], _score(row["words"], weights)) for row in dense}
        cosines = {row["key"]: float(np.asarray(row["vector"], dtype=np.float32) @ vector) for row in lexical}
        scores = {row["key"]: (cosines[row["key"]], row["score"]) for row in lexical} | scores
        rows = {row["key"]: row for row in (*dense, *lexical)}
        ordered = sorted(rows.values(), key=lambda row: (row["document_id"], row["start"]))
        candidates = {at: scores[row["key"]] for at, row in enumerate(ordered)}
        return [
            {
                "key": ordered[at]["key"],
                "score": score,
                "parts": dict(zip(("dense", "bm25"), candidates[at], strict=True)),
            }
            for at, score in fuse(candidates, spread_of(sample @ vector), k)
        ]

    def _reranked(self, queries: Sequence[str], k: int, where: Filter) -> list[list[Hit]]:
        if self._reranker is None:
            raise UsageError("a reranked search needs a reranker", "Give --reranker MODEL, or search fused")
        found = self.search(queries, max(k, RERANKED), "fused", where)
        return [rerank(self._reranker, query, hits, k) for query, hits in zip(queries, found, strict=True)]

    def _weights(self, query: str) -> dict[int, float]:
        """The query as a sparse vector: the idf of each of its words that the chunks hold, as often as it stands."""
        import numpy as np

        found: dict[int, float] = {}
        for word in words([query])[0]:
            number = word_number(word.encode("utf-8", "surrogatepass"))
            at = int(np.searchsorted(self._facts.numbers, number))
            if at < len(self._idf) and self._facts.numbers[at] == number:
                found[number] = found.get(number, 0.0) + float(self._idf[at])
        return found

    def _lexical(
        self, queries: Sequence[Mapping[int, float]], limit: int, expression: str, fields: Sequence[str] = ()
    ) -> list[list[Row]]:
        asked = [query for query in queries if query]  # Milvus takes no empty vector
        found = iter(self._collections.search("words", asked, limit, expression, fields) if asked else ())
        return [[row for row in next(found) if row["score"] > 0] if query else [] for query in queries]

    def _load_encoder(self) -> Encoder:
        with self._loading:
            if self._encoder is None:
                recipe, name = self._facts.encoder, self._collections.name
                if encoder_fingerprint(recipe["model"], recipe["document_prompt"]) != self._facts.encoder_fingerprint:
                    raise ArtifactError(
                        f"encoder {recipe['model']} is not the one that collection {name} was made with",
                        f"Restore the encoder {recipe['model']} as it was, or make and push the index again",
                    )
                names = ("model", "query_prompt", "document_prompt", "backend", "precision")
                self._encoder = Encoder.load(**{name: recipe[name] for name in names if name in recipe}, strict=False)
            return self._encoder


def open_retriever(
    where: str | Path, labels: Collection[str] = (), *, reranker: str | None = None, token_env: str = TOKEN_ENV
) -> Index | MilvusRetriever:
    """The index in a folder, or the collection that ``milvus:URI#COLLECTION`` names. Raises what either raises."""
    text = str(where)
    if not text.startswith(PREFIX):
        return open_index(Path(where), labels=labels, reranker=reranker)
    uri, mark, collection = text.removeprefix(PREFIX).rpartition("#")
    if not mark or not uri:
        raise UsageError(f"{text} names no collection", "Write milvus:URI#COLLECTION, e.g. milvus:./medical.db#medical")
    uri = re.sub(r"^(https?|tcp):/+", r"\1://", uri)  # a Path has folded the slashes
    return MilvusRetriever.open(uri, collection, labels, token_env=token_env, reranker=reranker)


def expression_of(where: Filter, label_sets: Sequence[Sequence[str]]) -> str | None:
    """What Milvus must check of a row; None when no row can pass. The filter's labels must be given.

    Between its quotes stand hexadecimal digits only, so that no name can break out of them or be taken for a pattern.
    Digits of UTF-8 keep the order of texts and which begins which. The labels are always checked: rows with a label
    set that is not known here may have been pushed since.
    """
    held = where.labels or frozenset()
    seen = [hash_of(labels) for labels in label_sets if held.issuperset(labels)]
    if not seen:
        return None
    parts = [f"labels in [{_quoted(seen)}]"]
    if where.sources:
        parts.append("(" + " or ".join(f'source like "{to_hex(source)}%"' for source in where.sources) + ")")
    if where.tags:
        parts.append(f"array_contains_any(tags, [{_quoted(hash_of(tag) for tag in where.tags)}])")
    if where.since is not None:
        parts.append(f"last_day >= {_days('since', where.since)[0]}")
    if where.until is not None:
        parts.append(f"first_day > 0 and first_day <= {_days('until', where.until)[1]}")
    return " and ".join(parts)


def _days(name: str, date: str) -> tuple[int, int]:
    try:
        if re.fullmatch(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?", date):
            datetime.date.fromisoformat(f"{date}-01-01"[:10])
            return days_of(date)
    except ValueError:
        pass
    raise UsageError(f"{name} is {date!r}", "Give a date like 2026-03-01, 2026-03 or 2026")


def _quoted(digits: Iterable[str]) -> str:
    return ", ".join(f'"{value}"' for value in digits)


def _score(chunk: Mapping[int, float], query: Mapping[int, float]) -> float:
    """The BM25 score: the inner product of the two sparse vectors."""
    return float(sum(weight * chunk.get(number, 0.0) for number, weight in query.items()))
