"""Does tuning the encoder find more? The same held-out questions before and after, dense and fused.

    python benchmarks/encoder_tuning.py --data PATH/obliqa --work /tmp/tuning --recipe configs/train/encoder.toml

The folder holds ``corpus.jsonl.gz`` (one passage a document) and ``questions.jsonl.gz`` (``gold_doc_ids``). Questions
that share a gold passage stand on one side; train and dev make the dataset, test is looked at once, at the end. A
passage counts as found at k when one of its chunks is among the best, each passage taken once. Intervals are paired:
they resample test questions and look at the difference. Every step is kept in ``--work`` and not done again.
Prints a table and writes benchmarks/results/encoder_tuning_NAME.json.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raft.artifacts import hash_file, read_manifest, read_rows, write_json, write_rows
from raft.config import ChunkingRecipe, EncoderRecipe, GenerateRecipe, TrainRecipe, load_recipe
from raft.dataset.build import generate_dataset
from raft.indexing.build import build_index
from raft.retrieval.index import Index, open_index
from raft.training.retrieval import tune

MODES = ("dense", "fused", "bm25")
SHARES = {"test": 0.43, "dev": 0.09}  # the rest is train
RESAMPLES = 10000


def split_questions(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, str]:
    """Question id -> split, drawn by a hash of the passages; questions that share one go together."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for row in rows:
        first, *others = row["gold_doc_ids"]
        for other in others:
            one, two = sorted((root(first), root(other)))
            parent[two] = one
    splits = {}
    for row in rows:
        digest = hashlib.sha256(f"{seed}/{root(row['gold_doc_ids'][0])}".encode()).digest()
        at = int.from_bytes(digest[:8], "big") / 2**64
        splits[row["id"]] = "test" if at < SHARES["test"] else "dev" if at < sum(SHARES.values()) else "train"
    return splits


def write_questions(data: Path, out: Path, seed: int) -> list[dict[str, Any]]:
    """The questions with their split, and their gold passages as evidence."""
    passages = {row["id"]: row["text"] for row in read_rows(data / "corpus.jsonl.gz")}
    rows = list(read_rows(data / "questions.jsonl.gz"))
    splits = split_questions(rows, seed)
    for row in rows:
        row["split"] = splits[row["id"]]
        row["evidence"] = [{"doc_id": name, "text": passages[name]} for name in row["gold_doc_ids"]]
    write_rows(out, rows)
    return rows


def ranked_passages(index: Index, questions: Sequence[str], mode: Any) -> list[list[str]]:
    """For each question the ten best passages, each once."""
    return [
        list(dict.fromkeys(hit.chunk.document_id for hit in hits))[:10] for hits in index.search(questions, 40, mode)
    ]


def recall(found: Sequence[str], gold: Sequence[str], k: int = 5) -> float:
    """Share of the gold passages among the first k."""
    return len(set(found[:k]) & set(gold)) / len(set(gold))


def ndcg(found: Sequence[str], gold: Sequence[str], k: int = 10) -> float:
    """nDCG@k with binary gains: Jarvelin and Kekalainen 2002, "Cumulated gain-based evaluation", section 2."""
    gain = sum(1 / math.log2(rank + 1) for rank, name in enumerate(found[:k], 1) if name in set(gold))
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(set(gold))) + 1))
    return gain / best


def measure(index: Index, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mode -> measure -> one value a question."""
    measured = {}
    for mode in MODES:
        ranked = ranked_passages(index, [row["question"] for row in rows], mode)
        pairs = [(found, row["gold_doc_ids"]) for found, row in zip(ranked, rows, strict=True)]
        measured[mode] = {
            "recall@5": [recall(found, gold) for found, gold in pairs],
            "ndcg@10": [ndcg(found, gold) for found, gold in pairs],
        }
    return measured


def compare(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Both means, their difference, and its 95 % interval by a paired bootstrap over questions."""
    old, new = np.array(before), np.array(after)
    drawn = np.random.default_rng(0).integers(len(old), size=(RESAMPLES, len(old)))
    differences = (new - old)[drawn].mean(axis=1)  # [resamples]
    low, high = np.quantile(differences, [0.025, 0.975])
    return {
        "before": float(old.mean()), "after": float(new.mean()), "difference": float((new - old).mean()),
        "interval": [float(low), float(high)], "better": int((new > old).sum()), "worse": int((new < old).sum()),
    }  # fmt: skip


def prepare(data: Path, work: Path, seed: int, encoder: str) -> list[dict[str, Any]]:
    """Questions, the index before tuning, and the dataset of its near misses."""
    work.mkdir(parents=True, exist_ok=True)
    rows = write_questions(data, work / "questions.jsonl", seed)
    if not (work / "before").exists():
        build_index(data / "corpus.jsonl.gz", work / "before", chunking=CHUNKING, encoder=EncoderRecipe(model=encoder))
    if not (work / "dataset").exists():
        settings = {
            "from_qa": work / "questions.jsonl", "seed": seed,
            "context": {"policy": "hard", "distractors": 4, "draws": 1, "questions_per_context": 1},
            "quality": {"max_answer_words": 10**6, "max_question_words": 1000, "min_answer_overlap": 0.0},
        }  # fmt: skip
        made = generate_dataset(GenerateRecipe.model_validate(settings), open_index(work / "before"), work / "dataset")
        print(f"dataset: {dict(made.questions)}, refused {dict(made.refused_by_rule)}", flush=True)
    return rows


CHUNKING = ChunkingRecipe.model_validate({"max_tokens": 200, "overlap_tokens": 20})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--name", default="tuned", help="of this training in --work")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    recipe = load_recipe(TrainRecipe, given.recipe, given.settings)
    rows = prepare(given.data, given.work, given.seed, recipe.model)
    tuned, after = given.work / given.name, given.work / f"after-{given.name}"
    if not tuned.exists():
        tune(recipe, given.work / "dataset", tuned, on_step=lambda *state: print(*state, flush=True), resume=True)
    if not after.exists():
        encoder = EncoderRecipe(model=str(tuned))
        build_index(given.data / "corpus.jsonl.gz", after, chunking=CHUNKING, encoder=encoder)
    asked = [row for row in rows if row["split"] == given.split]
    report(given, recipe, asked, tuned, after)


def report(
    given: argparse.Namespace, recipe: TrainRecipe, asked: Sequence[Mapping[str, Any]], tuned: Path, after: Path
) -> None:
    old, new = measure(open_index(given.work / "before"), asked), measure(open_index(after), asked)
    results = {mode: {name: compare(old[mode][name], new[mode][name]) for name in old[mode]} for mode in MODES}
    facts = read_manifest(tuned, recipe.objective).facts
    print(f"{len(asked)} {given.split} questions; trained on {facts['questions']}, {facts['steps']} steps")
    print("mode   measure   before  after   difference [95 % interval]   better worse")
    for mode, measures in results.items():
        for name, row in measures.items():
            low, high = row["interval"]
            print(
                f"{mode:6} {name:9} {row['before']:.4f}  {row['after']:.4f}  {row['difference']:+.4f} "
                f"[{low:+.4f}, {high:+.4f}]   {row['better']:5} {row['worse']:5}"
            )
    out = Path(__file__).parent / "results" / f"encoder_tuning_{given.data.resolve().name}_{given.split}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {
        "data": given.data.resolve().name, "questions_sha256": hash_file(given.data / "questions.jsonl.gz"),
        "seed": given.seed, "split": given.split, "questions": len(asked),
        "recipe": recipe.model_dump(mode="json", include={"objective", "model", "seed", "optim", "retrieval"}),
        "training": {key: facts[key] for key in ("questions", "steps", "before", "after", "seconds")},
        "results": results,
    })  # fmt: skip
    print(f"written: {out}")


if __name__ == "__main__":
    main()
