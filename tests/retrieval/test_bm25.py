"""BM25 against its formula written out, and the words that exact search must keep."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.errors import ArtifactError
from raft.retrieval.bm25 import Bm25Index, top, words

TEXTS = [
    "Fees fall due under clause 12.3 of the lease.",
    "Clause 12 names the parties; clause 3 the land.",
    "The fee is 1,500 marks, the fine 15 marks, and the fee is paid late.",
    "Not a word in common.",
]


def obvious_bm25(texts: list[str], query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25 as bm25s' paper states it (arXiv 2407.03618, section 2)."""
    tokenized = words(texts)
    mean = sum(map(len, tokenized)) / len(tokenized)
    scores = []
    for tokens in tokenized:
        score, counts = 0.0, Counter(tokens)
        for word in words([query])[0]:
            holding = sum(word in other for other in tokenized)
            if holding:
                idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
                score += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(tokens) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["clause 12.3", "late fees", "the marks of the land", "nothing here", "", "the of"])
def test_scores_equal_the_formula(query: str) -> None:
    assert Bm25Index.build(TEXTS).scores(query) == pytest.approx(obvious_bm25(TEXTS, query), rel=1e-5)


def test_numbers_keep_their_points() -> None:
    assert words(["Under clause 12.3, fees of 1,500 fall due. See 4."]) == [
        ["under", "claus", "12.3", "fee", "1,500", "fall", "due", "see", "4"]
    ]
    ranked = top(Bm25Index.build(TEXTS).scores("12.3"), 4)
    assert [position for position, _ in ranked] == [0]


def test_saved_and_loaded_it_scores_the_same(tmp_path: Path) -> None:
    built = Bm25Index.build(TEXTS)
    built.save(tmp_path)
    loaded = Bm25Index.load(tmp_path)
    assert len(loaded) == len(TEXTS)
    for query in ("late fees", "clause 12.3", "unknown"):
        assert np.array_equal(built.scores(query), loaded.scores(query))


@pytest.mark.parametrize("texts", [["the of and"], ["...", "!!"], [""]])
def test_a_corpus_without_words_finds_nothing(texts: list[str], tmp_path: Path) -> None:
    Bm25Index.build(texts).save(tmp_path)
    assert top(Bm25Index.load(tmp_path).scores("the word"), 5) == []


def test_files_of_another_shape_are_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        Bm25Index.load(tmp_path)


def test_files_do_not_depend_on_the_process(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from raft.retrieval.bm25 import Bm25Index; " \
           f"Bm25Index.build({TEXTS!r}).save(Path(sys.argv[1]))"  # fmt: skip
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)], env={**os.environ, "PYTHONHASHSEED": seed}, check=True
        )
    for path in (tmp_path / "1" / "bm25").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / "bm25" / path.name).read_bytes()


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), max_size=30), st.integers(1, 35))
def test_top_equals_sorting_everything(scores: list[float], k: int) -> None:
    expected = sorted(((i, s) for i, s in enumerate(scores) if s > 0), key=lambda item: (-item[1], item[0]))[:k]
    assert top(np.array(scores, dtype=np.float32), k) == expected
