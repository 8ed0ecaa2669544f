"""Does tuning the encoder find more? The same held-out questions before and after, dense and fused.

    python benchmarks/encoder_tuning.py --data PATH/obliqa --work /tmp/tuning --recipe configs/train/encoder.toml
    python benchmarks/encoder_tuning.py ... --split test     # once, when everything is settled

The folder holds ``corpus.jsonl.gz`` (one passage a document) and ``questions.jsonl.gz`` (``gold_doc_ids``). Questions
that share a gold passage, directly or through others, are one cluster and stand on one side; train and dev make the
dataset. Dev questions choose the training's checkpoint too, so that dev shows more than test will. Rankings, measures
and statistics are those of raft evaluate retrieval: a passage stands where its best chunk stands, intervals and
p-values (sign flips) are of paired differences, and resample whole clusters.

Every step is kept in ``--work`` and not done again, in a folder named by the digest of all that it depends on: data,
seed and base model for questions, index and dataset, and the recipe with its settings for the training. Prints a table
and writes benchmarks/results/encoder_tuning_NAME_SPLIT.json.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raft.artifacts import digest, hash_file, read_manifest, write_json
from raft.config import ChunkingRecipe, EncoderRecipe, SearchMode, load_recipe
from raft.config_generate import GenerateRecipe
from raft.config_train import TrainRecipe
from raft.dataset.build import generate_dataset
from raft.evaluation import statistics
from raft.evaluation.ranking import RANK_DEPTH, Retriever, score_rankings, search_deep
from raft.indexing.build import build_index
from raft.models import model_fingerprint, resolve_encoder
from raft.retrieval.index import Index, open_index
from raft.rows import read_rows, write_rows
from raft.training.retrieval import tune

MODES: tuple[SearchMode, ...] = ("dense", "fused", "bm25")
MEASURES = ("recall@5", f"ndcg@{RANK_DEPTH}")
SHARES = {"test": 0.43, "dev": 0.09}  # the rest is train
CHUNKING = ChunkingRecipe.model_validate({"max_tokens": 200, "overlap_tokens": 20})
DATASET: Mapping[str, Any] = {
    "context": {"policy": "hard", "distractors": 4, "draws": 1, "questions_per_context": 1},
    "quality": {"max_answer_words": 10**6, "max_question_words": 1000, "min_answer_overlap": 0.0},
}
RESAMPLES = 10000


def clusters_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Question id -> its cluster; questions that share a passage go together."""
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
    return {row["id"]: root(row["gold_doc_ids"][0]) for row in rows}


def split_of(cluster: str, seed: int) -> str:
    """The split of a cluster's questions, drawn by a hash of its name."""
    drawn = hashlib.sha256(f"{seed}/{cluster}".encode()).digest()
    at = int.from_bytes(drawn[:8], "big") / 2**64
    return "test" if at < SHARES["test"] else "dev" if at < sum(SHARES.values()) else "train"


def write_questions(data: Path, out: Path, seed: int) -> list[dict[str, Any]]:
    """The questions with their cluster and split, and their gold passages as evidence."""
    passages = {row["id"]: row["text"] for row in read_rows(data / "corpus.jsonl.gz")}
    rows = list(read_rows(data / "questions.jsonl.gz"))
    clusters = clusters_of(rows)
    for row in rows:
        row["cluster"] = clusters[row["id"]]
        row["split"] = split_of(row["cluster"], seed)
        row["evidence"] = [{"doc_id": name, "text": passages[name]} for name in row["gold_doc_ids"]]
    write_rows(out, rows)
    return rows


def measure(index: Index, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mode -> measure -> one value a question."""
    questions, gold = [row["question"] for row in rows], [row["gold_doc_ids"] for row in rows]
    measured: dict[str, dict[str, list[float]]] = {}
    for mode in MODES:
        found = search_deep(Retriever(mode, "index", mode, index), questions, RANK_DEPTH)
        measured[mode] = score_rankings([ranking.documents for ranking in found], gold, [5])
    return measured


def compare(before: Sequence[float], after: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    """Both means, their difference with its 95 % interval, and its p-value, by cluster."""
    differences = statistics.paired_differences(after, before)
    interval = statistics.bootstrap_interval(differences, clusters, confidence=0.95, resamples=RESAMPLES, seed=0)
    return {
        "before": sum(before) / len(before), "after": sum(after) / len(after), "difference": asdict(interval),
        "p": statistics.sign_flip_p(differences, clusters, resamples=RESAMPLES, seed=0),
        "better": sum(value > 0 for value in differences), "worse": sum(value < 0 for value in differences),
    }  # fmt: skip


def folders(data: Path, work: Path, seed: int, recipe: TrainRecipe) -> tuple[Path, Path]:
    """Where questions, first index and dataset are kept, and where the training and its index."""
    files = [hash_file(data / name) for name in ("corpus.jsonl.gz", "questions.jsonl.gz")]
    base = model_fingerprint(resolve_encoder(recipe.model))
    made_of = digest([files, seed, recipe.model, base, SHARES, CHUNKING.model_dump(), DATASET])
    trained_by = digest([made_of, recipe.model_dump(mode="json", exclude={"out", "dataset"})])
    return work / f"data-{made_of[:12]}", work / f"tuned-{trained_by[:12]}"


def prepare(data: Path, folder: Path, seed: int, encoder: str) -> list[dict[str, Any]]:
    """Questions, the index before tuning, and the dataset of its near misses."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = write_questions(data, folder / "questions.jsonl", seed)
    if not (folder / "before").exists():
        recipe = EncoderRecipe(model=encoder)
        build_index(data / "corpus.jsonl.gz", folder / "before", chunking=CHUNKING, encoder=recipe)
    if not (folder / "dataset").exists():
        settings = GenerateRecipe.model_validate({"from_qa": folder / "questions.jsonl", "seed": seed, **DATASET})
        made = generate_dataset(settings, open_index(folder / "before"), folder / "dataset")
        print(f"dataset: {dict(made.questions)}, refused {dict(made.refused_by_rule)}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--split", choices=("dev", "test"), default="dev", help="of the questions that are asked")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    given = parser.parse_args()
    recipe = load_recipe(TrainRecipe, given.recipe, given.settings)
    if recipe.objective != "encoder":
        parser.error(f"the recipe's objective is {recipe.objective}; an encoder is tuned here")
    source, folder = folders(given.data, given.work, given.seed, recipe)
    rows = prepare(given.data, source, given.seed, recipe.model)
    tuned, after = folder / "encoder", folder / "after"
    folder.mkdir(parents=True, exist_ok=True)
    if not tuned.exists():
        tune(recipe, source / "dataset", tuned, on_step=lambda *state: print(*state, flush=True), resume=True)
    if not after.exists():
        encoder = EncoderRecipe(model=str(tuned))
        build_index(given.data / "corpus.jsonl.gz", after, chunking=CHUNKING, encoder=encoder)
    asked = [row for row in rows if row["split"] == given.split]
    if not asked:
        parser.error(f"no question of {given.data} falls into the split {given.split}")
    old, new = measure(open_index(source / "before"), asked), measure(open_index(after), asked)
    clusters = [row["cluster"] for row in asked]
    results = {mode: {name: compare(old[mode][name], new[mode][name], clusters) for name in MEASURES} for mode in MODES}
    report(given, recipe, len(asked), len(set(clusters)), read_manifest(tuned, "encoder").facts, results)


def report(
    given: argparse.Namespace, recipe: TrainRecipe, questions: int, clusters: int, facts: Mapping[str, Any],
    results: Mapping[Any, Mapping[str, Any]],
) -> None:  # fmt: skip
    print(f"{questions} {given.split} questions; trained on {facts['questions']}, {facts['steps']} steps")
    print("mode   measure   before  after   difference [95 % interval]      p      better worse")
    for mode, measures in results.items():
        for name, row in measures.items():
            mean, low, high = row["difference"].values()
            print(
                f"{mode:6} {name:9} {row['before']:.4f}  {row['after']:.4f}  {mean:+.4f} [{low or 0:+.4f}, "
                f"{high or 0:+.4f}]   {row['p']:.4f}   {row['better']:5} {row['worse']:5}"
            )
    out = Path(__file__).parent / "results" / f"encoder_tuning_{given.data.resolve().name}_{given.split}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {
        "data": given.data.resolve().name, "questions_sha256": hash_file(given.data / "questions.jsonl.gz"),
        "seed": given.seed, "split": given.split, "questions": questions, "clusters": clusters,
        "recipe": recipe.model_dump(mode="json", include={"objective", "model", "seed", "optim", "retrieval"}),
        "training": {key: facts[key] for key in ("questions", "steps", "before", "after", "seconds")},
        "results": results,
    })  # fmt: skip
    print(f"written: {out}")


if __name__ == "__main__":
    main()
