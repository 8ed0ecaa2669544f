"""raft index verify: an index -> proof that it is whole and holds nothing but its documents."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from raft.cli.options import ToJson, printable


def index_verify(
    index: Annotated[Path, typer.Argument(help="Index to verify: an artefact of raft index.")],
    gone: Annotated[
        list[str] | None, typer.Option("--gone", help="id of a document that must not be in it (may be repeated)")
    ] = None,
    to_json: ToJson = False,
) -> None:
    """Check every byte of an index, and that it holds no trace of documents that were removed."""
    from raft.errors import CheckFailed
    from raft.indexing.verify import verify_index

    found = verify_index(index, gone or ())
    if to_json:
        print(json.dumps(asdict(found), ensure_ascii=False))
    else:
        print(
            f"{index}: {found.documents} documents, {found.chunks} chunks, {found.files} files, {found.bytes:,} bytes, "
            "every byte as it was written"
        )
        for identifier in gone or ():
            print(printable(f"document {identifier}: {'see below' if found.problems else 'no trace'}"))
        for problem in found.problems:
            print(printable(f"problem: {problem}"))
    if found.problems:
        raise CheckFailed(f"{index} fails {len(found.problems)} checks", f"Run raft index again to update {index}")
