"""raft index push: a local index -> a collection in Milvus."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from raft.cli.options import Overwrite, ToJson, progress_bar


def index_push(
    index: Annotated[Path, typer.Argument(help="Index to push: an artefact of raft index.")],
    uri: Annotated[str, typer.Option(help="Milvus: a file like ./medical.db, or http://host:19530")],
    collection: Annotated[str, typer.Option(help="Collection to fill or to bring up to date.")],
    token_env: Annotated[str, typer.Option(help="Environment variable that holds the token.")] = "MILVUS_TOKEN",
    overwrite: Overwrite = False,
    to_json: ToJson = False,
) -> None:
    """Load an index into Milvus; again, send only what changed and delete what is gone."""
    from raft.indexing.push import push_index

    with progress_bar("chunks") as progress:
        task = progress.add_task("sending", total=None)
        summary = push_index(
            index, uri, collection, token_env=token_env, overwrite=overwrite,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    if to_json:
        print(json.dumps(asdict(summary)))
        return
    made = "made anew, " if summary.anew else ""
    print(
        f"collection {collection} at {uri}: {summary.chunks} chunks ({made}{summary.inserted} sent, "
        f"{summary.deleted} deleted, {summary.kept} there already) in {summary.seconds:.1f} s"
    )
    print(f'Next: raft search "your question" --index "milvus:{uri}#{collection}"')
