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
from raft.config import GenerateRecipe, load_recipe, require

if TYPE_CHECKING:
    from raft.dataset.build import DatasetSummary
    from raft.dataset.collect import Progress
    from raft.llm.chat import ChatModel


def generate(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe, e.g. configs/generate/cpu.toml")] = None,
    index: Annotated[Path | None, typer.Option(help="index made by raft index")] = None,
    from_qa: Annotated[Path | None, typer.Option("--from-qa", help="existing questions (JSONL, may be .gz)")] = None,
    teacher: Annotated[str | None, typer.Option(help="model that writes questions and answers")] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", help="the teacher's OpenAI-compatible endpoint")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new dataset")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what the teacher would be asked, and stop")] = False,
    to_json: ToJson = False,
) -> None:
    """Make a RAFT dataset: by a teacher, or from existing questions with evidence."""
    from raft.artifacts import check_free
    from raft.dataset.build import estimate, generate_dataset
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
        plan = asdict(estimate(chosen, opened.chunks))
        typer.echo(json.dumps(plan) if to_json else _plan_text(plan))
        return
    model = _open_teacher(chosen)
    with _progress() as progress:
        summary = generate_dataset(
            chosen, opened, target, model, resume=resume, overwrite=overwrite, progress=progress
        )  # fmt: skip
    typer.echo(json.dumps(asdict(summary), ensure_ascii=False, default=str) if to_json else _as_text(summary))


def _open_teacher(recipe: GenerateRecipe) -> ChatModel | None:
    if recipe.teacher is None:
        return None
    from raft.llm.open import open_chat_model

    settings = recipe.teacher.model_dump(exclude={"temperature"})
    return open_chat_model(settings.pop("model"), **settings)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    with progress_bar("done") as bar:
        tasks = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield progress


def _plan_text(plan: dict[str, int]) -> str:
    return (
        f"{plan['chunks']} chunks, at most {plan['questions']} questions, at most {plan['teacher_calls']} calls of the "
        f"teacher with about {plan['prompt_tokens']:,} prompt tokens and {plan['completion_tokens']:,} written ones"
    )


def _as_text(summary: DatasetSummary) -> str:
    sample = summary.sample
    examples = ", ".join(f"{split} {n}" for split, n in summary.examples.items())
    lines = [
        f"{summary.out}: {sum(summary.questions.values())} questions accepted, {summary.refused} refused",
        f"examples: {examples}, in {summary.groups} contexts; {summary.oracle_share:.1%} of them hold their oracle",
    ]
    lines += [f"  refused by {rule}: {count}" for rule, count in summary.refused_by_rule.items()]
    if summary.prompt_tokens:
        lines.append(f"teacher: {summary.prompt_tokens:,} prompt tokens, {summary.completion_tokens:,} written")
    target = "\n            ".join(printable(line) for line in str(sample["target"]).split("\n"))
    lines += [f"sample, over {len(sample['context'])} chunks:", f"  question: {printable(str(sample['question']))}"]
    lines += [f"  target:   {target}", f"next: raft train --data {summary.out}"]
    return "\n".join(lines)
