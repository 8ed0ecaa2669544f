"""Dense search against numpy, on random vectors with ties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raft.errors import ArtifactError
from raft.retrieval.dense import DENSE, DenseIndex


def unit_vectors(count: int, seed: int, dimension: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_search_equals_brute_force() -> None:
    vectors, queries = unit_vectors(300, 0), unit_vectors(20, 1)
    results = DenseIndex.build(vectors).search(queries, 7)
    for query, ranking in zip(queries, results, strict=True):
        cosines = vectors @ query
        expected = np.argsort(-cosines, kind="stable")[:7]
        assert [position for position, _ in ranking] == expected.tolist()
        assert [score for _, score in ranking] == pytest.approx(cosines[expected].tolist(), abs=1e-6)


def test_equal_scores_keep_the_order_of_the_corpus_and_k_may_exceed_it() -> None:
    vectors = np.repeat(unit_vectors(2, 3), 3, axis=0)
    (ranking,) = DenseIndex.build(vectors).search(vectors[4:5], 50)
    assert [position for position, _ in ranking] == [3, 4, 5, 0, 1, 2]


def test_scores_of_chosen_positions_and_reopening(tmp_path: Path) -> None:
    vectors, query = unit_vectors(30, 5), unit_vectors(1, 6)
    built = DenseIndex.build(vectors)
    built.save(tmp_path)
    loaded = DenseIndex.load(tmp_path)
    assert (len(loaded), loaded.dimension) == (30, 16)
    assert loaded.search(query, 30) == built.search(query, 30)
    assert loaded.scores(query, [7, 2]) == pytest.approx((vectors[[7, 2]] @ query[0]).tolist(), abs=1e-6)
    assert loaded.scores(query, []) == []


def test_a_file_that_is_no_index_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / DENSE).write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match="cannot be read"):
        DenseIndex.load(tmp_path)
