"""raft ask: one question, answered in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Labels, ToJson, printable
from raft.config import load_recipe
from raft.config_serve import ServeRecipe
from raft.errors import UsageError

if TYPE_CHECKING:
    from raft.serving.engine import Citation, Served


def ask(
    question: Annotated[str, typer.Argument(help="the question")],
    index: Annotated[Path | None, typer.Option(help="index made by raft index")] = None,
    adapter: Annotated[Path | None, typer.Option(help="adapter made by raft train")] = None,
    model: Annotated[str | None, typer.Option(help="hub id, folder, package:NAME, or the endpoint's name")] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint to ask instead")] = None,
    top_k: Annotated[int | None, typer.Option("-k", "--top-k", help="chunks to retrieve [4]")] = None,
    labels: Labels = None,
    to_json: ToJson = False,
) -> None:
    """Answer a question from an index, with the quotes and sources that support it."""
    recipe = load_recipe(
        ServeRecipe, index=index, model__adapter=adapter, model__model=model, model__base_url=base_url, top_k=top_k,
        labels=labels,
    )  # fmt: skip
    from raft.serving.engine import Asked
    from raft.serving.open import open_engine

    if not question.strip():
        raise UsageError("the question is empty", "Write it in quotes after raft ask")
    served = open_engine(recipe).answer(Asked(question))
    if to_json:
        from raft.serving.schema import raft_object

        typer.echo(raft_object(served).model_dump_json(indent=1))
        return
    typer.echo("\n".join(printable(line) for line in _lines(served)))


def _lines(served: Served) -> list[str]:
    from raft.records import citation as place_of

    answer = served.answer
    lines = ["The documents do not hold the answer." if answer.abstained else answer.final]
    for citation in _distinct(served):
        hit = citation.hit
        lines += ["", f"  “{' '.join(citation.quote.split())}”", f"    [{hit.rank}] {place_of(hit.chunk)}"]
    if served.unverified:
        lines += ["", f"Left out: {served.unverified} quote(s) that the documents do not hold word for word."]
    elif not served.citations and not answer.abstained:
        lines += ["", "The answer quotes no document: check it against the sources."]
    heading = "Searched" if answer.abstained else "Sources"
    sources = [f"  [{hit.rank}] {place_of(hit.chunk)} ({hit.chunk.document_id})" for hit in served.hits]
    return [*lines, "", heading, *sources] if sources else lines


def _distinct(served: Served) -> list[Citation]:
    """The citations in their order, each passage once."""
    by_place = {(c.hit.chunk.document_id, c.start, c.end): c for c in reversed(served.citations)}
    return list(reversed(by_place.values()))
