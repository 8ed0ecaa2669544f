"""Joining the rankings of several retrievers."""

from __future__ import annotations

from collections.abc import Sequence

RRF_K = 60


def reciprocal_rank_fusion(rankings: Sequence[Sequence[int]], k: int = RRF_K) -> list[tuple[int, float]]:
    """Positions with the sum over rankings of 1 / (k + rank), ranks from 1, best first; equal sums in order of
    position (Cormack, Clarke and Buettcher 2009, "Reciprocal rank fusion outperforms Condorcet", SIGIR).

    A position that a ranking lacks gets nothing from it.
    """
    sums: dict[int, float] = {}
    for ranking in rankings:
        for rank, position in enumerate(ranking, 1):
            sums[position] = sums.get(position, 0.0) + 1.0 / (k + rank)
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))
