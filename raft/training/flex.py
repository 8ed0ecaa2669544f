"""FlexAttention over a packed sequence: one kernel, which passes over the blocks of the mask in which nothing is seen.

It computes what attention.py computes part by part. PyTorch has its gradients on GPUs alone.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from raft.training.attention import before, sees_of


def flex_packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: tuple[int, ...] | None = None,
    parents: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As ``attention.packed_attention``."""
    if segments is None:
        kwargs["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    past = key.shape[2] - query.shape[2]
    mask = block_mask(segments, parents, past, sliding_window, query.device)
    return flex_attention_forward(module, query, key, value, mask, **kwargs)


@lru_cache(maxsize=4)  # the layers of a model ask for the same one or two
def block_mask(
    segments: tuple[int, ...], parents: tuple[int, ...] | None, past: int, window: int | None, device: torch.device
) -> BlockMask:
    """Which of T tokens sees which of past + T: all that is past, its own segment up to itself, and the segments that
    this one goes on from; of these, where ``window`` is given, those less than that many positions before it."""
    sees = sees_of(segments, parents).to(device)
    owner = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(segments)).to(device)  # [T]
    position = _positions(segments, parents).to(device)  # [T]
    size = len(owner)

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        own = (key - past).clamp(min=0)  # of what is past: any, for it is seen anyway
        seen = (key < past) | (sees[owner[query], owner[own]] & (own <= query))
        if window is None:
            return seen
        distance = torch.where(key < past, position[query] + past - key, position[query] - position[own])
        return seen & (distance < window)

    mask: BlockMask = _builder(device.type)(visible, None, None, size, past + size, device=str(device))
    return mask


@cache
def _builder(device: str) -> Any:
    """What makes a mask of blocks; uncompiled it holds every pair of tokens at once."""
    return torch.compile(create_block_mask) if device == "cuda" else create_block_mask


def _positions(segments: tuple[int, ...], parents: tuple[int, ...] | None) -> torch.Tensor:
    """Where each token stands in the text that it belongs to, [T]."""
    starts = [sum(segments[each] for each in before(number, parents)) for number in range(len(segments))]
    return torch.cat([torch.arange(length) + start for length, start in zip(segments, starts, strict=True)])
