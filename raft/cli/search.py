"""raft search: a query -> the chunks that an index returns for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import Labels, printable
from raft.config import SearchMode

if TYPE_CHECKING:
    from raft.records import Hit

_SNIPPET_CHARS = 240


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    index: Annotated[str, typer.Option(help="Index to search: a folder made by raft index, or milvus:URI#COLLECTION.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many hits.")] = 5,
    mode: Annotated[
        SearchMode | None,
        typer.Option(help="dense: by meaning; bm25: by words; fused: both; reranked: with --reranker."),
    ] = None,
    reranker: Annotated[str | None, typer.Option(help="Cross-encoder that orders the best fused hits anew.")] = None,
    labels: Labels = None,
    source: Annotated[list[str] | None, typer.Option(help="Only sources that begin so, e.g. guidelines/")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only documents with one of these tags.")] = None,
    since: Annotated[str | None, typer.Option(help="Only documents of this ISO date or later.")] = None,
    until: Annotated[str | None, typer.Option(help="Only documents of this ISO date or earlier.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a hit.")] = False,
) -> None:
    """Search an index and show the hits with their scores and sources."""
    from raft.errors import UsageError
    from raft.records import Filter, to_row
    from raft.retrieval.milvus import open_retriever

    if not query.strip():
        raise UsageError("the query is empty", 'Write for example: raft search "notice period" --index indexes/legal')
    where = Filter(sources=tuple(source or ()), tags=tuple(tag or ()), since=since, until=until)
    opened = open_retriever(index, labels=labels or (), reranker=reranker)
    hits = opened.search([query], k, mode or ("reranked" if reranker else "fused"), where)[0]
    if as_json:
        for hit in hits:
            print(json.dumps(to_row(hit), ensure_ascii=False))
        return
    print("\n\n".join(_as_text(hit) for hit in hits) or "no chunk that may be shown holds a word of the query")


def _as_text(hit: Hit) -> str:
    from raft.records import citation

    chunk = hit.chunk
    parts = ", ".join(f"{name} {score:.3f}" for name, score in hit.parts.items())
    snippet = " ".join(chunk.text.split())
    if len(snippet) > _SNIPPET_CHARS:
        snippet = snippet[:_SNIPPET_CHARS].rsplit(" ", 1)[0] + " ..."
    found = f"{hit.rank}. {hit.score:.4f} ({parts})  {citation(chunk)}  [{chunk.document_id}]"
    return f"{printable(found)}\n   {printable(snippet)}"
