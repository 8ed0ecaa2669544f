"""Which lexical search and which fusion find the most: one setting for all question sets.

    python benchmarks/fusion_study.py --data PATH --indexes DIR [--cache DIR]

``--data`` holds ``SET/questions.jsonl.gz``; ``--indexes`` the indexes of ``raft index PATH/SET/corpus.jsonl.gz --out
DIR/SET``. Chunks and vectors are kept in ``--cache`` as SET.jsonl and SET.npy, so that the study can be repeated
without the indexes. A question belongs to the half in which settings are chosen when the sha256 of its id is even,
and to the half that is reported when it is odd. One line of the table::

    cosine + 0.6 bm25f    .678 / .785   .695 / .744 ...      nDCG@10 / recall@5 on each set

By document, except for CUAD: there a clause is found by a chunk that holds at least half of one of its spans.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raft.artifacts import read_manifest, write_json
from raft.evaluation.ranking import passage_ranking, score_rankings
from raft.evaluation.statistics import bootstrap_interval, paired_differences
from raft.records import Chunk, chunk_from_row, to_row
from raft.retrieval.bm25 import K1, TITLE_WEIGHT, Bm25Index, title_of, top, weights_of
from raft.retrieval.fusion import LEXICAL_WEIGHT, fuse, sample_positions, spread_of
from raft.retrieval.index import search_text
from raft.rows import read_rows, write_rows

SETS: Mapping[str, tuple[str, ...]] = {
    "merged": ("pubmedqa", "medquad", "scifact"),
    "scifact": ("scifact",),
    "obliqa": ("obliqa",),
    "cuad": ("cuad",),
    "nq": ("nq",),
}
BY_CLAUSE = ("cuad",)
MEASURES = ("ndcg@10", "recall@5")
DEPTH = 100  # candidates of each retriever
WEIGHTS = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
CHOSEN = f"cosine + {LEXICAL_WEIGHT} bm25f"

Row = Mapping[str, Any]
Candidates = Mapping[int, tuple[float, float]]
Fusion = Callable[[Candidates, float], Sequence[int]]
"""Positions in order, from the candidates' exact scores and the spread of the query's cosines."""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one set over its corpus. ``cosines`` and the scores of each lexical search are [questions,
    chunks]; ``wanted`` holds for each question the ids of its documents, or of the chunks of its clause."""

    name: str
    chunks: Sequence[Chunk]
    questions: Sequence[Row]
    cosines: np.ndarray
    bm25: Mapping[str, np.ndarray]
    wanted: Sequence[frozenset[str]]

    def half(self, number: int) -> list[int]:
        return [
            n
            for n, q in enumerate(self.questions)
            if int(hashlib.sha256(q["id"].encode()).hexdigest(), 16) % 2 == number
        ]

    def scores(self, rankings: Sequence[Sequence[int]]) -> dict[str, list[float]]:
        """nDCG@10 and recall@5 of each question's ranking of chunks."""
        if self.name in BY_CLAUSE:
            clauses = [
                passage_ranking([self.chunks[i].id for i in r], [w]) for r, w in zip(rankings, self.wanted, strict=True)
            ]
            return score_rankings(clauses, [{0}] * len(clauses), [5])
        documents = [list(dict.fromkeys(self.chunks[i].document_id for i in ranking)) for ranking in rankings]
        return score_rankings(documents, self.wanted, [5])


def load_set(name: str, data: Path, indexes: Path | None, cache: Path) -> QuestionSet:
    chunks: list[Chunk] = []
    questions: list[Row] = []
    vectors = []
    for part in SETS[name]:
        if not (cache / f"{part}.npy").exists():
            _fill_cache(part, indexes, cache)
        chunks += map(chunk_from_row, read_rows(cache / f"{part}.jsonl"))
        vectors.append(np.load(cache / f"{part}.npy"))
        needed = "gold_spans" if name in BY_CLAUSE else "gold_doc_ids"
        questions += [row for row in read_rows(data / part / "questions.jsonl.gz") if row.get(needed)]
    asked = _encode([q["question"] for q in questions], cache / f"{name}.questions.npy")
    wanted = [_clause(q, chunks) if name in BY_CLAUSE else frozenset(q["gold_doc_ids"]) for q in questions]
    return QuestionSet(name, chunks, questions, asked @ np.concatenate(vectors).T, _lexical(chunks, questions), wanted)


def _fill_cache(part: str, indexes: Path | None, cache: Path) -> None:
    from raft.retrieval.dense import DenseIndex
    from raft.retrieval.index import open_index

    if indexes is None:
        raise SystemExit(f"{cache} lacks {part}.npy: give --indexes")
    index = open_index(indexes / part)
    dense = DenseIndex.load(indexes / part / read_manifest(indexes / part, "index").version)
    write_rows(cache / f"{part}.jsonl", map(to_row, index.chunks))
    np.save(cache / f"{part}.npy", dense.vectors(np.arange(len(dense))))


def _encode(texts: Sequence[str], path: Path) -> np.ndarray:
    if not path.exists():
        from raft.config import DEFAULT_ENCODER
        from raft.retrieval.encoder import Encoder

        np.save(path, Encoder.load(DEFAULT_ENCODER).encode_documents(texts))  # in batches of like length; no prompts
    vectors: np.ndarray = np.load(path)
    return vectors


def _clause(question: Row, chunks: Sequence[Chunk]) -> frozenset[str]:
    spans = [(s["doc_id"], s["start"], s["end"]) for s in question["gold_spans"]]
    return frozenset(
        c.id for c in chunks for d, start, end in spans
        if c.document_id == d and 2 * (min(c.end, end) - max(c.start, start)) >= end - start
    )  # fmt: skip


def _lexical(chunks: Sequence[Chunk], questions: Sequence[Row]) -> dict[str, np.ndarray]:
    """The scores of the lexical searches compared: BM25 over title and text as one (as bm25s has it by default), and
    BM25F, with other weights of the title and with the first one's constants."""
    plain = Bm25Index.build([search_text(chunk) for chunk in chunks])
    fielded = Bm25Index.build([chunk.text for chunk in chunks], [title_of(chunk) for chunk in chunks])
    made = {
        "bm25": _reweighted(plain, k1=1.5), "bm25f": fielded, "bm25f title 2": _reweighted(fielded, title_weight=2.0),
        "bm25f title 10": _reweighted(fielded, title_weight=10.0), "bm25f k1 1.5": _reweighted(fielded, k1=1.5),
    }  # fmt: skip
    return {name: np.stack([index.scores(q["question"]) for q in questions]) for name, index in made.items()}


def _reweighted(index: Bm25Index, k1: float = K1, title_weight: float = TITLE_WEIGHT) -> Bm25Index:
    holding = np.diff(index.columns)
    weights = weights_of(index.mentions, index.rows, holding, index.lengths, k1, title_weight)
    return replace(index, weights=weights)


def fusions() -> Iterator[tuple[str, str, Fusion]]:
    """Name, lexical search and rule of every fusion compared."""
    yield "rrf 60, bm25", "bm25", lambda found, spread: _rrf(found, 60)
    yield "rrf 60, bm25f", "bm25f", lambda found, spread: _rrf(found, 60)
    yield "rrf 10, bm25f", "bm25f", lambda found, spread: _rrf(found, 10)
    for weight in (0.2, 0.3, 0.4, 0.5):  # of BM25; Bruch et al. 2023, TM2C2
        yield f"tm2c2 {weight}, bm25f", "bm25f", lambda found, spread, w=weight: _convex(found, w, _from_least)
    for weight in (0.3, 0.4, 0.5, 0.6):
        yield f"z-score {weight}, bm25f", "bm25f", lambda found, spread, w=weight: _convex(found, w, _z)
    for weight in WEIGHTS:
        yield f"cosine + {weight} bm25f", "bm25f", lambda found, spread, w=weight: _weighted(found, spread, w)
    yield f"cosine + {LEXICAL_WEIGHT} bm25", "bm25", lambda found, spread: _weighted(found, spread, LEXICAL_WEIGHT)


def _rrf(found: Candidates, k: int) -> list[int]:
    """Cormack, Clarke and Buettcher 2009, "Reciprocal rank fusion outperforms Condorcet", SIGIR."""
    orders = [sorted(found, key=lambda n, part=part: (-found[n][part], n))[:DEPTH] for part in (0, 1)]
    sums: dict[int, float] = {}
    for ranking in orders:
        for rank, n in enumerate(ranking, 1):
            sums[n] = sums.get(n, 0.0) + 1.0 / (k + rank)
    return sorted(sums, key=lambda n: (-sums[n], n))


def _convex(found: Candidates, weight: float, scaled: Callable[[np.ndarray, float], np.ndarray]) -> list[int]:
    positions, both = list(found), np.array(list(found.values()))
    sums = (1 - weight) * scaled(both[:, 0], -1.0) + weight * scaled(both[:, 1], 0.0)
    return [positions[i] for i in np.argsort(-sums, kind="stable")]


def _from_least(scores: np.ndarray, least: float) -> np.ndarray:
    scaled: np.ndarray = (scores - least) / max(scores.max() - least, 1e-9)
    return scaled


def _z(scores: np.ndarray, least: float) -> np.ndarray:
    scaled: np.ndarray = (scores - scores.mean()) / max(scores.std(), 1e-9)
    return scaled


def _weighted(found: Candidates, spread: float, weight: float) -> list[int]:
    return [n for n, _ in fuse(found, spread * weight / LEXICAL_WEIGHT, len(found))]


def measure(asked: QuestionSet) -> dict[str, dict[str, list[float]]]:
    """The scores of every question under every retriever and fusion."""
    dense = [np.argsort(-row, kind="stable")[:DEPTH] for row in asked.cosines]
    sample = sample_positions(len(asked.chunks))
    spreads = [spread_of(row[sample]) for row in asked.cosines]
    results = {"dense": asked.scores([row.tolist() for row in dense])}
    ranked = {name: [[n for n, _ in top(row, DEPTH)] for row in scores] for name, scores in asked.bm25.items()}
    results |= {name: asked.scores(rankings) for name, rankings in ranked.items()}
    for name, source, rule in fusions():
        fused = []
        for n, row in enumerate(asked.cosines):
            both = sorted({*dense[n].tolist(), *ranked[source][n]})
            found = {i: (float(row[i]), float(asked.bm25[source][n, i])) for i in both}
            fused.append(rule(found, spreads[n]))
        results[name] = asked.scores(fused)
    return results


def gains(asked: QuestionSet, results: Mapping[str, Mapping[str, Sequence[float]]], half: int) -> dict[str, Any]:
    """The chosen fusion minus the better of dense and BM25F, and of dense and BM25, with 95 % intervals."""
    kept = asked.half(half)
    clusters = [(asked.questions[n].get("gold_doc_ids") or [asked.questions[n]["id"]])[0] for n in kept]
    found = {}
    for singles in (("dense", "bm25f"), ("dense", "bm25")):
        for measure_name in MEASURES:
            of = {name: [results[name][measure_name][n] for n in kept] for name in (CHOSEN, *singles)}
            best = max(singles, key=lambda name: sum(of[name]))
            differences = paired_differences(of[CHOSEN], of[best])
            drawn = bootstrap_interval(differences, clusters, confidence=0.95, resamples=2000, seed=0)
            found[f"{measure_name} over the better of {' and '.join(singles)}"] = {"over": best, **to_row(drawn)}
    return found


def print_table(report: Mapping[str, Any], half: str) -> None:
    names = list(report["sets"])
    print(f"\n{half} half: nDCG@10 / recall@5\n{'':24}" + "".join(f"{name:18}" for name in names) + "mean nDCG")
    for method in report["sets"][names[0]][half]:
        cells = [report["sets"][name][half][method] for name in names]
        mean = sum(cell["ndcg@10"] for cell in cells) / len(cells)
        print(f"{method:24}" + "".join(f"{c['ndcg@10']:.4f} / {c['recall@5']:.4f}   " for c in cells) + f"{mean:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--indexes", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/fusion-study"))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fusion_study.json")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"chosen": CHOSEN, "depth": DEPTH, "sets": {}}
    for name in given.sets:
        asked = load_set(name, given.data, given.indexes, given.cache)
        results = measure(asked)
        row: dict[str, Any] = {"questions": len(asked.questions), "chunks": len(asked.chunks)}
        for half, kept in (("choosing", asked.half(0)), ("reported", asked.half(1))):
            row[half] = {
                method: {m: sum(scores[m][n] for n in kept) / len(kept) for m in MEASURES}
                for method, scores in results.items()
            }
        report["sets"][name] = row | {"gains": gains(asked, results, half=1)}
        print(f"{name}: {row['questions']} questions, {row['chunks']} chunks", flush=True)
        print(json.dumps(report["sets"][name]["gains"], indent=1), flush=True)
    for half in ("choosing", "reported"):
        print_table(report, half)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, report)
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
