"""Batched decoding that prefills what the prompts share only once.

prompts  [[sys doc1 doc2 q1], [sys doc1 doc2 q2 q2]]       token ids
prefix    [sys doc1 doc2]              computed for one row, then repeated for all     [1, L] -> [B, L]
rest      [[pad q1], [q2 q2]]          left-padded, a few rows of like length at once   [B, R]
decode    one token a row and step; rows that are done leave the batch                  [B, 1]

A step reads every weight for one token a row, so that many rows decode together; a prefill is long enough by
itself, so that few rows, hardly padded, prefill together. Rows that join later prefill alone, from what earlier prompts
left behind where they begin alike (prefixes.py), and are then seated beside the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from raft.llm.prefixes import SHORTEST_SHARED_PREFIX, Prefixes
from raft.models import common_prefix_length

PREFILL_TOKENS = 1024  # of one prefill, padding counted: enough to keep the matrix kernels busy
COMPACT_AT = 0.75  # share of rows still being decoded at which the others leave; leaving copies the cache


@dataclass(slots=True)
class Row:
    """One sequence being decoded; ``done`` after its end-of-turn token or ``max_tokens``. A list of ``logprobs`` gets
    the natural log-probability of each token that is yielded, by the model itself: no temperature changes it.
    ``length`` counts what was written, and ``cached`` what was known of the prompt."""

    index: int
    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    done: bool = False
    truncated: bool = False
    logprobs: list[float] | None = None
    length: int = 0
    cached: int = 0
    generator: torch.Generator | None = None


class _RoomyLayer(DynamicLayer):
    """A cache layer with spare room behind its last token: adding one token copies that token alone, where
    transformers' own layer copies the whole cache at every step."""

    _SPARE = 64
    _room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        total = length + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < total:
            self._make_room(len(key_states), (key_states, value_states), length, total)
        assert self._room is not None
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, length:total] = new
        self.keys, self.values = (room[:, :, :total] for room in self._room)
        return self.keys, self.values

    def _make_room(self, batch: int, like: tuple[torch.Tensor, torch.Tensor], length: int, total: int) -> None:
        """Room for ``total`` tokens and some more; what stands there, for one row or for all, is kept. Keys and
        values may differ in width (multi-head latent attention, DeepSeek-V2, arXiv 2405.04434)."""
        room = [new.new_zeros(batch, new.shape[1], total + self._SPARE, new.shape[3]) for new in like]
        if length:
            assert self.keys is not None
            assert self.values is not None
            room[0][:, :, :length], room[1][:, :, :length] = self.keys, self.values
        self._room = (room[0], room[1])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[indices], self.values[indices]
        self._room = None

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor) -> _RoomyLayer:
        """A layer that begins with these tokens, which stay as they are, and grows by itself, with as many rows as are
        added."""
        layer = cls()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        return layer

    def part(self, first: int = 0) -> _RoomyLayer:
        """A layer that begins with the same tokens, from the ``first`` on."""
        assert self.keys is not None
        assert self.values is not None
        return self.of(self.keys[:, :, first:], self.values[:, :, first:])

    def seat(self, other: _RoomyLayer, rows: slice, batch: int, shared: int, total: int) -> None:
        """Take in the tokens of ``other`` as these rows of ``batch``: the first ``shared`` in front, the others up
        against ``total``, so that padding lies between."""
        assert other.keys is not None
        assert other.values is not None
        if self._room is None:
            self.lazy_initialization(other.keys, other.values)
            self._make_room(batch, (other.keys, other.values), 0, total)
            assert self._room is not None
            self.keys, self.values = (room[:, :, :total] for room in self._room)
        assert self._room is not None
        for room, new in zip(self._room, (other.keys, other.values), strict=True):
            own = new.shape[2] - shared
            room[rows, :, :shared] = new[:, :, :shared]
            room[rows, :, total - own : total] = new[:, :, shared:]


def decode(model: Any, rows: Sequence[Row], end_ids: frozenset[int]) -> Iterator[list[tuple[Row, int]]]:
    """Decode the rows together; yields each step's new tokens, end-of-turn tokens left out."""
    decoding = Decoding(model, end_ids)
    decoding.join(rows)
    while not all(row.done for row in rows):
        yield decoding.step()


class Decoding:
    """Rows that are decoded together; others may join on the way, and whoever sets ``done`` leaves."""

    def __init__(self, model: Any, end_ids: frozenset[int]) -> None:
        self._model = model
        self._end_ids = end_ids
        self._state: _State | None = None
        self._seated: list[Row] = []  # the rows of the state; some are done already
        self._picked: list[int] | None = None  # their last tokens, which the state does not hold yet
        self.takes_more = _is_divisible(_new_cache(model))  # whether rows can join those under way

    @torch.inference_mode()
    def join(self, rows: Sequence[Row], kept: Prefixes | None = None) -> None:
        """Read the prompts. Of a single one, what ``kept`` holds is not computed again, and what was computed is kept;
        ``cached`` of its row says how many tokens those were."""
        self._go_on()
        if kept is not None and len(rows) == 1:
            state, rows[0].cached = _prefill_kept(self._model, rows[0].prompt, kept)
        else:
            state = _prefill(self._model, [row.prompt for row in rows])
        self._state = state if self._state is None else _joined(self._model, self._state, state)
        self._seated += rows
        for row in rows:
            if row.temperature > 0:
                row.generator = torch.Generator(device=self._model.device).manual_seed(row.seed)

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, int]]:
        """One more token for each row that is not done, end-of-turn tokens left out."""
        self._go_on()
        if self._state is None:
            return []
        picked = self._picked = _pick(self._state.logits, self._seated)
        _keep_logprobs(self._state.logits, self._seated, picked, self._end_ids)
        step = []
        for row, token in zip(self._seated, picked, strict=True):
            if row.done:
                continue
            row.length += 1
            row.truncated = token not in self._end_ids and row.length >= row.max_tokens
            row.done = token in self._end_ids or row.truncated
            if token not in self._end_ids:
                step.append((row, token))
        return step

    def _go_on(self) -> None:
        """Take the picked tokens into the state. Rows that are done leave once they are many."""
        if self._state is None or self._picked is None:
            return
        state, picked, self._picked = self._state, self._picked, None
        alive = [i for i, row in enumerate(self._seated) if not row.done]
        if not alive:
            self._state, self._seated = None, []
            return
        if len(alive) <= COMPACT_AT * len(self._seated):
            state.select(torch.tensor(alive, device=self._model.device))
            self._seated, picked = [self._seated[i] for i in alive], [picked[i] for i in alive]
        tokens = torch.tensor(picked, device=self._model.device)
        state.advance(self._model, tokens, [not row.done for row in self._seated])


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

    def trimmed(self) -> _State:
        """Itself, without the leading places that are padding in every row."""
        first = int(self.mask.any(0).int().argmax())
        if first:
            self.mask = self.mask[:, first:]
            self.cache.layers = [layer.part(first) for layer in _roomy(self.cache)]
        return self

    def advance(self, model: Any, tokens: torch.Tensor, alive: Sequence[bool]) -> None:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = _forward(model, tokens[:, None], self.mask, self.position[:, None], self.cache)
        self.position = self.position + torch.tensor(alive, device=tokens.device)  # done rows stay within the window


def _prefill(model: Any, prompts: Sequence[list[int]]) -> _State:
    """The state after the prompts; their common prefix is computed once, the rest in parts of like length."""
    shared = min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
    if len(prompts) == 1 or shared < SHORTEST_SHARED_PREFIX:
        shared = 0
    prefix = _begun_cache(model)
    divisible = _is_divisible(prefix)
    if not divisible:
        shared = 0  # layers that keep a window alone can neither be repeated nor put together
    soft = prefix.get_seq_length()
    cached = soft + shared
    if shared:
        tokens = torch.tensor([prompts[0][:shared]], device=model.device)  # [1, L]
        position = torch.arange(soft, cached, device=model.device)[None]
        _forward(model, tokens, tokens.new_ones(1, cached), position, prefix)
    rests = [prompt[shared:] for prompt in prompts]
    parts = list(_parts(rests)) if divisible else [slice(0, len(rests))]
    states = (_prefill_part(model, rests[part], prefix if cached else None, cached) for part in parts)
    if len(parts) == 1:
        return next(states)
    return _together(model, states, parts, cached, max(map(len, rests)))


def _prefill_kept(model: Any, prompt: list[int], kept: Prefixes) -> tuple[_State, int]:
    """The state after one prompt, and how many of its first tokens were kept from earlier ones."""
    known, layers = kept.longest(prompt)
    if getattr(model, "soft_prefix", None) is not None or not _is_divisible(_new_cache(model)):
        return _prefill(model, [prompt]), 0
    prefix = DynamicCache(config=model.config)
    prefix.layers = [_RoomyLayer.of(keys, values) for keys, values in layers]
    state = _prefill_part(model, [prompt[known:]], prefix if known else None, known)
    kept.keep(prompt, known, [(layer.keys, layer.values) for layer in state.cache.layers])
    return state, known


def _joined(model: Any, one: _State, other: _State) -> _State:
    """Both states as one, without the padding that stands before all rows."""
    states = [each.trimmed() for each in (one, other)]
    rows = [len(each.mask) for each in states]
    parts = [slice(0, rows[0]), slice(rows[0], sum(rows))]
    return _together(model, iter(states), parts, 0, max(each.mask.shape[1] for each in states))


def _is_divisible(cache: DynamicCache) -> bool:
    """Whether what is in the cache can be repeated, cut and put together."""
    return len(_roomy(cache)) == len(cache.layers)


def _new_cache(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _begun_cache(model: Any) -> DynamicCache:
    """A cache for one row that begins with the model's soft prompt, if it has one (local.load_weights)."""
    cache = _new_cache(model)
    if (soft := getattr(model, "soft_prefix", None)) is not None:
        for number, layer in enumerate(soft.layers):
            cache.update(layer.keys, layer.values, number)
    return cache


def _roomy(cache: DynamicCache) -> list[_RoomyLayer]:
    return [layer for layer in cache.layers if isinstance(layer, _RoomyLayer)]


def _parts(rests: Sequence[list[int]]) -> Iterator[slice]:
    """Consecutive rows of at most PREFILL_TOKENS, padding counted; a single row may have more."""
    start = width = 0
    for i, rest in enumerate(rests):
        width = max(width, len(rest))
        if i > start and width * (i + 1 - start) > PREFILL_TOKENS:
            yield slice(start, i)
            start, width = i, len(rest)
    yield slice(start, len(rests))


def _prefill_part(model: Any, rests: Sequence[list[int]], prefix: DynamicCache | None, shared: int) -> _State:
    """The state after prefix and rests, the rests left-padded to the longest of them."""
    cache = _new_cache(model)
    if prefix is not None:
        cache.layers = [layer.part() for layer in _roomy(prefix)]
    width = max(map(len, rests))
    tokens = torch.zeros(len(rests), width, dtype=torch.long, device=model.device)  # [B, R]
    mask = torch.zeros(len(rests), shared + width, dtype=torch.long, device=model.device)  # [B, L + R]
    mask[:, :shared] = 1
    for i, rest in enumerate(rests):
        tokens[i, width - len(rest) :] = torch.tensor(rest, device=model.device)
        mask[i, shared + width - len(rest) :] = 1
    position = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
    logits = _forward(model, tokens, mask, position, cache)
    return _State(cache, mask, position[:, -1] + 1, logits)


def _together(model: Any, states: Iterator[_State], parts: Sequence[slice], shared: int, width: int) -> _State:
    """The states of all parts as one, each padded on the left to ``shared + width``."""
    batch, total = parts[-1].stop, shared + width
    cache = _new_cache(model)
    mask = torch.zeros(batch, total, dtype=torch.long, device=model.device)
    position, logits = [], []
    for part, state in zip(parts, states, strict=True):
        for layer, own in zip(_roomy(cache), _roomy(state.cache), strict=True):
            layer.seat(own, part, batch, shared, total)
        own_width = state.mask.shape[1] - shared
        mask[part, :shared] = 1
        mask[part, total - own_width :] = state.mask[:, shared:]
        position.append(state.position)
        logits.append(state.logits)
    return _State(cache, mask, torch.cat(position), torch.cat(logits))


def _forward(model: Any, tokens: torch.Tensor, mask: torch.Tensor, position: torch.Tensor, cache: Any) -> torch.Tensor:
    """Logits of the last position, [B, vocabulary]."""
    out = model(
        input_ids=tokens, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    logits: torch.Tensor = out.logits[:, -1]
    return logits


def _pick(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    picked = logits.argmax(-1).tolist()
    for i, row in enumerate(rows):
        if row.temperature > 0:
            probabilities = torch.softmax(logits[i].float() / row.temperature, -1)
            picked[i] = int(torch.multinomial(probabilities, 1, generator=row.generator))
    return picked


def _keep_logprobs(logits: torch.Tensor, rows: Sequence[Row], picked: Sequence[int], end_ids: frozenset[int]) -> None:
    """log softmax of the logits at the token that each row goes on with, for those that want it."""
    asking = [i for i, row in enumerate(rows) if row.logprobs is not None and not row.done and picked[i] not in end_ids]
    if not asking:
        return
    scores = logits[asking].float()
    written = torch.tensor([picked[i] for i in asking], device=logits.device)
    found = scores.gather(-1, written[:, None])[:, 0] - scores.logsumexp(-1)
    for i, logprob in zip(asking, found.tolist(), strict=True):
        kept = rows[i].logprobs
        assert kept is not None
        kept.append(logprob)
