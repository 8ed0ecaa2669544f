"""raft feedback show: how many answers were rated, and how."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from raft.cli.options import ToJson, printable


def feedback_show(
    file: Annotated[Path, typer.Argument(help="file that raft serve keeps feedback in")], to_json: ToJson = False
) -> None:
    """Count the ratings and corrections in a file of feedback."""
    from raft.serving.feedback import read_feedback

    rows = read_feedback(file)
    said = [row.opinion for row in rows]
    counts: dict[str, Any] = {
        "answers": len(rows),
        "up": sum(each.rating == "up" for each in said),
        "down": sum(each.rating == "down" for each in said),
        "corrected": sum(each.correction is not None for each in said),
        "commented": sum(each.comment is not None for each in said),
        "models": dict(Counter(row.given.model for row in rows).most_common()),
        "callers": len({row.given.caller for row in rows}),
        "first": rows[0].at if rows else None,
        "last": rows[-1].at if rows else None,
    }
    if to_json:
        typer.echo(json.dumps(counts, ensure_ascii=False))
        return
    typer.echo(f"{file}: {counts['answers']} answers rated by {counts['callers']} callers")
    for name in ("up", "down", "corrected", "commented"):
        typer.echo(f"  {name}: {counts[name]}")
    for name, count in counts["models"].items():
        typer.echo(printable(f"  model {name}: {count}"))
    if rows:
        typer.echo(f"  from {counts['first']} to {counts['last']}")
