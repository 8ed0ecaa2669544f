"""raft evaluate retrieval: questions with gold documents -> how well an index finds them.

raft evaluate retrieval --index indexes/medical --questions corpora/medical/questions.jsonl
raft evaluate retrieval --index indexes/before --index indexes/after --questions FILE --split test --out reports/tuned
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from raft.cli.options import Overwrite, Settings, ToJson, progress_bar
from raft.config import EvaluateRetrievalRecipe, load_recipe


def evaluate_retrieval(
    recipe: Annotated[Path | None, typer.Argument(help="TOML recipe, e.g. configs/evaluate/retrieval.toml")] = None,
    index: Annotated[
        list[Path] | None, typer.Option(help="index made by raft index; a second one over the same documents: after")
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="questions with gold documents (JSONL)")] = None,
    split: Annotated[Literal["train", "dev", "test", "all"] | None, typer.Option(help="[default: test]")] = None,
    limit: Annotated[int | None, typer.Option(help="at most this many questions, drawn with the seed")] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="fused, dense or bm25 (may be repeated) [default: all three]")
    ] = None,
    reranker: Annotated[str | None, typer.Option(help="cross-encoder whose order of the fused hits is added")] = None,
    k: Annotated[list[int] | None, typer.Option(help="depth of recall (may be repeated) [default: 1 3 5 10]")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new report with its misses; none: print only")] = None,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Measure retrieval alone: recall@k, MRR, nDCG@10 with intervals, and the questions that were missed."""
    from raft.evaluation import retrieval, retrieval_report

    chosen = load_recipe(
        EvaluateRetrievalRecipe, recipe, settings or (),
        index=index or None, questions=questions, split=split, limit=limit, modes=mode or None,
        reranker=reranker, k=k or None, out=out,
    )  # fmt: skip
    with progress_bar("searches") as bar:
        task = bar.add_task("searching", total=None)

        def on_searched(done: int, total: int, name: str) -> None:
            bar.update(task, total=total, completed=done, description=f"searching  {name}")

        report = retrieval.evaluate_retrieval(chosen, chosen.out, overwrite=overwrite, on_searched=on_searched)
    if to_json:
        typer.echo(json.dumps(retrieval_report.figures(report), ensure_ascii=False))
        return
    typer.echo(retrieval_report.to_markdown(report))
    kept = f"report: {chosen.out / 'report.md'}" if chosen.out else "Give --out FOLDER to keep this and the misses"
    typer.echo(kept)
