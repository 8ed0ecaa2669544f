"""Recall at clause level: does a search return a chunk that holds at least half of a gold span?

    python benchmarks/clause_recall.py --index indexes/cuad --questions PATH/questions.jsonl.gz

A question counts as answered at k when one of its first k hits holds at least half of any of its spans::

    {"id": "q1", "question": "...", "gold_spans": [{"doc_id": "cuad-01", "start": 29517, "end": 29682}]}

Questions without spans are left out and counted. Prints a table and writes benchmarks/results/clause_recall_NAME.json.
Intervals resample documents, not questions: the questions of one contract stand or fall together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raft.artifacts import hash_file, write_json
from raft.records import Chunk, Hit
from raft.retrieval.index import Index, open_index
from raft.rows import read_rows

CUTOFFS = (1, 5, 10)
MODES = ("dense", "bm25", "fused")
RESAMPLES = 2000


def holds_half(chunk: Chunk, span: Mapping[str, Any]) -> bool:
    """True when the chunk holds at least half of the span's characters."""
    shared = min(chunk.end, span["end"]) - max(chunk.start, span["start"])
    return chunk.document_id == span["doc_id"] and bool(2 * shared >= span["end"] - span["start"] > 0)


def first_rank(hits: Sequence[Hit], spans: Sequence[Mapping[str, Any]]) -> float:
    """The rank of the first hit that holds half of a span; infinity when none does."""
    return next((float(hit.rank) for hit in hits if any(holds_half(hit.chunk, span) for span in spans)), float("inf"))


def interval(found: np.ndarray, documents: Sequence[str]) -> tuple[float, float]:
    """95 % interval of the mean of ``found`` [questions], bootstrapped over documents."""
    names, of = np.unique(documents, return_inverse=True)
    hits, asked = np.bincount(of, weights=found), np.bincount(of)
    drawn = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    means = hits[drawn].sum(axis=1) / asked[drawn].sum(axis=1)  # [resamples]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def measure(index: Index, questions: Sequence[Mapping[str, Any]], mode: Any) -> dict[str, Any]:
    """Recall at each cutoff with its interval, and the seconds that the searches took."""
    began = time.monotonic()
    results = index.search([q["question"] for q in questions], max(CUTOFFS), mode)
    seconds = time.monotonic() - began
    ranks = np.array([first_rank(hits, q["gold_spans"]) for hits, q in zip(results, questions, strict=True)])
    documents = [q["gold_spans"][0]["doc_id"] for q in questions]
    recall = {
        f"recall@{k}": {"value": float((ranks <= k).mean()), "interval": interval(ranks <= k, documents)}
        for k in CUTOFFS
    }
    return {**recall, "seconds": round(seconds, 2)}


def reachable(index: Index, questions: Sequence[Mapping[str, Any]]) -> float:
    """Share of questions for which some chunk of the index holds half of a span: the best that a search can do."""
    of_document: dict[str, list[Chunk]] = {}
    for chunk in index.chunks:
        of_document.setdefault(chunk.document_id, []).append(chunk)
    found = [
        any(holds_half(chunk, span) for span in q["gold_spans"] for chunk in of_document.get(span["doc_id"], []))
        for q in questions
    ]
    return sum(found) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/clause_recall_INDEX.json")
    given = parser.parse_args()
    index = open_index(given.index)
    rows = list(read_rows(given.questions))
    questions = [row for row in rows if row.get("gold_spans")]
    if not questions:
        parser.error(f"{given.questions} has no question with gold_spans ({len(rows)} rows)")
    index.search([questions[0]["question"]], 1)  # loads the encoder before the clock starts
    report = {
        "index": {"fingerprint": index.fingerprint, "facts": dict(index.manifest.facts)},
        "questions": {
            "file": "/".join(given.questions.parts[-2:]), "sha256": hash_file(given.questions),
            "with_spans": len(questions), "without_spans": len(rows) - len(questions),
        },
        "reachable": reachable(index, questions),
        "modes": {mode: measure(index, questions, mode) for mode in MODES},
    }  # fmt: skip
    print_table(report)
    out = given.out or Path(__file__).parent / "results" / f"clause_recall_{given.index.resolve().name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, report)
    print(f"written: {out}")


def print_table(report: Mapping[str, Any]) -> None:
    counts = report["questions"]
    print(f"{counts['with_spans']} questions with spans ({counts['without_spans']} without, left out); ", end="")
    print(f"a chunk holds half of a span for {report['reachable']:.1%}")
    print("mode   " + "".join(f"  recall@{k:<17}" for k in CUTOFFS) + "  ms a query")
    for mode, result in report["modes"].items():
        cells = "".join(
            "  {value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]    ".format(**result[f"recall@{k}"]) for k in CUTOFFS
        )
        print(f"{mode:7}{cells}  {1000 * result['seconds'] / counts['with_spans']:.1f}")


if __name__ == "__main__":
    main()
