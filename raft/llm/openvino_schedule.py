"""When each request enters OpenVINO's engine, and what every step brings: all who ask are decoded together.

    schedule = Schedule(engine, blocks=2800, batch_tokens=32768, end_ids=frozenset({2}))
    schedule.add(Order(7, prompt=[1, 4093, 198, ...], max_tokens=64))
    while schedule.is_busy:
        schedule.step()    # [News(7, tokens=[504])], ..., [News(7, tokens=[2], is_last=True, cached_tokens=608)]

The engine keeps the keys and values of earlier prompts in a pool of blocks of 32 tokens, writes over the least recently
used, and looks for a shared beginning only when a request enters. So a request whose beginning is just being computed
for another one waits until that is done; one that is too large for what is left of the pool waits as well, and the
others behind it.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

BLOCK = 32  # tokens of which the engine's cache is made; it shares whole ones
MAX_ROWS = 64  # requests that decode together


@dataclass(frozen=True, slots=True)
class Order:
    """A request as the engine gets it. ``schema`` is JSON; ``is_streamed`` tells its tokens as they come, else all of
    them at the end. ``seed`` counts only with a temperature."""

    id: int
    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    logprobs: bool = False
    schema: str | None = None
    is_streamed: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """What became of a request in one step: new tokens, with their log-probabilities where they were asked for, and in
    the last of its news ``cached_tokens`` or the ``error`` that there is no answer for. ``is_fatal``: the engine is
    gone, and no other request has an answer either."""

    id: int
    tokens: list[int]
    logprobs: list[float]
    is_last: bool = False
    cached_tokens: int = 0
    error: str = ""
    is_fatal: bool = False


class Books:
    """Which blocks the engine has at hand, counted here because it does not tell: an estimate, for blocks in use are
    never written over, and books know nothing of that.

    The engine writes over the blocks first that were filled while its pool was not full yet and not used again since,
    then over the least recently used.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._first: OrderedDict[int, None] = OrderedDict()
        self._later: OrderedDict[int, None] = OrderedDict()

    def count(self, chain: Sequence[int]) -> int:
        """How many of the first blocks of a prompt are at hand."""
        return sum(1 for _ in itertools.takewhile(lambda block: block in self._first or block in self._later, chain))

    def use(self, chain: Sequence[int]) -> None:
        """These are at hand, and used again."""
        for block in chain:
            self._first.pop(block, None)
            self._later[block] = None
            self._later.move_to_end(block)

    def add(self, chain: Sequence[int]) -> None:
        """These were computed."""
        for block in chain:
            if block in self._first or block in self._later:
                continue
            if len(self._first) + len(self._later) < self._blocks:
                self._first[block] = None
            else:
                (self._first or self._later).popitem(last=False)
                self._later[block] = None


def chain_of(tokens: Sequence[int]) -> list[int]:
    """A name for each block of a prompt that hangs on all that stands before it; the last one may not be whole."""
    names: list[int] = []
    before = 0
    for start in range(0, len(tokens), BLOCK):
        before = hash((before, tuple(tokens[start : start + BLOCK])))
        names.append(before)
    return names


@dataclass(slots=True)
class _Entry:
    """An order that waits or runs. ``chain`` names the whole blocks of its prompt; ``handle`` is an
    openvino_genai.GenerationHandle, ``written`` what the engine made so far."""

    order: Order
    chain: list[int]
    handle: Any = None
    cached_tokens: int = 0
    is_prefilling: bool = True
    written: list[int] | None = None

    @property
    def tokens(self) -> int:
        """The room that it takes in the pool, in whole blocks."""
        return -(-(len(self.order.prompt) + self.order.max_tokens) // BLOCK) * BLOCK


class Schedule:
    """``engine`` is an openvino_genai.ContinuousBatchingPipeline with ``blocks`` in its pool; at most ``batch_tokens``
    tokens, prompts and replies together, are in it for requests under way. For one thread."""

    def __init__(self, engine: Any, *, blocks: int, batch_tokens: int, end_ids: frozenset[int]) -> None:
        self._engine = engine
        self._room = min(batch_tokens, blocks * BLOCK)
        self._end_ids = end_ids
        self._books = Books(blocks)
        self._waiting: dict[int, _Entry] = {}
        self._running: dict[int, _Entry] = {}

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to do; what was cancelled leaves the engine in the next step."""
        return bool(self._waiting or self._running or self._engine.has_non_finished_requests())

    def add(self, order: Order) -> None:
        whole = len(order.prompt) // BLOCK * BLOCK
        self._waiting[order.id] = _Entry(order, chain_of(order.prompt[:whole]))

    def cancel(self, number: int) -> None:
        """Forget a request, wherever it is; one that is done is unknown by now."""
        self._waiting.pop(number, None)
        if (entry := self._running.pop(number, None)) is not None:
            entry.handle.cancel()

    def step(self) -> list[News]:
        """One token for each request that decodes, some of the prompts of the others. Raises RuntimeError when the
        engine fails: it is of no use afterwards."""
        news = list(self._enter())
        if self._engine.has_non_finished_requests():
            self._engine.step()
        found = [self._read(entry) for entry in list(self._running.values())]
        return news + [each for each in found if each is not None]

    def _enter(self) -> Iterator[News]:
        """Hand over what may enter now. Held back is only who has to wait for no more than a prompt's end: whatever is
        computed then is at hand, so that nobody waits for ever."""
        begun = {block for entry in self._running.values() if entry.is_prefilling for block in entry.chain}
        for entry in list(itertools.islice(self._waiting.values(), MAX_ROWS)):
            if not self._has_room(entry):
                return
            known = self._books.count(entry.chain)
            if known < len(entry.chain) and entry.chain[known] in begun:
                continue
            del self._waiting[entry.order.id]
            try:
                self._start(entry, known)
            except (RuntimeError, ValueError) as error:  # of this request alone: the engine has not taken it
                yield News(entry.order.id, [], [], is_last=True, error=last_line(error))
                continue
            begun.update(entry.chain)

    def _has_room(self, entry: _Entry) -> bool:
        if not self._running:
            return True
        taken = sum(each.tokens for each in self._running.values())
        return len(self._running) < MAX_ROWS and taken + entry.tokens <= self._room

    def _start(self, entry: _Entry, known: int) -> None:
        import numpy as np
        import openvino

        ids = openvino.Tensor(np.array([entry.order.prompt], dtype=np.int64))
        entry.handle = self._engine.add_request(entry.order.id, ids, _config(entry.order, self._end_ids))
        entry.cached_tokens = min(known * BLOCK, len(entry.order.prompt) - 1)
        entry.written = []
        self._books.use(entry.chain[:known])
        self._running[entry.order.id] = entry

    def _read(self, entry: _Entry) -> News | None:
        status = entry.handle.get_status().name
        if entry.is_prefilling and (status != "RUNNING" or entry.handle.can_read()):
            entry.is_prefilling = False
            self._books.add(entry.chain)
        if status == "RUNNING" and not (entry.order.is_streamed and entry.handle.can_read()):
            return None
        outputs = []
        while entry.handle.can_read():
            outputs += list(entry.handle.read().values())
        tokens = [token for output in outputs for token in output.generated_ids]
        logprobs = [value for output in outputs for value in output.generated_log_probs]
        assert entry.written is not None
        entry.written += tokens
        if status == "RUNNING":
            return News(entry.order.id, tokens, logprobs)
        del self._running[entry.order.id]
        self._books.add(chain_of([*entry.order.prompt, *entry.written])[len(entry.chain) :])
        error = "" if status == "FINISHED" else "the engine has no memory for its prompt"
        return News(entry.order.id, tokens, logprobs, is_last=True, cached_tokens=entry.cached_tokens, error=error)


def _config(order: Order, end_ids: frozenset[int]) -> Any:
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = order.max_tokens
    config.stop_token_ids = set(end_ids)
    config.do_sample = order.temperature > 0
    config.logprobs = int(order.logprobs)
    if order.temperature > 0:
        config.temperature, config.rng_seed = order.temperature, order.seed
    if order.schema is not None:
        config.structured_output_config = openvino_genai.StructuredOutputConfig(json_schema=order.schema)
    return config


def last_line(error: Exception) -> str:
    """What an error of OpenVINO says in the end, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][-200:] if lines else type(error).__name__
