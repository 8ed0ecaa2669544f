"""Batched decoding that prefills what the prompts share only once.

prompts  [[sys doc1 doc2 q1], [sys doc1 doc2 q2 q2]]       token ids
prefix    [sys doc1 doc2]              computed for one row, then repeated for all     [1, L] -> [B, L]
rest      [[pad q1], [q2 q2]]          left-padded                                      [B, R]
decode    one token a row and step; rows that are done leave the batch                  [B, 1]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SHORTEST_SHARED_PREFIX = 16


@dataclass(slots=True)
class Row:
    """One sequence being decoded; ``done`` after its end-of-turn token or ``max_tokens``."""

    index: int
    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    done: bool = False
    truncated: bool = False


class _RoomyLayer(DynamicLayer):
    """A cache layer with spare room behind its last token: adding one token copies that token alone, where
    transformers' own layer copies the whole cache at every step."""

    _SPARE = 64
    _keys_room: torch.Tensor | None = None
    _values_room: torch.Tensor | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        total = length + key_states.shape[-2]
        if self._keys_room is None or self._values_room is None or self._keys_room.shape[-2] < total:
            assert self.keys is not None
            assert self.values is not None
            self._keys_room = self._roomy(self.keys, key_states, length, total)
            self._values_room = self._roomy(self.values, value_states, length, total)
        self._keys_room[:, :, length:total] = key_states
        self._values_room[:, :, length:total] = value_states
        self.keys, self.values = self._keys_room[:, :, :total], self._values_room[:, :, :total]
        return self.keys, self.values

    def _roomy(self, old: torch.Tensor, new: torch.Tensor, length: int, total: int) -> torch.Tensor:
        batch, heads, _, width = new.shape
        room = new.new_empty(batch, heads, total + self._SPARE, width)
        if length:
            room[:, :, :length] = old
        return room

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[indices], self.values[indices]
        self._keys_room = self._values_room = None


def common_prefix_length(sequences: Sequence[list[int]]) -> int:
    """How many leading tokens all sequences share."""
    first, last = min(sequences), max(sequences)  # all others lie between these two
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


@torch.inference_mode()
def decode(model: Any, rows: Sequence[Row], end_ids: frozenset[int]) -> Iterator[list[tuple[Row, int]]]:
    """Decode the rows together; yields each step's new tokens, end-of-turn tokens left out."""
    state = _prefill(model, [row.prompt for row in rows])
    alive = list(rows)
    generators = {row.index: _generator(model.device, row.seed) for row in rows if row.temperature > 0}
    lengths = dict.fromkeys((row.index for row in rows), 0)
    while True:
        picked = _pick(state.logits, alive, generators)
        step = []
        for row, token in zip(alive, picked, strict=True):
            lengths[row.index] += 1
            row.truncated = token not in end_ids and lengths[row.index] >= row.max_tokens
            row.done = token in end_ids or row.truncated
            if token not in end_ids:
                step.append((row, token))
        yield step
        keep = [i for i, row in enumerate(alive) if not row.done]
        if not keep:
            return
        if len(keep) < len(alive):
            state.select(torch.tensor(keep, device=model.device))
            alive, picked = [alive[i] for i in keep], [picked[i] for i in keep]
        state.advance(model, torch.tensor(picked, device=model.device))


@dataclass(slots=True)
class _State:
    """``mask`` [B, seen] is 1 where a token stands, 0 at padding; ``position`` [B] is each row's next position."""

    cache: Any
    mask: torch.Tensor
    position: torch.Tensor
    logits: torch.Tensor

    def select(self, rows: torch.Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def advance(self, model: Any, tokens: torch.Tensor) -> None:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = _forward(model, tokens[:, None], self.mask, self.position[:, None], self.cache)
        self.position = self.position + 1


def _prefill(model: Any, prompts: Sequence[list[int]]) -> _State:
    device = model.device
    shared = min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
    if len(prompts) == 1 or shared < SHORTEST_SHARED_PREFIX:
        shared = 0
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if shared:
        prefix = torch.tensor([prompts[0][:shared]], device=device)  # [1, L]
        _forward(model, prefix, torch.ones_like(prefix), torch.arange(shared, device=device)[None], cache)
        repeat = torch.zeros(len(prompts), dtype=torch.long, device=device)
        cache.batch_select_indices(repeat)
    rests = [prompt[shared:] for prompt in prompts]
    width = max(map(len, rests))
    tokens = torch.zeros(len(rests), width, dtype=torch.long, device=device)  # [B, R], left-padded
    mask = torch.zeros(len(rests), shared + width, dtype=torch.long, device=device)  # [B, L + R]
    mask[:, :shared] = 1
    for i, rest in enumerate(rests):
        tokens[i, width - len(rest) :] = torch.tensor(rest, device=device)
        mask[i, shared + width - len(rest) :] = 1
    position = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
    logits = _forward(model, tokens, mask, position, cache)
    return _State(cache, mask, position[:, -1] + 1, logits)


def _forward(model: Any, tokens: torch.Tensor, mask: torch.Tensor, position: torch.Tensor, cache: Any) -> torch.Tensor:
    """Logits of the last position, [B, vocabulary]."""
    out = model(
        input_ids=tokens, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    logits: torch.Tensor = out.logits[:, -1]
    return logits


def _generator(device: Any, seed: int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def _pick(logits: torch.Tensor, rows: Sequence[Row], generators: dict[int, torch.Generator]) -> list[int]:
    picked = logits.argmax(-1).tolist()
    for i, row in enumerate(rows):
        if row.temperature > 0:
            probabilities = torch.softmax(logits[i].float() / row.temperature, -1)
            picked[i] = int(torch.multinomial(probabilities, 1, generator=generators[row.index]))
    return picked
