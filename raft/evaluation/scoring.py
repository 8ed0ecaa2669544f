"""From raw replies to the figures of a report. One scored reply, as a row of ``report.json``::

    {"question_id": "med-001", "system": "raft", "chunk_ids": ["c17", "c3"], "oracle_given": true,
     "text": "Document [1] says ##begin_quote##...", "final": "12 mg",
     "quotes": [{"text": "Adults start with 12 mg", "chunk_id": "c17", "start": 40, "end": 63, "oracle": true}],
     "abstained": false, "well_formed": true, "error": null, "truncated": false, "em": 1.0, "f1": 1.0,
     "label": null, "right": true, "prompt_tokens": 812, "completion_tokens": 31, "seconds": 0.8}

A reply that failed is such a row too: ``error`` says why, and it scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raft.config import SystemName
from raft.evaluation import metrics, statistics
from raft.evaluation.cases import RECALL_DEPTHS, Case, System
from raft.evaluation.statistics import Interval
from raft.qa import check_quotes, read_answer
from raft.records import Answer, Chunk, QaItem

RIGHT_F1 = 0.5


@dataclass(frozen=True, slots=True)
class ScoredQuote:
    """A quote and where it stands: ``start`` and ``end`` are offsets in the text of the chunk, not the document."""

    text: str
    chunk_id: str | None
    start: int | None
    end: int | None
    oracle: bool


@dataclass(frozen=True, slots=True)
class Result:
    """One system's scored answer to one question. ``label`` is the closed label that the answer was read as.

    ``right``: the label for label questions, declining for unanswerable ones, else a token F1 of at least RIGHT_F1.
    """

    question_id: str
    system: SystemName
    chunk_ids: tuple[str, ...]
    oracle_given: bool
    text: str
    final: str
    quotes: tuple[ScoredQuote, ...]
    abstained: bool
    well_formed: bool
    error: str | None
    truncated: bool
    em: float
    f1: float
    label: str | None
    right: bool
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LabelScores:
    """How a system did on the questions of the closed label set. ``confusion``: counts by gold, then by answer."""

    n: int
    accuracy: Interval
    macro_f1: float
    confusion: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class SystemScores:
    """The figures of one system over all questions; None where there is nothing to count.

    ``quoted_answers`` counts answers (not refusals) with at least one verbatim quote; ``quotes_in_oracle`` is over
    the quotes given to answerable questions. ``f1_oracle_given`` and ``f1_oracle_missing`` divide the answerable
    questions by whether the prompt held every oracle.
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


@dataclass(frozen=True, slots=True)
class Difference:
    """``system`` minus ``minus`` in token F1 on the same questions; ``p_holm`` is corrected over all differences."""

    system: SystemName
    minus: SystemName
    f1: Interval
    p: float
    p_holm: float
    minimum_detectable: float | None


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


def score_reply(row: Mapping[str, Any], system: System, case: Case, labels: Sequence[str]) -> Result:
    """The Result of a journal row: the reply of ``system`` to ``case``."""
    chunks = system.chunks_of(case) or ()
    answer = read_answer(row["text"], system.short) if row["error"] is None else Answer("", "", well_formed=False)
    em, f1 = score_answer(answer, case.item, failed=row["error"] is not None)
    label = None if answer.abstained else metrics.read_label(answer.final, labels)
    gold = gold_label(case.item, labels)
    right = label == gold if gold is not None else bool(f1 >= RIGHT_F1)
    return Result(
        question_id=case.item.id, system=system.name, chunk_ids=tuple(chunk.id for chunk in chunks),
        oracle_given=case.holds_oracle(chunks), text=row["text"], final=answer.final,
        quotes=tuple(_score_quotes(answer, chunks, case)), abstained=answer.abstained,
        well_formed=answer.well_formed, error=row["error"], truncated=row["truncated"], em=em, f1=f1, label=label,
        right=right, prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"],
        seconds=row["seconds"],
    )  # fmt: skip


def score_answer(answer: Answer, item: QaItem, failed: bool = False) -> tuple[float, float]:
    """(exact match, token F1). An unanswerable question scores 1 when the system declines, else 0; an answerable
    one on which it declines scores 0, and so does a reply that failed."""
    if failed:
        return 0.0, 0.0
    if item.answer_type == "unanswerable":
        return float(answer.abstained), float(answer.abstained)
    if answer.abstained:
        return 0.0, 0.0
    references = [item.answer, *item.aliases]
    return metrics.exact_match(answer.final, references), metrics.token_f1(answer.final, references)


def gold_label(item: QaItem, labels: Sequence[str]) -> str | None:
    """The label that is the question's reference answer, or None when its reference is no label."""
    wanted = metrics.normalize_answer(item.answer)
    return next((label for label in labels if metrics.normalize_answer(label) == wanted), None)


def _score_quotes(answer: Answer, chunks: Sequence[Chunk], case: Case) -> list[ScoredQuote]:
    scored = []
    for quote in check_quotes(answer, chunks):
        if quote.chunk is None or quote.start is None or quote.end is None:
            scored.append(ScoredQuote(quote.text, None, None, None, False))
            continue
        start, end = quote.start - quote.chunk.start, quote.end - quote.chunk.start
        scored.append(ScoredQuote(quote.text, quote.chunk.id, start, end, quote.chunk.id in case.oracle_ids))
    return scored


def score_system(
    system: System, model: str, results: Sequence[Result], cases: Sequence[Case], labels: Sequence[str], draw: Sampling
) -> SystemScores:
    """The figures of one system (``model`` is its model's name) from its results, one a case in the cases' order.

    Raises ValueError when the results are not those of the cases.
    """
    if [(r.system, r.question_id) for r in results] != [(system.name, c.item.id) for c in cases]:
        raise ValueError(f"the results of {system.name} are not those of the questions, in their order")
    abstained, unanswerable = [r.abstained for r in results], [c.unanswerable for c in cases]
    given = [r.oracle_given for r in results]
    missing = [bool(c.relevant) and not r.oracle_given for r, c in zip(results, cases, strict=True)]
    return SystemScores(
        system=system.name, title=system.title, model=model, n=len(results),
        failures=sum(r.error is not None for r in results), truncated=sum(r.truncated for r in results),
        em=_interval([r.em for r in results], cases, draw), f1=_interval([r.f1 for r in results], cases, draw),
        labels=_score_labels(results, cases, labels, draw) if labels else None,
        **(_score_quoting(results, cases) if system.quotes else _NO_QUOTING),
        abstention_precision=metrics.abstention_precision(abstained, unanswerable),
        abstention_recall=metrics.abstention_recall(abstained, unanswerable),
        false_abstention_rate=metrics.false_abstention_rate(abstained, unanswerable),
        well_formed=None if system.short else metrics.share(r.well_formed for r in results),
        f1_oracle_given=_f1_where(results, cases, given, draw),
        f1_oracle_missing=_f1_where(results, cases, missing, draw),
        n_oracle_given=sum(given), n_with_oracle=sum(bool(c.relevant) for c in cases),
        prompt_tokens=sum(r.prompt_tokens for r in results) / len(results),
        completion_tokens=sum(r.completion_tokens for r in results) / len(results),
        seconds=round(sum(r.seconds for r in results), 3),
    )  # fmt: skip


def _interval(values: Sequence[float], cases: Sequence[Case], draw: Sampling) -> Interval:
    return statistics.bootstrap_interval(
        values, [c.cluster for c in cases], confidence=draw.confidence, resamples=draw.resamples, seed=draw.seed
    )


def _f1_where(
    results: Sequence[Result], cases: Sequence[Case], kept: Sequence[bool], draw: Sampling
) -> Interval | None:
    pairs = [(r.f1, c) for r, c, keep in zip(results, cases, kept, strict=True) if keep]
    return _interval([f1 for f1, _ in pairs], [c for _, c in pairs], draw) if pairs else None


def _score_labels(
    results: Sequence[Result], cases: Sequence[Case], labels: Sequence[str], draw: Sampling
) -> LabelScores:
    rows = [
        (gold, r.label, c)
        for r, c in zip(results, cases, strict=True)
        if (gold := gold_label(c.item, labels)) is not None
    ]
    golds, said = [row[0] for row in rows], [row[1] for row in rows]
    right = _interval([float(g == s) for g, s, _ in rows], [row[2] for row in rows], draw)
    return LabelScores(len(rows), right, metrics.macro_f1(golds, said) or 0.0, metrics.confusion(golds, said, labels))


_NO_QUOTING: dict[str, Any] = {"quotes": 0, "quote_validity": None, "quoted_answers": None, "quotes_in_oracle": None}


def _score_quoting(results: Sequence[Result], cases: Sequence[Case]) -> dict[str, Any]:
    quotes = [quote for r in results for quote in r.quotes]
    answerable = [quote for r, c in zip(results, cases, strict=True) if c.relevant for quote in r.quotes]
    return {
        "quotes": len(quotes),
        "quote_validity": metrics.share(q.chunk_id is not None for q in quotes),
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
    rows = []
    for other in others:
        deltas = statistics.paired_differences([r.f1 for r in results[system]], [r.f1 for r in results[other]])
        p = statistics.sign_flip_p(deltas, clusters, resamples=draw.resamples, seed=draw.seed)
        least = statistics.minimum_detectable_difference(deltas, clusters, confidence=draw.confidence)
        rows.append((other, _interval(deltas, cases, draw), p, least))
    corrected = statistics.holm([p for _, _, p, _ in rows])
    return [
        Difference(system, other, f1, p, p_holm, least)
        for (other, f1, p, least), p_holm in zip(rows, corrected, strict=True)
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
