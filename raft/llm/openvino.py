"""A language model in this process on OpenVINO's engine, a few times as fast on a CPU as transformers.

    runs/models/language-4c1f09a2b7d0e358-openvino/
        openvino_model.xml + .bin          the network with its cache inside, float32, made once from the safetensors
        openvino_tokenizer.xml + .bin      what holds a reply to a JSON schema; prompts come as ids of our own template
        manifest.json                      {"facts": {"window": 8192, "end_ids": [2]}, ...}

Requests decode together, new ones joining as others end, and what prompts share is computed once: a prompt waits until
one that begins alike is in the cache. Weights and cache stay in float32, so that greedy replies are those of
transformers; on a GGUF the engine ignores adapters without a word, so they are merged before the conversion.

A GGUF file that is named by its path, without an adapter, is run as it is: its weights stay quantized, which takes a
quarter of the memory and answers a little differently than the dequantized model would.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.artifacts import home
from raft.errors import ModelError
from raft.llm.chat import ChatReply, ChatRequest, PromptTooLong
from raft.llm.local import find_weights
from raft.llm.logprobs import STRIPPED, pieces
from raft.llm.openvino_network import (
    MAX_ROWS,
    converted,
    failing,
    is_gguf,
    is_installed,
    obstacle,
    open_engine,
    read_config,
    read_gguf,
)
from raft.models import load_tokenizer, prompt_ids

_WINDOW = 512  # requests ordered together
_BLOCK = 32  # tokens of which the engine's cache is made; it shares whole ones
_INSTALL = "pip install 'raft-tune[openvino]', or set engine to transformers"


def can_run(model: str) -> bool:
    """Whether this engine is the one to take for the model: installed, no GPU here, architecture known.

    Raises ModelError when the model cannot be found.
    """
    import torch

    if not is_installed() or torch.cuda.is_available():
        return False
    return is_gguf(model) or not obstacle(read_config(find_weights(model, None).folder))


class OpenVinoModel:
    """A ChatModel. ``engine`` is an openvino_genai.ContinuousBatchingPipeline; at most ``batch_tokens`` tokens, prompts
    and replies together, are in its cache for requests under way."""

    def __init__(
        self, name: str, engine: Any, tokenizer: Any, window: int, end_ids: frozenset[int], *, batch_tokens: int = 32768
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self._engine = engine
        self._window = window
        self._end_ids = end_ids
        self._batch_tokens = batch_tokens
        self._numbers = itertools.count()
        self._busy = threading.Lock()  # one thread drives the engine
        self._tokenizing = threading.Lock()  # a fast tokenizer must not be used by two threads at once

    @classmethod
    def load(cls, model: str, adapter: Path | None = None, *, batch_tokens: int = 32768) -> OpenVinoModel:
        """The model, with the adapter merged into it, converted at its first use. Raises ModelError (NotConvertible)
        when it cannot be found or run; ArtifactError when the adapter was trained on another base model."""
        if not is_installed():
            raise ModelError("engine = 'openvino' needs packages that are not installed", _INSTALL)
        if adapter is None and is_gguf(model):
            tokenizer, window, ends = read_gguf(Path(model))
            return cls(model, open_engine(Path(model)), tokenizer, window, ends, batch_tokens=batch_tokens)
        weights = find_weights(model, adapter)
        folder = home() / "models" / f"language-{weights.fingerprint()[:16]}-openvino"
        manifest = converted(weights, folder)
        ends = frozenset(manifest.facts["end_ids"])
        return cls(
            weights.name, open_engine(folder), load_tokenizer(weights.folder), manifest.facts["window"], ends,
            batch_tokens=batch_tokens,
        )  # fmt: skip

    def check(self, request: ChatRequest) -> None:
        """Raises PromptTooLong when the prompt does not fit."""
        self._fitting_prompt(request)

    def complete(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """One reply a request, as they finish. Raises ModelError when the engine fails."""
        stream = iter(requests)
        while window := list(itertools.islice(stream, _WINDOW)):
            fitting = []
            for request in window:
                prompt = self._prompt(request)
                if problem := self._too_long(request, prompt):
                    yield ChatReply(request.key, "", len(prompt), error=problem, too_long=True)
                else:
                    fitting.append((request, prompt))
            with self._busy:
                yield from self._decode(fitting)

    def _decode(self, asked: Sequence[tuple[ChatRequest, list[int]]]) -> Iterator[ChatReply]:
        running: list[_Running] = []
        try:
            for turn in turns([prompt for _, prompt in asked]):
                waiting, begun = deque(asked[i] for i in turn), list[_Running]()
                while waiting or any(one.is_prefilling() for one in begun):
                    while waiting and self._has_room(running, *waiting[0]):
                        begun.append(self._start(*waiting.popleft()))
                        running.append(begun[-1])
                    yield from self._step(running)
            while running:
                yield from self._step(running)
        finally:
            self._cancel(running)

    def _has_room(self, running: Sequence[_Running], request: ChatRequest, prompt: Sequence[int]) -> bool:
        tokens = sum(len(one.prompt) + one.request.max_tokens for one in running)
        fits = tokens + len(prompt) + request.max_tokens <= self._batch_tokens
        return not running or (len(running) < MAX_ROWS and fits)

    def _start(self, request: ChatRequest, prompt: list[int]) -> _Running:
        import numpy as np
        import openvino

        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        with failing():
            return _Running(request, prompt, self._engine.add_request(next(self._numbers), ids, self._config(request)))

    def _config(self, request: ChatRequest) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = request.max_tokens
        config.stop_token_ids = set(self._end_ids)
        config.do_sample = request.temperature > 0
        config.logprobs = int(request.logprobs)
        if request.temperature > 0:
            config.temperature, config.rng_seed = request.temperature, request.seed
        if request.schema is not None:
            schema = json.dumps(dict(request.schema))
            config.structured_output_config = openvino_genai.StructuredOutputConfig(json_schema=schema)
        return config

    def _step(self, running: list[_Running]) -> Iterator[ChatReply]:
        """One token for each that decodes, some of the prompts of the others; those that end leave ``running``."""
        with failing():
            self._engine.step()
        for one in [one for one in running if one.is_done()]:
            running.remove(one)
            outputs = one.handle.read_all()
            if not outputs:
                yield ChatReply(one.request.key, "", len(one.prompt), error="the engine has no memory for its prompt")
            else:
                yield self._reply(one, outputs[0].generated_ids, outputs[0].generated_log_probs)

    def _reply(self, one: _Running, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> ChatReply:
        """``logprobs`` are those of the ids, where the request asks for them."""
        ended = bool(ids) and ids[-1] in self._end_ids
        tokens = list(ids[:-1] if ended else ids)
        said = None
        if one.request.logprobs and logprobs is not None and len(logprobs) >= len(tokens):
            said = pieces(self._decoded, tokens, logprobs[: len(tokens)])
        return ChatReply(one.request.key, self._text(tokens), len(one.prompt), len(tokens), not ended, logprobs=said)

    def _cancel(self, running: Sequence[_Running]) -> None:
        """Take what is left out of the engine, when nobody waits for it any more."""
        for one in running:
            one.handle.cancel()
        if running and self._engine.has_non_finished_requests():
            with contextlib.suppress(RuntimeError):  # an engine that has failed says so again
                self._engine.step()

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        """The reply in pieces that are whole characters; the generator returns the finished reply.

        Raises PromptTooLong when the prompt does not fit.
        """
        prompt = self._fitting_prompt(request)
        with self._busy:
            one = self._start(request, prompt)
            tokens: list[int] = []
            said = ""
            try:
                while not one.is_done():
                    with failing():
                        self._engine.step()
                    while one.handle.can_read():
                        tokens += [token for output in one.handle.read().values() for token in output.generated_ids]
                    text = self._text([token for token in tokens if token not in self._end_ids])
                    if text.startswith(said) and len(text) > len(said) and not text.endswith("\ufffd"):
                        yield text[len(said) :]
                        said = text
            finally:
                self._cancel([] if one.is_done() else [one])
        reply = self._reply(one, tokens)
        if len(reply.text) > len(said):
            yield reply.text[len(said) :]
        return reply

    def _prompt(self, request: ChatRequest) -> list[int]:
        with self._tokenizing:
            return prompt_ids(self.tokenizer, request.messages)

    def _fitting_prompt(self, request: ChatRequest) -> list[int]:
        prompt = self._prompt(request)
        if problem := self._too_long(request, prompt):
            raise PromptTooLong(problem)
        return prompt

    def _too_long(self, request: ChatRequest, prompt: Sequence[int]) -> str | None:
        if len(prompt) + request.max_tokens <= self._window:
            return None
        return (
            f"a prompt of {len(prompt)} tokens and {request.max_tokens} to write exceed the model's window of "
            f"{self._window}"
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return self._decoded(tokens).strip(STRIPPED)

    def _decoded(self, tokens: Sequence[int]) -> str:
        with self._tokenizing:
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


@dataclass(frozen=True, slots=True)
class _Running:
    """A request in the engine; ``handle`` is an openvino_genai.GenerationHandle."""

    request: ChatRequest
    prompt: list[int]
    handle: Any

    def is_done(self) -> bool:
        return bool(self.handle.get_status().name != "RUNNING")

    def is_prefilling(self) -> bool:
        return not self.is_done() and not self.handle.can_read()


def turns(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Positions of the prompts, in the turns in which they are handed to the engine, which looks for a shared
    beginning only then: each one shares whole blocks with prompts of earlier turns, or with none of its own turn."""
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    found: list[list[int]] = []
    earliest: list[tuple[float, int]] = []  # blocks shared with the last one, and the first turn of those that do
    last: list[int] = []
    for i in order:
        shared = _shared_blocks(last, prompts[i])
        first = len(order)
        while earliest and earliest[-1][0] >= shared:
            first = min(first, earliest.pop()[1])
        turn = first + 1 if shared else 0
        earliest += [(shared, min(first, turn)), (float("inf"), turn)]
        if turn == len(found):
            found.append([])
        found[turn].append(i)
        last = prompts[i]
    return found


def _shared_blocks(one: Sequence[int], other: Sequence[int]) -> int:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in same) // _BLOCK
