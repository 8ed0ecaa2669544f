"""raft search: a query -> the chunks that an index returns for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raft.cli.options import printable
from raft.config import SearchMode

if TYPE_CHECKING:
    from raft.records import Hit

_SNIPPET_CHARS = 240


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    index: Annotated[Path, typer.Option(help="Index to search: an artefact of raft index.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many hits.")] = 5,
    mode: Annotated[SearchMode, typer.Option(help="dense: by meaning; bm25: by words; fused: both.")] = "fused",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a hit.")] = False,
) -> None:
    """Search an index and show the hits with their scores and sources."""
    from raft.errors import UsageError
    from raft.records import to_row
    from raft.retrieval.index import open_index

    if not query.strip():
        raise UsageError("the query is empty", 'Write for example: raft search "notice period" --index indexes/legal')
    hits = open_index(index).search([query], k, mode)[0]
    if as_json:
        for hit in hits:
            print(json.dumps(to_row(hit), ensure_ascii=False))
        return
    print("\n\n".join(_as_text(hit) for hit in hits) or "no chunk holds a word of the query")


def _as_text(hit: Hit) -> str:
    chunk = hit.chunk
    where = " > ".join(part for part in (chunk.title, *chunk.headings) if part)
    page = f", page {chunk.page}" if chunk.page is not None else ""
    parts = ", ".join(f"{name} {score:.3f}" for name, score in hit.parts.items())
    snippet = " ".join(chunk.text.split())
    if len(snippet) > _SNIPPET_CHARS:
        snippet = snippet[:_SNIPPET_CHARS].rsplit(" ", 1)[0] + " ..."
    found = f"{hit.rank}. {hit.score:.4f} ({parts})  {where}{page}  [{chunk.document_id}]"
    return f"{printable(found)}\n   {printable(snippet)}"
