"""The report of a comparison: report.json for machines, report.md for terminals, report.html for people.

report.json opens so::

    {"name": "medical", "scoring": 2, "verdict": ["RAFT answers better than RAG: token F1 0.61 against 0.42 ...", ...],
     "question_set": {"hash": "9f2c...", "n": 120, "unanswerable": 12, "clusters": 34}, "settings": {...},
     "systems": [{"system": "rag", "f1": {"mean": 0.42, "low": 0.35, "high": 0.49}, ...}], "differences": [...],
     "retrieval": [...], "majority": null, "notes": [], "questions": [...], "results": [...], "chunks": {...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft import artifacts
from raft.config import SystemName
from raft.evaluation import metrics
from raft.evaluation.cases import Case, System
from raft.evaluation.replies import SCORING
from raft.evaluation.report_figures import figures_note, figures_table
from raft.evaluation.report_plots import risk_plot
from raft.evaluation.scoring import (
    RIGHT_F1,
    Difference,
    Result,
    RetrievalScores,
    Sampling,
    SystemScores,
    gold_label,
    score_differences,
    score_retrieval,
    score_systems,
)
from raft.evaluation.verdict import DASH, Majority, show, write_verdict
from raft.records import to_row

_TITLE = 26  # letters of a title beside a plot


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a reader needs to judge the comparison. ``scoring`` tells the rules by which replies were scored
    (replies.SCORING); ``chunks`` holds each prompt document once, by id."""

    name: str
    scoring: int
    verdict: tuple[str, ...]
    question_set: Mapping[str, Any]
    settings: Mapping[str, Any]
    systems: tuple[SystemScores, ...]
    differences: tuple[Difference, ...]
    retrieval: tuple[RetrievalScores, ...]
    majority: Majority | None
    notes: tuple[str, ...]
    questions: tuple[Mapping[str, Any], ...]
    results: tuple[Result, ...]
    chunks: Mapping[str, Mapping[str, Any]]


def build(
    name: str,
    settings: Mapping[str, Any],
    cases: Sequence[Case],
    results: Mapping[System, Sequence[Result]],
    models: Mapping[SystemName, str],
    draw: Sampling,
    notes: Sequence[str],
) -> Report:
    """The report of these results: for each system one a case, in the cases' order. ``models`` names each system's
    model. Raises ValueError when the results are not those of the cases."""
    labels = settings["answer_labels"]
    systems = score_systems(results, models, cases, labels, draw)
    lead = settings.get("lead") or "raft"
    differences = tuple(score_differences(lead, {s.name: rows for s, rows in results.items()}, cases, draw))
    retrieval = tuple(score_retrieval(cases, settings["top_k"]))
    majority = _majority(cases, labels)
    counted = {
        "hash": question_set_hash(cases),
        "n": len(cases),
        "unanswerable": sum(case.unanswerable for case in cases),
        "clusters": len({case.cluster for case in cases}),
    }
    fallback = sum(bool(case.item.evidence) and not case.by_evidence for case in cases)
    if fallback:
        notes = [*notes, f"the evidence of {fallback} questions was not found in their documents; their oracles are"
                 " all chunks of the gold documents"]  # fmt: skip
    return Report(
        name=name, scoring=SCORING, verdict=write_verdict(systems, differences, majority, counted, draw),
        question_set=counted, settings=settings, systems=systems, differences=differences, retrieval=retrieval,
        majority=majority, notes=tuple(notes), questions=tuple(_question(case) for case in cases),
        results=tuple(row for rows in results.values() for row in rows), chunks=_chunks(cases),
    )  # fmt: skip


def question_set_hash(cases: Sequence[Case]) -> str:
    """sha256 of the questions with their references, whatever their order: only reports with equal hashes compare."""
    return artifacts.digest(sorted((to_row(case.item) for case in cases), key=lambda row: row["id"]))


def _majority(cases: Sequence[Case], labels: Sequence[str]) -> Majority | None:
    gold = [label for case in cases if (label := gold_label(case.item, labels)) is not None]
    if not gold:
        return None
    label = metrics.majority_label(gold)
    said = [label] * len(gold)
    return Majority(label, metrics.accuracy(gold, said) or 0.0, metrics.macro_f1(gold, said) or 0.0)


def _question(case: Case) -> dict[str, Any]:
    item = case.item
    return {
        "id": item.id, "question": item.question, "answer": item.answer, "aliases": list(item.aliases),
        "answer_type": item.answer_type, "long_answer": item.long_answer,
        "gold_document_ids": list(item.gold_document_ids),
        "evidence": [{"document_id": e.document_id, "text": e.text} for e in item.evidence],
        "cluster": case.cluster, "hit_ids": [chunk.id for chunk in case.hits],
        "oracle_ids": sorted(case.oracle_ids),
        "oracle_retrieved": case.holds_oracle(case.hits) if case.relevant else None,
        "oracle_by_evidence": case.by_evidence, "oracle_rank": case.oracle_rank,
    }  # fmt: skip


def _chunks(cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    return {
        chunk.id: {
            "document_id": chunk.document_id, "title": chunk.title, "headings": list(chunk.headings),
            "page": chunk.page, "text": chunk.text,
        }
        for case in cases
        for chunk in (*case.hits, *case.with_oracle)
    }  # fmt: skip


def systems_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text, of the table of the systems."""
    labels = bool(report.settings["answer_labels"])
    on_labels = ["accuracy", "macro-F1"] if labels else []
    header = ["system", "n", "failed", "EM", "F1", *on_labels, "quotes verbatim", "answers with quote",
              "declined P / R", "well-formed", "tokens in / out", "seconds"]  # fmt: skip
    return header, [_system_row(scores, labels) for scores in report.systems]


def _system_row(scores: SystemScores, labels: bool) -> list[str]:
    given = [show(scores.labels.accuracy), show(scores.labels.macro_f1)] if scores.labels else [DASH, DASH]
    on_labels = given if labels else []
    return [
        scores.title, str(scores.n), str(scores.failures), show(scores.em), show(scores.f1), *on_labels,
        show(scores.quote_validity), show(scores.quoted_answers),
        f"{show(scores.abstention_precision)} / {show(scores.abstention_recall)}", show(scores.well_formed),
        f"{scores.prompt_tokens:.0f} / {scores.completion_tokens:.0f}", f"{scores.seconds:.1f}",
    ]  # fmt: skip


def differences_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the lead minus each other system; no rows when it was not evaluated."""
    titles = {s.system: s.title for s in report.systems}
    on_right = any(d.p_right_holm is not None for d in report.differences)
    rows = [
        [
            f"{titles[d.system]} − {titles[d.minus]}",
            f"{d.f1.mean:+.2f}" if d.f1.low is None else f"{d.f1.mean:+.2f} [{d.f1.low:+.2f}, {d.f1.high:+.2f}]",
            show(d.p, 4), show(d.p_holm, 4), *([show(d.p_right_holm, 4)] if on_right else []),
            show(d.minimum_detectable),
        ]
        for d in report.differences
    ]  # fmt: skip
    tests = ["p", "p (Holm)", *(["p right (Holm)"] if on_right else [])]
    return ["difference in F1", "mean and interval", *tests, "smallest detectable"], rows


def retrieval_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows of recall@k and MRR, by gold document and by evidence passage."""
    depths = list(report.retrieval[0].recall) if report.retrieval else []
    rows = [[s.unit, str(s.n), *(show(s.recall[k]) for k in depths), show(s.mrr)] for s in report.retrieval]
    return ["found by", "n", *(f"recall@{k}" for k in depths), "MRR"], rows


def to_markdown(report: Report) -> str:
    """The report as Markdown: verdict, tables, failures and notes."""
    counted, settings = report.question_set, report.settings
    parts = [
        f"# {report.name}",
        "\n".join(f"- {sentence}" for sentence in report.verdict),
        f"{counted['n']} questions ({counted['unanswerable']} unanswerable) in {counted['clusters']} clusters of "
        f"source documents; {settings['top_k']} documents a prompt; intervals at {settings['confidence']:.0%}.",
        "## Systems\n\n" + markdown_table(*systems_table(report)),
    ]
    header, rows = figures_table(report.systems)
    if len(header) > 1:
        parts += ["## More figures\n\n" + markdown_table(header, rows), figures_note(report.systems)]
    if report.majority:
        m = report.majority
        parts.append(f"Always answering {m.label!r}: accuracy {m.accuracy:.2f}, macro-F1 {m.macro_f1:.2f}.")
    if report.differences:
        parts.append("## Paired differences\n\n" + markdown_table(*differences_table(report)))
    if report.retrieval:
        parts.append("## Retrieval\n\n" + markdown_table(*retrieval_table(report)))
    failed = [f"- {r.system}, question {r.question_id}: {r.error}" for r in report.results if r.error is not None]
    parts += ["## Failed replies\n\n" + "\n".join(failed)] if failed else []
    parts += ["## Notes\n\n" + "\n".join(f"- {note}" for note in report.notes)] if report.notes else []
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well as plain text too. A ``|`` of a cell ends no cell."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def to_html(report: Report) -> str:
    """The report as one self-contained page: no external request, works from a file, all text escaped."""
    import jinja2
    import markupsafe

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(show=show, brief=_brief)
    style, script = (markupsafe.Markup((folder / f"report.{kind}").read_text("utf-8")) for kind in ("css", "js"))
    return environment.get_template("report.html.j2").render(
        report=report, systems_table=systems_table(report), figures_table=figures_table(report.systems),
        figures_note=figures_note(report.systems), differences_table=differences_table(report),
        retrieval_table=retrieval_table(report), titles={s.system: s.title for s in report.systems},
        tuned={s.system for s in report.systems if s.tuned}, risk=risk_plot(report.systems), right_f1=RIGHT_F1,
        style=style, script=script, data=_page_data(report),
    )  # fmt: skip


def _brief(title: str) -> str:
    """A title that fits beside a plot."""
    return title if len(title) <= _TITLE else title[: _TITLE - 1] + "…"


def _page_data(report: Report) -> Any:
    """The drill-down's data as JSON that cannot end its script element."""
    import markupsafe

    by_question: dict[str, list[Any]] = {question["id"]: [] for question in report.questions}
    for result in report.results:
        by_question[result.question_id].append(to_row(result))
    data = {
        "systems": [{"name": scores.system, "title": scores.title} for scores in report.systems],
        "pair": _contrasted(report),
        "questions": report.questions,
        "results": by_question,
        "chunks": report.chunks,
    }
    text = json.dumps(data, ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return markupsafe.Markup(text)


def _contrasted(report: Report) -> list[SystemName | None]:
    """The two systems that the page contrasts at first: the lead, or the last tuned system, or the last; beside the
    first untuned one over the same documents, or another. With one system, it and None."""
    systems = list(report.systems)
    lead = report.differences[0].system if report.differences else None
    first = next((s for s in systems if s.system == lead), None) or next(
        (s for s in reversed(systems) if s.tuned), systems[-1]
    )
    others = [s for s in systems if s is not first]
    plain = [s for s in others if s.documents == "hits" and not s.tuned]
    return [first.system, next((s.system for s in (*plain, *others)), None)]


def write(report: Report, folder: Path) -> None:
    """Write report.json, report.md and report.html into ``folder``."""
    artifacts.write_json(folder / "report.json", to_row(report))
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    (folder / "report.html").write_text(to_html(report), encoding="utf-8")
