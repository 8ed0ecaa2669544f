"""How far a judge agrees with people, beyond what chance gives.

cohen_kappa([True, True, False, None], [True, False, False, True])      # 0.2; None: no verdict
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence


def cohen_kappa(first: Sequence[object], second: Sequence[object]) -> float | None:
    """Agreement beyond chance, (p_o - p_e) / (1 - p_e) (Cohen 1960), from -1 to 1; None where both say one and the same
    throughout. A missing verdict is a category of its own, which agrees with nobody. Raises ValueError on unequal
    lengths, or of nothing."""
    pairs = list(zip(first, second, strict=True))
    if not pairs:
        raise ValueError("kappa of no pairs")
    left, right = Counter(first), Counter(second)
    chance = sum(count * right[value] for value, count in left.items()) / len(pairs) ** 2
    observed = sum(a == b for a, b in pairs) / len(pairs)
    return None if chance == 1.0 else (observed - chance) / (1 - chance)


def kappa_interval(
    judged: Sequence[bool | None],
    people: Sequence[bool],
    clusters: Sequence[str],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of kappa (Efron & Tibshirani 1993, section 13.3), resampling whole clusters;
    None where a single cluster allows none.

    A resample in which both say one and the same throughout counts as 0: such labels show no agreement beyond chance.
    Clusters with equal counts are drawn together, by a multinomial, which is the same and takes less memory. Raises
    ValueError on unequal lengths, or of nothing.
    """
    import numpy as np

    tables: defaultdict[str, list[int]] = defaultdict(lambda: [0] * 6)
    for judge, human, cluster in zip(judged, people, clusters, strict=True):
        tables[cluster][2 * (True, False, None).index(judge) + (not human)] += 1
    if not tables:
        raise ValueError("kappa of no pairs")
    if len(tables) == 1:
        return None
    kinds, counts = np.unique(np.array(list(tables.values())), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(tables), counts / len(tables), size=resamples)
    table = (drawn @ kinds).reshape(resamples, 3, 2).astype(float)  # judge: yes, no, none; people: yes, no
    total = table.sum(axis=(1, 2))
    observed = (table[:, 0, 0] + table[:, 1, 1]) / total
    chance = (table.sum(axis=2)[:, :2] * table.sum(axis=1)).sum(axis=1) / total**2
    known = chance < 1.0
    kappas = np.where(known, (observed - chance) / np.where(known, 1 - chance, 1.0), 0.0)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(kappas, [tail, 100 - tail])
    return float(low), float(high)
