"""One short function per published formula, each with its source.

``None`` stands for "nothing to count" (a precision without predictions, say) and is shown as a dash; no function
returns NaN. A reply that failed is passed in as an empty prediction, which scores 0; it is never left out.
"""

from __future__ import annotations

import math
import re
import string
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from raft.dataset.grounding import words
from raft.dataset.support import quantities

NO_LABEL = "(no label)"

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NEGATION = re.compile(r"\b(?:no|not|never|none|neither|nor|cannot|without|except|unless)\b|n['’]t\b", re.IGNORECASE)
_ROUGE_WORD = re.compile(r"[^\W_]+")


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


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """The best F-measure of the longest common subsequence of words with a reference, from 0 to 1 (Lin 2004, ROUGE-L
    of sentences, section 3.1, equations 2 to 4) with beta = 1 and without stemming, as rouge-score 0.1.2 has it.

    Words are runs of letters and digits in lower case, of any script: rouge-score keeps ASCII alone, and gives every
    Greek answer 0. Where either side has no words, 0. Raises ValueError when every reference is empty.
    """
    said = _ROUGE_WORD.findall(prediction.lower())
    return max(_lcs_f1(said, _ROUGE_WORD.findall(reference.lower())) for reference in _stated(references))


def _lcs_f1(predicted: list[str], gold: list[str]) -> float:
    common = _longest_common(predicted, gold)
    return 2 * common / (len(predicted) + len(gold)) if common else 0.0  # P = common/predicted, R = common/gold


def _longest_common(first: list[str], second: list[str]) -> int:
    """The length of the longest common subsequence; a row of its table is one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << at
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        found = row & places.get(word, 0)
        row = (row + found | row - found) & full
    return len(first) - row.bit_count()


def contains_answer(prediction: str, references: Sequence[str]) -> float:
    """1.0 when the words of a reference stand in the prediction, one after the other, else 0.0.

    The answer match of open-domain question answering (Chen et al. 2017; Karpukhin et al. 2020): on words, never on
    characters, so that "no" is not in "not", nor 5 mg in 1.5 mg. Case, punctuation and an article before the
    reference do not count, and neither does what stands around it: "not 12 mg" contains "12 mg". Raises ValueError
    when every reference is empty.
    """
    said = _spaced(words(prediction))
    sought = [words(reference) for reference in _stated(references)]
    return float(any(_spaced(_without_article(wanted)) in said for wanted in sought if wanted))


def _without_article(wanted: list[str]) -> list[str]:
    return wanted[1:] if wanted[0] in ("a", "an", "the") and len(wanted) > 1 else wanted


def _spaced(found: Sequence[str]) -> str:
    return f" {' '.join(found)} "


def numeric_match(prediction: str, references: Sequence[str]) -> float | None:
    """1.0 when all numbers of a reference stand in the prediction, by value and with the units that the reference
    states, else 0.0; None when no reference has a number.

    No published formula: numbers are read as the quality gate reads them (``raft.dataset.support.quantities``): 1,000
    is 1000, 12.0 is 12, 50 % is 50 percent, two is 2. Signs are not read, and a word that is no unit known there (23
    crowns) is not compared. A reference without a number ("twenty", beside 20) counts as ``contains_answer`` does.
    Raises ValueError when every reference is empty.
    """
    stated = [(reference, quantities(reference)) for reference in _stated(references)]
    if not any(numbers for _, numbers in stated):
        return None
    there = quantities(prediction)
    return float(any(
        _all_stand(numbers, there) if numbers else contains_answer(prediction, [reference]) == 1.0
        for reference, numbers in stated
    ))  # fmt: skip


def critical_f1(prediction: str, references: Sequence[str]) -> float | None:
    """The best F1, from 0 to 1, of the facts that decide about an answer: each number with its unit (a dose, a time
    limit), a section's number, and whether it negates; None when no reference states one.

    No published formula; the F1 over facts that token F1 is over words. Numbers are read as for ``numeric_match``, here
    in both directions: "12 mg twice, for 5 days" has a fact too many beside "12 mg", "12" another one, "not 12 mg" too.
    A reference without facts ("the usual toll", beside 23 crowns) counts as ``contains_answer`` does. Raises ValueError
    when every reference is empty.
    """
    stated = [(reference, _critical(reference)) for reference in _stated(references)]
    if not any(facts for _, facts in stated):
        return None
    there = _critical(prediction)
    return max(
        2 * len(facts & there) / (len(facts) + len(there)) if facts else contains_answer(prediction, [reference])
        for reference, facts in stated
    )


def _critical(text: str) -> set[tuple[str, str]]:
    """{("12", "mg"), ("2.1.3", ""), ("not", "")}"""
    facts = {(number, unit) for number, units in quantities(text).items() for unit in units - {""} or {""}}
    return facts | {("not", "")} if _NEGATION.search(text) else facts


def _all_stand(numbers: Mapping[str, frozenset[str]], there: Mapping[str, frozenset[str]]) -> bool:
    return all(number in there and units - {""} <= there[number] for number, units in numbers.items())


def _stated(references: Sequence[str]) -> list[str]:
    stated = [reference for reference in references if reference.strip()]
    if not stated:
        raise ValueError(f"no reference to compare with in {list(references)}")
    return stated


def read_label(prediction: str, labels: Sequence[str]) -> str | None:
    """The label a prediction begins with ("Yes, it does." is yes), or None when it begins with none of them.

    Every system is read in this same way, so that a chatty answer loses nothing to a terse one.
    """
    for label in sorted(labels, key=lambda label: -len(label_words(label))):
        wanted = label_words(label)
        said = normalize_answer(prediction).split() if normalize_answer(label) else words(prediction)
        if wanted and said[: len(wanted)] == wanted:
            return label
    return None


def label_words(text: str) -> list[str]:
    """The words by which labels are compared: without articles, but for a label that is one ("A", of A to D)."""
    return normalize_answer(text).split() or words(text)


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


def truthfulness(right: bool, missing: bool) -> float:
    """1.0 for a right answer, 0.0 for none (declined, or the system failed), -1.0 for a wrong one, as the automatic
    evaluation of CRAG scores them (Yang et al. 2024, arXiv 2406.04744). Declining what cannot be answered is right."""
    return 1.0 if right else 0.0 if missing else -1.0


def quote_validity(quoted: Sequence[str | None]) -> float | None:
    """Share of quotes that stand verbatim in the given documents, None without quotes. ``quoted`` has for each quote
    the chunk that it stands in, None where it stands in none that was given."""
    return share(chunk_id is not None for chunk_id in quoted)


def citation_precision(quoted: Sequence[str | None], oracles: Collection[str]) -> float | None:
    """Share of quotes (as for ``quote_validity``) that stand verbatim in an oracle, None without quotes: the lexical
    form of the citation precision of ALCE (Gao et al. 2023, section 3)."""
    return share(chunk_id in oracles for chunk_id in quoted)


def citation_recall(
    quoted: Sequence[str | None], relevant: Sequence[Collection[str]], given: Collection[str]
) -> float | None:
    """Of the oracles among the documents that were ``given``, the share that a quote stands in verbatim; None when no
    oracle was given. The lexical form of the citation recall of ALCE (Gao et al. 2023, section 3).

    Each element of ``relevant`` is one oracle, as for ``recall_at_k``.
    """
    held = [set(ids).intersection(given) for ids in relevant]
    return share(not ids.isdisjoint(quoted) for ids in held if ids)


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """The chance that a row labelled True scores above one labelled False, ties counting half: the area under the ROC
    curve (Mann & Whitney 1947; Hanley & McNeil 1982). None when either label is missing.

    Raises ValueError for unequal numbers, and for a score that is not a number.
    """
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"{sum(map(math.isnan, scores))} of {len(scores)} scores are not numbers")
    pairs = list(zip(scores, labels, strict=True))
    low = sorted(score for score, label in pairs if not label)
    high = [score for score, label in pairs if label]
    if not low or not high:
        return None
    above = sum(bisect_left(low, score) + bisect_right(low, score) for score in high)  # a tie is in one of the two
    return above / (2 * len(low) * len(high))


def share(outcomes: Iterable[bool]) -> float | None:
    """Share of True, or None when there is nothing to count."""
    counted = list(outcomes)
    return sum(counted) / len(counted) if counted else None


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean, or None of nothing."""
    return sum(values) / len(values) if values else None
