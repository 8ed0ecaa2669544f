"""raft feedback export: what people said of answers -> pairs to prefer by, and questions to evaluate with."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from raft.cli.options import Labels, Overwrite, ToJson
from raft.errors import UsageError

if TYPE_CHECKING:
    from raft.serving.feedback_export import ExportSummary


def feedback_export(
    feedback: Annotated[Path, typer.Option(help="file that raft serve keeps feedback in")],
    index: Annotated[Path, typer.Option(help="index that the answers were made from")],
    out: Annotated[Path, typer.Option(help="folder of the export")],
    form: Annotated[
        str, typer.Option("--as", help="pairs: all to train on; questions: all to evaluate with; both: 4 to 1")
    ] = "both",
    labels: Labels = None,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Make a dataset of feedback: corrections against the answers they correct, liked answers, questions."""
    from raft.serving.feedback_export import ExportAs, export_feedback

    if form not in get_args(ExportAs):
        raise UsageError(f"--as is {form!r}", f"Expected one of {', '.join(get_args(ExportAs))}")
    chosen: Any = form
    summary = export_feedback(feedback, index, out, chosen, labels=labels or (), overwrite=overwrite)
    typer.echo(json.dumps(asdict(summary), default=str) if to_json else _as_text(summary))


def _as_text(summary: ExportSummary) -> str:
    lines = [f"{summary.out}: {', '.join(f'{name} {count:,}' for name, count in summary.files.items())}"]
    lines += [f"  left out, {reason}: {count}" for reason, count in summary.left_out.items()]
    if summary.labels:
        lines.append(f"  its documents need the access labels {', '.join(summary.labels)}")
    folder = shlex.quote(str(summary.out))
    following = {
        "pairs.jsonl": f"raft train --data {folder} --set objective=dpo --set preference.pairs={folder}/pairs.jsonl",
        "train.jsonl": f"raft train --data {folder}",
        "evaluation.jsonl": f"raft evaluate --questions {folder}/evaluation.jsonl",
    }
    lines += [f"next: {command}" for name, command in following.items() if summary.files.get(name)]
    return "\n".join(lines)
