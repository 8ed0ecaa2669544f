"""Attention over a packed sequence, part by part: the prefix to itself, each branch to the prefix and itself.

A dense T x T mask would have the kernel compute every pair and throw the invisible ones away: all that lies above
the diagonal and between sibling branches. The parts skip those, and the prefix, by far the longest, takes the
kernel's own causal path, which needs no mask at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from raft.config_train_parts import Attention
from raft.errors import ModelError
from raft.training.soft_prompts import is_soft, with_soft_prompt

NAME = "raft_packed"
FLEX = "raft_packed_flex"


def use_packed_attention(model: Any, attention: Attention = "auto") -> None:
    """Make the model attend as ``attention`` says when its forward pass gets ``segments``: auto, part by part; sdpa,
    with the dense mask; flex, FlexAttention; flash, FlashAttention, for sequences that share no prefix. A model that
    cannot change its attention, or whose own is not plain SDPA, goes on with the dense mask for auto: slower, and
    without the sliding windows that some layers may have. Raises ModelError where it cannot do what is asked for."""
    if attention == "sdpa" and keeps_windows(model):
        raise ModelError(
            "attention sdpa knows no sliding windows, which some layers of this model have", "Set attention = auto"
        )
    changeable = model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation()
    if attention == "auto" and changeable:
        AttentionInterface.register(NAME, packed_attention)
        model.set_attn_implementation(NAME)
    if attention in ("auto", "sdpa"):
        return
    if not changeable:
        raise ModelError(
            f"this model computes its attention in its own way, not by {attention}", "Set attention = auto"
        )
    if attention == "flex":
        from raft.training.flex import flex_packed_attention

        AttentionInterface.register(FLEX, flex_packed_attention)
        model.set_attn_implementation(FLEX)
        return
    try:
        model.set_attn_implementation("flash_attention_2")
    except (ImportError, ValueError) as error:
        said = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(
            f"attention flash cannot be had ({said})", "Install flash-attn, or set attention = auto"
        ) from error


def keeps_windows(model: Any) -> bool:
    """Whether some layers see a window of the latest tokens alone."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers)


@contextmanager
def resting(student: Any) -> Iterator[Any]:
    """The model inside a student, without dropout and with the masks of plain SDPA, for what is not packed, or begins
    with a cache. Afterwards both are as before."""
    model = student.get_base_model() if hasattr(student, "get_base_model") else student
    attention, training = model.config._attn_implementation, student.training
    student.eval()
    try:
        if attention in (NAME, FLEX) or "flash" in attention:
            model.set_attn_implementation("sdpa")
        yield model
    finally:
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
        student.train(training)


def forward(model: Any, batch: dict[str, Any]) -> Any:
    """The model's outputs for a packed batch, logits at ``logits_to_keep`` alone."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "shift_labels", "weights")}
    if is_soft(model):
        model, inputs = with_soft_prompt(model, inputs)
    chosen = getattr(model, "module", model).config._attn_implementation  # module: what DDP and DeepSpeed wrap
    if "flash" in chosen:
        segments, parents = (
            inputs.pop("segments"),
            inputs.pop("parents", None),
        )  # positions, which begin anew, show them
        if any(segments[each] for number in range(len(segments)) for each in before(number, parents)):
            raise ValueError("FlashAttention knows no shared prefix")
    elif chosen not in (NAME, FLEX):
        past = inputs.get("past_key_values")
        length = 0 if past is None else past.get_seq_length()
        mask = dense_mask(inputs.pop("segments"), length, inputs.pop("parents", None))
        inputs["attention_mask"] = mask.to(inputs["position_ids"].device)
    return model(**inputs, use_cache=False)


def dense_mask(segments: tuple[int, ...], past: int = 0, parents: tuple[int, ...] | None = None) -> torch.Tensor:
    """Which token sees which, boolean [1, 1, T, past + T]: all that is past, and those before it in its own segment and
    in those that this one goes on from."""
    owner = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(segments))  # [T]
    visible = sees_of(segments, parents)[owner][:, owner]  # [T, T]
    return torch.cat([visible.new_ones(len(owner), past), visible.tril()], dim=1)[None, None]


def sees_of(segments: tuple[int, ...], parents: tuple[int, ...] | None) -> torch.Tensor:
    """Which of S segments sees which, boolean [S, S]: itself, and those that it goes on from."""
    sees = torch.eye(len(segments), dtype=torch.bool)
    for number in range(len(segments)):
        sees[number, before(number, parents)] = True
    return sees


def before(number: int, parents: tuple[int, ...] | None) -> list[int]:
    """The segments that a segment goes on from, the first one first."""
    if parents is None:
        return [0] if number else []
    found: list[int] = []
    while (number := parents[number]) >= 0:
        found.insert(0, number)
    return found


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: tuple[int, ...] | None = None,
    parents: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Output [1, T, heads, d] of query [1, heads, T, d] and key and value [1, key heads, past + T, d]; what is past, a
    soft prompt's, is seen by all.

    ``segments`` holds the lengths of the shared prefix (0 if there is none) and of each branch; they add up to T.
    ``parents`` says of each segment which one it goes on from (-1: none); without it, all go on from the first. Without
    segments the mask decides, as in transformers' SDPA, which also computes each part.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs["is_causal"] = None
    past = key.shape[2] - query.shape[2]
    # split, not sliced: the gradient of each slice would be as long as the whole, nearly all zeros
    queries = query.split(segments, dim=2)
    keys, values = (each.split((past, *segments), dim=2) for each in (key, value))
    outputs = []
    for number, length in enumerate(segments):
        if length:
            seen = [0, *(1 + each for each in (*before(number, parents), number))]  # 0: what is past
            outputs.append(_attend(module, queries[number], [keys[i] for i in seen], [values[i] for i in seen], kwargs))
    return torch.cat(outputs, dim=1), None


def _attend(
    module: torch.nn.Module, query: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor],
    kwargs: dict[str, Any],
) -> torch.Tensor:  # fmt: skip
    """The part's output: it sees all positions of ``keys`` but the last, which go before it, and of the last, its own,
    those up to each query, within the layer's sliding window if it has one."""
    length = query.shape[2]
    shared = sum(each.shape[2] for each in keys[:-1])
    window = kwargs.get("sliding_window")
    if not shared and (window is None or length <= window):
        kwargs = kwargs | {"is_causal": True}
        return sdpa_attention_forward(module, query, keys[-1], values[-1], None, **kwargs)[0]
    mask = torch.ones(length, shared + length, dtype=torch.bool, device=query.device).tril(shared)
    if window is not None:
        mask = mask.triu(shared - window + 1)
    seen_keys, seen_values = torch.cat(keys, dim=2), torch.cat(values, dim=2)
    return sdpa_attention_forward(module, query, seen_keys, seen_values, mask[None, None], **kwargs)[0]
