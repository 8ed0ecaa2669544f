"""raft compare: what has changed between reports over the same questions.

Each system of the first report is paired, question by question, with its namesake in every later one::

    PairedChange(report="runs/reports/new", before="raft", after="raft", n=120,
                 f1=Interval(0.04, 0.01, 0.07), p=0.012, p_holm=0.024, p_right=0.031, p_right_holm=0.062,
                 minimum_detectable=0.05, gained=("med-017", "med-044"), lost=("med-003",))

``f1`` is the later minus the first. Of three reports or more that differ in nothing but seeds, and in adapters trained
with other seeds, RunSpread tells how far a system's F1 differs from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft import artifacts
from raft.errors import InputError, UsageError
from raft.evaluation import statistics
from raft.evaluation.report import markdown_table
from raft.evaluation.saved_report import SavedReport, open_report
from raft.evaluation.statistics import Interval, Spread
from raft.evaluation.verdict import show
from raft.records import QaItem

_SHOWN_IDS, _SHOWN_VALUE = 10, 60  # ids of a line, characters of a setting, on a terminal


@dataclass(frozen=True, slots=True)
class PairedChange:
    """System ``after`` of ``report`` minus system ``before`` of the first report, on the same questions.

    ``p`` is of the F1 (sign flips of whole source documents), ``p_right`` of which answers are right (McNemar's exact
    test, which takes questions for independent); each is corrected by Holm's method over all changes. ``gained`` are
    the questions that went from wrong to right, ``lost`` from right to wrong.
    """

    report: str
    before: str
    after: str
    n: int
    f1: Interval
    p: float
    p_holm: float
    p_right: float
    p_right_holm: float
    minimum_detectable: float | None
    gained: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunSpread:
    """How the mean F1 of one system differs between the reports."""

    system: str
    f1: Spread


@dataclass(frozen=True, slots=True)
class SettingChange:
    """A setting, or the model of a system, that ``report`` has otherwise than the first."""

    report: str
    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """Reports over the same questions. ``titles`` are the names of the systems for people; ``spreads`` is empty for
    two reports, and where they differ in more than seeds and adapters: ``unlike`` names these settings, ``adapters``
    those that hold another adapter."""

    reports: tuple[str, ...]
    question_set: str
    n: int
    titles: Mapping[str, str]
    settings: tuple[SettingChange, ...]
    changes: tuple[PairedChange, ...]
    spreads: tuple[RunSpread, ...]
    unlike: tuple[str, ...]
    adapters: tuple[str, ...]


def compare_reports(folders: Sequence[Path], systems: tuple[str, str] | None = None) -> Comparison:
    """What the later reports changed against the first: in every system that all have, or in the pair ``systems``,
    (one of the first report, one of the later). Confidence, resamples and seed are those of the first report.

    Raises ArtifactError as ``open_report`` does, InputError when the question sets differ, UsageError when there are
    fewer than two reports, one stands among them twice, or there is no system to pair.
    """
    if len(folders) < 2:
        raise UsageError(f"{len(folders)} report to compare; expected two or more", "Name another report")
    reports = [open_report(folder) for folder in folders]
    _check_apart(folders)
    first, later = reports[0], reports[1:]
    for other in later:
        _same_questions(first, other)
    pairs = [systems] if systems else [(name, name) for name in first.systems if all(name in r.systems for r in later)]
    _check_pairs(pairs, reports)
    unlike, adapters = _apart_from_seeds(reports)
    return Comparison(
        reports=tuple(str(folder) for folder in folders), question_set=first.question_set, n=len(first.questions),
        titles={name: row["title"] for report in reversed(reports) for name, row in report.systems.items()},
        settings=tuple(change for other in later for change in _changed_settings(first, other)),
        changes=tuple(_changes(first, later, pairs)),
        spreads=tuple(_spreads(reports)) if len(reports) > 2 and not unlike else (), unlike=unlike, adapters=adapters,
    )  # fmt: skip


def _check_apart(folders: Sequence[Path]) -> None:
    """A report is no second run of itself: it would make a spread look smaller than it is."""
    known: dict[str, Path] = {}
    for folder in folders:
        fingerprint = artifacts.read_manifest(folder, "report").fingerprint
        first = known.get(fingerprint)
        if first is not None:
            what = f"{folder} is named twice" if first == folder else f"{folder} has the same content as {first}"
            raise UsageError(f"{what}; expected different reports", "Name each report once")
        known[fingerprint] = folder


def _same_questions(first: SavedReport, other: SavedReport) -> None:
    if first.question_set == other.question_set:
        return
    was, now = _asked(first), _asked(other)
    differ = sum(was.get(name) != now.get(name) for name in was.keys() | now.keys())
    what = f"{differ} questions are not the same" if differ else "the questions differ in their split alone"
    raise InputError(
        f"{other.path} asks other questions than {first.path}: {what} (of {len(was)} and {len(now)}; question sets"
        f" {other.question_set} and {first.question_set})",
        "Compare reports over one question file, with the same split, limit and seed",
    )


def _asked(report: SavedReport) -> dict[str, str]:
    """What identifies each question, by its id: all that a report keeps of a QaItem."""
    fields = QaItem.__dataclass_fields__
    return {row["id"]: json.dumps({k: v for k, v in row.items() if k in fields}) for row in report.questions}


def _check_pairs(pairs: Sequence[tuple[str, str]], reports: Sequence[SavedReport]) -> None:
    names = "; ".join(f"{report.path} has {', '.join(report.systems)}" for report in reports)
    if not pairs:
        raise UsageError(f"no system is in all reports: {names}", "Name a pair: --systems FIRST LATER")
    for before, after in pairs:
        wanted = [(before, reports[0]), *((after, report) for report in reports[1:])]
        for name, report in wanted:
            if name not in report.systems:
                raise UsageError(f"no system {name!r} in {report.path}: {names}", "Name a system of each report")


def _changes(first: SavedReport, later: Sequence[SavedReport], pairs: Sequence[tuple[str, str]]) -> list[PairedChange]:
    found = [_change(first, other, before, after) for other in later for before, after in pairs]
    on_f1 = statistics.holm([row["p"] for row in found])
    on_right = statistics.holm([row["p_right"] for row in found])
    return [
        PairedChange(**row, p_holm=p, p_right_holm=p_right)
        for row, p, p_right in zip(found, on_f1, on_right, strict=True)
    ]


def _change(first: SavedReport, other: SavedReport, before: str, after: str) -> dict[str, Any]:
    """The fields of a PairedChange that need no other change."""
    place = {name: at for at, name in enumerate(other.ids)}
    order = [place[name] for name in first.ids]  # equal question sets may come in another order
    was, now = first.right[before], [other.right[after][at] for at in order]
    deltas = statistics.paired_differences([other.f1[after][at] for at in order], first.f1[before])
    clusters = first.clusters
    confidence, resamples, seed = (first.settings[name] for name in ("confidence", "resamples", "seed"))
    triples = list(zip(first.ids, was, now, strict=True))
    return {
        "report": str(other.path), "before": before, "after": after, "n": len(deltas),
        "f1": statistics.bootstrap_interval(deltas, clusters, confidence=confidence, resamples=resamples, seed=seed),
        "p": statistics.sign_flip_p(deltas, clusters, resamples=resamples, seed=seed),
        "p_right": statistics.mcnemar_p(now, was),
        "minimum_detectable": statistics.minimum_detectable_difference(deltas, clusters, confidence=confidence),
        "gained": tuple(name for name, old, new in triples if new and not old),
        "lost": tuple(name for name, old, new in triples if old and not new),
    }  # fmt: skip


def _spreads(reports: Sequence[SavedReport]) -> list[RunSpread]:
    confidence = reports[0].settings["confidence"]
    shared = [name for name in reports[0].systems if all(name in report.systems for report in reports)]
    means = {name: [sum(report.f1[name]) / len(report.f1[name]) for report in reports] for name in shared}
    return [RunSpread(name, statistics.run_spread(values, confidence=confidence)) for name, values in means.items()]


def _apart_from_seeds(reports: Sequence[SavedReport]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """In which settings the reports differ for other reasons than a seed or an adapter; and which adapters differ."""
    rows = [_without_adapters(report) for report in reports]
    names = dict.fromkeys(name for row in rows for name in row)
    unlike = tuple(name for name in names if any(row.get(name) != rows[0].get(name) for row in rows))
    all_names = dict.fromkeys(name for report in reports for name in report.settings if _is_adapter(name))
    differ = [n for n in all_names if any(r.settings.get(n) != reports[0].settings.get(n) for r in reports)]
    return unlike, tuple(differ)


def _without_adapters(report: SavedReport) -> dict[str, Any]:
    """What must be equal in runs that are to differ in their seeds alone: settings and models, without which weights
    were tuned and where these lie. That an adapter is given at all stays."""
    row: dict[str, Any] = {name: True if _is_adapter(name) else value for name, value in report.settings.items()}
    row |= {"seed": None, "shot_ids": None}  # the examples are drawn with the seed
    row["contenders"] = [
        {**own, "adapter": own.get("adapter") is not None} for own in report.settings.get("contenders", ())
    ]
    for name, scores in report.systems.items():
        model, plus, _ = str(scores.get("model")).rpartition("+")
        row[f"model of {name}"] = model if plus and scores.get("tuned") else scores.get("model")
    return row


def _is_adapter(name: str) -> bool:
    return name.rpartition(".")[2] in ("adapter", "dsf_adapter", "model_adapter")


def _changed_settings(first: SavedReport, other: SavedReport) -> list[SettingChange]:
    was, now = (_set_up(report) for report in (first, other))
    names = [*was, *(name for name in now if name not in was)]
    return [
        SettingChange(str(other.path), name, was.get(name), now.get(name))
        for name in names
        if was.get(name) != now.get(name)
    ]


def _set_up(report: SavedReport) -> dict[str, Any]:
    """The settings, and the model of each system."""
    return {**report.settings, **{f"model of {name}": row.get("model") for name, row in report.systems.items()}}


def to_markdown(found: Comparison) -> str:
    """The comparison as Markdown, which reads well as plain text too: tables, flipped questions, changed settings."""
    parts = [
        f"{found.n} questions, the same in all reports; each later report minus {found.reports[0]}.",
        markdown_table(*changes_table(found)),
        "\n".join(line for change in found.changes for line in _flipped(found, change)),
    ]
    if found.spreads:
        parts.append(_spread_title(found) + "\n\n" + markdown_table(*spreads_table(found)))
    elif len(found.reports) > 2:
        parts.append(
            f"No spread over these {len(found.reports)} reports: they differ in more than seeds "
            f"({', '.join(found.unlike)})."
        )
    parts += [_told_settings(found, report) for report in found.reports[1:]]
    return "\n\n".join(part for part in parts if part) + "\n"


def _spread_title(found: Comparison) -> str:
    title = f"F1 over {len(found.reports)} reports that differ in nothing but seeds"
    if not found.adapters:
        return f"{title}: their other settings are equal."
    return (
        f"{title} and {', '.join(found.adapters)}: their other settings are equal. That these adapters were trained "
        "alike but for their seed is not checked here; the spread holds where it is so."
    )


def changes_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text, of the paired changes."""
    rows = [
        [c.report, _pair(found, c), _signed(c.f1), show(c.p, 4), show(c.p_holm, 4), show(c.p_right_holm, 4),
         show(c.minimum_detectable), str(len(c.lost)), str(len(c.gained))]
        for c in found.changes
    ]  # fmt: skip
    return ["report", "system", "change in F1", "p", "p (Holm)", "p right (Holm)", "smallest detectable",
            "right to wrong", "wrong to right"], rows  # fmt: skip


def spreads_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text, of the run-to-run spread."""
    rows = [
        [found.titles[s.system], show(Interval(s.f1.mean, s.f1.low, s.f1.high)), show(s.f1.deviation, 3)]
        for s in found.spreads
    ]
    return ["system", "mean F1 and interval", "standard deviation"], rows


def _pair(found: Comparison, change: PairedChange) -> str:
    before, after = found.titles[change.before], found.titles[change.after]
    return after if change.before == change.after else f"{after} − {before}"


def _signed(value: Interval) -> str:
    return f"{value.mean:+.2f}" + ("" if value.low is None else f" [{value.low:+.2f}, {value.high:+.2f}]")


def _flipped(found: Comparison, change: PairedChange) -> list[str]:
    ways = (("right to wrong", change.lost), ("wrong to right", change.gained))
    where = f" ({change.report})" if len(found.reports) > 2 else ""
    return [f"- {_pair(found, change)}{where}, {way}: {_some(ids)}" for way, ids in ways if ids]


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN_IDS} more (--json names all)" if len(ids) > _SHOWN_IDS else ""
    return ", ".join(ids[:_SHOWN_IDS]) + more


def _told_settings(found: Comparison, report: str) -> str:
    lines = [
        f"- {change.name}: {_brief(change.before)} -> {_brief(change.after)}"
        for change in found.settings
        if change.report == report
    ]
    return f"Settings of {report}:\n\n" + "\n".join(lines) if lines else f"Settings of {report}: the same."


def _brief(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"
