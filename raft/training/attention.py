"""Attention over a packed sequence, part by part: the prefix to itself, each branch to the prefix and itself.

A dense T x T mask would have the kernel compute every pair and throw the invisible ones away: all that lies above
the diagonal and between sibling branches. The parts skip those, and the prefix, by far the longest, takes the
kernel's own causal path, which needs no mask at all.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from raft.training.soft_prompts import is_soft, with_soft_prompt

NAME = "raft_packed"


def use_packed_attention(model: Any) -> None:
    """Make the model attend part by part when its forward pass is given ``segments``. A model that cannot change
    its attention, or whose own is not plain SDPA, goes on with the dense mask: slower, and without the sliding
    windows that some layers may have."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        AttentionInterface.register(NAME, packed_attention)
        model.set_attn_implementation(NAME)


def forward(model: Any, batch: dict[str, Any]) -> Any:
    """The model's outputs for a packed batch, logits at ``logits_to_keep`` alone."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "shift_labels", "weights")}
    if is_soft(model):
        model, inputs = with_soft_prompt(model, inputs)
    if model.config._attn_implementation != NAME:
        past = inputs.get("past_key_values")
        mask = dense_mask(inputs.pop("segments"), 0 if past is None else past.get_seq_length())
        inputs["attention_mask"] = mask.to(inputs["position_ids"].device)
    return model(**inputs, use_cache=False)


def dense_mask(segments: tuple[int, ...], past: int = 0) -> torch.Tensor:
    """Which token sees which, boolean [1, 1, T, past + T]: all that is past, and those before it in the prefix and in
    its own branch."""
    branches = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(segments))  # [T]
    visible = (branches[None, :] == 0) | (branches[None, :] == branches[:, None])  # [T, T]
    return torch.cat([visible.new_ones(len(branches), past), visible.tril()], dim=1)[None, None]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Output [1, T, heads, d] of query [1, heads, T, d] and key and value [1, key heads, past + T, d]; what is past, a
    soft prompt's, is seen by all.

    ``segments`` holds the lengths of the shared prefix (0 if there is none) and of each branch; they add up to T.
    Without them the mask decides, as in transformers' SDPA, which also computes each part.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs["is_causal"] = None
    past = key.shape[2] - query.shape[2]
    outputs = []
    start = 0
    for number, length in enumerate(segments):
        part = slice(start, start + length)
        shared = past + (0 if number == 0 else segments[0])
        if length:
            own = slice(past + part.start, past + part.stop)
            outputs.append(_attend(module, query[:, :, part], key, value, shared, own, kwargs))
        start += length
    return torch.cat(outputs, dim=1), None


def _attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shared: int, part: slice,
    kwargs: dict[str, Any],
) -> torch.Tensor:  # fmt: skip
    """The part's output: it sees the first ``shared`` positions and its own up to each query, within the layer's
    sliding window if it has one."""
    length = part.stop - part.start
    window = kwargs.get("sliding_window")
    if not shared and (window is None or length <= window):
        kwargs = kwargs | {"is_causal": True}
        return sdpa_attention_forward(module, query, key[:, :, part], value[:, :, part], None, **kwargs)[0]
    seen_key = torch.cat([key[:, :, :shared], key[:, :, part]], dim=2)
    seen_value = torch.cat([value[:, :, :shared], value[:, :, part]], dim=2)
    mask = torch.ones(length, shared + length, dtype=torch.bool, device=query.device).tril(shared)
    if window is not None:
        mask = mask.triu(shared - window + 1)
    return sdpa_attention_forward(module, query, seen_key, seen_value, mask[None, None], **kwargs)[0]
