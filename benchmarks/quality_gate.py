"""What do the rules of the quality gate catch, and what do they throw away? Supported and unsupported answers, told
apart by each rule.

    python benchmarks/quality_gate.py --data PATH
    python benchmarks/quality_gate.py --data PATH --model OWNER/NAME     # an entailment model beside the rules
    python benchmarks/quality_gate.py --data PATH --judge MODEL.gguf     # a judge beside them, on a sample

``--data`` holds ``halueval_qa`` (a right and a made-up answer a question), ``healthver`` (claims beside a statement
that supports them or not) and, for rows that nothing is wrong with, ``squad``, ``nq`` and ``hotpotqa``; ``cuad`` and
``medquad`` are looked through for personal data. Rows that share a passage, a claim or a topic are one cluster; whole
clusters stand in the tuning or in the test half. Bounds are chosen on the first alone, and every number is of the
second. Made-up answers are longer than right ones in halueval_qa, so that length alone is measured beside the rules.

Prints a table and writes benchmarks/results/quality_gate.json: how many of the answers that a rule refuses are
unsupported (precision), how many of the unsupported it refuses (recall), how many of the supported it keeps (kept),
each with its 95 % interval (Wilson 1927), and the area under the ROC curve with its cluster bootstrap.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measure import RESULTS, machine

from raft.artifacts import write_json
from raft.dataset.entailment import load_entailment
from raft.dataset.grounding import GroundedQuestion, Passage, best_sentence, content_words, words
from raft.dataset.judge import JUDGE_SCHEMA, judge_messages, parse_verdict
from raft.dataset.pii import pii_kinds
from raft.dataset.quality import form_faults, support_faults
from raft.dataset.support import has_names, has_numbers, support
from raft.llm.chat import ChatRequest
from raft.llm.open import open_chat_model
from raft.rows import read_rows

CLAIMS = ("halueval_qa", "healthver")
RESAMPLES = 1000
BOUNDS = [n / 20 for n in range(1, 21)]
DEFAULT_BOUND = 0.5
_NO_QUESTION = "Which statement do the documents bear out?"  # healthver has claims without questions


@dataclass(frozen=True, slots=True)
class Claim:
    """An answer to judge by ``text``, the quote that a generator would take from ``whole``."""

    cluster: str
    whole: str
    question: str
    answer: str
    supported: bool
    text: str


Rule = Callable[[Claim], float]


def overlap(claim: Claim) -> float:
    """The rule before: the share of the answer's content words, as they are spelled, in the quote."""
    wanted = content_words(claim.answer)
    return len(wanted & set(words(claim.text))) / len(wanted) if wanted else 0.0


def lexical(claim: Claim) -> float:
    """The rule now: support by the quote, and no name that the passage lacks."""
    found = has_names(claim.answer, claim.question, claim.whole)
    return support(claim.answer, claim.question, claim.text) if found else 0.0


RULES: Mapping[str, Rule] = {
    "length alone": lambda claim: 1 / (1 + len(claim.answer.split())),
    "words as spelled": overlap,
    "numbers": lambda claim: float(has_numbers(claim.answer, claim.question, claim.text)),
    "names": lambda claim: float(has_names(claim.answer, claim.question, claim.whole)),
    "stems and numbers": lambda claim: support(claim.answer, claim.question, claim.text),
    "lexical": lexical,
}


def make_claim(cluster: str, whole: str, question: str, answer: str, supported: bool) -> Claim:
    """The claim with its quote: the sentence of ``whole`` that is likeliest to prove the answer."""
    span = best_sentence(whole, answer, question)
    return Claim(cluster, whole, question, answer, supported, whole[slice(*span)] if span else "")


def read_claims(folder: Path) -> list[Claim]:
    """The claims of a set; yes and no are left out, because the gate never looks for them in a quote."""
    texts = {row["id"]: row["text"] for row in read_rows(folder / "corpus.jsonl.gz")}
    claims = []
    rows = list(read_rows(folder / "questions.jsonl.gz"))
    clusters = cluster_rows([(row["gold_doc_ids"][0], row.get("topic_question", ""), row["question"]) for row in rows])
    for row, cluster in zip(rows, clusters, strict=True):
        text = texts[row["gold_doc_ids"][0]]
        if folder.name == "healthver":
            claims.append(make_claim(cluster, text, "", row["question"], row["answer"] == "Supports"))
            continue
        claims.append(make_claim(cluster, text, row["question"], row["answer"], True))
        claims.append(make_claim(cluster, text, row["question"], row["hallucinated_answer"], False))
    return [claim for claim in claims if claim.answer.strip(" .").lower() not in ("yes", "no")]


def cluster_rows(keys: Sequence[tuple[str, str, str]]) -> list[str]:
    """One name a row; rows that share a passage, a topic or a claim, directly or through others, have the same."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for passage, *others in keys:
        for other in filter(None, others):
            one, two = sorted((root(passage), root(f"/{other}")))
            parent[two] = one
    return [root(passage) for passage, *_ in keys]


def halves(claims: Sequence[Claim]) -> tuple[list[Claim], list[Claim]]:
    """Tuning and test half: whole clusters, the largest first, each to the half that has fewer claims."""
    sizes = Counter(claim.cluster for claim in claims)
    sides: tuple[set[str], set[str]] = (set(), set())
    counts = [0, 0]
    for cluster in sorted(sizes, key=lambda name: (-sizes[name], name)):
        side = int(counts[1] < counts[0])
        sides[side].add(cluster)
        counts[side] += sizes[cluster]
    tune, test = ([claim for claim in claims if claim.cluster in side] for side in sides)
    return tune, test


def best_bound(scores: Sequence[float], supported: Sequence[bool]) -> float:
    """The bound with the best mean of recall and kept share (Youden 1950); the lowest of equals."""

    def quality(bound: float) -> float:
        kept = sum(s >= bound for s, good in zip(scores, supported, strict=True) if good) / sum(supported)
        return kept + sum(s < bound for s, good in zip(scores, supported, strict=True) if not good) / (
            len(supported) - sum(supported)
        )

    return max(BOUNDS, key=quality)


def wilson(hits: int, of: int) -> list[float] | None:
    """A share with its 95 % interval (Wilson 1927): [share, low, high], None of nothing."""
    if not of:
        return None
    z, share = 1.96, hits / of
    middle, spread = share + z * z / (2 * of), z * ((share * (1 - share) + z * z / (4 * of)) / of) ** 0.5
    scale = 1 + z * z / of
    return [round(value, 3) for value in (share, (middle - spread) / scale, (middle + spread) / scale)]


def measure(scores: Sequence[float], claims: Sequence[Claim], bound: float) -> dict[str, Any]:
    """What refusing below ``bound`` catches and keeps."""
    refused = [score < bound for score in scores]
    caught = sum(no and not claim.supported for no, claim in zip(refused, claims, strict=True))
    good = sum(claim.supported for claim in claims)
    kept = sum(claim.supported and not no for no, claim in zip(refused, claims, strict=True))
    return {
        "bound": bound, "refused": sum(refused), "precision": wilson(caught, sum(refused)),
        "recall": wilson(caught, len(claims) - good), "kept": wilson(kept, good),
    }  # fmt: skip


def auroc(scores: Sequence[float], claims: Sequence[Claim]) -> list[float]:
    """Area under the ROC curve with its 95 % percentile interval, whole clusters resampled."""
    import numpy as np

    names, cluster = np.unique([claim.cluster for claim in claims], return_inverse=True)
    members = [np.flatnonzero(cluster == at) for at in range(len(names))]
    values, good = np.array(scores), np.array([claim.supported for claim in claims])
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[at] for at in rng.integers(len(names), size=len(names))])
        if 0 < good[rows].sum() < len(rows):
            drawn.append(_area(values[rows], good[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [round(float(value), 3) for value in (_area(values, good), low, high)]


def _area(values: Any, good: Any) -> float:
    """The chance that a supported answer scores above an unsupported one, half of ties (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    positive = int(good.sum())
    ranks = rankdata(values)[good].sum() - positive * (positive + 1) / 2
    return float(ranks / (positive * (len(good) - positive)))


def judge_claims(claims: Sequence[Claim], model: str | None) -> dict[str, Any]:
    """Rule -> its numbers on the test half, with the usual bound and with the one chosen on the tuning half."""
    tune, test = halves(claims)
    found: dict[str, Any] = {"tune": len(tune), "test": len(test), "supported": sum(claim.supported for claim in test)}
    for name, rule in RULES.items():
        tuned, scores = [rule(claim) for claim in tune], [rule(claim) for claim in test]
        bound = best_bound(tuned, [claim.supported for claim in tune])
        found[name] = {"auroc": auroc(scores, test), "tuned": measure(scores, test, bound)}
        if name != "length alone":
            found[name]["usual"] = measure(scores, test, DEFAULT_BOUND)
    if model:
        said = load_entailment(model).scores([pair(claim) for claim in test])
        borne = [lexical(claim) for claim in test]
        both = [float(s >= DEFAULT_BOUND and b >= DEFAULT_BOUND) for s, b in zip(said, borne, strict=True)]
        product = [s * b for s, b in zip(said, borne, strict=True)]
        found["model"] = {"auroc": auroc(said, test), "usual": measure(said, test, DEFAULT_BOUND)}
        found["lexical and model"] = {"auroc": auroc(product, test), "usual": measure(both, test, 1.0)}
    return found


def ask_judge(sets: Mapping[str, Sequence[Claim]], model: str, count: int) -> dict[str, Any]:
    """Set -> what refusing by a judge's "supported" catches among ``count`` claims of the test half, the rules by
    themselves on the same claims, and both together. A verdict that cannot be read refuses, as in the gate."""
    judge = open_chat_model(model, engine="auto")
    found: dict[str, Any] = {}
    for name, claims in sets.items():
        test = halves(claims)[1]
        drawn = random.Random(0).sample(test, min(count, len(test)))
        asked = (
            ChatRequest(
                str(at), judge_messages(c.question or _NO_QUESTION, c.answer, [c.whole]), 96, schema=JUDGE_SCHEMA
            )
            for at, c in enumerate(drawn)
        )
        verdicts = {int(reply.key): parse_verdict(reply.text) for reply in judge.complete(asked)}
        said = [float((verdict := verdicts[at]) is not None and verdict.supported) for at in range(len(drawn))]
        borne = [lexical(claim) for claim in drawn]
        both = [float(s and b >= DEFAULT_BOUND) for s, b in zip(said, borne, strict=True)]
        found[name] = {
            "claims": len(drawn), "supported": sum(claim.supported for claim in drawn),
            "unreadable": sum(verdict is None for verdict in verdicts.values()),
            "lexical": {"auroc": auroc(borne, drawn), "usual": measure(borne, drawn, DEFAULT_BOUND)},
            "judge": {"auroc": auroc(said, drawn), "usual": measure(said, drawn, DEFAULT_BOUND)},
            "lexical and judge": {"auroc": auroc(both, drawn), "usual": measure(both, drawn, DEFAULT_BOUND)},
        }  # fmt: skip
    return found


def pair(claim: Claim) -> tuple[str, str]:
    """Premise and hypothesis, as raft.dataset.entailment writes them."""
    return claim.whole, f"{claim.question} {claim.answer}".strip()


def read_gold(folder: Path) -> list[GroundedQuestion]:
    """The answerable questions of a set with the sentences that prove them: its evidence, or the best sentence of each
    gold passage."""
    name = "corpus.jsonl.gz" if (folder / "corpus.jsonl.gz").exists() else None
    texts = {row["id"]: row["text"] for row in read_rows(folder / name)} if name else {}
    items = []
    for row in read_rows(folder / ("questions.jsonl.gz" if name else "questions.jsonl")):
        if row["answer_type"] in ("unanswerable", "yesno", "label") or row["answer"].lower() in ("yes", "no"):
            continue
        quotes = [Passage(each["doc_id"], each["text"]) for each in row.get("evidence", ())]
        for passage in () if quotes else row["gold_doc_ids"]:
            span = best_sentence(texts[passage], row["answer"], row["question"])
            quotes += [Passage(passage, texts[passage][slice(*span)])] if span else []
        items.append(GroundedQuestion(
            row["id"], row["question"], row["answer"], row["answer_type"], tuple(quotes), tuple(row["gold_doc_ids"]),
            "qa", aliases=tuple(row.get("aliases", ())),
        ))  # fmt: skip
    return items


def off_by_one(item: GroundedQuestion) -> GroundedQuestion | None:
    """The question with every number of its answer one higher; None without a number, or when that is said too."""
    wrong = re.sub(r"\d+", lambda number: str(int(number.group()) + 1), item.answer)
    said = "\n".join(quote.text for quote in item.quotes)
    return None if wrong == item.answer or wrong in said else replace(item, answer=wrong, aliases=())


def judge_gold(items: Sequence[GroundedQuestion]) -> dict[str, Any]:
    """What the gate refuses of rows that nothing is wrong with, and what it sees when their numbers are changed."""

    def refused(item: GroundedQuestion, bound: float = DEFAULT_BOUND) -> list[str]:
        return support_faults(item, "\n".join(quote.text for quote in item.quotes), bound)

    wrong = [changed for item in items if (changed := off_by_one(item)) is not None]
    said = ["\n".join(quote.text for quote in item.quotes) for item in wrong]
    spelled = [overlap(Claim("", text, "", item.answer, False, text)) for text, item in zip(said, wrong, strict=True)]
    return {
        "kept": wilson(sum(not refused(item) for item in items), len(items)),
        "reasons": dict(Counter(reason for item in items for reason in refused(item))),
        "form": dict(Counter(reason for item in items for reason in form_faults(item))),
        "wrong numbers": len(wrong),
        "caught": wilson(sum(bool(refused(item)) for item in wrong), len(wrong)),
        "caught by words as spelled": wilson(sum(share < DEFAULT_BOUND for share in spelled), len(spelled)),
    }


def count_pii(folder: Path) -> dict[str, Any]:
    """Kind -> how many questions (with their answers) hold such data."""
    name = "questions.jsonl.gz" if (folder / "questions.jsonl.gz").exists() else "questions.jsonl"
    rows = [f"{row['question']}\n{row['answer']}" for row in read_rows(folder / name)]
    return {"questions": len(rows)} | dict(Counter(kind for text in rows for kind in pii_kinds(text)))


def show(found: Mapping[str, Any]) -> None:
    """The table of the claims, a line a rule."""
    judged = found.get("judged", {})
    print(f"{'set':12} {'rule':20} {'AUROC':22} {'bound':>5}  {'precision':22} {'recall':22} {'kept':22}")
    for name in CLAIMS:
        for rule, row in found[name].items():
            for which in ("usual", "tuned") if isinstance(row, dict) else ():
                if which in row:
                    cells = [_cell(row["auroc"])] + [_cell(row[which][key]) for key in ("precision", "recall", "kept")]
                    print(f"{name:12} {rule:20} {cells[0]} {row[which]['bound']:5.2f}  {' '.join(cells[1:])}")
        for rule in ("lexical", "judge", "lexical and judge") if judged else ():
            row = judged[name][rule]
            cells = [_cell(row["auroc"]), *(_cell(row["usual"][key]) for key in ("precision", "recall", "kept"))]
            print(f"{name:12} {rule + ' *':20} {cells[0]} {row['usual']['bound']:5.2f}  {' '.join(cells[1:])}")
    for name, row in found["gold"].items():
        print(
            f"{name:12} kept {_cell(row['kept'])} wrong numbers {row['wrong numbers']}: caught {_cell(row['caught'])}"
        )


def _cell(values: Sequence[float] | None) -> str:
    return f"{values[0]:.3f} ({values[1]:.3f}-{values[2]:.3f})  " if values else f"{'-':22}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--model", help="entailment model to measure too: hub id, folder, package:NAME")
    parser.add_argument("--judge", help="chat model to measure as a judge: hub id, folder, GGUF file, package:NAME")
    parser.add_argument("--judged", type=int, default=150, help="claims of each set that the judge reads")
    given = parser.parse_args()
    began = time.monotonic()
    sets = {name: read_claims(given.data / name) for name in CLAIMS}
    own = sorted((Path(__file__).parent.parent / "corpora").iterdir())
    found: dict[str, Any] = {name: judge_claims(claims, given.model) for name, claims in sets.items()}
    gold = [
        folder for folder in (*own, *(given.data / name for name in ("squad", "nq", "hotpotqa"))) if folder.is_dir()
    ]
    found["gold"] = {folder.name: judge_gold(read_gold(folder)) for folder in gold}
    found["pii"] = {folder.name: count_pii(folder) for folder in (*own, given.data / "cuad", given.data / "medquad")}
    if given.judge:
        found["judged"] = ask_judge(sets, given.judge, given.judged) | {"model": Path(given.judge).name}
    found |= {"model": given.model, "machine": machine()}
    found["seconds"] = round(time.monotonic() - began)
    show(found)
    write_json(RESULTS / "quality_gate.json", found)


if __name__ == "__main__":
    main()
