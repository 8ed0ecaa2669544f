"""Keys and values of prompts that were read lately, for those that begin alike.

    kept = Prefixes(most_bytes=4 * 10**9)
    kept.keep([1, 4093, 198, ...], 0, layers)        # layers: keys and values of each, [1, heads, tokens, width]
    kept.longest([1, 4093, 198, ..., 77])            # (612, those of the first 612 tokens)

Questions over the same documents share a prompt up to the question; what one of them computed serves the others. A
prompt that brings little new is not kept besides: its documents are there already.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raft.models import common_prefix_length

if TYPE_CHECKING:
    import torch

SHORTEST_SHARED_PREFIX = 16  # tokens that are worth a part of their own
_NEW_SHARE = 0.25  # of a prompt that must be new for it to be kept

Layers = list[tuple["torch.Tensor", "torch.Tensor"]]


class Prefixes:
    """At most ``most_bytes``; the least recently used go first. For one thread at a time."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[int, ...], Layers] = OrderedDict()

    def longest(self, prompt: Sequence[int]) -> tuple[int, Layers]:
        """How many of the first tokens of a prompt are known, and their keys and values; (0, []) for few. The last
        token is never: what comes after it is what the model is asked for."""
        ids = list(prompt)
        best: tuple[int, tuple[int, ...]] = (0, ())
        for other in self._kept:
            best = max(best, (common_prefix_length([ids, list(other)]), other))
        length = min(best[0], len(ids) - 1)
        if length < SHORTEST_SHARED_PREFIX:
            return 0, []
        self._kept.move_to_end(best[1])
        return length, [(keys[:, :, :length], values[:, :, :length]) for keys, values in self._kept[best[1]]]

    def keep(self, prompt: Sequence[int], known: int, layers: Layers) -> None:
        """Keep what was computed for a prompt of which so many tokens were known. ``layers`` must not change
        afterwards."""
        if len(prompt) - known < _NEW_SHARE * len(prompt):
            return
        size = _bytes_of(layers)
        if size > self._most or tuple(prompt) in self._kept:
            return
        self._kept[tuple(prompt)] = layers
        self._bytes += size
        while self._bytes > self._most:
            self._bytes -= _bytes_of(self._kept.popitem(last=False)[1])


def _bytes_of(layers: Layers) -> int:
    """What the tensors hold in memory, spare room behind them too."""
    return sum(tensor.untyped_storage().nbytes() for pair in layers for tensor in pair)
