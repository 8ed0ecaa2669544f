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
        list[str] | None,
        typer.Option("--gone", help="document (id), source or file that must not be in it (may be repeated)"),
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
        for name, what in found.gone.items():
            said = f"in the index: {what}" if what else "the index has no document, file or source of that name"
            print(printable(f"{name}: {said}"))
        for path in found.not_of_raft:
            print(printable(f"not of raft: {path} (never read, never removed)"))
        for problem in found.problems:
            print(printable(f"problem: {problem}"))
    if found.problems:
        raise CheckFailed(f"{index} fails {len(found.problems)} checks", f"Run raft index again to update {index}")
