"""Keys and values that are kept of earlier prompts: the longest is found, the least recently used goes first."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from raft.llm.prefixes import SHORTEST_SHARED_PREFIX, Layers, Prefixes
from raft.models import common_prefix_length

BYTES = 2 * 4  # of one token: keys and values of one layer, one head, one number wide


def layers_of(prompt: list[int]) -> Layers:
    """Keys that are the tokens themselves, and values of the opposite sign."""
    ids = torch.tensor(prompt, dtype=torch.float32)[None, None, :, None]
    return [(ids, -ids)]


prompts = st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=5).map(lambda parts: [p for n in parts for p in [n] * 10]),
    max_size=12,
)


@given(prompts, st.integers(0, 120))
def test_what_is_found_is_the_longest_that_was_kept(asked: list[list[int]], most_tokens: int) -> None:
    kept, plain = Prefixes(most_tokens * BYTES), list[list[int]]()  # the least recently used first
    for prompt in asked:
        known, layers = kept.longest(prompt)
        shared = [min(common_prefix_length([prompt, other]), len(prompt) - 1) for other in plain]
        best = max(shared, default=0)
        assert known == (best if best >= SHORTEST_SHARED_PREFIX else 0)
        assert len(layers) == bool(known)
        for keys, values in layers:
            assert keys[0, 0, :, 0].tolist() == prompt[:known]
            assert values[0, 0, :, 0].tolist() == [-token for token in prompt[:known]]
        if known:
            used = max((other for other in plain if common_prefix_length([prompt, other]) >= known), key=lambda other: (
                common_prefix_length([prompt, other]), tuple(other)))  # fmt: skip
            plain = [*(other for other in plain if other != used), used]
        kept.keep(prompt, known, layers_of(prompt))
        if len(prompt) - known >= len(prompt) / 4 and len(prompt) <= most_tokens and prompt not in plain:
            plain.append(prompt)
        while sum(map(len, plain)) > most_tokens:
            plain = plain[1:]
        assert [list(key) for key in kept._kept] == plain


def test_questions_over_the_same_documents_take_the_memory_of_one() -> None:
    kept, documents = Prefixes(10**6), list(range(100))
    for question in range(50):
        prompt = [*documents, 1000 + question, 2000]
        known, _ = kept.longest(prompt)
        assert known == (100 if question else 0)
        kept.keep(prompt, known, layers_of(prompt))
    assert kept._bytes == 102 * BYTES


def test_nothing_is_kept_without_memory() -> None:
    kept = Prefixes(0)
    kept.keep([1] * 50, 0, layers_of([1] * 50))
    assert kept.longest([1] * 50) == (0, [])
