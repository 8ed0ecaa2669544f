"""FlexAttention, uncompiled on a CPU, against attention part by part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.errors import ModelError
from raft.models import load_language_model
from raft.training.attention import FLEX, forward, packed_attention, use_packed_attention
from raft.training.corpus import join
from raft.training.flex import flex_packed_attention
from raft.training.packing import Packed, merge, pack, to_batch
from raft.training.student import load_student
from raft.training.tokenize import Tokenized
from tests.training.test_attention import HEADS, KEY_HEADS, WIDTH, Layer


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # PyTorch has no gradients of it on CPUs
        yield


shapes = st.tuples(st.integers(0, 9), st.lists(st.integers(1, 6), min_size=1, max_size=4))


@given(shapes, st.integers(0, 3), st.none() | st.integers(1, 9), st.booleans())
@settings(max_examples=12)
def test_it_equals_attention_part_by_part(
    shape: tuple[int, list[int]], past: int, window: int | None, chain: bool
) -> None:
    segments = (shape[0], *shape[1])
    parents = tuple(range(-1, len(segments) - 1)) if chain else None  # each goes on from the one before it
    size = sum(segments)
    torch.manual_seed(size)
    query = torch.randn(1, HEADS, size, WIDTH)
    key, value = torch.randn(1, KEY_HEADS, past + size, WIDTH), torch.randn(1, KEY_HEADS, past + size, WIDTH)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        found, expected = (
            attend(
                Layer(), query, key, value, None, segments=segments, parents=parents, dropout=0.0,
                scaling=WIDTH**-0.5, sliding_window=window,
            )[0]
            for attend in (flex_packed_attention, packed_attention)
        )  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-5)


def sequences() -> dict[str, Packed]:
    shared = list(range(100, 140))
    examples = [Tokenized(str(n), [*shared, 7 + n, 9], [3 * n + 1, 5, 2]) for n in range(4)]
    return {
        "group": pack(examples),
        "merged": merge([pack(examples[:2]), pack(examples[2:])]),
        "documents": join([range(10, 30), range(40, 90)]),
    }


@pytest.mark.parametrize("name", ["group", "merged", "documents"])
def test_a_model_gives_the_same_logits(name: str, tiny_folder: Path) -> None:
    logits = []
    for attention in ("auto", "sdpa", "flex"):
        model = load_language_model(tiny_folder, "float32").eval()
        use_packed_attention(model, attention)
        logits.append(forward(model, to_batch(sequences()[name])).logits)
    assert model.config._attn_implementation == FLEX
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert torch.allclose(logits[0], logits[2], atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("attention=flex", "attention flex trains on a GPU alone"),
        ("liger=true", r"Liger's kernels (are not installed.*raft-tune\[liger\]|run on a GPU alone)"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(setting: str, says: str, tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=says):
        load_student(load_recipe(TrainRecipe, None, [setting], model=str(tiny_folder)), tiny_folder)
