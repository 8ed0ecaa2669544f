"""raft evaluate judge: a chat model judges the answers of a report, once it was compared with people.

raft evaluate judge runs/reports/mine --labels judged-by-people.jsonl --model gpt-4o --base-url https://HOST/v1
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raft.cli.options import Overwrite, Resume, Settings, ToJson, default_out, progress_bar
from raft.config import load_recipe
from raft.config_evaluate import EvaluateJudgeRecipe


def evaluate_judge(
    report: Annotated[Path, typer.Argument(help="report made by raft evaluate")],
    labels: Annotated[Path | None, typer.Option(help="answers that people have judged (JSONL), 100 or more")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML recipe")] = None,
    model: Annotated[str | None, typer.Option(help="the judge: hub id, folder, package:NAME, endpoint's name")] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint of the judge")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new report")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Let a chat model judge faithfulness and correctness, beside how far it agrees with people."""
    from raft.evaluation import judged, judged_report
    from raft.records import to_row

    chosen = load_recipe(
        EvaluateJudgeRecipe, recipe, settings or (),
        report=report, labels=labels, model__model=model, model__base_url=base_url, out=out,
    )  # fmt: skip
    folder = chosen.out or default_out("reports", f"{report.resolve().name}-judged")
    with progress_bar("verdicts") as bar:
        task = bar.add_task("judging", total=None)

        def on_reply(done: int, total: int, what: str) -> None:
            bar.update(task, total=total, completed=done, description=f"judging  {what}")

        found = judged.judge_report(chosen, folder, resume=resume, overwrite=overwrite, on_reply=on_reply)
    page = str(folder / "report.md")
    if to_json:
        typer.echo(json.dumps({**to_row(found), "report": page}, ensure_ascii=False))
        return
    typer.echo(judged_report.to_markdown(found))
    typer.echo(f"report: {page}")
