"""What is in a dataset, in figures: what ``raft show DATASET`` prints, and gives whole with ``--json``::

    {"splits": {"train": {"questions": 6, "examples": 24, "groups": 8}},
     "rules": {"quote_missing": 2}, "flags": {"pii_email": 1},
     "types": {"factual": {"accepted": 6, "refused": 2}}, "documents": {"alvoran.md": {"accepted": 1, "refused": 0}},
     "lengths": {"question words": [[4, 7, 3], [8, 11, 3]]}, ...}

Files are read one row at a time, and every column may be missing: datasets of earlier versions lack some.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raft.rows import read_rows

Yield = dict[str, dict[str, int]]
"""Name -> {"accepted": how many questions, "refused": how many}."""
Bins = list[tuple[int, int, int]]
"""(least, most, how many), both ends included."""

_SPLITS = ("train", "dev", "test")
_WIDTHS = (1, 2, 5)
_MOST_BINS = 8
_TEACHER = ("teacher", "teacher_calls", "failed_calls", "prompt_tokens", "completion_tokens", "cost", "review")
_BAR = 24  # characters of the longest bar
_SHOWN = 10  # documents


@dataclass(frozen=True, slots=True)
class DatasetFigures:
    """``rules``: how often each refused. ``types`` and ``documents``: questions accepted and refused, most first; what
    older datasets do not say is under "". ``lengths``: histograms. ``teacher``: its name, calls, tokens and cost."""

    splits: Mapping[str, Mapping[str, int]]
    rules: Mapping[str, int]
    flags: Mapping[str, int]
    types: Yield
    sources: Mapping[str, int]
    documents: Yield
    lengths: Mapping[str, Bins]
    teacher: Mapping[str, Any]


@dataclass
class _Seen:
    """What has been counted so far; ``lengths`` holds, for each name, length -> how often."""

    splits: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    types: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    documents: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    rules: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))


def dataset_figures(folder: Path, facts: Mapping[str, Any]) -> DatasetFigures:
    """The figures of a dataset whose manifest has these facts."""
    seen = _Seen()
    accepted = _count_questions(seen, folder)
    _count_rejected(seen, folder, accepted)
    _count_examples(seen, folder)
    return DatasetFigures(
        splits={name: dict(seen.splits[name]) for name in _SPLITS if name in seen.splits},
        rules=dict(seen.rules.most_common()),
        flags=dict(seen.flags.most_common()),
        types=_most_first(seen.types),
        sources=dict(seen.sources.most_common()),
        documents=_most_first(seen.documents),
        lengths={name: histogram(counts) for name, counts in seen.lengths.items()},
        teacher={name: facts[name] for name in _TEACHER if facts.get(name)},
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return read_rows(path) if path.exists() else iter(())


def _count_questions(seen: _Seen, folder: Path) -> set[str]:
    """Count the accepted questions; gives their ids."""
    ids = set()
    for row in _rows(folder / "questions.jsonl"):
        ids.add(str(row.get("id")))
        seen.splits[str(row.get("split"))]["questions"] += 1
        seen.sources[str(row.get("source", ""))] += 1
        seen.flags.update(row.get("flags", ()))
        _count_yield(seen, row, "accepted")
        seen.lengths["question words"][_words(row.get("question"))] += 1
        if row.get("answer"):
            seen.lengths["answer words"][_words(row.get("answer"))] += 1
    return ids


def _count_rejected(seen: _Seen, folder: Path, accepted: set[str]) -> None:
    """Count the refusals by rule, and the refused questions once each. What a teacher wrote for an accepted question
    may be refused by itself: that counts for its rule alone."""
    refused: set[str] = set()
    for row in _rows(folder / "rejected.jsonl"):
        seen.rules.update(row.get("reasons", ()))
        name = str(row.get("id"))
        if name not in accepted and name not in refused:
            refused.add(name)
            _count_yield(seen, row, "refused")


def _count_yield(seen: _Seen, row: Mapping[str, Any], outcome: str) -> None:
    seen.types[str(row.get("question_type", ""))][outcome] += 1
    for name in row.get("document_ids") or ("",):
        seen.documents[str(name)][outcome] += 1


def _count_examples(seen: _Seen, folder: Path) -> None:
    sizes = {row.get("id"): _words(row.get("text")) for row in _rows(folder / "chunks.jsonl")}
    for split in _SPLITS:
        groups: set[str] = set()
        for row in _rows(folder / f"{split}.jsonl"):
            seen.splits[split]["examples"] += 1
            seen.lengths["target words"][_words(row.get("target"))] += 1
            context = row.get("context", ())
            group = str(row.get("group", row.get("id")))
            if group not in groups:
                groups.add(group)
                seen.lengths["context chunks"][len(context)] += 1
                seen.lengths["context words"][sum(sizes.get(name, 0) for name in context)] += 1
        if groups:
            seen.splits[split]["groups"] = len(groups)


def _words(text: object) -> int:
    return len(str(text or "").split())


def _most_first(counts: Mapping[str, Counter[str]]) -> Yield:
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1].total(), pair[0]))
    return {name: {"accepted": count["accepted"], "refused": count["refused"]} for name, count in ordered}


def histogram(counts: Mapping[int, int]) -> Bins:
    """At most eight bins of one width (1, 2, 5, 10, 20 ...) over lengths from 0 on; empty bins between full ones are
    among them. The last one takes what lies beyond nine in ten of all, where it would stretch the others."""
    if not counts:
        return []
    total, below, most = sum(counts.values()), 0, max(counts)
    for length in sorted(counts):
        below += counts[length]
        if 10 * below >= 9 * total:
            most = min(most, 2 * length)
            break
    width = next(
        w * 10**n for n in range(20) for w in _WIDTHS if most // (w * 10**n) - min(counts) // (w * 10**n) < _MOST_BINS
    )
    first, last = min(counts) // width, most // width
    held = Counter(dict.fromkeys(range(first, last + 1), 0))
    for length, count in counts.items():
        held[min(length // width, last)] += count
    top = max(counts)
    return [(n * width, max(top, n * width) if n == last else (n + 1) * width - 1, held[n]) for n in sorted(held)]


# --- as text ---------------------------------------------------------------------------------------------------------


def figures_text(figures: DatasetFigures) -> list[str]:
    """The figures as lines for people; words of documents are in them as they are."""
    lines = ["", "splits"]
    for split, counts in figures.splits.items():
        lines.append(f"  {split}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    lines += _yields("questions by type", figures.types)
    lines += _yields("questions by document", figures.documents)
    lines += _counted("questions by source", figures.sources)
    lines += _counted("refusals by rule", figures.rules)
    lines += _counted("flags", figures.flags)
    lines += _counted("teacher", figures.teacher)
    for name, bins in figures.lengths.items():
        lines += ["", name, *_bars(bins)]
    return lines


def _counted(title: str, counts: Mapping[str, Any]) -> list[str]:
    said = {name: f"{count:,}" if isinstance(count, int) else count for name, count in counts.items()}
    return ["", title, *(f"  {name or 'not said'}: {count}" for name, count in said.items())] if said else []


def _yields(title: str, counts: Yield) -> list[str]:
    """The first ten, and the rest as one line."""
    rows = list(counts.items())
    shown = rows[:_SHOWN] if len(rows) > _SHOWN + 1 else rows
    lines = [_yield_line(name or "not said", count["accepted"], count["refused"]) for name, count in shown]
    if rest := rows[len(shown) :]:
        accepted, refused = _sum(rest, "accepted"), _sum(rest, "refused")
        lines.append(_yield_line(f"{len(rest):,} more", accepted, refused))
    return ["", title, *lines] if lines else []


def _sum(rows: Iterable[tuple[str, Mapping[str, int]]], outcome: str) -> int:
    return sum(count[outcome] for _, count in rows)


def _yield_line(name: str, accepted: int, refused: int) -> str:
    return f"  {name}: {accepted:,} accepted, {refused:,} refused ({accepted / max(1, accepted + refused):.0%})"


def _bars(bins: Bins) -> list[str]:
    most = max(count for _, _, count in bins)
    spans = [f"{least:,}" if least == last else f"{least:,}-{last:,}" for least, last, _ in bins]
    wide = max(map(len, spans))
    return [
        f"  {span:>{wide}} {'#' * round(_BAR * count / most):<{_BAR}} {count:,}".rstrip()
        for span, (_, _, count) in zip(spans, bins, strict=True)
    ]
