"""raft generate: index -> RAFT dataset."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Overwrite, Resume, Settings, ToJson, default_out, printable, progress_bar
from raft.config import load_recipe, require
from raft.config_generate import GenerateRecipe

if TYPE_CHECKING:
    from raft.config import ChatModelRecipe
    from raft.dataset.estimate import Estimate
    from raft.dataset.summary import DatasetSummary
    from raft.dataset.teacher import Progress
    from raft.llm.chat import ChatModel


def generate(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe, e.g. configs/generate/cpu.toml")] = None,
    index: Annotated[Path | None, typer.Option(help="index made by raft index")] = None,
    from_qa: Annotated[
        Path | None, typer.Option("--from-qa", help="existing questions (JSONL, CSV, Parquet ...)")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="model that writes questions and answers")] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", help="the teacher's OpenAI-compatible endpoint")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new dataset")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be asked, and its cost")] = False,
    to_json: ToJson = False,
) -> None:
    """Make a RAFT dataset: by a teacher, or from existing questions with evidence."""
    from raft.artifacts import check_free
    from raft.dataset.build import generate_dataset
    from raft.dataset.estimate import estimate
    from raft.errors import UsageError
    from raft.retrieval.index import open_index

    chosen = load_recipe(
        GenerateRecipe, recipe, settings or (), index=index, from_qa=from_qa, teacher__model=teacher,
        teacher__base_url=base_url, out=out,
    )  # fmt: skip
    if chosen.teacher is None and chosen.from_qa is None:
        raise UsageError("there is neither a teacher nor a file of questions", "Give --teacher or --from-qa")
    folder = Path(require(chosen.index, "index", "--index"))
    target = chosen.out or default_out("datasets", folder.resolve().name)
    if not dry_run:
        check_free(target, overwrite)
    opened = open_index(folder, labels=chosen.labels)
    if dry_run:
        plan = estimate(chosen, opened.chunks)
        typer.echo(json.dumps(asdict(plan)) if to_json else _plan_text(plan))
        return
    writer, judge = _open_model(chosen.teacher), _open_model(chosen.quality.judge)
    with _progress() as progress:
        summary = generate_dataset(
            chosen, opened, target, writer, judge, resume=resume, overwrite=overwrite, progress=progress
        )  # fmt: skip
    typer.echo(json.dumps(asdict(summary), ensure_ascii=False, default=str) if to_json else _as_text(summary))


_NOT_OF_THE_MODEL = {"temperature", "prompt_price", "completion_price", "budget_tokens", "budget_money", "cache"}


def _open_model(recipe: ChatModelRecipe | None) -> ChatModel | None:
    if recipe is None:
        return None
    from raft.llm.open import open_chat_model

    settings = recipe.model_dump(exclude=_NOT_OF_THE_MODEL)
    return open_chat_model(settings.pop("model"), **settings)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    with progress_bar("done") as bar:
        tasks = {}

        def progress(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(
                tasks[stage], completed=done, total=total, description=f"{stage}, {note}" if note else stage
            )  # fmt: skip

        yield progress


def _plan_text(plan: Estimate) -> str:
    judged = f" and {plan.judge_calls} of the judge" if plan.judge_calls else ""
    cost = f", at a cost of about {plan.cost:.2f}" if plan.cost else ""
    return (
        f"{plan.chunks} chunks, at most {plan.questions} questions, at most {plan.teacher_calls} calls of the teacher"
        f"{judged} with about {plan.prompt_tokens:,} prompt tokens and {plan.completion_tokens:,} written ones{cost}"
    )


def _as_text(summary: DatasetSummary) -> str:
    sample = summary.sample
    examples = ", ".join(f"{split} {n}" for split, n in summary.examples.items())
    lines = [
        f"{summary.out}: {sum(summary.questions.values())} questions accepted, {summary.refused} refused",
        f"examples: {examples}, in {summary.groups} contexts; {summary.oracle_share:.1%} of them hold their oracle",
    ]
    lines += [f"  refused by {rule}: {count}" for rule, count in summary.refused_by_rule.items()]
    lines += [f"  flagged {name}: {count}" for name, count in summary.flags.items()]
    if summary.teacher_calls:
        cost = f", cost {summary.cost:.2f}" if summary.cost else ""
        failed = f", {summary.failed_calls} failed" if summary.failed_calls else ""
        lines.append(
            f"teacher: {summary.teacher_calls:,} calls{failed}, {summary.prompt_tokens:,} prompt tokens, "
            f"{summary.completion_tokens:,} written{cost}"
        )
    target = "\n            ".join(printable(line) for line in str(sample["target"]).split("\n"))
    lines += [f"sample, over {len(sample['context'])} chunks:", f"  question: {printable(str(sample['question']))}"]
    lines += [f"  target:   {target}", f"next: raft dataset check {summary.out}; raft train --data {summary.out}"]
    return "\n".join(lines)
