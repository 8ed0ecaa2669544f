"""Texts that say nearly the same words: another edition, boilerplate, a page that was filed twice.

    near_duplicates(["Adults start with 12 mg by mouth, once a day.",
                     "The ward is locked at night.",
                     "adults start with 12 mg by mouth once a day"])   ->   [0, 1, 0]

MinHash (Broder 1997), computed by rensa, finds candidates; each is then compared word for word. So every text of a
group is like another one of it; and of a million pairs that are just alike enough about one is missed.

Memory, beside the texts: 512 bytes a text for its MinHash, some 200 for what is sorted and looked up, and the
shingles of at most 4,096 texts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NEAR_DUPLICATE = 0.8  # Jaccard similarity of shingles: of the 120 words of a chunk, four scattered ones may differ
SHINGLE_WORDS = 3
_HASHES = 128
_MOST_MISSED = 1e-6  # chance to miss a pair whose similarity is the threshold itself
_ESTIMATE_MARGIN = 0.2  # 128 hashes estimate a similarity with a standard error of 0.04 at most
_TEXTS_AT_ONCE = 1024
_LARGE = 32  # texts in a bucket
_REMEMBERED_TEXTS = 4096


def near_duplicates(texts: Sequence[str], threshold: float = NEAR_DUPLICATE) -> list[int]:
    """The group of each text, numbered from 0 in the order in which the groups first appear.

    Two texts stand in one group when the Jaccard similarity of their word shingles is at least ``threshold``, or when
    such pairs connect them. A text without words stands alone.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be above 0 and at most 1")
    first_of: dict[bytes, int] = {}  # of texts of the very same words only the first is compared
    firsts = [first_of.setdefault(_same_words(text) or b"%d" % at, at) for at, text in enumerate(texts)]
    groups = _Groups(len(texts))
    compared = [at for at, first in enumerate(firsts) if at == first and _words(texts[at])]
    _unite_alike(texts, compared, threshold, groups)
    order: dict[int, int] = {}
    return [order.setdefault(int(groups.names[first]), len(order)) for first in firsts]


def shingles(text: str) -> frozenset[str]:
    """Each three words that follow one another, in lower case; a shorter text is one shingle, an empty one none."""
    words = _words(text)
    count = max(1, len(words) - SHINGLE_WORDS + 1) if words else 0
    return frozenset(" ".join(words[at : at + SHINGLE_WORDS]) for at in range(count))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of all shingles that both have; 0 when there is none."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _same_words(text: str) -> bytes:
    """What texts of the same words share; empty for a text without words."""
    words = " ".join(_words(text))
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest() if words else b""


class _Groups:
    """Which texts are connected. Each has the name of its group; the smaller of two groups takes the other's name."""

    def __init__(self, count: int) -> None:
        import numpy as np

        self.names = np.arange(count)
        self._members: dict[int, list[int]] = {}

    def unite(self, one: int, other: int) -> None:
        kept, lost = int(self.names[one]), int(self.names[other])
        if len(self._in(kept)) < len(self._in(lost)):
            kept, lost = lost, kept
        if kept != lost:
            self.names[self._in(lost)] = kept
            self._in(kept).extend(self._members.pop(lost))

    def _in(self, name: int) -> list[int]:
        return self._members.setdefault(name, [name])


def _unite_alike(texts: Sequence[str], compared: Sequence[int], threshold: float, groups: _Groups) -> None:
    import numpy as np

    @lru_cache(maxsize=_REMEMBERED_TEXTS)
    def shingles_of(at: int) -> frozenset[str]:
        return shingles(texts[at])

    def unite(rows: np.ndarray, row: int) -> None:
        estimate = (hashes[rows] == hashes[row]).mean(axis=1)
        for other in text_at[rows[estimate >= threshold - _ESTIMATE_MARGIN]].tolist():
            this = compared[row]
            different = groups.names[this] != groups.names[other]
            if different and jaccard(shingles_of(this), shingles_of(other)) >= threshold:
                groups.unite(this, other)

    hashes, text_at = _min_hashes(texts, compared), np.asarray(compared, dtype=np.int64)
    for bucket in _buckets(hashes, threshold):
        if len(bucket) > _LARGE:  # most of a large bucket is one group, which two comparisons a text find
            for place in range(1, len(bucket)):
                unite(bucket[[0, place - 1]], bucket[place])
        names = groups.names[text_at[bucket]]
        for place in np.flatnonzero(names != names[0]).tolist():
            names = groups.names[text_at[bucket]]
            unite(bucket[names != names[place]], bucket[place])


def _min_hashes(texts: Sequence[str], which: Sequence[int]) -> np.ndarray:
    """The MinHash of each of these texts, uint32 [len(which), 128]."""
    import numpy as np
    from rensa import RMinHash

    hashes = np.empty((len(which), _HASHES), dtype=np.uint32)
    for first in range(0, len(which), _TEXTS_AT_ONCE):
        sets = [list(shingles(texts[at])) for at in which[first : first + _TEXTS_AT_ONCE]]
        rows = RMinHash.digest_matrix_from_token_sets(sets, _HASHES, 0).to_rows()
        hashes[first : first + len(rows)] = rows
    return hashes


def _buckets(hashes: np.ndarray, threshold: float) -> Iterator[np.ndarray]:
    """Rows that agree in all hashes of a band, two and more at a time (Leskovec et al. 2020, section 3.4)."""
    import numpy as np

    width = _band_width(threshold)
    for first in range(0, _HASHES - width + 1, width):
        band = np.ascontiguousarray(hashes[:, first : first + width])
        order = np.lexsort(band.T)
        edges = np.flatnonzero((band[order[1:]] != band[order[:-1]]).any(axis=1)) + 1
        yield from (np.sort(bucket) for bucket in np.split(order, edges) if len(bucket) > 1)


def _band_width(threshold: float) -> int:
    """The most hashes a band can have so that a pair at the threshold agrees in none of the bands, with probability
    (1 - threshold ** width) ** bands, seldom enough. Wide bands give few candidates in vain."""
    fitting = [r for r in range(1, _HASHES + 1) if (1 - threshold**r) ** (_HASHES // r) <= _MOST_MISSED]
    return max(fitting, default=1)
