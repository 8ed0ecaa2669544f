"""A million chunks: how fast an index opens, searches and how much memory it takes, for each kind of FAISS index.

    python benchmarks/million_vectors.py --count 1000000 --work /tmp/million

The vectors are synthetic (384 dimensions, length 1): 4,000 topics, and around each the spread of a text encoder,
whose variance falls with the rank of its direction (power law), so that a vector has neighbours as texts do. Queries
are drawn in the same way and are none of the vectors. Vectors drawn evenly from the sphere (``--even``) have no
neighbours to speak of; no approximate index finds them quickly, and no encoder makes them. Chunks, documents and BM25
are real files of that size, with short texts of drawn words. Each kind is opened and searched in a process of its own;
opening includes the check of every byte. Writes benchmarks/results/million_vectors.json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
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
_BLOCK = 50_000


def draw_vectors(count: int, seed: int, even: bool = False) -> np.ndarray:
    """Unit vectors, float32 [count, 384]."""
    world = np.random.default_rng(0)
    spread = (np.arange(1, DIMENSION + 1) ** -0.5).astype(np.float32)  # standard deviation by direction
    turn = np.linalg.qr(world.normal(size=(DIMENSION, DIMENSION)))[0].astype(np.float32)
    topics = world.normal(size=(TOPICS, DIMENSION)).astype(np.float32) * spread
    draw = np.random.default_rng(seed)
    vectors = np.empty((count, DIMENSION), dtype=np.float32)
    for first in range(0, count, _BLOCK):
        block = vectors[first : first + _BLOCK]
        block[:] = draw.normal(size=block.shape)
        if not even:
            of = draw.integers(TOPICS, size=len(block))
            block[:] = (topics[of] + 0.7 * spread * block) @ turn
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


def write_index(out: Path, kind: Any, vectors: np.ndarray) -> dict[str, Any]:
    """A whole index artefact around the vectors; returns what building its dense part took and measured."""
    recipe = {"source": "synthetic", "encoder": EncoderRecipe().model_dump(), "chunking": ChunkingRecipe().model_dump()}
    with new_version(out, "index", recipe) as draft:
        began = time.monotonic()
        dense = DenseIndex.build(vectors, DenseRecipe(kind=kind))
        seconds = time.monotonic() - began
        dense.save(draft.folder)
        texts = [chunk.text for chunk in _chunks(len(vectors))]
        Bm25Index.build(texts).save(draft.folder)
        write_records(draft.folder, CHUNKS, _chunks(len(vectors)))
        write_records(draft.folder, DOCUMENTS, _documents(len(vectors)))
        owners = np.arange(len(vectors)) // PER_DOCUMENT
        write_facets(draft.folder, (facets_of(document) for document in _documents(len(vectors))), owners)
        np.save(draft.folder / KEYS, np.zeros((len(vectors), 16), dtype=np.uint8))
        draft.facts |= {"raft": raft.__version__, "labels": [], "dimension": DIMENSION, "encoder_fingerprint": ""}
    return {"build_seconds": round(seconds, 1), **dense.facts}


def _texts(count: int) -> Iterator[str]:
    draw = random.Random(1)
    words = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in ("", "n", "r", "st", "lo", "mi", "ra")]
    for number in range(count):
        yield f"{' '.join(draw.choices(words, k=12))} {number}."


def _chunks(count: int) -> Iterator[Chunk]:
    for number, text in enumerate(_texts(count)):
        document = f"document-{number // PER_DOCUMENT}"
        yield Chunk(f"{document}#{number % PER_DOCUMENT}", document, text, 0, len(text), document)


def _documents(count: int) -> Iterator[Document]:
    for number in range(-(-count // PER_DOCUMENT)):
        yield Document(f"document-{number}", "text", f"document-{number}", f"folder/{number}")


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
    lexical = []
    for number in range(0, 1000, 20):
        began = time.monotonic()
        index.search([f"bast {number}"], 10, "bm25")
        lexical.append(time.monotonic() - began)
    after = _memory()
    return {
        "open_seconds": round(opening, 3), "p50_ms": _ms(seconds, 50), "p99_ms": _ms(seconds, 99),
        "recall_at_10": round(float(recall), 4), "bm25_p50_ms": _ms(lexical, 50),
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
    results = {}
    for kind in given.kinds:
        out = given.work / kind
        built = write_index(out, kind, vectors)
        command = [sys.executable, __file__, "--probe", str(out), str(given.work)]
        probed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        dense_mb = round((next(out.glob("v*/dense.faiss"))).stat().st_size / 2**20)
        results[kind] = {
            "built": built, **probed, "dense_file_mb": dense_mb, "artefact_mb": round(size / 2**20),
        }  # fmt: skip
        print(json.dumps({kind: results[kind]}), flush=True)
    name = f"million_vectors{'_even' if given.even else ''}.json"
    row = {"count": given.count, "dimension": DIMENSION, "queries": QUERIES, "kinds": results}
    (Path(__file__).parent / "results" / name).write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
