"""Joining the two retrievers: what a chunk scores by meaning and by words, in one number.

Over a corpus, the cosines of a query have a standard deviation of about 0.08 (all-MiniLM-L6-v2). BM25's scores have no
such scale: they grow with the number and the rarity of the query's words that a chunk holds::

    fuse({3: (0.61, 4.2), 7: (0.55, 9.0)}, spread=0.08, k=2)
    [(7, 0.982), (3, 0.8116)]       # 0.55 + 0.6 * 0.08 * 9.0, 0.61 + 0.6 * 0.08 * 4.2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from raft.retrieval.dense import Ranking

if TYPE_CHECKING:
    import numpy as np

LEXICAL_WEIGHT = 0.6

_SAMPLE = 1000
_LEAST_SPREAD = 0.02  # a handful of chunks about one thing must not silence the words


def fuse(candidates: Mapping[int, tuple[float, float]], spread: float, k: int) -> Ranking:
    """The k best of the ``candidates`` (position: cosine and BM25 score, both exact), best first; equal scores in
    order of position. ``spread`` is ``spread_of`` the query.

    cosine + LEXICAL_WEIGHT * spread * BM25: a convex combination of scores (Bruch, Gai and Ingber 2023, "An analysis
    of fusion functions for hybrid retrieval", ACM TOIS 42(1), section 4), divided by the cosine's weight. Unlike
    theirs, BM25 is not scaled to the best candidate of the query. Its height says how much of the query's rare
    words was found at all: much for a long question that names its contract, little for a few common words, for
    which the cosine then decides. The cosine is measured in standard deviations, because encoders differ in how far
    apart their cosines lie. No score depends on which other candidates there are, nor on k.

    ``benchmarks/fusion_study.py`` compares it with reciprocal ranks and with other scalings; LEXICAL_WEIGHT is one
    value for all its question sets, chosen on the half of their questions that its results leave out.
    """
    weight = LEXICAL_WEIGHT * spread
    scored = [(position, cosine + weight * lexical) for position, (cosine, lexical) in candidates.items()]
    return sorted(scored, key=lambda item: (-item[1], item[0]))[:k]


def spread_of(cosines: Sequence[float] | np.ndarray) -> float:
    """How far apart a query's cosines lie: their standard deviation over the chunks at ``sample_positions``."""
    import numpy as np

    return max(float(np.std(np.asarray(cosines, dtype=np.float64))), _LEAST_SPREAD) if len(cosines) else _LEAST_SPREAD


def sample_positions(count: int) -> list[int]:
    """Where to measure the spread in a corpus of ``count`` chunks: at most 1000 positions, evenly apart."""
    size = min(count, _SAMPLE)
    return [at * count // size for at in range(size)]
