"""From the scored replies (replies.py) to the figures of a report: of each system, of pairs of them, of retrieval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raft.config import Documents, SystemName
from raft.evaluation import calibration as calibrating
from raft.evaluation import metrics, statistics
from raft.evaluation.calibration import Selected
from raft.evaluation.cases import RECALL_DEPTHS, Case, System
from raft.evaluation.replies import RIGHT_F1 as RIGHT_F1
from raft.evaluation.replies import Result as Result
from raft.evaluation.replies import ScoredQuote as ScoredQuote
from raft.evaluation.replies import gold_label as gold_label
from raft.evaluation.replies import score_answer as score_answer
from raft.evaluation.replies import score_reply as score_reply
from raft.evaluation.statistics import Interval

CURVE_POINTS = 50


@dataclass(frozen=True, slots=True)
class LabelScores:
    """How a system did on the questions of the closed label set. ``confusion``: counts by gold, then by answer."""

    n: int
    accuracy: Interval
    macro_f1: float
    confusion: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether a system knows when it is right: figures over the ``n`` replies that have a confidence (confidence.py),
    paired with Result.right. ``without`` counts the other replies, failures among them; nothing is assumed of them.

    ``error`` is the calibration error over 10 bins of equal width, ``risk_coverage_area`` the area under the curve,
    ``auroc`` the chance that a right answer has a higher confidence than a wrong one (None where all are right, or
    none), ``curve`` the risk-coverage curve in at most CURVE_POINTS points.
    """

    n: int
    without: int
    error: float
    brier: float
    risk_coverage_area: float
    auroc: float | None
    curve: tuple[Selected, ...]


@dataclass(frozen=True, slots=True)
class SystemScores:
    """The figures of one system over all questions; None where there is nothing to count.

    ``quoted_answers`` counts answers (not refusals) with at least one verbatim quote; ``quotes_in_oracle`` is over
    the quotes given to answerable questions. ``f1_oracle_given`` and ``f1_oracle_missing`` divide the answerable
    questions by whether the prompt held every oracle. ``rouge_l`` to ``nli_groundedness`` are means of what each Result
    has under that name, over the questions where it is not None; ``score_system`` always gives the first two and
    ``truthfulness``. ``calibration`` is None where no reply has a confidence. ``counts``: of each figure that is not
    over all ``n`` questions, by its name, over how many it is; ``quote_validity`` and ``quotes_in_oracle`` are over
    quotes.
    """

    system: SystemName
    title: str
    model: str
    n: int
    failures: int
    truncated: int
    em: Interval
    f1: Interval
    labels: LabelScores | None
    quotes: int
    quote_validity: float | None
    quoted_answers: float | None
    quotes_in_oracle: float | None
    abstention_precision: float | None
    abstention_recall: float | None
    false_abstention_rate: float | None
    well_formed: float | None
    f1_oracle_given: Interval | None
    f1_oracle_missing: Interval | None
    n_oracle_given: int
    n_with_oracle: int
    prompt_tokens: float
    completion_tokens: float
    seconds: float
    rouge_l: Interval | None = None
    contains: Interval | None = None
    numeric: Interval | None = None
    truthfulness: Interval | None = None
    citation_recall: float | None = None
    groundedness: Interval | None = None
    critical_f1: Interval | None = None
    relevance: Interval | None = None
    nli_groundedness: Interval | None = None
    calibration: Calibration | None = None
    documents: Documents = "none"
    tuned: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """``system`` minus ``minus`` in token F1 on the same questions. ``p_right`` is McNemar's exact test on which is
    right; it takes questions for independent, ``p`` does not. The two ``_holm`` are corrected over all differences.
    """

    system: SystemName
    minus: SystemName
    f1: Interval
    p: float
    p_holm: float
    minimum_detectable: float | None
    p_right: float | None = None
    p_right_holm: float | None = None


@dataclass(frozen=True, slots=True)
class RetrievalScores:
    """Recall at each depth and MRR over the questions that have something to find. ``unit``: document or evidence."""

    unit: str
    n: int
    recall: Mapping[int, float]
    mrr: float


@dataclass(frozen=True, slots=True)
class Sampling:
    """How intervals and p-values are drawn."""

    confidence: float
    resamples: int
    seed: int


def score_systems(
    results: Mapping[System, Sequence[Result]],
    models: Mapping[SystemName, str],
    cases: Sequence[Case],
    labels: Sequence[str],
    draw: Sampling,
) -> tuple[SystemScores, ...]:
    """The figures of each system from its results, one a case in the cases' order; ``models`` names each system's
    model. Their intervals share their draws.

    Raises ValueError when the results are not those of the cases, or a question is asked twice.
    """
    repeated = [name for name, count in Counter(c.item.id for c in cases).items() if count > 1]
    if repeated:
        raise ValueError(f"question {repeated[0]!r} stands among the cases more than once")
    for system, rows in results.items():
        if [(r.system, r.question_id) for r in rows] != [(system.name, c.item.id) for c in cases]:
            raise ValueError(f"the results of {system.name} are not those of the questions, in their order")
    values = {system: _values(rows, cases, labels) for system, rows in results.items()}
    named = [(system, name) for system, found in values.items() for name in found]
    intervals = dict(zip(named, _intervals([values[s][name] for s, name in named], cases, draw), strict=True))
    return tuple(
        _score(system, models[system.name], rows, cases, labels, {n: intervals[system, n] for n in values[system]})
        for system, rows in results.items()
    )  # fmt: skip


def score_system(
    system: System, model: str, results: Sequence[Result], cases: Sequence[Case], labels: Sequence[str], draw: Sampling
) -> SystemScores:
    """What ``score_systems`` gives of one system; ``model`` is its model's name."""
    return score_systems({system: results}, {system.name: model}, cases, labels, draw)[0]


_WITH_INTERVAL = (
    "em", "f1", "rouge_l", "contains", "numeric", "truthfulness", "groundedness", "critical_f1", "relevance",
    "nli_groundedness",
)  # fmt: skip


def _values(results: Sequence[Result], cases: Sequence[Case], labels: Sequence[str]) -> dict[str, list[float | None]]:
    """Every figure that has an interval: its value of each question, None where there is nothing to count."""
    pairs = list(zip(results, cases, strict=True))
    golds = [gold_label(case.item, labels) for case in cases]
    found: dict[str, list[float | None]] = {name: [getattr(r, name) for r in results] for name in _WITH_INTERVAL}
    found["f1_oracle_given"] = [r.f1 if r.oracle_given else None for r in results]
    found["f1_oracle_missing"] = [r.f1 if c.relevant and not r.oracle_given else None for r, c in pairs]
    found["accuracy"] = [
        None if gold is None else float(gold == r.label) for gold, r in zip(golds, results, strict=True)
    ]
    return found


def _intervals(
    values: Sequence[Sequence[float | None]], cases: Sequence[Case], draw: Sampling
) -> list[Interval | None]:
    """The interval of each row of values over the questions that have one, None where none has."""
    samples = [
        ([v for v in row if v is not None], [c.cluster for v, c in zip(row, cases, strict=True) if v is not None])
        for row in values
    ]
    found = iter(statistics.bootstrap_intervals(
        [sample for sample in samples if sample[0]], confidence=draw.confidence, resamples=draw.resamples,
        seed=draw.seed,
    ))  # fmt: skip
    return [next(found) if sample[0] else None for sample in samples]


def _score(
    system: System,
    model: str,
    results: Sequence[Result],
    cases: Sequence[Case],
    labels: Sequence[str],
    intervals: Mapping[str, Interval | None],
) -> SystemScores:
    abstained, unanswerable = [r.abstained for r in results], [c.unanswerable for c in cases]
    means: dict[str, Any] = {name: interval for name, interval in intervals.items() if name != "accuracy"}
    return SystemScores(
        system=system.name, title=system.title, model=model, documents=system.documents, tuned=system.tuned,
        n=len(results),
        failures=sum(r.error is not None for r in results), truncated=sum(r.truncated for r in results),
        labels=_score_labels(results, cases, labels, intervals["accuracy"]),
        **(_score_quoting(results, cases) if system.quotes else _NO_QUOTING),
        abstention_precision=metrics.abstention_precision(abstained, unanswerable),
        abstention_recall=metrics.abstention_recall(abstained, unanswerable),
        false_abstention_rate=metrics.false_abstention_rate(abstained, unanswerable),
        well_formed=None if system.short else metrics.share(r.well_formed for r in results),
        n_oracle_given=sum(r.oracle_given for r in results), n_with_oracle=sum(bool(c.relevant) for c in cases),
        prompt_tokens=sum(r.prompt_tokens for r in results) / len(results),
        completion_tokens=sum(r.completion_tokens for r in results) / len(results),
        seconds=round(sum(r.seconds for r in results), 3),
        citation_recall=metrics.mean([r.citation_recall for r in results if r.citation_recall is not None]),
        calibration=calibrate(results), counts=_counts(results, cases, labels), **means,
    )  # fmt: skip


def _counts(results: Sequence[Result], cases: Sequence[Case], labels: Sequence[str]) -> dict[str, int]:
    """SystemScores.counts."""
    found = {name: sum(v is not None for v in row) for name, row in _values(results, cases, labels).items()}
    found["macro_f1"] = found["accuracy"]
    found["citation_recall"] = sum(r.citation_recall is not None for r in results)
    found["quoted_answers"] = sum(not r.abstained for r in results)
    found["abstention_precision"] = sum(r.abstained for r in results)
    found["abstention_recall"] = sum(c.unanswerable for c in cases)
    found["false_abstention_rate"] = sum(not c.unanswerable for c in cases)
    smaller = {name: count for name, count in found.items() if count < len(results)}
    of_quotes = {
        "quote_validity": sum(len(r.quotes) for r in results),
        "quotes_in_oracle": sum(len(r.quotes) for r, c in zip(results, cases, strict=True) if c.relevant),
    }
    return {**smaller, **of_quotes}


def calibrate(results: Sequence[Result]) -> Calibration | None:
    """How the confidence of these results goes with their being right; None when none has one."""
    pairs = [(r.confidence, r.right) for r in results if r.confidence is not None]
    error, brier = calibrating.calibration_error(pairs, bins=10), calibrating.brier_score(pairs)
    area = calibrating.risk_coverage_area(pairs)
    if error is None or brier is None or area is None:
        return None
    auroc = metrics.auroc([confidence for confidence, _ in pairs], [right for _, right in pairs])
    curve = tuple(calibrating.thinned(calibrating.risk_coverage(pairs), CURVE_POINTS))
    return Calibration(len(pairs), len(results) - len(pairs), error, brier, area, auroc, curve)


def _score_labels(
    results: Sequence[Result], cases: Sequence[Case], labels: Sequence[str], accuracy: Interval | None
) -> LabelScores | None:
    pairs = [(gold_label(c.item, labels), r.label) for r, c in zip(results, cases, strict=True)]
    golds, said = [gold for gold, _ in pairs if gold is not None], [label for gold, label in pairs if gold is not None]
    if accuracy is None:
        return None
    return LabelScores(
        len(golds), accuracy, metrics.macro_f1(golds, said) or 0.0, metrics.confusion(golds, said, labels)
    )


_NO_QUOTING: dict[str, Any] = {"quotes": 0, "quote_validity": None, "quoted_answers": None, "quotes_in_oracle": None}


def _score_quoting(results: Sequence[Result], cases: Sequence[Case]) -> dict[str, Any]:
    quoted = [quote.chunk_id for r in results for quote in r.quotes]
    answerable = [quote for r, c in zip(results, cases, strict=True) if c.relevant for quote in r.quotes]
    return {
        "quotes": len(quoted),
        "quote_validity": metrics.quote_validity(quoted),
        "quoted_answers": metrics.share(
            any(q.chunk_id is not None for q in r.quotes) for r in results if not r.abstained
        ),
        "quotes_in_oracle": metrics.share(q.oracle for q in answerable),
    }


def score_differences(
    system: SystemName, results: Mapping[SystemName, Sequence[Result]], cases: Sequence[Case], draw: Sampling
) -> list[Difference]:
    """``system`` minus every other system, p-values corrected together; empty when it was not evaluated."""
    others = [name for name in results if name != system]
    if system not in results:
        return []
    clusters = [case.cluster for case in cases]
    ours, rows = results[system], []
    deltas = [statistics.paired_differences([r.f1 for r in ours], [r.f1 for r in results[n]]) for n in others]
    drawn: Any = {"resamples": draw.resamples, "seed": draw.seed}
    intervals = statistics.bootstrap_intervals([(d, clusters) for d in deltas], confidence=draw.confidence, **drawn)
    for other, values, interval in zip(others, deltas, intervals, strict=True):
        p = statistics.sign_flip_p(values, clusters, **drawn)
        least = statistics.minimum_detectable_difference(values, clusters, confidence=draw.confidence)
        p_right = statistics.mcnemar_p([r.right for r in ours], [r.right for r in results[other]])
        rows.append(Difference(system, other, interval, p, p, least, p_right, p_right))
    corrected = statistics.holm([row.p for row in rows])
    right_corrected = statistics.holm([row.p_right for row in rows if row.p_right is not None])
    return [
        replace(row, p_holm=p_holm, p_right_holm=p_right_holm)
        for row, p_holm, p_right_holm in zip(rows, corrected, right_corrected, strict=True)
    ]


def score_retrieval(cases: Sequence[Case], top_k: int) -> list[RetrievalScores]:
    """Recall@k and MRR by gold document, and by evidence passage for the questions whose evidence was located."""
    documents = [
        ([c.document_id for c in case.ranked], [frozenset({d}) for d in case.item.gold_document_ids])
        for case in cases
        if case.item.gold_document_ids
    ]
    passages = [([c.id for c in case.ranked], list(case.relevant)) for case in cases if case.by_evidence]
    depths = sorted({*RECALL_DEPTHS, top_k})
    return [
        _score_ranking(unit, asked, depths)
        for unit, asked in (("document", documents), ("evidence", passages))
        if asked
    ]


def _score_ranking(
    unit: str, asked: list[tuple[list[str], list[frozenset[str]]]], depths: list[int]
) -> RetrievalScores:
    recall = {k: sum(metrics.recall_at_k(ranked, wanted, k) for ranked, wanted in asked) / len(asked) for k in depths}
    ranks = [metrics.reciprocal_rank(ranked, frozenset().union(*wanted)) for ranked, wanted in asked]
    return RetrievalScores(unit, len(asked), recall, sum(ranks) / len(ranks))
