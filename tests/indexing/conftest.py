"""The real encoder, loaded once: every build and every open index of these tests shares it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from raft.config import ChunkingRecipe, EncoderRecipe, ReadingRecipe
from raft.indexing.build import IndexSummary, build_index
from raft.retrieval.encoder import Encoder

ENCODER = EncoderRecipe(backend="torch")
CHUNKING = ChunkingRecipe(max_tokens=32, overlap_tokens=4)
_load = lru_cache(None)(Encoder.load)


@pytest.fixture(autouse=True)
def one_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "load", classmethod(lambda cls, **settings: _load(**settings)))


def build(source: Path, out: Path, **settings: object) -> IndexSummary:
    given = {"chunking": CHUNKING, "reading": ReadingRecipe(workers=1), "encoder": ENCODER} | settings
    return build_index(source, out, **given)  # type: ignore[arg-type]


def write_files(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Make the folder hold these files and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)
    return folder
