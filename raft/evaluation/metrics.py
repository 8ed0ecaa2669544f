"""One short function per published formula, each with its source.

``None`` stands for "nothing to count" (a precision without predictions, say) and is shown as a dash; no function
returns NaN. A reply that failed is passed in as an empty prediction, which scores 0; it is never left out.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

NO_LABEL = "(no label)"

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, ASCII punctuation removed, articles removed, one space between words.

    The behaviour of SQuAD's official script (Rajpurkar et al. 2016, evaluate-v2.0.py, ``normalize_answer``).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 when the normalized prediction equals a normalized reference, else 0.0 (Rajpurkar et al. 2016, 6.1)."""
    return float(normalize_answer(prediction) in {normalize_answer(reference) for reference in references})


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """The best F1 of word overlap with a reference, from 0 to 1 (Rajpurkar et al. 2016, section 6.1).

    When either side has no words, 1.0 if both have none, else 0.0 (evaluate-v2.0.py, ``compute_f1``).
    """
    return max(_token_f1(normalize_answer(prediction).split(), normalize_answer(r).split()) for r in references)


def _token_f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    same = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * same / (len(predicted) + len(gold))  # = 2PR / (P + R) with P = same/predicted, R = same/gold


def read_label(prediction: str, labels: Sequence[str]) -> str | None:
    """The label a prediction begins with ("Yes, it does." is yes), or None when it begins with none of them.

    Every system is read in this same way, so that a chatty answer loses nothing to a terse one.
    """
    words = normalize_answer(prediction).split()
    for label in sorted(labels, key=lambda label: -len(normalize_answer(label).split())):
        wanted = normalize_answer(label).split()
        if words[: len(wanted)] == wanted:
            return label
    return None


def accuracy(gold: Sequence[str], predicted: Sequence[str | None]) -> float | None:
    """Share of predictions that equal their gold label; a prediction that is no label (None) is wrong."""
    return share(g == p for g, p in zip(gold, predicted, strict=True))


def macro_f1(gold: Sequence[str], predicted: Sequence[str | None]) -> float | None:
    """Unweighted mean of per-label F1 over the labels that occur in ``gold`` (Sokolova & Lapalme 2009, table 3;
    the averaged-F1 form of Opitz & Burst 2019). A prediction that is no label is a miss of its gold label."""
    labels = sorted(set(gold))
    if not labels:
        return None
    return sum(_label_f1(gold, predicted, label) for label in labels) / len(labels)


def _label_f1(gold: Sequence[str], predicted: Sequence[str | None], label: str) -> float:
    hit = sum(g == label == p for g, p in zip(gold, predicted, strict=True))
    return 2 * hit / (sum(g == label for g in gold) + sum(p == label for p in predicted))


def confusion(gold: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts by gold label and then by predicted label; predictions that are no label stand under NO_LABEL."""
    counts = Counter((g, p if p is not None else NO_LABEL) for g, p in zip(gold, predicted, strict=True))
    return {g: {p: counts[g, p] for p in (*labels, NO_LABEL)} for g in labels}


def majority_label(gold: Sequence[str]) -> str:
    """The commonest label (the first in the alphabet among equals): the constant answer to beat."""
    counts = Counter(gold)
    return min(counts, key=lambda label: (-counts[label], label))


def recall_at_k(ranked: Sequence[str], relevant: Sequence[Collection[str]], k: int) -> float:
    """Share of what should be found that stands among the first ``k`` of ``ranked`` (Manning, Raghavan & Schütze
    2008, section 8.4).

    Each element of ``relevant`` is one thing to find, given as the ids any of which is it: a gold document, or an
    evidence passage with the chunks that hold it.
    """
    top = set(ranked[:k])
    return sum(not top.isdisjoint(ids) for ids in relevant) / len(relevant)


def reciprocal_rank(ranked: Sequence[str], relevant: Collection[str]) -> float:
    """1 / rank of the first relevant id, 0.0 when there is none; its mean is MRR (Voorhees 1999, TREC-8 QA)."""
    return next((1 / rank for rank, found in enumerate(ranked, 1) if found in relevant), 0.0)


def abstention_precision(abstained: Sequence[bool], unanswerable: Sequence[bool]) -> float | None:
    """Of the questions a system declined, the share that cannot be answered (as in Rajpurkar et al. 2018, where
    declining is the right answer to such a question)."""
    return share(u for a, u in zip(abstained, unanswerable, strict=True) if a)


def abstention_recall(abstained: Sequence[bool], unanswerable: Sequence[bool]) -> float | None:
    """Of the questions that cannot be answered, the share a system declined."""
    return share(a for a, u in zip(abstained, unanswerable, strict=True) if u)


def false_abstention_rate(abstained: Sequence[bool], unanswerable: Sequence[bool]) -> float | None:
    """Of the questions that can be answered, the share a system declined."""
    return share(a for a, u in zip(abstained, unanswerable, strict=True) if not u)


def share(outcomes: Iterable[bool]) -> float | None:
    """Share of True, or None when there is nothing to count.

    Quote validity is this share over all quotes (does it stand verbatim in the given documents?), over all answers
    (does one of its quotes?) and over all quotes again (does it stand in an oracle?): the lexical form of citation
    precision and recall of ALCE (Gao et al. 2023, section 3).
    """
    counted = list(outcomes)
    return sum(counted) / len(counted) if counted else None


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean, or None of nothing."""
    return sum(values) / len(values) if values else None
