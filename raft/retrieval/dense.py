"""Exact inner-product search over the chunks' vectors, through FAISS. Position i is chunk i of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.errors import ArtifactError

if TYPE_CHECKING:
    from raft.retrieval.encoder import Vectors

DENSE = "dense.faiss"

Ranking = list[tuple[int, float]]
"""Positions of chunks with their scores, best first; equal scores in the order of the corpus."""


class DenseIndex:
    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: Vectors) -> DenseIndex:
        """Index vectors of length 1, float32 [chunks, dimension]: inner products are then cosines."""
        import faiss

        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return cls(index)

    @classmethod
    def load(cls, folder: Path) -> DenseIndex:
        """Raises ArtifactError when FAISS cannot read the file."""
        import faiss

        try:
            return cls(faiss.read_index(str(folder / DENSE)))
        except RuntimeError as error:
            raise ArtifactError(f"{folder / DENSE} cannot be read ({error})", "Make the index again") from None

    def save(self, folder: Path) -> None:
        import faiss

        faiss.write_index(self._index, str(folder / DENSE))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        return int(self._index.d)

    def search(self, queries: Vectors, k: int) -> list[Ranking]:
        """The k chunks of highest cosine for each query vector [queries, dimension]."""
        scores, positions = self._index.search(queries, min(k, len(self)))  # both [queries, k]
        return [
            sorted(zip(row.tolist(), values.tolist(), strict=True), key=lambda item: (-item[1], item[0]))
            for row, values in zip(positions, scores, strict=True)
        ]

    def scores(self, query: Vectors, positions: Sequence[int]) -> list[float]:
        """The cosine of one query vector [1, dimension] with each of the chunks."""
        import numpy as np

        if not positions:
            return []
        vectors = self._index.reconstruct_batch(np.asarray(positions, dtype=np.int64))  # [positions, dimension]
        return [float(score) for score in vectors @ query[0]]
