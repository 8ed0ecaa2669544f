"""A million chunks: how fast an index opens, searches and how much memory it takes, for each kind of FAISS index.

    python benchmarks/million_vectors.py --count 1000000 --work /tmp/million

The vectors are synthetic (384 dimensions, length 1): what all texts share, 4,000 topics, and around each the spread of
a text encoder, whose variance falls with the rank of its direction (power law), so that a vector has neighbours as
texts do. Queries are drawn in the same way and are none of the vectors. Beside all-MiniLM-L6-v2 on 12,217 chunks of
SciFact (1,500 of them for the dimension, the participation ratio of the centred vectors):

    standard deviation of a query's cosines   drawn 0.099   MiniLM 0.103   (ObliQA 0.085)
    effective dimension                       drawn 67      MiniLM 68      (ObliQA 65)

The report holds both numbers of the vectors it measured. Vectors drawn evenly from the sphere (``--even``) have no
neighbours to speak of; no approximate index finds them quickly, and no encoder makes them.

Chunks, documents and BM25 are real files of that size: 120 words a chunk, drawn by Zipf's law (Mandelbrot's form,
without what would be stopwords) from 200,000. They are made once and linked into the index of each kind. Queries of
8 such words are searched lexically, and fused with a drawn vector that stands in for the encoder's: the encoder's
time is left out. Each kind is opened and searched in a process of its own, one query at a time; opening includes the
check of every byte. Writes benchmarks/results/million_vectors.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import raft
from raft.config import ChunkingRecipe, DenseRecipe, EncoderRecipe
from raft.corpus.store import CHUNKS, DOCUMENTS, write_records
from raft.indexing.previous import KEYS
from raft.records import Chunk, Document
from raft.retrieval.bm25 import Bm25Index
from raft.retrieval.dense import DenseIndex
from raft.retrieval.filters import facets_of, write_facets
from raft.versions import new_version

KINDS = ("flat", "hnsw", "ivf_sq", "ivf_pq")
DIMENSION = 384
TOPICS = 4000
PER_DOCUMENT = 10
QUERIES = 500
WORDS = 200_000
WORDS_PER_CHUNK = 120
WORDS_PER_QUERY = 8
_FALL = 0.4  # of the standard deviation, with the rank of its direction
_WITHIN = 0.85  # spread within a topic, the topics' own being 1
_COMMON = 0.4  # length of what all texts share, beside about 1
_BLOCK = 50_000


def draw_vectors(count: int, seed: int, even: bool = False) -> np.ndarray:
    """Unit vectors, float32 [count, 384]."""
    world = np.random.default_rng(0)
    spread = (np.arange(1, DIMENSION + 1) ** -_FALL).astype(np.float32)  # standard deviation by direction
    spread /= np.linalg.norm(spread)
    turn = np.linalg.qr(world.normal(size=(DIMENSION, DIMENSION)))[0].astype(np.float32)
    topics = world.normal(size=(TOPICS, DIMENSION)).astype(np.float32) * spread
    common = world.normal(size=DIMENSION).astype(np.float32)
    common *= _COMMON / np.linalg.norm(common)
    draw = np.random.default_rng(seed)
    vectors = np.empty((count, DIMENSION), dtype=np.float32)
    for first in range(0, count, _BLOCK):
        block = vectors[first : first + _BLOCK]
        block[:] = draw.normal(size=block.shape)
        if not even:
            of = draw.integers(TOPICS, size=len(block))
            around = (topics[of] + _WITHIN * spread * block) / np.float32(np.hypot(1, _WITHIN))
            block[:] = (common + around) @ turn
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


def shape_of(vectors: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """Standard deviation of a query's cosines, and the participation ratio (sum of the eigenvalues of the covariance,
    squared, over the sum of their squares), which says over how many directions the vectors spread."""
    sample = vectors[: 20 * _BLOCK : max(1, len(vectors) // 1500)][:1500]
    values = np.linalg.eigvalsh(np.cov(sample.T))
    return {
        "cosine_sd": round(float((queries[:100] @ vectors[:_BLOCK].T).std(axis=1).mean()), 4),
        "effective_dimension": round(float(values.sum() ** 2 / (values**2).sum()), 1),
    }


def write_texts(folder: Path, count: int) -> None:
    """The files of an index that do not depend on its vectors."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        words = pool.submit(write_words, folder, count)
        write_records(folder, CHUNKS, _chunks(count))
        words.result()
    write_records(folder, DOCUMENTS, _documents(count))
    owners = np.arange(count) // PER_DOCUMENT
    write_facets(folder, (facets_of(document) for document in _documents(count)), owners)
    np.save(folder / KEYS, np.zeros((count, 16), dtype=np.uint8))


def write_words(folder: Path, count: int) -> None:
    Bm25Index.build([*draw_texts(count, WORDS_PER_CHUNK, 1)]).save(folder)


def write_index(out: Path, kind: Any, vectors: np.ndarray, texts: Path) -> dict[str, Any]:
    """A whole index artefact around the vectors; returns what building its dense part took and measured."""
    recipe = {"source": "synthetic", "encoder": EncoderRecipe().model_dump(), "chunking": ChunkingRecipe().model_dump()}
    with new_version(out, "index", recipe) as draft:
        began = time.monotonic()
        dense = DenseIndex.build(vectors, DenseRecipe(kind=kind))
        seconds = time.monotonic() - began
        dense.save(draft.folder)
        for path in texts.rglob("*"):
            if path.is_file():
                target = draft.folder / path.relative_to(texts)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, target)
        draft.facts |= {"raft": raft.__version__, "labels": [], "dimension": DIMENSION, "encoder_fingerprint": ""}
    return {"build_seconds": round(seconds, 1), **dense.facts}


def draw_texts(count: int, length: int, seed: int) -> Iterator[str]:
    """Texts of so many words, drawn by Zipf's law."""
    syllables = [a + b + c for a in "bdfklmnprst" for b in "aeiou" for c in ("", "n")][:59]
    names = ["".join(syllables[at // 59**power % 59] for power in (0, 1, 2)) for at in range(WORDS)]
    bounds = np.cumsum(1 / (np.arange(1, WORDS + 1) + 10))
    draw = np.random.default_rng(seed)
    for first in range(0, count, 5000):
        drawn = np.searchsorted(bounds, bounds[-1] * draw.random((min(5000, count - first), length)))
        for row in drawn.tolist():
            yield " ".join([names[at] for at in row])


def _chunks(count: int) -> Iterator[Chunk]:
    for number, text in enumerate(draw_texts(count, WORDS_PER_CHUNK, 1)):
        document = f"document-{number // PER_DOCUMENT}"
        yield Chunk(f"{document}#{number % PER_DOCUMENT}", document, text, 0, len(text), document)


def _documents(count: int) -> Iterator[Document]:
    for number in range(-(-count // PER_DOCUMENT)):
        yield Document(f"document-{number}", "text", f"document-{number}", f"folder/{number}")


class Drawn:
    """In the encoder's place: it gives the drawn vector that is set, in no time."""

    vector: np.ndarray

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        return self.vector


def search_texts(index: Any, vectors: np.ndarray, mode: str) -> list[float]:
    """Seconds of each search of the open index."""
    encoder = index._encoder = Drawn()
    seconds = []
    for vector, text in zip(vectors, draw_texts(len(vectors), WORDS_PER_QUERY, 3), strict=True):
        encoder.vector = vector[None]
        began = time.monotonic()
        index.search([text], 10, mode)
        seconds.append(time.monotonic() - began)
    return seconds


def probe(index_path: Path, work: Path) -> dict[str, Any]:
    """Open the index and search it, one query at a time, as an endpoint does."""
    import faiss

    from raft.retrieval.index import open_index

    faiss.IndexFlatIP(1)  # imports are not part of the opening
    before = _memory()
    began = time.monotonic()
    index = open_index(index_path)
    opening = time.monotonic() - began
    queries, truth = np.load(work / "queries.npy"), np.load(work / "truth.npy")
    dense = index._dense
    seconds, found = [], []
    for query in queries:
        began = time.monotonic()
        found.append([position for position, _ in dense.search(query[None], 10)[0]])
        seconds.append(time.monotonic() - began)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth.tolist(), strict=True)])
    lexical = search_texts(index, queries[:200], "bm25")
    fused = search_texts(index, queries[:200], "fused")
    after = _memory()
    return {
        "open_seconds": round(opening, 3), "p50_ms": _ms(seconds, 50), "p99_ms": _ms(seconds, 99),
        "recall_at_10": round(float(recall), 4), "bm25_p50_ms": _ms(lexical, 50),
        "bm25_p99_ms": _ms(lexical, 99), "fused_p50_ms": _ms(fused, 50), "fused_p99_ms": _ms(fused, 99),
        "memory_mb": round((after["RssAnon"] - before["RssAnon"]) / 1024),
        "mapped_mb": round((after["RssFile"] - before["RssFile"]) / 1024),
    }  # fmt: skip


def _ms(seconds: list[float], percentile: int) -> float:
    return round(float(np.percentile(seconds, percentile)) * 1000, 2)


def _memory() -> dict[str, int]:
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if row[0] in ("RssAnon:", "RssFile:")}


def main() -> None:
    if sys.argv[1:2] == ["--probe"]:
        print(json.dumps(probe(Path(sys.argv[2]), Path(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, required=True, help="folder for some gigabytes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--even", action="store_true", help="vectors drawn evenly from the sphere")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    import faiss

    vectors, queries = draw_vectors(given.count, 1, given.even), draw_vectors(QUERIES, 2, given.even)
    np.save(given.work / "queries.npy", queries)
    np.save(given.work / "truth.npy", faiss.knn(queries, vectors, 10, metric=faiss.METRIC_INNER_PRODUCT)[1])
    began = time.monotonic()
    write_texts(given.work / "texts", given.count)
    row: dict[str, Any] = {
        "count": given.count, "dimension": DIMENSION, "queries": QUERIES, **shape_of(vectors, queries),
        "texts_seconds": round(time.monotonic() - began, 1), "kinds": {},
    }  # fmt: skip
    results = row["kinds"]
    for kind in given.kinds:
        out = given.work / kind
        built = write_index(out, kind, vectors, given.work / "texts")
        command = [sys.executable, __file__, "--probe", str(out), str(given.work)]
        probed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        dense_mb = round((next(out.glob("v*/dense.faiss"))).stat().st_size / 2**20)
        results[kind] = {
            "built": built, **probed, "dense_file_mb": dense_mb, "artefact_mb": round(size / 2**20),
        }  # fmt: skip
        print(json.dumps({kind: results[kind]}), flush=True)
    name = f"million_vectors{'_even' if given.even else ''}.json"
    (Path(__file__).parent / "results" / name).write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
