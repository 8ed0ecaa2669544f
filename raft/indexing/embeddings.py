"""Vectors by the hash of the text they encode: what a version of an index or a stopped build has encoded already.

A chunk's key is the BLAKE3 of all that it is found by (its ``search_text``, its text and its titles), 16 bytes; the
encoder's own fingerprint is kept once for all keys. Encoded batches go into ``NAME.partial/embeddings`` as they come,
one file a batch, so that a build that was stopped has lost at most one::

    embeddings/000017.batch     BLAKE3 of the rest [32 bytes], rows and dimension (int64),
                                keys uint8 [rows, 16], vectors float32 [rows, dimension]
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raft.artifacts import write_json
from raft.records import Chunk
from raft.retrieval.bm25 import title_of
from raft.retrieval.index import search_text

if TYPE_CHECKING:
    import numpy as np

    from raft.retrieval.backends import Vectors
    from raft.retrieval.encoder import Encoder

OnProgress = Callable[[str, int, int | None], None]
"""Told a stage ("reading", "chunking", "encoding"), how much of it is done, and of how much (None: unknown)."""

KEY_BYTES = 16
_KEPT_AT_ONCE = 1024  # vectors between two writes to the journal: what a crash can cost
_SORTED = 16 * _KEPT_AT_ONCE  # texts sorted by their tokens
JOURNAL = "embeddings"
_CHECK_BYTES = 32


def key_of(chunk: Chunk) -> bytes:
    """The key of a chunk: 16 bytes. Chunks of equal keys have the same vector and the same words."""
    from blake3 import blake3

    said = f"{search_text(chunk)}\0{title_of(chunk)}\0{len(chunk.text)}"  # a title may be prefix or text
    return blake3(said.encode()).digest(length=KEY_BYTES)


class EmbeddingJournal:
    """The encoded batches of one build, kept until its index stands."""

    def __init__(self, folder: Path, encoder: str) -> None:
        """``encoder`` is the encoder's fingerprint: batches of another one are thrown away."""
        self._folder = folder
        owner = folder / "encoder.json"
        if folder.exists() and (not owner.exists() or owner.read_text(encoding="utf-8") != f'"{encoder}"'):
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        write_json(owner, encoder)
        self._next = 1 + max((int(path.stem) for path in folder.glob("[0-9]*.batch")), default=0)

    def read(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """The keys and vectors of every batch that is whole; a batch that was cut short by a crash is left out."""
        import numpy as np
        from blake3 import blake3

        for path in sorted(self._folder.glob("[0-9]*.batch")):
            data = path.read_bytes()
            if data[:_CHECK_BYTES] != blake3(data[_CHECK_BYTES:]).digest():
                continue
            rows, dimension = np.frombuffer(data, np.int64, 2, _CHECK_BYTES).tolist()
            at = _CHECK_BYTES + 16
            vectors = np.frombuffer(data, np.float32, rows * dimension, at + rows * KEY_BYTES)
            keys = (data[at + row * KEY_BYTES : at + (row + 1) * KEY_BYTES] for row in range(rows))
            yield from zip(keys, vectors.reshape(rows, dimension), strict=True)

    def append(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        import numpy as np
        from blake3 import blake3

        data = np.array(vectors.shape, np.int64).tobytes() + b"".join(keys) + vectors.astype(np.float32).tobytes()
        temporary = self._folder / "batch.tmp"
        temporary.write_bytes(blake3(data).digest() + data)
        temporary.replace(self._folder / f"{self._next:06d}.batch")
        self._next += 1


def encode_sorted(
    order: Sequence[bytes], chunks: Mapping[bytes, Chunk], encoder: Encoder, batch_size: int, on_progress: OnProgress
) -> Iterator[tuple[list[bytes], Vectors]]:
    """Keys and vectors of the chunks, as many at a time as the journal is to take; ``order`` says which come first."""
    for first in range(0, len(order), _SORTED):
        keys = order[first : first + _SORTED]

        def told(done: int, first: int = first) -> None:
            on_progress("encoding", first + done, len(order))

        parts = encoder.encode_in_parts([search_text(chunks[key]) for key in keys], batch_size)
        for rows, found in _joined(parts, told):
            yield [keys[row] for row in rows], found


def _joined(
    parts: Iterable[tuple[list[int], Vectors]], told: Callable[[int], None]
) -> Iterator[tuple[list[int], Vectors]]:
    """The same in parts of at least ``_KEPT_AT_ONCE`` rows, but for the last. ``told`` learns how many have come."""
    import numpy as np

    rows: list[int] = []
    held: list[Vectors] = []
    done = 0
    for more, found in parts:
        rows += more
        held.append(found)
        done += len(more)
        told(done)
        if len(rows) >= _KEPT_AT_ONCE:
            yield rows, np.concatenate(held)
            rows, held = [], []
    if rows:
        yield rows, np.concatenate(held)
