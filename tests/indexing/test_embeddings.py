"""What was encoded is not encoded again, whatever stopped the build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from raft.indexing.embeddings import JOURNAL, EmbeddingJournal, key_of
from raft.places import partial_folder
from raft.records import Chunk
from raft.retrieval.index import open_index, search_text
from tests.indexing.conftest import build, write_files
from tests.indexing.test_update import assert_equal_indexes

KEYS = [bytes([number] * 16) for number in range(4)]
VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)


def read(folder: Path, encoder: str = "e") -> dict[bytes, list[float]]:
    return {key: vector.tolist() for key, vector in EmbeddingJournal(folder, encoder).read()}


def test_batches_come_back_and_torn_ones_do_not(tmp_path: Path) -> None:
    folder = tmp_path / JOURNAL
    journal = EmbeddingJournal(folder, "e")
    journal.append(KEYS[:2], VECTORS[:2])
    EmbeddingJournal(folder, "e").append(KEYS[2:], VECTORS[2:])
    (folder / "batch.tmp").write_bytes(b"half")
    assert read(folder) == dict(zip(KEYS, VECTORS.tolist(), strict=True))
    second = sorted(folder.glob("*.batch"))[1]
    whole = second.read_bytes()
    for torn in (whole[:-1], whole[:40], b"", bytes(len(whole)), whole[:50] + b"\xff" + whole[51:], whole + b"x"):
        second.write_bytes(torn)
        assert read(folder) == dict(zip(KEYS[:2], VECTORS[:2].tolist(), strict=True))


def test_batches_of_another_encoder_are_thrown_away(tmp_path: Path) -> None:
    EmbeddingJournal(tmp_path / JOURNAL, "e").append(KEYS, VECTORS)
    assert read(tmp_path / JOURNAL, "other") == read(tmp_path / JOURNAL) == {}


def test_keys_tell_chunks_apart_by_all_that_they_are_found_by() -> None:
    chunks = [
        Chunk("a", "a", "Rent is due.", 0, 1),
        Chunk("a", "a", "Rent is due.", 0, 1, "Rent"),
        Chunk("a", "a", "Rent is due.", 0, 1, "Rent", ("Rent",)),
        Chunk("a", "a", "Rent is due.", 0, 1, "Lease"),
        Chunk("a", "a", "Due.", 0, 1, "Lease"),
    ]
    keys = {key_of(chunk) for chunk in chunks}
    assert len(keys) == 5
    assert all(len(key) == 16 for key in keys)
    assert key_of(Chunk("other", "b", "Rent is due.", 5, 9, page=3)) == key_of(chunks[0])
    one, other = Chunk("a", "a", "Lease\nDue.", 0, 1, "Lease"), Chunk("a", "a", "Due.", 0, 1, "Lease")
    assert search_text(one) == search_text(other)
    assert key_of(one) != key_of(other)  # the title is among the words of the one's text


def test_a_killed_encoding_goes_on_where_it_was(tmp_path: Path) -> None:
    texts = {f"{number}.md": f"# Clause {number}\n\nRent {'is due ' * number}." for number in range(1, 7)}
    source, out = write_files(tmp_path / "source", texts), tmp_path / "index"
    code = (
        "import os, signal, sys; from pathlib import Path; from raft.config import EncoderRecipe\n"
        "from raft.indexing import embeddings; from tests.indexing.conftest import build\n"
        "embeddings._KEPT_AT_ONCE = 2\n"
        "def killed(stage, done, total):\n"
        "    if stage == 'encoding' and done > 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "encoder = EncoderRecipe(backend='torch', batch_size=2)\n"
        "build(Path(sys.argv[1]), Path(sys.argv[2]), encoder=encoder, on_progress=killed)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(source), str(out)], check=False, env={**os.environ})
    assert ended.returncode == -signal.SIGKILL
    batches = sorted((partial_folder(out) / JOURNAL).glob("*.batch"))
    assert len(batches) == 2
    batches[1].write_bytes(batches[1].read_bytes()[:-5])
    assert build(source, out).encoded == 4
    assert not partial_folder(out).exists()
    assert len(open_index(out).chunks) == 6
    build(source, tmp_path / "fresh")
    assert_equal_indexes(out, tmp_path / "fresh")


def test_equal_texts_are_encoded_once(tmp_path: Path) -> None:
    texts = {"a.txt": "# Rent\n\nRent is due.", "b.txt": "# Rent\n\nRent is due.", "c.txt": "# Roof\n\nRoof."}
    source, out = write_files(tmp_path / "source", texts), tmp_path / "index"
    assert (build(source, out).encoded, len(open_index(out).chunks)) == (2, 3)
    write_files(source, {"d.txt": texts["a.txt"], "c.txt": texts["c.txt"]})
    assert build(source, out).encoded == 0
