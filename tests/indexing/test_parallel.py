"""Vectors that Ray's workers make are those that this process makes, in the order of the texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raft.artifacts import read_manifest
from raft.cluster import one_line_failures
from raft.config import EncoderRecipe
from raft.errors import EndpointError, ModelError
from raft.indexing.build import build_index
from raft.indexing.parallel import _settings, _tables, _Worker, encoded_blocks
from raft.retrieval.dense import DenseIndex
from raft.retrieval.encoder import Encoder
from raft.retrieval.index import open_index

ray = pytest.importorskip("ray", reason="needs raft-tune[ray]")
pytest.importorskip("pyarrow", reason="needs raft-tune[ray]")

RECIPE = EncoderRecipe(backend="torch", workers=2, batch_size=8)
TEXTS = [f"{'Give the second dose after six hours. ' * (at % 5)}Note {at}." for at in range(31)]


def test_two_workers_make_the_vectors_of_this_process(tmp_path: Path) -> None:
    """One run for all that needs Ray: starting it and loading the encoder twice takes half a minute on two cores."""
    source, told = tmp_path / "source", list[tuple[str, int, int | None]]()
    source.mkdir()
    for number, text in enumerate(TEXTS):
        (source / f"{number}.md").write_text(f"# Note {number}\n\n{text}\n", encoding="utf-8")
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    summary = build_index(source, shared, encoder=RECIPE, on_progress=lambda *given: told.append(given))
    assert not ray.is_initialized()  # what was started is stopped
    assert summary.encoded == summary.chunks == len(TEXTS)
    done = [count for stage, count, _ in told if stage == "encoding"]
    assert len(done) >= 2
    assert done[-1] == len(TEXTS)
    one_process = RECIPE.model_copy(update={"workers": 0})
    build_index(source, alone, encoder=one_process)
    rows = np.arange(len(TEXTS))
    vectors = [DenseIndex.load(path / read_manifest(path, "index").version).vectors(rows) for path in (shared, alone)]
    np.testing.assert_allclose(*vectors, atol=1e-5)
    assert open_index(shared).search(["second dose"], 3)[0]  # the workers are no setting of the encoder
    assert not build_index(source, shared, encoder=one_process).changed  # nor a reason to begin anew


def test_blocks_that_come_in_any_order_end_up_at_their_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(texts: list[str], *_: object) -> Iterator[tuple[list[int], np.ndarray]]:
        vectors = Encoder.load(**_settings(RECIPE)).encode_documents(texts)
        for rows in ([5, 4, 3], [2, 0, 1]):
            yield rows, vectors[rows]

    monkeypatch.setattr("raft.indexing.build.encoded_blocks", backwards)
    source, told = tmp_path / "source", list[tuple[str, int, int | None]]()
    source.mkdir()
    for number, text in enumerate(TEXTS[:6]):
        (source / f"{number}.md").write_text(text, encoding="utf-8")
    build_index(source, tmp_path / "shared", encoder=RECIPE, on_progress=lambda *given: told.append(given))
    build_index(source, tmp_path / "alone", encoder=RECIPE.model_copy(update={"workers": 0}))
    assert [given[1:] for given in told if given[0] == "encoding"] == [(3, 6), (6, 6)]
    shared, alone = (DenseIndex.load(tmp_path / name / "v1").vectors(np.arange(6)) for name in ("shared", "alone"))
    np.testing.assert_allclose(shared, alone, atol=1e-5)


def test_texts_are_cut_into_a_block_a_worker_or_more() -> None:
    assert [table.num_rows for table in _tables(TEXTS, 2)] == [16, 15]
    assert [table.num_rows for table in _tables(TEXTS * 100, 2)] == [1024, 1024, 1024, 28]
    assert [row for table in _tables(TEXTS, 7) for row in table["row"].to_pylist()] == list(range(31))


def test_what_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="is another one on"):
        _Worker(_settings(RECIPE), 8, "another")
    said = r"encoding through Ray failed \(MemoryError: x\)\. Set encoder.workers to 0"
    with pytest.raises(ModelError, match=said), one_line_failures(ray, "encoding", "encoder"):
        raise ray.exceptions.RayError("Traceback:\n  line\nMemoryError: x\n")
    monkeypatch.setattr("raft.cluster.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'raft-tune\[ray\]'"):
        list(encoded_blocks(TEXTS, RECIPE, 8, 2))


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**_: object) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(EndpointError, match=r"Ray at ray://x:10001 cannot be reached .*Check encoder.ray_address"):
        list(encoded_blocks(TEXTS, RECIPE, 8, 2, "ray://x:10001"))
