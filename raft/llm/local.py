"""A language model in this process, through transformers, with or without a tuned adapter."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.artifacts import digest, hash_file, open_artifact, read_manifest
from raft.errors import ArtifactError
from raft.llm.chat import ChatReply, ChatRequest, PromptTooLong
from raft.models import (
    Precision,
    load_language_model,
    load_tokenizer,
    model_fingerprint,
    prompt_ids,
    resolve_language_model,
)

_WINDOW = 512  # requests sorted by length together
_MAX_ROWS = 64


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's weights lie: in ``folder``, or changed by an adapter artefact made with ``method``."""

    name: str
    folder: Path
    adapter: Path | None = None
    method: str = ""

    def fingerprint(self) -> str:
        """Hash of the weights and of the tokenizer that goes with them."""
        tokenizer = self.folder / "tokenizer.json"
        tuned = "" if self.adapter is None else read_manifest(self.adapter, "adapter").fingerprint
        return digest([model_fingerprint(self.folder), hash_file(tokenizer) if tokenizer.exists() else "", tuned])


def find_weights(model: str, adapter: Path | None) -> Weights:
    """Where model and adapter lie; nothing is loaded. Raises ModelError when the model cannot be found, ArtifactError
    when the adapter was trained on another one."""
    folder = resolve_language_model(model)
    if adapter is None:
        return Weights(model, folder)
    manifest = open_artifact(adapter, "adapter")
    if manifest.facts["base_fingerprint"] != model_fingerprint(folder):
        raise ArtifactError(
            f"adapter {adapter} was trained on {manifest.facts['base_model']}, not on {model}",
            f"Use --model {manifest.facts['base_model']}",
        )
    return Weights(f"{model}+{adapter.name}", folder, adapter, manifest.facts["method"])


def load_weights(weights: Weights, precision: Precision = "auto") -> Any:
    """The transformers model, with the adapter merged into it. Raises ModelError when it cannot be loaded."""
    if weights.adapter is None:
        return load_language_model(weights.folder, precision)
    if weights.method == "full":
        return load_language_model(weights.adapter / "model", precision)
    four_bit = weights.method == "qlora"
    base = load_language_model(weights.folder, precision, four_bit)
    return _merge_adapter(base, weights.adapter / "adapter", four_bit)


class LocalModel:
    """A ChatModel. Requests are sorted by length inside windows and decoded in batches of at most
    ``batch_tokens`` prompt tokens, padding counted; what a batch's prompts share is prefilled once."""

    def __init__(self, name: str, model: Any, tokenizer: Any, *, batch_tokens: int = 32768) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self._batch_tokens = batch_tokens
        self._busy = threading.Lock()  # one model decodes one batch at a time
        self._tokenizing = threading.Lock()  # a fast tokenizer must not be used by two threads at once
        ends = model.generation_config.eos_token_id
        self._end_ids = frozenset({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})

    @classmethod
    def load(
        cls, model: str, adapter: Path | None = None, *, batch_tokens: int = 32768, precision: Precision = "auto"
    ) -> LocalModel:
        """Load the model, and the adapter merged into it. Raises ModelError; ArtifactError when the adapter was
        trained on another base model (checked before any weights are loaded)."""
        weights = find_weights(model, adapter)
        loaded = load_weights(weights, precision).eval()
        return cls(weights.name, loaded, load_tokenizer(weights.folder), batch_tokens=batch_tokens)

    def check(self, request: ChatRequest) -> None:
        """Raises PromptTooLong when the prompt does not fit."""
        self._fitting_prompt(request)

    def complete(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        stream = iter(requests)
        while window := list(itertools.islice(stream, _WINDOW)):
            prompts = [(request, self._prompt(request)) for request in window]
            for batch in make_batches(prompts, self._batch_tokens):
                yield from self._complete_batch(batch)

    def _complete_batch(self, batch: Sequence[tuple[ChatRequest, list[int]]]) -> Iterator[ChatReply]:
        from raft.llm.decode import Row, decode

        fitting = []
        for request, prompt in batch:
            problem = self._too_long(request, prompt)
            if problem:
                yield ChatReply(request.key, "", len(prompt), error=problem, too_long=True)
            else:
                fitting.append((request, prompt))
        if not fitting:
            return
        rows = [Row(i, prompt, r.max_tokens, r.temperature, r.seed) for i, (r, prompt) in enumerate(fitting)]
        tokens: list[list[int]] = [[] for _ in rows]
        waiting = list(rows)
        with self._busy:
            for step in decode(self.model, rows, self._end_ids):
                for row, token in step:
                    tokens[row.index].append(token)
                for row in [row for row in waiting if row.done]:
                    request, prompt = fitting[row.index]
                    text = self._text(tokens[row.index])
                    yield ChatReply(request.key, text, len(prompt), len(tokens[row.index]), row.truncated)
                waiting = [row for row in waiting if not row.done]

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        """The reply in pieces that are whole characters; the generator returns the finished reply.

        Raises PromptTooLong when the prompt does not fit.
        """
        from raft.llm.decode import Row, decode

        prompt = self._fitting_prompt(request)
        row = Row(0, prompt, request.max_tokens, request.temperature, request.seed)
        tokens: list[int] = []
        said = ""
        with self._busy:
            for step in decode(self.model, [row], self._end_ids):
                tokens.extend(token for _, token in step)
                text = self._text(tokens)
                if text.startswith(said) and len(text) > len(said) and not text.endswith("\ufffd"):
                    yield text[len(said) :]
                    said = text
        text = self._text(tokens)
        if len(text) > len(said):
            yield text[len(said) :]
        return ChatReply(request.key, text, len(prompt), len(tokens), row.truncated)

    def _prompt(self, request: ChatRequest) -> list[int]:
        with self._tokenizing:
            return prompt_ids(self.tokenizer, request.messages)

    def _fitting_prompt(self, request: ChatRequest) -> list[int]:
        prompt = self._prompt(request)
        if problem := self._too_long(request, prompt):
            raise PromptTooLong(problem)
        return prompt

    def _too_long(self, request: ChatRequest, prompt: Sequence[int]) -> str | None:
        # models that also see images or hear sound keep the window in the config of their text part; some name none
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None or len(prompt) + request.max_tokens <= limit:
            return None
        return (
            f"a prompt of {len(prompt)} tokens and {request.max_tokens} to write exceed the model's window of {limit}"
        )

    def _text(self, tokens: Sequence[int]) -> str:
        with self._tokenizing:
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip("\n ")


def make_batches(
    prompts: Sequence[tuple[ChatRequest, list[int]]], batch_tokens: int
) -> Iterator[list[tuple[ChatRequest, list[int]]]]:
    """Batches of prompts of like length, longest first, at most ``batch_tokens`` tokens with padding."""
    ordered = sorted(prompts, key=lambda pair: (-len(pair[1]), pair[0].key))
    while ordered:
        rows = max(1, min(_MAX_ROWS, batch_tokens // max(1, len(ordered[0][1]))))
        yield ordered[:rows]
        ordered = ordered[rows:]


def _merge_adapter(model: Any, folder: Path, four_bit: bool) -> Any:
    """The model with the adapter's weights added in: as fast as the base, equal to the pair up to rounding.

    A QLoRA adapter learned to correct the weights as nf4 rounds them, so those are what it is merged into.
    """
    from peft import PeftModel

    if four_bit:
        model = model.dequantize()
    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
