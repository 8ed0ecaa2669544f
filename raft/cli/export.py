"""raft export: a tuned model -> the form that other programs load."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Overwrite, ToJson

if TYPE_CHECKING:
    from raft.models import Precision
    from raft.training.export import ExportSummary


def export(
    run: Annotated[Path, typer.Argument(help="adapter made by raft train")],
    out: Annotated[Path, typer.Option(help="folder of the export")],
    form: Annotated[str, typer.Option(help="merged (transformers), gguf (llama.cpp) or adapter (PEFT)")],
    quantization: Annotated[str | None, typer.Option(help="weights of a gguf file: f16 (default), q8_0, q4_0")] = None,
    model: Annotated[str | None, typer.Option(help="base model, where it is not where it was in training")] = None,
    precision: Annotated[str | None, typer.Option(help="merged weights: auto (default), float32, bfloat16")] = None,
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Write a tuned model for transformers, llama.cpp or PEFT, with a model card, and check it against its source."""
    from raft.training.export import export as write_export

    _check_options(form, quantization, precision)
    chosen: Precision = precision or "auto"  # type: ignore[assignment]
    summary = write_export(run, out, form, quantization or "f16", model=model, precision=chosen, overwrite=overwrite)
    if to_json:
        typer.echo(json.dumps(asdict(summary), default=str))
        return
    for line in _lines(summary):
        typer.echo(line)


def _check_options(form: str, quantization: str | None, precision: str | None) -> None:
    """Raise UsageError for a value that is not known, or an option that this form would silently ignore."""
    from raft.errors import UsageError

    if quantization is not None and form != "gguf":
        raise UsageError(f"--quantization {quantization} says nothing to --form {form}", "Leave it out")
    if precision is not None and form != "merged":
        raise UsageError(f"--precision {precision} says nothing to --form {form}", "Leave it out")
    if precision not in (None, "auto", "float32", "bfloat16"):
        raise UsageError(f"--precision is {precision!r}", "Expected one of auto, float32, bfloat16")


def _lines(summary: ExportSummary) -> list[str]:
    check = summary.check
    answers = f"{check.same_answers} of {check.prompts} greedy answers as the source's"
    scores = "" if check.perplexity is None else f", perplexity {check.perplexity} (source {check.source_perplexity})"
    kind = f" {summary.quantization}" if summary.quantization else ""
    how = {
        "merged": f"next: raft evaluate --model {summary.out} --index INDEX --questions FILE",
        "gguf": f"next: llama-server -m {summary.out / (summary.file or '')}",
        "adapter": f"next: PeftModel.from_pretrained(base, {str(summary.out)!r})",
    }
    return [
        f"{summary.out}: {summary.form}{kind}, {summary.size_mb:.1f} MB, {summary.seconds:.0f} s",
        f"checked by {check.engine}: {answers}{scores}",
        how[summary.form],
    ]
