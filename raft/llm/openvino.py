"""A language model on OpenVINO's engine, a few times as fast on a CPU as transformers.

    runs/models/language-4c1f09a2b7d0e358-openvino/
        openvino_model.xml + .bin          the network with its cache inside, float32, made once from the safetensors
        openvino_tokenizer.xml + .bin      what holds a reply to a JSON schema; prompts come as ids of our own template
        manifest.json                      {"facts": {"end_ids": [2]}, ...}

All requests decode together, whoever asks, new ones joining as others end (openvino_schedule.py), in a process of their
own (openvino_process.py). What prompts share is computed once, and the keys and values of earlier prompts are kept, up
to ``cache_mb``. Weights and cache stay in float32, so that greedy replies are those of transformers; with ``precision =
"bfloat16"`` both are computed in that, several times as fast where the processor has AMX, and some replies differ. On a
GGUF the engine ignores adapters without a word, so they are merged before the conversion.

A GGUF file that is named by its path, without an adapter, is run as it is: its weights stay quantized, which takes a
quarter of the memory and answers a little differently than the dequantized model would.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from raft.artifacts import home
from raft.errors import ModelError
from raft.llm.chat import SIGN_OF_LIFE_SECONDS, ChatReply, ChatRequest, PromptTooLong, streams_on_cpu
from raft.llm.local import find_weights
from raft.llm.logprobs import STRIPPED, pieces
from raft.llm.openvino_network import (
    check_bfloat16,
    converted,
    is_gguf,
    is_installed,
    obstacle,
    pool_blocks,
    read_config,
    read_gguf,
)
from raft.llm.openvino_process import EngineProcess, Session
from raft.llm.openvino_schedule import BLOCK, MAX_ROWS, News, Order
from raft.models import Precision, load_tokenizer, prompt_ids

_WINDOW = 512  # requests ordered together
_AHEAD = 2 * MAX_ROWS  # of these, how many the engine is told of before the first has ended
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
    """A ChatModel, for any number of threads. ``room`` is how many tokens a prompt and its reply may have together: the
    model's window, or less where the cache holds no more.

    ``cached_tokens`` of its replies are an estimate, in whole blocks of 32 tokens (openvino_schedule.Books).
    """

    def __init__(
        self, name: str, engine: EngineProcess, tokenizer: Any, window: int, end_ids: frozenset[int], room: int
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self._engine = engine
        self._window = window
        self._end_ids = end_ids
        self._room = min(room, window)
        self._tokenizing = threading.Lock()  # a fast tokenizer must not be used by two threads at once

    @property
    def concurrency(self) -> int:
        return streams_on_cpu()

    @classmethod
    def load(
        cls,
        model: str,
        adapter: Path | None = None,
        *,
        batch_tokens: int = 32768,
        cache_mb: int = 4096,
        precision: Precision = "auto",
    ) -> OpenVinoModel:
        """The model, with the adapter merged into it, converted at its first use. At most ``batch_tokens`` tokens,
        prompts and replies together, are under way at once; ``cache_mb`` (1 MB = 10^6 bytes) hold their keys and
        values and those of earlier prompts. It computes in float32 unless ``precision`` is bfloat16; a GGUF file as
        fast as it goes.

        Raises ModelError (NotConvertible) when it cannot be found or run; ArtifactError when the adapter was trained on
        another base model.
        """
        if not is_installed():
            raise ModelError("engine = 'openvino' needs packages that are not installed", _INSTALL)
        if adapter is None and is_gguf(model):
            tokenizer, config = read_gguf(Path(model))
            name, folder, ends = model, Path(model), frozenset({tokenizer.eos_token_id} - {None})
        else:
            from transformers import AutoConfig

            if precision == "bfloat16":
                check_bfloat16()
            weights = find_weights(model, adapter)
            folder = home() / "models" / f"language-{weights.fingerprint()[:16]}-openvino"
            ends = frozenset(converted(weights, folder).facts["end_ids"])
            name, tokenizer, config = weights.name, load_tokenizer(weights.folder), AutoConfig.from_pretrained(folder)
        kind: Literal["float32", "bfloat16"] = "bfloat16" if precision == "bfloat16" else "float32"
        blocks = pool_blocks(config, kind if folder.is_dir() else "int8", cache_mb)
        engine = EngineProcess(
            {"folder": str(folder), "blocks": blocks, "precision": kind, "batch_tokens": batch_tokens,
             "end_ids": sorted(ends)}
        )  # fmt: skip
        return cls(name, engine, tokenizer, config.max_position_embeddings, ends, blocks * BLOCK)

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
                    fitting.append(_Asked(request, prompt))
            yield from self._decode(fitting)

    def _decode(self, asked: Sequence[_Asked]) -> Iterator[ChatReply]:
        waiting = deque(asked[i] for turn in turns([one.prompt for one in asked]) for i in turn)
        running: dict[int, _Asked] = {}
        with self._engine.session() as session:
            while waiting or running:
                while waiting and len(running) < _AHEAD:
                    one = waiting.popleft()
                    running[self._ask(session, one)] = one
                news = session.next()
                assert news is not None
                one = running[news.id]
                one.take(news)
                if news.is_last:
                    del running[news.id]
                    yield self._reply(one, news)

    def _ask(self, session: Session, one: _Asked, is_streamed: bool = False) -> int:
        request = one.request
        schema = None if request.schema is None else json.dumps(dict(request.schema))
        return session.ask(
            Order(0, one.prompt, request.max_tokens, request.temperature, request.seed, request.logprobs, schema,
                  is_streamed)
        )  # fmt: skip

    def _reply(self, one: _Asked, last: News) -> ChatReply:
        """What all the news of a request come to."""
        key, asked = one.request.key, len(one.prompt)
        if last.error:
            return ChatReply(key, "", asked, error=last.error)
        ended = bool(one.ids) and one.ids[-1] in self._end_ids
        tokens = one.ids[:-1] if ended else one.ids
        said = None
        if one.request.logprobs and len(one.logprobs) >= len(tokens):
            said = pieces(self._decoded, tokens, one.logprobs[: len(tokens)])
        text, cached = self._text(tokens), last.cached_tokens
        return ChatReply(key, text, asked, len(tokens), not ended, logprobs=said, cached_tokens=cached)

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        """The reply in pieces that are whole characters; the generator returns the finished reply. Closing it takes the
        request out of the engine.

        Raises PromptTooLong when the prompt does not fit, ModelError when the engine fails.
        """
        one = _Asked(replace(request, logprobs=False), self._fitting_prompt(request))
        said = ""
        with self._engine.session() as session:
            self._ask(session, one, is_streamed=True)
            while True:
                news = session.next(SIGN_OF_LIFE_SECONDS)
                if news is None:
                    yield ""
                    continue
                one.take(news)
                if news.is_last:
                    break
                text = self._text([token for token in one.ids if token not in self._end_ids])
                if text.startswith(said) and len(text) > len(said) and not text.endswith("\ufffd"):
                    yield text[len(said) :]
                    said = text
        reply = self._reply(one, news)
        if reply.error is not None:
            raise ModelError(reply.error)
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
        if len(prompt) + request.max_tokens <= self._room:
            return None
        of_model, of_cache = f"the model's window of {self._window}", f"the {self._room} that cache_mb holds"
        return (
            f"a prompt of {len(prompt)} tokens and {request.max_tokens} to write exceed "
            f"{of_model if self._room == self._window else of_cache}"
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return self._decoded(tokens).strip(STRIPPED)

    def _decoded(self, tokens: Sequence[int]) -> str:
        with self._tokenizing:
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request in the engine, and what came of it so far."""

    request: ChatRequest
    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def take(self, news: News) -> None:
        self.ids.extend(news.tokens)
        self.logprobs.extend(news.logprobs)


def turns(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Positions of the prompts, in the turns in which they are best handed to the engine, which looks for a shared
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
    return sum(1 for _ in same) // BLOCK
