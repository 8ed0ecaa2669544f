"""RAFT against its baselines on public sets: base RAG, few-shot RAG, DSF and DSF + RAG, and the paper's ablations.

    python benchmarks/raft_quality.py --data DATA --sets nq --seeds 0 1 2 --work W
    python benchmarks/raft_quality.py --data DATA --sets nq --seeds 0 --variants p100 p60 p40 no_thought fixed --work W
    python benchmarks/raft_quality.py --table
    python benchmarks/raft_quality.py --pairs --sets nq --work W

DATA holds a folder a set, with corpus.jsonl.gz and questions.jsonl.gz (split train and dev; a set without dev is cut
by document: every question whose document's digest is divisible by 4 goes to dev). All by raft's command line: one
index a set; a RAFT dataset of --train questions, and a LoRA adapter, for each variant and seed; DSF learns the same
questions without documents. Then the same --dev questions through every system, each given the same hits. Base systems
are asked once a set. Every finished row is written at once to benchmarks/results/raft_quality.json and never made
again, so that the tables may grow over several runs::

    {"rows": [{"set": "nq", "asked": 100, "variant": "raft", "seed": 0, "learned": 200, "train_seconds": 412.0,
               "system": "raft", "n": 100, "f1": [0.41, 0.33, 0.5], "em": [...], "accuracy": null, ...}]}

Variants, from the same questions: raft (P = 0.8, a refusal where the oracle is absent, thought and quotes, 2 to 4
distractors), refuse60 (the same with P = 0.6), p100, p80, p60, p40 (P = 1.0 and so on, an answer from memory where the
oracle is absent, as in the paper), no_thought (the bare answer over documents), fixed (3 distractors in every context).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from measure import RESULTS, machine

from raft.evaluation.statistics import bootstrap_interval, sign_flip_p

_MEMORY = 'context.oracle_absent="from_memory"'
_GENERATE: Mapping[str, tuple[str, ...]] = {
    "raft": (),
    "p100": ("context.oracle_fraction=1.0",),
    "p80": (_MEMORY, "context.oracle_fraction=0.8"),
    "p60": (_MEMORY, "context.oracle_fraction=0.6"),
    "p40": (_MEMORY, "context.oracle_fraction=0.4"),
    "refuse60": ("context.oracle_fraction=0.6",),
    "no_thought": ('context.reasoning="plain"',),
    "fixed": ("context.distractors=3",),
}
_COMMON = ("context.distractors=[2, 4]", "context.questions_per_context=4", "context.draws=2")
_TRAIN = ("optim.lr=1e-3", "optim.epochs=2", "optim.groups_per_step=2", "max_tokens=3072", "watch.every_steps=1000")
_ASK = ('split="dev"', "top_k=4", 'model.engine="auto"')
_LABELS = {"pubmedqa": ["yes", "no", "maybe"]}
_BASE = ("rag", "few_shot_rag")
_TITLES = {
    "rag": "RAG", "few_shot_rag": "few-shot RAG", "dsf": "DSF", "dsf_rag": "DSF + RAG", "raft": "RAFT",
}  # fmt: skip


class Table:
    """The rows found so far; each is on disk before the next is begun."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            self.rows = json.loads(path.read_text(encoding="utf-8"))["rows"]

    def lacks(self, **about: Any) -> bool:
        return not any(all(row.get(key) == value for key, value in about.items()) for row in self.rows)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += rows
        found = {"rows": self.rows, "machine": machine()}
        self.path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        for row in rows:
            print(json.dumps(row), file=sys.stderr, flush=True)


def raft(*words: object) -> None:
    """Run the command line; its errors end the benchmark."""
    subprocess.run([sys.executable, "-m", "raft", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def sets(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def prepare(data: Path, work: Path) -> tuple[Path, Path]:
    """(index, questions with a dev split) of a set."""
    work.mkdir(parents=True, exist_ok=True)
    index, questions = work / "index", work / "questions.jsonl"
    if not index.exists():
        raft("index", data / "corpus.jsonl.gz", "--out", index)
    with gzip.open(data / "questions.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    if not any(row["split"] == "dev" for row in rows):
        for row in rows:
            digest = hashlib.sha256(str(sorted(row["gold_doc_ids"])).encode()).digest()
            row["split"] = "dev" if digest[0] % 4 == 0 else "train"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return index, questions


def train(work: Path, index: Path, questions: Path, variant: str, seed: int, count: int) -> tuple[Path, float]:
    """(adapter, seconds of training) of a variant; "dsf" learns the questions of "raft" without documents."""
    kind = "raft" if variant == "dsf" else variant
    dataset, adapter = work / f"data-{kind}-{seed}-{count}", work / f"{variant}-{seed}-{count}"
    if not dataset.exists():
        raft("generate", "--index", index, "--from-qa", questions, "--out", dataset,
             *sets([f"seed={seed}", f"from_qa_limit={count}", 'from_qa_splits=["train"]', *_COMMON,
                    *_GENERATE[kind]]))  # fmt: skip
    own = ["documents=false"] if variant == "dsf" else []
    if not (adapter / "manifest.json").exists():
        raft("train", "--data", dataset, "--out", adapter, "--resume", *sets([f"seed={seed}", *_TRAIN, *own]))
    facts = json.loads((adapter / "manifest.json").read_text(encoding="utf-8"))["facts"]
    return adapter, float(facts["seconds"])


def ask(
    name: str, work: Path, index: Path, questions: Path, systems: Sequence[str], count: int, out: str, *more: object
) -> dict[str, Any]:
    """The figures of raft evaluate by system."""
    settings = [*_ASK, f"limit={count}", f"systems={json.dumps(list(systems))}"]
    if name in _LABELS:
        settings.append(f"answer_labels={json.dumps(_LABELS[name])}")
    if not (work / out / "manifest.json").exists():
        raft("evaluate", "--index", index, "--questions", questions, "--out", work / out, "--resume", *sets(settings),
             *more)  # fmt: skip
    report = json.loads((work / out / "report.json").read_text(encoding="utf-8"))
    return {row["system"]: row for row in report["systems"]}


def to_rows(found: Mapping[str, Any], **about: Any) -> list[dict[str, Any]]:
    def triple(value: Any) -> list[float | None] | None:
        return value and [value[key] and round(value[key], 4) for key in ("mean", "low", "high")]

    return [
        {
            **about, "system": system, "n": row["n"], "f1": triple(row["f1"]), "em": triple(row["em"]),
            "accuracy": row["labels"] and triple(row["labels"]["accuracy"]),
            "answer_seconds": round(row["seconds"], 1),
        }
        for system, row in found.items()
    ]  # fmt: skip


def run_set(name: str, given: argparse.Namespace, table: Table) -> None:
    work = given.work / name
    index, questions = prepare(given.data / name, work)
    about = {"set": name, "asked": given.dev}
    if table.lacks(**about, variant="base"):
        found = ask(name, work, index, questions, _BASE, given.dev, f"report-base-{given.dev}")
        table.add(to_rows(found, **about, variant="base", seed=0, learned=0))
    for seed in given.seeds:
        for variant in given.variants:
            run = {**about, "variant": variant, "seed": seed, "learned": given.train}
            if not table.lacks(**run):
                continue
            adapter, seconds = train(work, index, questions, variant, seed, given.train)
            option = "--dsf-adapter" if variant == "dsf" else "--adapter"
            systems = ("dsf", "dsf_rag") if variant == "dsf" else ("raft",)
            report = f"report-{adapter.name}-{given.dev}"
            found = ask(name, work, index, questions, systems, given.dev, report, option, adapter)
            table.add(to_rows(found, **run, train_seconds=round(seconds, 1)))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each set, variant and system: F1 and exact match over the seeds, mean and spread."""
    lines = ["| set | system | learned | seeds | n | F1 | EM | training, s |", "|---|---|---|---|---|---|---|---|"]
    kinds = ("set", "variant", "system", "learned", "asked")
    for key in dict.fromkeys(tuple(row[kind] for kind in kinds) for row in rows):
        same = [row for row in rows if tuple(row[kind] for kind in kinds) == key]
        name, variant, system, learned, _ = key
        title = _TITLES[system] + ("" if variant in ("base", "dsf", "raft") else f", {variant}")
        seconds = [row["train_seconds"] for row in same if "train_seconds" in row]
        took = f"{mean(seconds):.0f}" if seconds else "–"
        cells = (name, title, learned or "–", len(same), same[0]["n"], _shown(same, "f1"), _shown(same, "em"), took)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _shown(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    values = [row[metric][0] for row in rows]
    if len(values) > 1:
        return f"{mean(values):.3f} ± {stdev(values):.3f}"
    low, high = rows[0][metric][1:]
    return f"{values[0]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")


def pairs(name: str, given: argparse.Namespace) -> list[str]:
    """A line for each other system of a set whose report lies in its work folder: RAFT's F1 less its, on the same
    questions, with 95 % interval and p by source document. Of variants, theirs less RAFT's."""
    kept = {}
    for variant in ("base", "dsf", *_GENERATE):
        run = variant if variant == "base" else f"{variant}-{given.seeds[0]}-{given.train}"
        path = given.work / name / f"report-{run}-{given.dev}" / "report.json"
        report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"systems": []}
        for row in report["systems"]:
            f1 = {r["question_id"]: r["f1"] for r in report["results"] if r["system"] == row["system"]}
            clusters = {q["id"]: q["cluster"] for q in report["questions"]}
            kept[variant, row["system"]] = (f1, clusters)
    ours, clusters = kept.pop(("raft", "raft"))
    lines = []
    for (variant, system), (theirs, _) in kept.items():
        sign = -1 if variant in _GENERATE else 1
        deltas, where = [sign * (ours[i] - theirs[i]) for i in ours], [clusters[i] for i in ours]
        found = bootstrap_interval(deltas, where, confidence=0.95, resamples=2000, seed=0)
        p = sign_flip_p(deltas, where, resamples=2000, seed=0)
        title = f"{variant} - RAFT" if sign < 0 else f"RAFT - {_TITLES[system]}"
        lines.append(f"{name}: {title}: {found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}], p = {p:.4f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with a folder a set")
    parser.add_argument("--sets", nargs="+", default=["nq", "cuad", "pubmedqa", "hotpotqa"])
    parser.add_argument("--variants", nargs="+", default=["raft", "dsf"], choices=[*_GENERATE, "dsf"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=200, help="training questions")
    parser.add_argument("--dev", type=int, default=100, help="dev questions")
    parser.add_argument("--work", type=Path, help="folder for what is made, kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "raft_quality.json")
    parser.add_argument("--table", action="store_true", help="print the table of what was found, and stop")
    parser.add_argument("--pairs", action="store_true", help="print paired differences of the kept reports, and stop")
    given = parser.parse_args()
    if given.pairs:
        print("\n".join(line for name in given.sets for line in pairs(name, given)))
        return
    table = Table(given.out)
    if not given.table:
        if given.data is None or given.work is None:
            parser.error("give --data and --work, or --table")
        for name in given.sets:
            run_set(name, given, table)
    print(markdown(table.rows))


if __name__ == "__main__":
    main()
