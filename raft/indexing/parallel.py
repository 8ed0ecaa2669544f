"""Encoding through Ray: as many encoders at once as the recipe says, here or on a cluster.

    [encoder]
    workers = 8
    ray_address = "ray://head:10001"    # unset: Ray is started on this machine, and stopped again

    for rows, vectors in encoded_blocks(texts, EncoderRecipe(), batch_size=64, workers=8): ...

Every worker loads the encoder once and checks that its files are those of this machine. raft must be installed where
the workers run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raft.cluster import one_line_failures, ray_session
from raft.config import EncoderRecipe
from raft.errors import ModelError
from raft.retrieval.encoder import Encoder, encoder_fingerprint

if TYPE_CHECKING:
    from raft.retrieval.backends import Vectors

NOT_OF_THE_ENCODER = frozenset({"batch_size", "workers", "ray_address"})
"""Settings of a recipe that say how fast, not what."""

_BLOCK = 1024  # texts a worker is given at once


def encoded_blocks(
    texts: Sequence[str], encoder: EncoderRecipe, batch_size: int, workers: int, address: str | None = None
) -> Iterator[tuple[list[int], Vectors]]:
    """Positions of texts with their vectors, block by block as they are done, so that each can be kept at once.

    Raises ModelError when Ray is not installed or a worker fails, EndpointError when the cluster cannot be reached.
    """
    import numpy as np

    with ray_session(workers, address, "encoder") as ray, one_line_failures(ray, "encoding", "encoder"):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        fingerprint = encoder_fingerprint(encoder.model, encoder.document_prompt)
        encoded = ray.data.from_arrow(_tables(texts, workers)).map_batches(
            _Worker,
            fn_constructor_args=(_settings(encoder), batch_size, fingerprint),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=min(1.0, ray.cluster_resources().get("GPU", 0) / workers),
        )
        for block in encoded.iter_batches(batch_size=None, batch_format="numpy"):
            yield block["row"].tolist(), np.ascontiguousarray(np.stack(list(block["vector"])), dtype=np.float32)


def _settings(encoder: EncoderRecipe) -> dict[str, Any]:
    return encoder.model_dump(exclude=set(NOT_OF_THE_ENCODER))


def _tables(texts: Sequence[str], workers: int) -> list[Any]:
    """The texts in blocks, at least one for each worker."""
    import pyarrow

    size = max(1, min(_BLOCK, -(-len(texts) // workers)))
    return [
        pyarrow.table({"row": list(range(at, min(at + size, len(texts)))), "text": list(texts[at : at + size])})
        for at in range(0, len(texts), size)
    ]


class _Worker:
    """An encoder in a process of its own."""

    def __init__(self, settings: Mapping[str, Any], batch_size: int, fingerprint: str) -> None:
        model = settings["model"]
        if encoder_fingerprint(model, settings["document_prompt"]) != fingerprint:
            raise ModelError(f"encoder {model} is another one on {os.uname().nodename}", "Bring the same files there")
        self._encoder = Encoder.load(**settings)
        self._batch_size = batch_size

    def __call__(self, block: Mapping[str, Any]) -> dict[str, Any]:
        vectors = self._encoder.encode_documents([str(text) for text in block["text"]], self._batch_size)
        return {"row": block["row"], "vector": vectors}
