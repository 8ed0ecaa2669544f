"""Attention part by part against the dense mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raft.errors import ModelError
from raft.training.attention import dense_mask, packed_attention, use_packed_attention

HEADS, KEY_HEADS, WIDTH = 6, 2, 8


class Layer(torch.nn.Module):
    num_key_value_groups = HEADS // KEY_HEADS
    is_causal = True


def slow_attention(query, key, value, visible) -> torch.Tensor:
    """Softmax over the visible positions, written out."""
    key = key.repeat_interleave(HEADS // KEY_HEADS, dim=1)
    value = value.repeat_interleave(HEADS // KEY_HEADS, dim=1)
    scores = query @ key.transpose(-1, -2) / WIDTH**0.5
    return (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def within_window(segments: tuple[int, ...], window: int) -> torch.Tensor:
    """Pairs less than ``window`` positions apart, where each branch goes on counting at the end of the prefix."""
    lengths = enumerate(segments)
    positions = torch.cat([torch.arange(n) + (segments[0] if branch else 0) for branch, n in lengths])
    return positions[:, None] - positions[None, :] < window


@given(st.tuples(st.integers(0, 9), st.lists(st.integers(1, 6), min_size=1, max_size=4)), st.none() | st.integers(1, 9))
def test_parts_equal_the_dense_mask(shape: tuple[int, list[int]], window: int | None) -> None:
    segments = (shape[0], *shape[1])
    size = sum(segments)
    torch.manual_seed(size)
    query = torch.randn(1, HEADS, size, WIDTH)
    key, value = torch.randn(1, KEY_HEADS, size, WIDTH), torch.randn(1, KEY_HEADS, size, WIDTH)
    visible = dense_mask(segments)
    if window is not None:
        visible = visible & within_window(segments, window)
    found, _ = packed_attention(
        Layer(), query, key, value, None, segments=segments, dropout=0.0, scaling=WIDTH**-0.5, sliding_window=window
    )
    assert torch.allclose(found, slow_attention(query, key, value, visible), atol=1e-5)


def test_the_dense_mask_hides_siblings_and_the_future() -> None:
    assert dense_mask((2, 1, 2))[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


def test_a_dense_mask_is_refused_where_layers_see_a_window() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for window in (8, None):
        config = MistralConfig(vocab_size=32, num_key_value_heads=1, sliding_window=window, **sizes)
        model = MistralForCausalLM(config)
        if window is None:
            use_packed_attention(model, "sdpa")
        else:
            with pytest.raises(ModelError, match="sdpa knows no sliding windows"):
                use_packed_attention(model, "sdpa")


def test_without_segments_the_mask_decides() -> None:
    query, key = torch.randn(1, HEADS, 5, WIDTH), torch.randn(1, KEY_HEADS, 5, WIDTH)
    visible = dense_mask((2, 1, 2))
    found, _ = packed_attention(Layer(), query, key, key, visible, dropout=0.0, scaling=WIDTH**-0.5)
    assert torch.allclose(found, slow_attention(query, key, key, visible), atol=1e-5)
