"""Dense search of every kind against numpy, on vectors with ties and in clusters."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.config import DenseRecipe
from raft.errors import ArtifactError
from raft.retrieval.dense import DENSE, DenseIndex, _cost, _settings, choose_kind

KINDS = ("flat", "hnsw", "ivf_sq", "ivf_pq")


def unit_vectors(count: int, seed: int, dimension: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(count: int, seed: int, dimension: int = 32) -> np.ndarray:
    """Vectors about a few dozen subjects, as texts are."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, dimension))
    vectors = centres[draw.integers(0, 40, count)] + 0.5 * draw.normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def recipe(kind: str, recall: float = 0.97) -> DenseRecipe:
    return DenseRecipe.model_validate({"kind": kind, "recall_target": recall})


def brute_force(vectors: np.ndarray, query: np.ndarray, k: int, allowed: np.ndarray | None = None) -> list[int]:
    positions = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    cosines = (vectors[positions].astype(np.float64) @ query.astype(np.float64)).round(7)
    return positions[np.argsort(-cosines, kind="stable")][:k].tolist()


@given(
    count=st.integers(1, 60), distinct=st.integers(1, 20), queries=st.sampled_from([1, 3, 25]),
    k=st.integers(1, 70), seed=st.integers(0, 9), limited=st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_search_equals_brute_force_ties_and_filters_included(
    count: int, distinct: int, queries: int, k: int, seed: int, limited: bool
) -> None:
    draw = np.random.default_rng(seed)
    vectors = unit_vectors(distinct, seed, 384)[draw.integers(0, distinct, count)]
    asked = unit_vectors(queries, seed + 100, 384)
    allowed = draw.random(count) < 0.5 if limited else None
    for query, ranking in zip(asked, DenseIndex.build(vectors).search(asked, k, allowed), strict=True):
        expected = brute_force(vectors, query, k, allowed)
        assert [position for position, _ in ranking] == expected
        assert [score for _, score in ranking] == pytest.approx((vectors[expected] @ query).tolist(), abs=1e-6)


def test_equal_scores_keep_the_order_of_the_corpus_and_k_may_exceed_it() -> None:
    vectors = np.repeat(unit_vectors(2, 3), 3, axis=0)
    (ranking,) = DenseIndex.build(vectors).search(vectors[4:5], 50)
    assert [position for position, _ in ranking] == [3, 4, 5, 0, 1, 2]


def test_many_equal_vectors_do_not_crowd_out_the_first_ones() -> None:
    vectors = np.repeat(unit_vectors(3, 4, 384), 400, axis=0)
    queries = np.repeat(vectors[500:501], 30, axis=0)
    for ranking in DenseIndex.build(vectors).search(queries, 5):
        assert [position for position, _ in ranking] == [400, 401, 402, 403, 404]


def test_scores_of_chosen_positions(tmp_path: Path) -> None:
    vectors, query = unit_vectors(30, 5), unit_vectors(1, 6)
    built = DenseIndex.build(vectors)
    assert (len(built), built.dimension) == (30, 16)
    assert built.scores(query, [7, 2]) == pytest.approx((vectors[[7, 2]] @ query[0]).tolist(), abs=1e-6)
    assert built.scores(query, []) == []


@pytest.fixture(scope="module", params=KINDS)
def kind_and_index(request: pytest.FixtureRequest) -> tuple[str, DenseIndex]:
    return request.param, DenseIndex.build(clustered(6000, 0), recipe(request.param))


def test_each_kind_finds_what_it_promises(kind_and_index: tuple[str, DenseIndex]) -> None:
    kind, index = kind_and_index
    vectors, queries = clustered(6000, 0), clustered(100, 1)
    found = index.search(queries, 10)
    hits = [len({p for p, _ in r} & set(brute_force(vectors, q, 10))) for q, r in zip(queries, found, strict=True)]
    assert sum(hits) / 1000 >= (1.0 if kind == "flat" else 0.95)
    assert all([score for _, score in ranking] == sorted((s for _, s in ranking), reverse=True) for ranking in found)
    assert index.facts["kind"] == kind
    if kind == "flat":
        assert index.facts == {"kind": "flat", "recall_at_10": 1.0}
    else:
        knobs = {"efSearch"} if kind == "hnsw" else {"nprobe", "k_factor"}
        assert set(index.facts) == {"kind", *knobs, "recall_at_10", "recall_queries"}
        assert index.facts["recall_at_10"] >= 0.97


def test_each_kind_reopened_is_mapped_and_gives_the_same(
    kind_and_index: tuple[str, DenseIndex], tmp_path: Path
) -> None:
    _, index = kind_and_index
    index.save(tmp_path)
    loaded, queries = DenseIndex.load(tmp_path), clustered(20, 2)
    (tmp_path / DENSE).unlink()  # as an update does while readers have it open
    assert loaded.search(queries, 10) == index.search(queries, 10)
    assert loaded.search(queries, 300) == index.search(queries, 300)
    draw = np.random.default_rng(0)
    positions = draw.permutation(6000)[:500]
    assert (loaded.vectors(positions) == clustered(6000, 0)[positions]).all()
    for share in (0.0, 0.001, 0.5, 1.0):
        allowed = draw.random(6000) < share
        assert loaded.search(queries, 10, allowed) == index.search(queries, 10, allowed)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / DENSE) in maps.read_text()


@pytest.mark.parametrize("exact_limit", [0, 20_000])
def test_each_kind_obeys_filters(
    kind_and_index: tuple[str, DenseIndex], exact_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raft.retrieval import dense

    monkeypatch.setattr(dense, "_EXACT_LIMIT", exact_limit)
    kind, index = kind_and_index
    vectors, queries, draw = clustered(6000, 0), clustered(10, 3), np.random.default_rng(1)
    for share in (0.0, 0.0005, 0.01, 0.3, 0.9):
        allowed = draw.random(6000) < share
        for query, ranking in zip(queries, index.search(queries, 20, allowed), strict=True):
            assert all(allowed[position] for position, _ in ranking)
            assert len(ranking) == min(20, int(allowed.sum()))
            if kind == "flat" or exact_limit:
                assert [position for position, _ in ranking] == brute_force(vectors, query, 20, allowed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 9, 10, 40, 700, 1000])
def test_each_kind_bears_few_vectors_and_equal_ones(kind: str, count: int) -> None:
    for vectors in (unit_vectors(count, 7), np.repeat(unit_vectors(1, 8), count, axis=0)):
        index = DenseIndex.build(vectors, recipe(kind))
        (ranking,) = index.search(vectors[:1], 10)
        assert len(ranking) == min(10, count)
        assert ranking[0][1] == pytest.approx(1.0, abs=1e-5)
        assert index.facts["kind"] == (kind if count >= 1000 else "flat")


@pytest.mark.parametrize("kind", ["hnsw", "ivf_sq", "ivf_pq"])
def test_a_corpus_of_copies_does_not_widen_the_search(kind: str) -> None:
    vectors = np.repeat(clustered(60, 4), 50, axis=0)
    assert DenseIndex.build(vectors, recipe(kind)).facts["recall_at_10"] >= 0.97


def as_texts(count: int, seed: int) -> np.ndarray:
    """Vectors with few neighbours in many directions of unequal spread, as benchmarks/million_vectors.py draws them."""
    world, draw = np.random.default_rng(0), np.random.default_rng(seed)
    spread = np.arange(1, 129) ** -0.5
    topics = world.normal(size=(4000, 128)) * spread
    vectors = topics[draw.integers(0, 4000, count)] + 0.7 * spread * draw.normal(size=(count, 128))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=["hnsw", "ivf_sq", "ivf_pq"])
def texts_index(request: pytest.FixtureRequest) -> DenseIndex:
    return DenseIndex.build(as_texts(20_000, 1), recipe(request.param))


def recall(index: DenseIndex, queries: np.ndarray, allowed: np.ndarray | None = None) -> float:
    positions = np.arange(20_000) if allowed is None else np.flatnonzero(allowed)
    truth = positions[np.argsort(-(queries @ as_texts(20_000, 1)[positions].T), axis=1)[:, :10]]
    found = index.search(queries, 10, allowed)
    return float(np.mean([len({p for p, _ in r} & set(t)) for r, t in zip(found, truth.tolist(), strict=True)])) / 10


def test_the_recall_it_states_is_that_of_new_queries(texts_index: DenseIndex) -> None:
    assert texts_index.facts["recall_at_10"] <= recall(texts_index, as_texts(400, 2)) + 0.01


def test_filters_cost_no_recall(texts_index: DenseIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    from raft.retrieval import dense

    monkeypatch.setattr(dense, "_EXACT_LIMIT", 400)
    monkeypatch.setattr(dense, "_EXACT_SHARE", 0.0)
    queries, vectors, draw = as_texts(100, 3), as_texts(20_000, 1), np.random.default_rng(4)
    by_chance, by_direction, by_subject = draw.random(20_000), vectors @ draw.normal(size=128), vectors @ queries[0]
    for share in (0.03, 0.1, 0.3):
        for order in (by_chance, by_direction, by_subject):
            allowed = order > np.quantile(order, 1 - share)
            assert recall(texts_index, queries, allowed) >= 0.95


def test_many_vectors_make_the_exact_search_of_more_worth_it(
    texts_index: DenseIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raft.retrieval import dense

    monkeypatch.setattr(dense, "_EXACT_LIMIT", 400)
    asked: list[int] = []
    monkeypatch.setattr(DenseIndex, "exact", lambda self, query, k, positions: asked.append(len(positions)) or [])
    for count in (1000, 1001):
        with contextlib.suppress(IndexError):
            texts_index.search(as_texts(1, 5), 10, np.arange(20_000) < count)
    assert asked[0] == 1000
    assert asked[1] < 100


def test_what_cannot_be_reached_is_said() -> None:
    index = DenseIndex.build(unit_vectors(3000, 11, 64), recipe("hnsw", 1.0))
    assert index.facts.get("target_missed", False) == (index.facts["recall_at_10"] < 1.0)


def test_cheap_settings_are_tried_first(texts_index: DenseIndex) -> None:
    tried = _settings(texts_index._index)
    if texts_index.facts["kind"] == "hnsw":
        assert tried == sorted(tried, key=lambda setting: setting["efSearch"])
        return
    costs = [_cost(setting, 20_000 / 512) for setting in tried]
    assert costs == sorted(costs)
    assert tried[-1] == {name: max(setting[name] for setting in tried) for name in tried[0]}
    if texts_index.facts["kind"] == "ivf_pq":
        assert tried.index({"nprobe": 1, "k_factor": 40}) < tried.index({"nprobe": 512, "k_factor": 10})
        assert tried.index({"nprobe": 8, "k_factor": 40}) < tried.index({"nprobe": 512, "k_factor": 160})


def test_the_kind_follows_the_number_of_vectors() -> None:
    counts = (1, 50_000, 50_001, 2_000_000, 2_000_001, 10_000_000, 10_000_001)
    kinds = ("flat", "flat", "hnsw", "hnsw", "ivf_sq", "ivf_sq", "ivf_pq")
    assert tuple(map(choose_kind, counts)) == kinds
    assert (choose_kind(2000, "ivf_pq"), choose_kind(999, "hnsw")) == ("ivf_pq", "flat")


def test_a_file_that_is_no_index_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / DENSE).write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match="cannot be read"):
        DenseIndex.load(tmp_path)


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        DenseIndex.build(unit_vectors(3, 0)).save(tmp_path / "nowhere")
