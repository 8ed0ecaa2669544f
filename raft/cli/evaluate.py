"""raft evaluate: the same questions through several systems -> report."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Overwrite, Resume, Settings, ToJson, default_out, progress_bar
from raft.config import ContenderRecipe, EvaluateRecipe, load_recipe
from raft.errors import UsageError

if TYPE_CHECKING:
    from raft.evaluation.fail_under import Condition, Outcome
    from raft.evaluation.report import Report

FailUnder = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-under",
        metavar="CONDITION",
        help="end with exit code 6 unless a figure is high enough: rag.f1+0.02 (the lead's f1 against RAG's), "
        "mine.em=rag.em, raft.f1=0.6; the report is written either way (may be repeated)",
    ),
]
Contenders = Annotated[
    list[str] | None,
    typer.Option(
        "--contender", metavar="NAME=DIR",
        help="another tuned model beside the others: an adapter of the same base model (may be repeated)",
    ),
]  # fmt: skip
_NOT_IN_JSON = ("questions", "results", "chunks")  # the long parts of report.json


def evaluate(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe, e.g. configs/evaluate/cpu.toml")] = None,
    index: Annotated[Path | None, typer.Option(help="index made by raft index")] = None,
    questions: Annotated[Path | None, typer.Option(help="questions with reference answers (JSONL)")] = None,
    adapter: Annotated[Path | None, typer.Option(help="tuned model made by raft train")] = None,
    dsf_adapter: Annotated[
        Path | None, typer.Option("--dsf-adapter", help="model tuned without documents, made by raft train")
    ] = None,
    model: Annotated[str | None, typer.Option(help="base model: hub id, folder, package:NAME")] = None,
    contender: Contenders = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new report")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    fail_under: FailUnder = None,
    to_json: ToJson = False,
) -> None:
    """Compare closed book, few-shot, RAG and RAFT on the same questions and write a report."""
    from raft.evaluation import fail_under as gate
    from raft.records import to_row

    conditions = gate.parse_conditions(fail_under or ())
    chosen = load_recipe(
        EvaluateRecipe, recipe, settings or (),
        index=index, questions=questions, adapter=adapter, dsf_adapter=dsf_adapter, model__model=model, out=out,
    )  # fmt: skip
    chosen = _with_contenders(chosen, contender or ())
    _check_systems(conditions, chosen)
    folder = chosen.out or default_out("reports", recipe.stem if recipe else "evaluation")
    report = _evaluate(chosen, folder, resume, overwrite)
    scored = {scores.system: to_row(scores) for scores in report.systems}
    found = gate.outcomes(conditions, scored, report.settings.get("lead"))
    if to_json:
        typer.echo(summary_json(report, folder, found))
    else:
        show_report(report)
        typer.echo(f"report: {folder / 'report.html'}")
    gate.require(found)


def _evaluate(recipe: EvaluateRecipe, folder: Path, resume: bool, overwrite: bool) -> Report:
    """The report, with a bar of the replies while they come."""
    from raft.evaluation import compare

    with progress_bar("answers") as bar:
        task = bar.add_task("evaluating", total=None)

        def on_reply(done: int, total: int, system: str) -> None:
            bar.update(task, total=total, completed=done, description=f"evaluating  {system}")

        return compare.evaluate(recipe, folder, resume=resume, overwrite=overwrite, on_reply=on_reply)


def _with_contenders(recipe: EvaluateRecipe, given: Sequence[str]) -> EvaluateRecipe:
    """The recipe with adapters as contenders, behind its own. Raises UsageError for what is not NAME=DIR, RecipeError
    for a name that cannot be one."""
    own = []
    for text in given:
        name, _, adapter = text.partition("=")
        if not name or not adapter:
            raise UsageError(f"--contender {text!r} is not NAME=DIR", "Write --contender plain=runs/adapters/plain")
        own.append(load_recipe(ContenderRecipe, name=name, adapter=Path(adapter)))
    return recipe.model_copy(update={"contenders": (*recipe.contenders, *own)})


def _check_systems(conditions: Sequence[Condition], recipe: EvaluateRecipe) -> None:
    """Raises UsageError for a condition on a system that will not run: now, not after hours."""
    from raft.evaluation.fail_under import check_systems
    from raft.evaluation.systems import choose_systems, contenders_of, find_lead, sources_of

    if conditions:
        contenders = contenders_of(recipe)
        systems, _ = choose_systems(recipe.systems, tuple(sources_of(recipe)), contenders)
        check_systems(conditions, [system.name for system in systems], find_lead(recipe.lead, systems, contenders))


def summary_json(report: Report, folder: Path, outcomes: Sequence[Outcome] = ()) -> str:
    """The report without its rows, as one line of JSON; ``report`` is the path of the page, ``fail_under`` has what
    became of the conditions, where there are any."""
    from raft.records import to_row

    figures = {key: value for key, value in to_row(report).items() if key not in _NOT_IN_JSON}
    gate = {"fail_under": [to_row(outcome) for outcome in outcomes]} if outcomes else {}
    return json.dumps({**figures, "report": str(folder / "report.html"), **gate}, ensure_ascii=False)


def show_report(report: Report) -> None:
    """Print the table of the systems and the verdict: a drawn table on a terminal, Markdown elsewhere."""
    from raft.evaluation.report import markdown_table, systems_table

    header, rows = systems_table(report)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        typer.echo(markdown_table(header, rows))
    typer.echo("\n" + "\n".join(report.verdict) + "\n")
