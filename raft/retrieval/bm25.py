"""Lexical search (BM25) over the chunks' words, through bm25s. Position i is chunk i of the corpus.

Words are lower-cased and stemmed (Snowball English), stopwords dropped. Numbers keep their points, so that
"12.3" finds clause 12.3 and neither 12 nor 3::

    words(["Under clause 12.3, fees of 1,500 fall due"])
    [["under", "claus", "12.3", "fee", "1,500", "fall", "due"]]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np

    from raft.retrieval.dense import Ranking

BM25 = "bm25"
_WORD = r"(?u)\b\d+(?:[.,]\d+)+\b|\b\w+\b"


class Bm25Index:
    """BM25 after Lucene (k1 = 1.5, b = 0.75), as bm25s computes it (Lù 2024, arXiv 2407.03618)."""

    def __init__(self, retriever: Any) -> None:
        self._retriever = retriever

    @classmethod
    def build(cls, texts: Sequence[str]) -> Bm25Index:
        import bm25s

        tokenized = words(texts)
        if not any(tokenized):
            tokenized = [[""] for _ in texts]  # bm25s cannot hold an empty vocabulary; no query has this word
        vocabulary = {word: i for i, word in enumerate(sorted({word for text in tokenized for word in text}))}
        retriever = bm25s.BM25(backend="numpy")
        ids = [[vocabulary[word] for word in text] for text in tokenized]
        retriever.index((ids, vocabulary), show_progress=False, create_empty_token=False)
        return cls(retriever)

    @classmethod
    def load(cls, folder: Path) -> Bm25Index:
        """Raises ArtifactError when bm25s cannot read its files."""
        import bm25s

        try:
            return cls(bm25s.BM25.load(folder / BM25, show_progress=False))
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{folder / BM25} cannot be read ({error})", "Make the index again") from None

    def save(self, folder: Path) -> None:
        self._retriever.save(folder / BM25, show_progress=False)

    def __len__(self) -> int:
        return int(self._retriever.scores["num_docs"])

    def scores(self, query: str) -> np.ndarray:
        """The score of every chunk, float32 [chunks]; 0 where no word of the query stands."""
        import numpy as np

        known = self._retriever.get_tokens_ids(words([query])[0])
        if not known:
            return np.zeros(len(self), dtype=np.float32)
        return np.asarray(self._retriever.get_scores_from_ids(known), dtype=np.float32)


def words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text as they are indexed and searched."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    found: list[list[str]] = bm25s.tokenize(
        list(texts), token_pattern=_WORD, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    return found


def top(scores: np.ndarray, k: int) -> Ranking:
    """The k highest scores above 0 with their positions, best first; equal scores in order of position."""
    import numpy as np

    candidates = np.flatnonzero(scores > 0)
    if len(candidates) > k:
        least = np.partition(scores[candidates], -k)[-k]
        candidates = candidates[scores[candidates] >= least]
    best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return [(int(position), float(scores[position])) for position in best]
