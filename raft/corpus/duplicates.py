"""Texts that say nearly the same words: another edition, boilerplate, a page that was filed twice.

    near_duplicates(["Adults start with 12 mg by mouth, once a day.",
                     "The ward is locked at night.",
                     "adults start with 12 mg by mouth once a day"])   ->   [0, 1, 0]

MinHash (Broder 1997), computed by rensa, finds candidates; each is then compared word for word. So every text of a
group is like another one of it; and of a million pairs that are just alike enough about one is missed.

Memory, beside the texts: 512 bytes a text for its MinHash, in a file that is mapped, some 100 for what is sorted and
looked up, and the shingles of at most 4,096 texts.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
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
    firsts, groups = _first_of_same(texts), _Groups(len(texts))
    _unite_alike(texts, _compared(texts, firsts), threshold, groups)
    order: dict[int, int] = {}
    return [order.setdefault(name, len(order)) for name in groups.names[firsts].tolist()]


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


def _first_of_same(texts: Sequence[str]) -> np.ndarray:
    """For each text the place of the first one of the very same words, int64 [len(texts)]."""
    import numpy as np

    digests = bytearray()
    for at, text in enumerate(texts):
        words = " ".join(_words(text)) or f"without words: {at}"  # no words hold a colon
        digests += hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    _, first, which = np.unique(np.frombuffer(digests, dtype="V16"), return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


def _compared(texts: Sequence[str], firsts: np.ndarray) -> np.ndarray:
    """The places of the texts that are compared: the first one of the same words, if it has any."""
    import numpy as np

    alone = np.flatnonzero(firsts == np.arange(len(firsts)))
    kept: np.ndarray = alone[[bool(_words(texts[at])) for at in alone.tolist()]] if len(alone) else alone
    return kept


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


def _unite_alike(texts: Sequence[str], compared: np.ndarray, threshold: float, groups: _Groups) -> None:
    import numpy as np

    @lru_cache(maxsize=_REMEMBERED_TEXTS)
    def shingles_of(at: int) -> frozenset[str]:
        return shingles(texts[at])

    def unite(rows: np.ndarray, row: int) -> None:
        estimate = (hashes[rows] == hashes[row]).mean(axis=1)
        this = int(compared[row])
        for other in compared[rows[estimate >= threshold - _ESTIMATE_MARGIN]].tolist():
            different = groups.names[this] != groups.names[other]
            if different and jaccard(shingles_of(this), shingles_of(other)) >= threshold:
                groups.unite(this, other)

    hashes = _min_hashes(texts, compared)
    for bucket in _buckets(hashes, threshold):
        if len(bucket) > _LARGE:  # most of a large bucket is one group, which two comparisons a text find
            for place in range(1, len(bucket)):
                unite(bucket[[0, place - 1]], bucket[place])
        names = groups.names[compared[bucket]]
        for place in np.flatnonzero(names != names[0]).tolist():
            names = groups.names[compared[bucket]]
            unite(bucket[names != names[place]], bucket[place])


def _min_hashes(texts: Sequence[str], which: np.ndarray) -> np.ndarray:
    """The MinHash of each of these texts, uint32 [len(which), 128]; in a file without a name, which goes with it."""
    import numpy as np
    from rensa import RMinHash

    if not len(which):
        return np.empty((0, _HASHES), dtype=np.uint32)
    with tempfile.TemporaryFile() as file:
        hashes = np.memmap(file, dtype=np.uint32, mode="w+", shape=(len(which), _HASHES))
    for first in range(0, len(which), _TEXTS_AT_ONCE):
        sets = [list(shingles(texts[at])) for at in which[first : first + _TEXTS_AT_ONCE].tolist()]
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
        starts, ends = np.append(0, edges), np.append(edges, len(order))
        for at in np.flatnonzero(ends - starts > 1).tolist():
            yield np.sort(order[starts[at] : ends[at]])


def _band_width(threshold: float) -> int:
    """The most hashes a band can have so that a pair at the threshold agrees in none of the bands, with probability
    (1 - threshold ** width) ** bands, seldom enough. Wide bands give few candidates in vain."""
    fitting = [r for r in range(1, _HASHES + 1) if (1 - threshold**r) ** (_HASHES // r) <= _MOST_MISSED]
    return max(fitting, default=1)
