"""The report of ``raft evaluate retrieval``: what the retrievers found for the same questions, compared.

Each retriever is measured by document (a document stands where its best chunk stands) and, where the questions carry
evidence that is found in the documents, by passage (the chunks that hold it). A row of ``misses.jsonl``::

    {"retriever": "bm25", "question_id": "med-001", "question": "How soon after ...",
     "gold_document_ids": ["protocols/sepsis-adult.md"], "rank": 3, "passage_rank": null,
     "first": {"document_id": "protocols/stroke.md", "chunk_id": "protocols/stroke.md#4", "text": "## Timing ..."}}

``rank`` is that of the first gold document, ``passage_rank`` that of the first chunk with evidence; null when it was
not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raft import artifacts
from raft.evaluation import statistics
from raft.evaluation.cases import seen_note
from raft.evaluation.ranking import RANK_DEPTH, Asked, Found, Unit
from raft.evaluation.report import markdown_table
from raft.evaluation.scoring import Sampling
from raft.evaluation.statistics import Interval
from raft.evaluation.verdict import show, show_p
from raft.records import QaItem, to_row
from raft.rows import write_rows

_TEXT_CHARS = 300  # of the first hit in misses.jsonl


@dataclass(frozen=True, slots=True)
class RetrieverScores:
    """One line of the table: the mean of each measure over ``n`` questions."""

    retriever: str
    unit: Unit
    n: int
    figures: Mapping[str, Interval]
    ms_per_query: float  # of searches in batches: a rate, no waiting time


@dataclass(frozen=True, slots=True)
class RetrievalDifference:
    """``retriever`` minus ``minus`` on the same questions; ``p_holm`` is corrected over all differences."""

    retriever: str
    minus: str
    unit: Unit
    measure: str
    difference: Interval
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class RetrievalReport:
    """What ``raft evaluate retrieval`` measured; ``misses`` go to a file of their own."""

    name: str
    question_set: Mapping[str, Any]
    settings: Mapping[str, Any]
    scores: tuple[RetrieverScores, ...]
    differences: tuple[RetrievalDifference, ...]
    notes: tuple[str, ...]
    misses: tuple[Mapping[str, Any], ...]


def build_report(
    name: str, asked: Asked, found: Sequence[Found], settings: Mapping[str, Any], draw: Sampling
) -> RetrievalReport:
    """The report of what the retrievers found for the same questions."""
    units: list[Unit] = ["document", "passage"] if found[0].with_passages else ["document"]
    scores = tuple(_score(one, unit, asked, draw) for unit in units for one in found)
    counted = {
        "hash": artifacts.digest(sorted((to_row(item) for item in asked.items), key=lambda row: row["id"])),
        "n": len(asked.items), "with_passages": len(found[0].with_passages), "clusters": len(set(asked.clusters)),
        "without_gold": asked.without_gold, "not_indexed": asked.not_indexed,
        "seen": asked.seen,
    }  # fmt: skip
    differences = _correct([_difference(*pair, asked, draw) for pair in pairs(found)])
    return RetrievalReport(name, counted, settings, scores, differences, tuple(_notes(counted)), _misses(asked, found))


def _notes(counted: Mapping[str, Any]) -> Iterator[str]:
    if counted["seen"]:
        yield seen_note(counted["seen"])
    if counted["without_gold"]:
        yield f"{counted['without_gold']} questions without a gold document are left out"
    if counted["not_indexed"]:
        yield f"{counted['not_indexed']} questions are left out: a gold document of theirs is not in the index"


def _score(found: Found, unit: Unit, asked: Asked, draw: Sampling) -> RetrieverScores:
    clusters = _clusters(found, unit, asked)
    figures = {name: _interval(values, clusters, draw) for name, values in found.measured[unit].items()}
    milliseconds = round(1000 * found.seconds / len(asked.items), 2)
    return RetrieverScores(found.retriever.name, unit, len(clusters), figures, milliseconds)


def _clusters(found: Found, unit: Unit, asked: Asked) -> list[str]:
    return asked.clusters if unit == "document" else [asked.clusters[n] for n in found.with_passages]


def _interval(values: Sequence[float], clusters: Sequence[str], draw: Sampling) -> Interval:
    return statistics.bootstrap_interval(
        values, clusters, confidence=draw.confidence, resamples=draw.resamples, seed=draw.seed
    )


def pairs(found: Sequence[Found]) -> Iterator[tuple[Found, Found, Unit, str]]:
    """What is compared, in which unit and measure: fused with the best of the index's other modes, by document and by
    passage; and each mode of the second index with the same mode of the first, by document (their chunks differ)."""
    sources = list(dict.fromkeys(one.retriever.source for one in found))
    if len(sources) == 2:
        first, second = ([one for one in found if one.retriever.source == source] for source in sources)
        for measure_name in _headline(first[0]):
            yield from ((b, a, "document", measure_name) for a, b in zip(first, second, strict=True))
    units: tuple[Unit, ...] = ("document", "passage")
    for source in sources:
        own = [one for one in found if one.retriever.source == source]
        fused = next((one for one in own if one.retriever.mode == "fused"), None)
        others = [one for one in own if one is not fused]
        if fused is None or not others:
            continue
        for unit in units if fused.with_passages else units[:1]:
            for measure_name in _headline(fused):
                yield fused, max(others, key=lambda one: sum(one.measured[unit][measure_name])), unit, measure_name


def _headline(found: Found) -> list[str]:
    """The measures that are compared: nDCG@10, and recall@5 or that at the depth next to it."""
    depths = [int(name.partition("@")[2]) for name in found.measured["document"] if name.startswith("recall@")]
    return [f"ndcg@{RANK_DEPTH}", f"recall@{min(depths, key=lambda k: (abs(k - 5), k))}"]


def _difference(
    one: Found, other: Found, unit: Unit, measure_name: str, asked: Asked, draw: Sampling
) -> RetrievalDifference:
    values = statistics.paired_differences(one.measured[unit][measure_name], other.measured[unit][measure_name])
    clusters = _clusters(one, unit, asked)
    p = statistics.sign_flip_p(values, clusters, resamples=draw.resamples, seed=draw.seed)
    interval = _interval(values, clusters, draw)
    return RetrievalDifference(one.retriever.name, other.retriever.name, unit, measure_name, interval, p, p)


def _correct(differences: Sequence[RetrievalDifference]) -> tuple[RetrievalDifference, ...]:
    corrected = statistics.holm([row.p for row in differences])
    return tuple(replace(row, p_holm=p) for row, p in zip(differences, corrected, strict=True))


def _misses(asked: Asked, found: Sequence[Found]) -> tuple[Mapping[str, Any], ...]:
    """A row for each question and retriever whose first hit is not of a gold document."""
    rows = []
    for n, item in enumerate(asked.items):
        for one in found:
            rank = next((r for r, d in enumerate(one.ranked[n].documents, 1) if d in item.gold_document_ids), None)
            if rank != 1:
                rows.append(_miss(one, n, item, rank))
    return tuple(rows)


def _miss(found: Found, n: int, item: QaItem, rank: int | None) -> dict[str, Any]:
    ranking = found.ranked[n]
    holding = frozenset[str]().union(*(found.passages[n] or ()))
    chunk = ranking.first
    first = chunk and {"document_id": chunk.document_id, "chunk_id": chunk.id, "text": chunk.text[:_TEXT_CHARS]}
    passage_rank = next((r for r, name in enumerate(ranking.chunk_ids, 1) if name in holding), None)
    return {
        "retriever": found.retriever.name, "question_id": item.id, "question": item.question,
        "gold_document_ids": list(item.gold_document_ids), "rank": rank, "passage_rank": passage_rank, "first": first,
    }  # fmt: skip


def scores_table(report: RetrievalReport, unit: Unit) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text, of what was found by document or by passage; no rows where nothing was measured."""
    scores = [row for row in report.scores if row.unit == unit]
    names = list(scores[0].figures) if scores else []
    rows = [
        [row.retriever, str(row.n), *(show(row.figures[name], 3) for name in names), f"{row.ms_per_query:.1f}"]
        for row in scores
    ]
    return [f"by {unit}", "n", *(_title(name) for name in names), "ms a query, in batches"], rows


def differences_table(report: RetrievalReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the paired differences."""
    rows = [
        [f"{row.retriever} − {row.minus}", row.unit, _title(row.measure), _signed(row.difference), show_p(row.p),
         show_p(row.p_holm)]
        for row in report.differences
    ]  # fmt: skip
    return ["difference", "by", "measure", "mean and interval", "p", "p (Holm)"], rows


def _title(measure_name: str) -> str:
    return measure_name.replace("mrr", "MRR").replace("ndcg", "nDCG")


def _signed(interval: Interval) -> str:
    bounds = "" if interval.low is None else f" [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{interval.mean:+.3f}{bounds}"


def to_markdown(report: RetrievalReport) -> str:
    """The tables and notes as Markdown, which reads well as plain text too."""
    counted = report.question_set
    parts = [
        f"# Retrieval: {report.name}",
        f"{counted['n']} questions in {counted['clusters']} clusters of source documents, "
        f"{counted['with_passages']} of them with a located passage of evidence; intervals at "
        f"{report.settings['confidence']:.0%}.",
        *(
            markdown_table(header, rows)
            for header, rows in (scores_table(report, "document"), scores_table(report, "passage"))
            if rows
        ),
    ]
    if report.differences:
        parts.append(markdown_table(*differences_table(report)))
    parts += ["\n".join(f"- {note}" for note in report.notes)] if report.notes else []
    return "\n\n".join(parts) + "\n"


def figures(report: RetrievalReport) -> dict[str, Any]:
    """The report as a JSON-ready dict, without the misses."""
    return {key: value for key, value in to_row(report).items() if key != "misses"}


def write(report: RetrievalReport, folder: Path) -> None:
    """Write report.json, report.md and misses.jsonl into ``folder``."""
    artifacts.write_json(folder / "report.json", figures(report))
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    write_rows(folder / "misses.jsonl", report.misses)
