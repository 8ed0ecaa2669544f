"""Inner-product search over the chunks' vectors, through FAISS. Position i is chunk i of the corpus.

Four kinds of index, chosen from the number of vectors or by the recipe; each also holds every vector in float32, so
that its best candidates are scored exactly, filters can fall back on exact search, and an update need not encode
anew what has not changed::

    kind     FAISS factory        up to        what it costs
    flat     Flat                 50,000       exact; time grows with the corpus
    hnsw     HNSW32,Flat          2,000,000    fastest search; slow to build, 256 bytes a vector more
    ivf_sq   IVFn,SQ8,RFlat       10,000,000   quick to build; a quarter of the vectors' size in memory
    ivf_pq   IVFn,PQdx4fs,RFlat   any          a sixteenth of the vectors' size in memory

Fewer than 1,000 vectors always make a flat one: they are too few to learn cells and codes from.
A search that only approximates is tuned at the building until it finds ``recall_target`` of the true ten nearest, of
queries that are none of the vectors; the less a filter lets pass, the wider it then searches.
The file is memory-mapped: of the float32 vectors only what is looked at is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raft.config import DenseKind, DenseRecipe
from raft.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np

    from raft.retrieval.backends import Vectors

DENSE = "dense.faiss"
FLAT_LIMIT = 50_000
HNSW_LIMIT = 2_000_000
IVF_SQ_LIMIT = 10_000_000
_LEAST_TRAINED = 1_000
_EXACT_LIMIT = 20_000  # so few allowed vectors are quicker scored one by one than found by an approximate search,
_EXACT_SHARE = 0.05  # and so small a share of many
_WIDEST = 64  # times wider than without a filter
_NEIGHBOURS = 10
_TRIAL_QUERIES = 400
_SAME_COSINE = 1e-6
_SPARE = 16  # more than k are asked for, so that few searches end among equals
_BLOCK = 16_384

Ranking = list[tuple[int, float]]
"""Positions of chunks with their scores, best first; equal scores in the order of the corpus."""

Kind = Literal["flat", "hnsw", "ivf_sq", "ivf_pq"]


class DenseIndex:
    """``facts`` says which kind was built, how it searches and the recall measured for that; ``target_missed`` stands
    there where even the widest search finds less than the recipe wants."""

    def __init__(self, index: Any, facts: dict[str, Any] | None = None) -> None:
        self._index = index
        self.facts = facts or {}
        self._flat = _flat_part(index)

    @classmethod
    def build(cls, vectors: Vectors, recipe: DenseRecipe = DenseRecipe()) -> DenseIndex:  # type: ignore[call-arg]
        """Index vectors of length 1, float32 [chunks, dimension]: inner products are then cosines."""
        import numpy as np

        faiss = _faiss()

        count, dimension = vectors.shape
        kind = choose_kind(count, recipe.kind)
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        index = faiss.index_factory(dimension, _factory(kind, count, dimension), faiss.METRIC_INNER_PRODUCT)
        if kind == "hnsw":
            index.hnsw.efConstruction = 100
        if not index.is_trained:
            index.train(_training_sample(vectors, _cell_count(count)))
        for first in range(0, count, _BLOCK):
            index.add(vectors[first : first + _BLOCK])
        built = cls(index, {"kind": kind, "recall_at_10": 1.0})
        if kind != "flat":
            built._tune(vectors, recipe.recall_target)
        return built

    @classmethod
    def load(cls, folder: Path) -> DenseIndex:
        """Raises ArtifactError when FAISS cannot read the file."""
        faiss = _faiss()

        try:
            return cls(faiss.read_index(str(folder / DENSE), faiss.IO_FLAG_MMAP_IFC))
        except RuntimeError as error:
            raise ArtifactError(f"{folder / DENSE} cannot be read ({error})", "Make the index again") from None

    def save(self, folder: Path) -> None:
        """Raises OSError when the file cannot be written."""
        faiss = _faiss()

        try:
            faiss.write_index(self._index, str(folder / DENSE))
        except RuntimeError as error:
            raise OSError(str(error).splitlines()[0]) from None

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        return int(self._index.d)

    def search(self, queries: Vectors, k: int, allowed: np.ndarray | None = None) -> list[Ranking]:
        """The k chunks of highest cosine for each query vector [queries, dimension].

        ``allowed``, bool [chunks], limits the search to its true positions: as many of them as there are, up to k,
        come back.
        """
        import numpy as np

        there = len(self) if allowed is None else int(np.count_nonzero(allowed))
        limit = max(_EXACT_LIMIT, _EXACT_SHARE * len(self))
        if allowed is not None and there <= limit and not self._is_exact:
            return [self.exact(query, k, np.flatnonzero(allowed)) for query in queries]
        params = None if allowed is None else self._limited_to(allowed, there)
        scores, positions = self._index.search(queries, min(k + _SPARE, len(self)), params=params)  # [queries, k + ...]
        return [
            self._best(query, k, found[found >= 0], float(least), allowed, there)
            for query, found, least in zip(queries, positions, scores[:, -1], strict=True)
        ]

    @property
    def _is_exact(self) -> bool:
        return self._flat is self._index

    def _best(
        self, query: np.ndarray, k: int, found: np.ndarray, least: float, allowed: np.ndarray | None, there: int
    ) -> Ranking:
        """The k best of the positions that FAISS ``found``, whose lowest score is ``least``; those of all ``there``
        are where it found too few, or where it had to choose among equals: it does not go by their order."""
        import numpy as np

        best = self.exact(query, k, np.sort(found))
        tied = self._is_exact and len(best) == k and len(found) < there and least > best[-1][1] - _SAME_COSINE
        if len(best) < min(k, there) or tied:
            return self.exact(query, k, np.arange(len(self)) if allowed is None else np.flatnonzero(allowed))
        return best

    def _limited_to(self, allowed: np.ndarray, there: int) -> Any:
        """Parameters that let the ``there`` allowed positions pass. As many of them are looked at as there would be
        vectors without a filter, so that as many of the best are found."""
        import numpy as np

        faiss = _faiss()

        # The parameters keep no reference to the bits: they live as long as the selector does.
        bits = np.packbits(allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        index, wider = self._index, min(len(self) / max(there, 1), _WIDEST)
        if isinstance(index, faiss.IndexRefine):
            cells = faiss.downcast_index(index.base_index)
            nprobe = min(math.ceil(cells.nprobe * wider), cells.nlist)
            below = faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
            return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=below)
        if isinstance(index, faiss.IndexHNSW):
            width = min(math.ceil(index.hnsw.efSearch * wider), len(self))
            return faiss.SearchParametersHNSW(sel=selector, efSearch=width)
        return faiss.SearchParameters(sel=selector)

    def exact(self, query: np.ndarray, k: int, positions: np.ndarray) -> Ranking:
        """The k of these positions (ascending) with the highest cosine to the query vector [dimension]."""
        import numpy as np

        parts = [positions[at : at + _BLOCK] for at in range(0, len(positions), _BLOCK)]
        scores = np.concatenate([_cosines(self.vectors(part), query) for part in parts] or [np.empty(0, np.float32)])
        best = np.argsort(-scores, kind="stable")[:k]
        return [(int(positions[at]), float(scores[at])) for at in best]

    def scores(self, query: Vectors, positions: Sequence[int]) -> list[float]:
        """The cosine of one query vector [1, dimension] with each of the chunks."""
        import numpy as np

        found: list[float] = _cosines(self.vectors(np.asarray(positions, dtype=np.int64)), query[0]).tolist()
        return found

    def vectors(self, positions: np.ndarray) -> Vectors:
        """The vectors at these positions, float32 [positions, dimension], bit for bit as they were added."""
        import numpy as np

        found: Vectors = self._flat.reconstruct_batch(np.ascontiguousarray(positions, dtype=np.int64))
        return found

    def _tune(self, vectors: Vectors, recall_target: float) -> None:
        """Search wider until ``recall_target`` of the true neighbours of new queries are found."""
        import numpy as np

        faiss = _faiss()

        queries = _trial_queries(vectors)
        truth, _ = faiss.knn(queries, vectors, _NEIGHBOURS, metric=faiss.METRIC_INNER_PRODUCT)  # [queries, neighbours]
        recall = 0.0
        for setting in _settings(self._index):
            _set(self._index, setting)
            found, _ = self._index.search(queries, _NEIGHBOURS + _SPARE)  # as ``search`` asks
            # Of many that are equally near any will do.
            near = (np.sort(found, axis=1)[:, -_NEIGHBOURS:] >= truth[:, -1:] - _SAME_COSINE).sum(axis=1)
            recall = float(near.mean()) / _NEIGHBOURS
            self.facts |= {**setting, "recall_at_10": round(recall, 4), "recall_queries": len(queries)}
            if recall >= recall_target:
                return
        self.facts["target_missed"] = True


def _trial_queries(vectors: Vectors) -> Vectors:
    """Queries as they come later, which are none of the vectors: some of these, each moved by its distance to its
    tenth neighbour, in the direction in which two others differ. (Moved in a direction drawn evenly, or towards its
    neighbours, it would be found more easily than new texts are; benchmarks/million_vectors.py draws such.)"""
    import numpy as np

    faiss = _faiss()

    draw = np.random.default_rng(0)
    rows, ones, others = (draw.permutation(len(vectors))[:_TRIAL_QUERIES] for _ in range(3))
    begin = np.ascontiguousarray(vectors[np.sort(rows)])
    near, _ = faiss.knn(begin, vectors, _NEIGHBOURS + 1, metric=faiss.METRIC_INNER_PRODUCT)  # each finds itself too
    distance = np.sqrt((2 - 2 * near[:, -1:]).clip(0))
    direction = vectors[ones] - vectors[others]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True).clip(_SAME_COSINE)
    moved = begin + distance * direction
    moved /= np.linalg.norm(moved, axis=1, keepdims=True).clip(_SAME_COSINE)
    return np.ascontiguousarray(moved, dtype=np.float32)


def _cosines(vectors: Vectors, query: np.ndarray) -> np.ndarray:
    """Inner products [vectors], each by itself: a matrix product may give equal vectors scores that differ in their
    last bit, and so an order by chance."""
    import numpy as np

    found: np.ndarray = np.add.reduce(vectors * query, axis=1)
    return found


def choose_kind(count: int, wanted: DenseKind = "auto") -> Kind:
    """The kind of index for so many vectors: the wanted one where they are enough to train it."""
    if count < _LEAST_TRAINED:
        return "flat"
    if wanted != "auto":
        return wanted
    limits: tuple[tuple[int, Kind], ...] = ((FLAT_LIMIT, "flat"), (HNSW_LIMIT, "hnsw"), (IVF_SQ_LIMIT, "ivf_sq"))
    return next((kind for limit, kind in limits if count <= limit), "ivf_pq")


def _factory(kind: Kind, count: int, dimension: int) -> str:
    cells = _cell_count(count)
    parts = next(size for size in (dimension // 4, dimension // 2, dimension) if size and dimension % size == 0)
    return {
        "flat": "Flat",
        "hnsw": "HNSW32,Flat",
        "ivf_sq": f"IVF{cells},SQ8,RFlat",
        "ivf_pq": f"IVF{cells},PQ{parts}x4fs,RFlat",
    }[kind]


def _cell_count(count: int) -> int:
    """About 4 sqrt(n) cells, a power of two, with some 40 vectors or more in each (FAISS's guidelines)."""
    cells = 1
    while cells * 2 <= 4 * count**0.5 and cells * 2 * 39 <= count:
        cells *= 2
    return cells


def _training_sample(vectors: Vectors, cells: int) -> Vectors:
    import numpy as np

    wanted = max(64 * cells, 4096)
    if len(vectors) <= wanted:
        return np.ascontiguousarray(vectors)
    rows = np.random.default_rng(0).choice(len(vectors), wanted, replace=False)
    return np.ascontiguousarray(vectors[np.sort(rows)])


def _flat_part(index: Any) -> Any:
    """The part of an index that holds the vectors as they are."""
    faiss = _faiss()

    if isinstance(index, faiss.IndexRefine):
        return faiss.downcast_index(index.refine_index)
    return faiss.downcast_index(index.storage) if isinstance(index, faiss.IndexHNSW) else index


def _settings(index: Any) -> list[dict[str, int]]:
    """How to search, from what costs least to what costs most."""
    faiss = _faiss()

    if isinstance(index, faiss.IndexHNSW):
        return [{"efSearch": width} for width in (32, 64, 128, 256, 512, 1024)]
    cells = faiss.downcast_index(index.base_index)
    probes = [2**power for power in range(cells.nlist.bit_length())]
    # So many candidates for each hit are scored exactly; where codes of four bits lose too much, more of them are.
    factors = (2,) if isinstance(cells, faiss.IndexIVFScalarQuantizer) else (10, 40, 160)
    found = [{"nprobe": probe, "k_factor": factor} for factor in factors for probe in probes]
    return sorted(found, key=lambda setting: _cost(setting, index.ntotal / cells.nlist))


def _cost(setting: Mapping[str, int], cell_size: float) -> float:
    """Of a search of cells, in vectors scored exactly; a code in memory is compared in a thirty-second of that."""
    compared = setting["nprobe"] * cell_size
    return compared / 32 + min(setting["k_factor"] * (_NEIGHBOURS + _SPARE), compared)


def _set(index: Any, setting: Mapping[str, int]) -> None:
    faiss = _faiss()

    if "efSearch" in setting:
        index.hnsw.efSearch = setting["efSearch"]
    else:
        faiss.downcast_index(index.base_index).nprobe = setting["nprobe"]
        index.k_factor = setting["k_factor"]


def _faiss() -> Any:
    """The package, whose own annotations are wrong in places."""
    import faiss

    return faiss
