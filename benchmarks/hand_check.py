"""Draw questions of a dataset for a reader, and count what the reader found.

    python benchmarks/hand_check.py draw runs/datasets/mine --count 50 --out sheet.jsonl
    python benchmarks/hand_check.py count sheet.jsonl

Each row of the sheet holds question, answer, quotes and the whole oracle chunk. The reader, who did not write them,
adds three verdicts to each, and a note where one is false:

    correct    from the chunk, the answer is the right one to the question as it is asked: a condition, an exception or
               the side of a bound that the question lacks or turns round makes it false
    grounded   the quotes by themselves bear the answer out
    clear      who has all documents at hand, and not this chunk, can tell what is asked about

``count`` prints how many rows are correct and grounded, with a 95 % Wilson interval, and each verdict by itself::

    {"read": 50, "correct_and_grounded": 46, "interval": [0.81, 0.97], "correct": 46, "grounded": 49, "clear": 48}
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

VERDICTS = ("correct", "grounded", "clear")


def draw(dataset: Path, count: int, seed: int) -> list[dict[str, object]]:
    from raft.rows import read_rows

    chunks = {row["id"]: row for row in read_rows(dataset / "chunks.jsonl")}
    questions = sorted(read_rows(dataset / "questions.jsonl"), key=lambda row: str(row["id"]))
    rows = []
    for item in random.Random(seed).sample(questions, min(count, len(questions))):
        oracles = list(dict.fromkeys(quote["chunk_id"] for quote in item["quotes"]))
        rows.append(
            {"id": item["id"], "question": item["question"], "answer": item["answer"]}
            | {"quotes": [quote["text"] for quote in item["quotes"]]}
            | {"chunks": [{"title": chunks[name]["title"], "text": chunks[name]["text"]} for name in oracles]}
        )
    return rows


def tally(rows: list[dict[str, object]]) -> dict[str, object]:
    from scipy.stats import binomtest

    unread = [row["id"] for row in rows if any(not isinstance(row.get(name), bool) for name in VERDICTS)]
    if unread:
        sys.exit(f"{len(unread)} rows lack a verdict, the first is {unread[0]}; expected true or false for {VERDICTS}")
    good = sum(bool(row["correct"] and row["grounded"]) for row in rows)
    interval = binomtest(good, len(rows)).proportion_ci(method="wilson")
    return {
        "read": len(rows),
        "correct_and_grounded": good,
        "interval": [round(interval.low, 3), round(interval.high, 3)],
        **{name: sum(bool(row[name]) for row in rows) for name in VERDICTS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("dataset", type=Path)
    drawing.add_argument("--count", type=int, default=50)
    drawing.add_argument("--seed", type=int, default=0)
    drawing.add_argument("--out", type=Path, required=True)
    counting = commands.add_parser("count")
    counting.add_argument("sheet", type=Path)
    given = parser.parse_args()
    if given.command == "draw":
        rows = draw(given.dataset, given.count, given.seed)
        given.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = given.sheet.read_text(encoding="utf-8").splitlines()
        print(json.dumps(tally([json.loads(line) for line in lines])))


if __name__ == "__main__":
    main()
