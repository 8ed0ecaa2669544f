"""Does the groundedness score of `raft evaluate` tell supported answers from unsupported ones better than their length?

    python benchmarks/groundedness.py --data PATH
    python benchmarks/groundedness.py --data PATH --model OWNER/NAME     # an entailment model beside the words

``--data`` holds ``halueval_qa`` (a right and a made-up answer a question) and ``healthver`` (claims beside a statement
that supports them or not). The answers are those of the test half of benchmarks/quality_gate.py, on which neither a
bound of the rules nor the form of the score was chosen; yes and no are left out there, and the score is not taken of
them. Made-up answers are longer than right ones in halueval_qa. Therefore a second area counts only pairs of a
supported and an unsupported answer with equally many words: length alone has 0.5 there.

Prints a table and writes benchmarks/results/groundedness.json: for each set and score the area under the ROC curve with
its 95 % percentile interval (1,000 resamples of whole clusters: rows that share a passage, a topic or a claim).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import RESULTS, machine
from quality_gate import CLAIMS, halves, read_claims
from quality_gate import Claim as Row

from raft.artifacts import write_json
from raft.dataset.entailment import load_entailment
from raft.dataset.grounding import words
from raft.evaluation.groundedness import Claim, entailed, lexical
from raft.evaluation.metrics import auroc

RESAMPLES = 1000


def shortness(row: Row) -> float:
    """Trivial: the fewer words, the better."""
    return 1 / (1 + len(words(row.answer)))


def word_overlap(row: Row) -> float:
    """Trivial: the share of the answer's words, stop words and all, that stand in the passage."""
    said = set(words(row.answer))
    return len(said & set(words(row.whole))) / len(said) if said else 0.0


def claim_of(row: Row) -> Claim:
    return Claim(row.question, row.answer, (row.whole,))


def equal_length_auroc(scores: Sequence[float], supported: Sequence[bool], lengths: Sequence[int]) -> float | None:
    """The area over pairs of equally long answers alone; None where there are no such pairs."""
    groups: dict[int, list[int]] = defaultdict(list)
    for at, length in enumerate(lengths):
        groups[length].append(at)
    won, pairs = 0.0, 0
    for group in groups.values():
        area = auroc([scores[at] for at in group], [supported[at] for at in group])
        good = sum(supported[at] for at in group)
        won += (area or 0.0) * good * (len(group) - good)
        pairs += good * (len(group) - good)
    return won / pairs if pairs else None


def measure(scores: Sequence[float], rows: Sequence[Row]) -> dict[str, Any]:
    """Both areas, each as [area, low, high], and None where a set has only one kind of answer."""
    import numpy as np

    supported, lengths = [row.supported for row in rows], [len(words(row.answer)) for row in rows]
    members: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        members[row.cluster].append(at)
    clusters = list(members.values())

    def areas(chosen: Sequence[int]) -> tuple[float | None, float | None]:
        part = [scores[at] for at in chosen], [supported[at] for at in chosen]
        return auroc(*part), equal_length_auroc(*part, [lengths[at] for at in chosen])

    rng = np.random.default_rng(0)
    drawn = [
        areas([at for which in rng.integers(len(clusters), size=len(clusters)) for at in clusters[which]])
        for _ in range(RESAMPLES)
    ]
    found: dict[str, Any] = {}
    for place, name in enumerate(("auroc", "auroc at equal length")):
        area, known = areas(range(len(rows)))[place], [draw[place] for draw in drawn if draw[place] is not None]
        bounds = np.percentile(known, [2.5, 97.5]).tolist() if known else []
        found[name] = None if area is None else [round(value, 3) for value in (area, *bounds)]
    return found


def measure_set(rows: Sequence[Row], model: str | None) -> dict[str, Any]:
    """The areas of every score on these answers."""
    claims = [claim_of(row) for row in rows]
    scores = {
        "length": [shortness(row) for row in rows],
        "word overlap": [word_overlap(row) for row in rows],
        "lexical": [lexical(claim) for claim in claims],
    }
    if model:
        scores["entailment"] = entailed(claims, load_entailment(model))
    counted = {"answers": len(rows), "supported": sum(row.supported for row in rows),
               "clusters": len({row.cluster for row in rows})}  # fmt: skip
    return counted | {name: measure(values, rows) for name, values in scores.items()}


def show(found: Mapping[str, Any]) -> None:
    """A line a set and score."""
    print(f"{'set':12} {'score':14} {'AUROC':22} {'at equal length':22}")
    for name in CLAIMS:
        for score, row in found[name].items():
            if isinstance(row, dict):
                cells = ["-" if area is None else "{:.3f} ({:.3f}-{:.3f})".format(*area) for area in row.values()]
                print(f"{name:12} {score:14} {cells[0]:22} {cells[1]:22}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--model", help="entailment model to measure too: hub id, folder, package:NAME")
    given = parser.parse_args()
    began = time.monotonic()
    found: dict[str, Any] = {
        name: measure_set(halves(read_claims(given.data / name))[1], given.model) for name in CLAIMS
    }
    found |= {"model": given.model, "machine": machine(), "seconds": round(time.monotonic() - began)}
    show(found)
    write_json(RESULTS / "groundedness.json", found)


if __name__ == "__main__":
    main()
