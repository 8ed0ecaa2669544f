"""One document in a hundred changes: what bringing the index up to date costs beside building it.

    python benchmarks/incremental_index.py --data PATH/scifact --data PATH/medquad --data PATH/obliqa --count 10000

Writes the documents of the sets as text files, runs ``raft index`` over them, changes 40 of 10,000 files in their
words, adds 30 and removes 30, and runs the same command again, both in processes of their own, from start to exit.
Then the changed folder is built anew elsewhere, and both indexes are asked the same questions. The update is divided by
the first build and by the one anew. The encoder is converted before the first clock starts: that is done once a
machine, as a download is. Writes benchmarks/results/incremental_index.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raft.config import EncoderRecipe
from raft.indexing.verify import verify_index
from raft.retrieval.encoder import Encoder
from raft.retrieval.index import Index, open_index

QUERIES = 500
_TOLERANCE = 1e-4  # scores: vectors of a text differ in the last digits with what was encoded beside it


def read_rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def write_files(sets: Sequence[Path], folder: Path, count: int) -> list[str]:
    """``count`` files, as even a share of each set as there is; returns the texts that were left over."""
    texts = [
        f"{row['title']}\n\n{row['text']}" if row.get("title") else row["text"]
        for data in sets
        for row in read_rows(data, "corpus")
    ]
    random.Random(0).shuffle(texts)
    for number, text in enumerate(texts[:count]):
        path = folder / f"{number // 100:03d}" / f"{number:06d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return texts[count:]


def change(folder: Path, spare: list[str], share: float) -> dict[str, int]:
    """Change, add and remove files, 4 : 3 : 3."""
    files = sorted(folder.rglob("*.txt"))
    draw = random.Random(1)
    touched = draw.sample(files, round(share * len(files)))
    changed, removed = touched[: round(0.4 * len(touched))], touched[round(0.7 * len(touched)) :]
    for path in changed:
        words = path.read_text(encoding="utf-8").split(" ")
        words.insert(len(words) // 2, "amended")
        path.write_text(" ".join(words), encoding="utf-8")
    for path in removed:
        path.unlink()
    added = len(touched) - len(changed) - len(removed)
    for number in range(added):
        (folder / f"new-{number}.txt").write_text(spare[number % len(spare)], encoding="utf-8")
    return {"changed": len(changed), "added": added, "removed": len(removed)}


def run_index(source: Path, out: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole command, and what it says."""
    began = time.monotonic()
    command = [sys.executable, "-m", "raft", "index", str(source), "--out", str(out), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.monotonic() - began, json.loads(done.stdout)


def same_results(updated: Index, fresh: Index, queries: Sequence[str]) -> dict[str, Any]:
    """How many queries get the same ten chunks, in the same order but for ties, with the same scores."""
    equal, largest = 0, 0.0
    for mode in ("fused", "dense", "bm25"):
        pairs = zip(updated.search(queries, 10, mode), fresh.search(queries, 10, mode), strict=True)  # type: ignore[arg-type]
        for ours, theirs in pairs:
            scores = [abs(a.score - b.score) for a, b in zip(ours, theirs, strict=True)]
            largest = max([largest, *scores])
            equal += {hit.chunk.id for hit in ours} == {hit.chunk.id for hit in theirs} and max(
                [0.0, *scores]
            ) < _TOLERANCE
    return {"asked": 3 * len(queries), "same": equal, "largest_score_difference": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of a public set")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--share", type=float, default=0.01)
    given = parser.parse_args()
    encoder = EncoderRecipe()
    Encoder.load(encoder.model, backend=encoder.backend, precision=encoder.precision)
    with tempfile.TemporaryDirectory() as scratch:
        source, out, fresh = Path(scratch) / "files", Path(scratch) / "index", Path(scratch) / "fresh"
        source.mkdir()
        spare = write_files(given.data, source, given.count)
        full_seconds, full = run_index(source, out)
        idle_seconds, _ = run_index(source, out)
        changes = change(source, spare, given.share)
        update_seconds, update = run_index(source, out)
        fresh_seconds, _ = run_index(source, fresh)
        asked = [row["question"] for data in given.data for row in read_rows(data, "questions")]
        queries = random.Random(2).sample(asked, min(QUERIES, len(asked)))
        updated, anew = open_index(out), open_index(fresh)
        row = {
            "documents": full["documents"], "chunks": full["chunks"], "changes": changes,
            "full_seconds": round(full_seconds, 1), "fresh_seconds": round(fresh_seconds, 1),
            "up_to_date_seconds": round(idle_seconds, 2), "update_seconds": round(update_seconds, 2),
            "update_over_full": round(update_seconds / full_seconds, 4),
            "update_over_fresh": round(update_seconds / fresh_seconds, 4),
            "encoded": update["encoded"], "parsed": update["parsed"],
            "same_corpus": updated.fingerprint == anew.fingerprint,
            "results": same_results(updated, anew, queries), "problems": list(verify_index(out).problems),
        }  # fmt: skip
    (Path(__file__).parent / "results" / "incremental_index.json").write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
