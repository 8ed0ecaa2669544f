"""The report of raft evaluate general: report.json for machines, report.md for people.

report.md opens so::

    # clinic-general
    - General text: perplexity 24.31 -> 25.02, 1.029 times [1.012, 1.047]: the tuned model knows it less well.
    - Multiple choice: 0.650 -> 0.625 of 40 right; 2 lost and 1 gained, p = 1: no difference shown.
    - Everyday questions: the form of RAFT's answers in 9 of 24 replies of the tuned model, in 0 of the base's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raft import artifacts
from raft.evaluation.report import markdown_table
from raft.evaluation.statistics import Interval
from raft.records import to_row

if TYPE_CHECKING:
    from raft.evaluation.general import GeneralReport, TaskScore

_DASH = "–"


def verdict(report: GeneralReport) -> list[str]:
    """What has changed, a plain sentence a figure."""
    return [_perplexity(report), _choices(report), _chat(report)]


def _perplexity(report: GeneralReport) -> str:
    found, ratio = report.perplexity, report.perplexity.ratio
    if ratio.low is not None and ratio.low > 1:
        means = "the tuned model knows it less well"
    elif ratio.high is not None and ratio.high < 1:
        means = "the tuned model knows it better"
    else:
        means = "no difference shown"
    return (
        f"General text: perplexity {found.base:.4g} -> {found.tuned:.4g}, {_interval(ratio)} times, over {found.texts} "
        f"paragraphs: {means}."
    )


def _choices(report: GeneralReport) -> str:
    found, alpha = report.choices, 1 - float(report.settings["confidence"])
    means = "no difference shown" if found.p >= alpha else "worse" if found.lost > found.gained else "better"
    return (
        f"Multiple choice: {found.base.mean:.3f} -> {found.tuned.mean:.3f} of {found.n} right; {found.lost} lost and "
        f"{found.gained} gained, p = {found.p:.3g}: {means}."
    )


def _chat(report: GeneralReport) -> str:
    found = report.chat
    tuned, base = (round(each.mean * found.n) for each in (found.tuned_leaked, found.base_leaked))
    declined = [round(each.mean * found.n) for each in (found.tuned_declined, found.base_declined)]
    return (
        f"Everyday questions: the form of RAFT's answers in {tuned} of {found.n} replies of the tuned model, in {base} "
        f"of the base's; an answer that begins with a refusal in {declined[0]} and {declined[1]}."
    )


def to_markdown(report: GeneralReport) -> str:
    """The report as Markdown: verdict, figures, tasks, and the replies with a leak or a refusal."""
    settings, chat = report.settings, report.chat
    shares = {
        f"right choices of {report.choices.n}": (report.choices.base, report.choices.tuned),
        f"replies of {chat.n} in RAFT's form": (chat.base_leaked, chat.tuned_leaked),
        f"replies of {chat.n} that begin with a refusal": (chat.base_declined, chat.tuned_declined),
    }
    rows = [["perplexity", f"{report.perplexity.base:.4g}", f"{report.perplexity.tuned:.4g}"]]
    rows += [[name, _interval(base), _interval(tuned)] for name, (base, tuned) in shares.items()]
    parts = [
        f"# {report.name}",
        "\n".join(f"- {sentence}" for sentence in verdict(report)),
        f"{report.tuned} beside {report.model}; intervals at {settings['confidence']:.0%}. The built-in items are few: "
        "they show large changes, and compare a model with itself, never with others.",
        "## Figures\n\n" + markdown_table(["figure", "base", "tuned"], rows),
    ]
    if report.tasks:
        header = ["task", "metric", "base", "tuned", "difference"]
        table = markdown_table(header, [_task_row(score) for score in report.tasks])
        limit = f", at most {settings['limit']} questions each" if settings["limit"] is not None else ""
        parts.append(f"## lm-evaluation-harness\n\n{table}\n\n± is the standard error of a mean{limit}.")
    shown = [
        f"- {reply.question}\n  - base: {_line(reply.base)}\n  - tuned: {_line(reply.tuned)}" for reply in chat.replies
    ]
    parts.append("## Everyday questions\n\n" + "\n".join(shown))
    parts += ["## Notes\n\n" + "\n".join(f"- {note}" for note in report.notes)] if report.notes else []
    return "\n\n".join(parts) + "\n"


def _task_row(score: TaskScore) -> list[str]:
    return [
        score.task, score.metric, _plus_minus(score.base, score.base_error),
        _plus_minus(score.tuned, score.tuned_error), f"{score.tuned - score.base:+.4f}",
    ]  # fmt: skip


def task_line(score: TaskScore) -> str:
    """A figure of a task in one line."""
    task, metric, base, tuned, difference = _task_row(score)
    return f"{task} {metric}: {base} -> {tuned} ({difference})"


def _plus_minus(value: float, error: float | None) -> str:
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _interval(found: Interval) -> str:
    low_high = "" if found.low is None or found.high is None else f" [{_figure(found.low)}, {_figure(found.high)}]"
    return _figure(found.mean) + low_high


def _figure(value: float) -> str:
    """Three decimals; a ratio of perplexities may be of any size."""
    return f"{value:.3f}" if value < 1000 else f"{value:.4g}"


def _line(text: str) -> str:
    """The reply in one line, as text and not as Markdown or markup."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`" if text.strip() else _DASH


def write(report: GeneralReport, folder: Path) -> None:
    """Write report.json and report.md into ``folder``."""
    artifacts.write_json(folder / "report.json", to_row(report))
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
