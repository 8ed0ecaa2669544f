"""A language model in this process, through transformers, with or without a tuned adapter."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raft.artifacts import MANIFEST, digest, hash_file, home, open_artifact, parse_manifest, read_manifest, writing
from raft.config_train_rules import SOFT
from raft.errors import ArtifactError, ModelError
from raft.llm.chat import MAX_STREAMS, ChatReply, ChatRequest, PromptTooLong, streams_on_cpu
from raft.llm.local_streams import Streams
from raft.llm.logprobs import STRIPPED, pieces
from raft.models import (
    Precision,
    load_language_model,
    load_tokenizer,
    model_fingerprint,
    prompt_ids,
    resolve_language_model,
)

T = TypeVar("T")
SEEN = "seen.json"
_WINDOW = 512  # requests sorted by length together


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
    folder = resolve_base(model)
    if adapter is None:
        return Weights(model, folder)
    manifest = open_artifact(adapter, "adapter")
    if manifest.facts["base_fingerprint"] != model_fingerprint(folder):
        raise ArtifactError(
            f"adapter {adapter} was trained on {manifest.facts['base_model']}, not on {model}",
            f"Use --model {manifest.facts['base_model']}",
        )
    return Weights(f"{model}+{adapter.name}", folder, adapter, manifest.facts["method"])


def run_of(model: str) -> Path:
    """The artefact that a model's name points to: itself, or, for its folder ``model`` and an exported GGUF file, the
    one that they lie in."""
    folder = Path(model)
    inside = folder.name == "model" or folder.suffix == ".gguf"
    return folder.parent if inside and (folder.parent / MANIFEST).is_file() else folder


def inherited_labels(model: str) -> set[str]:
    """The access labels of the documents that a run of raft train was trained on; none for any other model."""
    run = run_of(model)
    if not (run / MANIFEST).is_file():
        return set()
    return set(parse_manifest(run).facts.get("labels") or ())


def copy_seen(run: Path, folder: Path) -> None:
    """Take along what the run says of the questions and documents that it was tuned on (training/plan.py)."""
    if (run / SEEN).is_file():
        shutil.copyfile(run / SEEN, folder / SEEN)


def resolve_base(name: str) -> Path:
    """The local folder of a language model; ``name`` may also be a run of raft train, from whose weights another goes
    on: an adapter is merged into its base once, under ``RAFT_HOME/models``.

    Raises ModelError when it is nowhere to be had, or what the run learned is no part of the weights.
    """
    run = Path(name)
    if not (run / MANIFEST).is_file() or parse_manifest(run).kind != "adapter":
        return resolve_language_model(name)
    manifest = open_artifact(run, "adapter")
    if (run / "model").is_dir():
        return run / "model"
    folder = home() / "models" / f"{run.name}-{manifest.fingerprint[:12]}"
    if (folder / MANIFEST).exists():
        read_manifest(folder, "model")
        return folder
    _check_mergeable(run, manifest.facts["method"])
    weights = find_weights(manifest.facts["base_model"], run)
    merged = load_weights(weights, "float32")  # wherever it is done, so that what goes on from it finds the same
    with writing(folder, "model", {"run": run.name}, {"run": manifest.fingerprint}) as draft:
        draft.facts["labels"] = manifest.facts.get("labels", [])
        copy_seen(run, draft.folder)
        merged.save_pretrained(draft.folder)
        load_tokenizer(weights.folder).save_pretrained(draft.folder)
    return folder


def origin_of(name: str) -> str:
    """The model whose config and tokenizer a run of raft train has, found without merging anything: its own weights,
    or the base that it, or the run it went on from, was tuned on; ``name`` itself when it is no run. Raises ModelError
    as ``resolve_base`` does."""
    run = Path(name)
    if not (run / MANIFEST).is_file() or parse_manifest(run).kind != "adapter":
        return name
    manifest = open_artifact(run, "adapter")
    if (run / "model").is_dir():
        return str(run / "model")
    _check_mergeable(run, manifest.facts["method"])
    return origin_of(manifest.facts["base_model"])


def _check_mergeable(run: Path, method: str) -> None:
    if method in SOFT:
        raise ModelError(
            f"what {run} learned by {method} is no part of the weights, so that nothing can go on from it",
            "Go on from its base, or tune it by another method, e.g. lora",
        )


def load_weights(weights: Weights, precision: Precision = "auto") -> Any:
    """The transformers model, with the adapter merged into it; what cannot be merged, a soft prompt, is its attribute
    ``soft_prefix`` (decode.py reads it). Raises ModelError when it cannot be loaded."""
    if weights.adapter is None:
        return load_language_model(weights.folder, precision)
    if (weights.adapter / "model").is_dir():  # all weights were kept
        return load_language_model(weights.adapter / "model", precision)
    four_bit = weights.method == "qlora"
    base = load_language_model(weights.folder, precision, four_bit)
    return _merge_adapter(base, weights.adapter / "adapter", four_bit)


class LocalModel:
    """A ChatModel. Requests are sorted by length inside windows and decoded in batches of at most
    ``batch_tokens`` prompt tokens, padding counted; what a batch's prompts share is prefilled once. Of streams those
    decode together that have no more than ``batch_tokens`` tokens, replies and padding counted."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any, *, batch_tokens: int = 32768, cache_mb: int = 4096
    ) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self._batch_tokens = batch_tokens
        self._busy = threading.Lock()  # a model runs one step at a time, be it of a batch or of streams
        self._tokenizing = threading.Lock()  # a fast tokenizer must not be used by two threads at once
        ends = model.generation_config.eos_token_id
        self._end_ids = frozenset({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
        self._streams = Streams(
            model, self._end_ids, self._busy, most_rows=MAX_STREAMS, batch_tokens=batch_tokens, cache_mb=cache_mb
        )

    @property
    def concurrency(self) -> int:
        return streams_on_cpu() if self.model.device.type == "cpu" else MAX_STREAMS

    @classmethod
    def load(
        cls,
        model: str,
        adapter: Path | None = None,
        *,
        batch_tokens: int = 32768,
        cache_mb: int = 4096,
        precision: Precision = "auto",
    ) -> LocalModel:
        """Load the model, and the adapter merged into it; ``cache_mb`` (1 MB = 10^6 bytes; on a GPU at most a quarter
        of what is left there) are for the prompts of streams that were read lately. Raises ModelError; ArtifactError
        when the adapter was trained on another base model (checked before any weights are loaded)."""
        weights = find_weights(model, adapter)
        loaded = load_weights(weights, precision).eval()
        tokenizer, cache_mb = load_tokenizer(weights.folder), min(cache_mb, _spare_mb(loaded))
        return cls(weights.name, loaded, tokenizer, batch_tokens=batch_tokens, cache_mb=cache_mb)

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
        rows = [
            Row(i, prompt, r.max_tokens, r.temperature, r.seed, logprobs=[] if r.logprobs else None)
            for i, (r, prompt) in enumerate(fitting)
        ]
        tokens: list[list[int]] = [[] for _ in rows]
        waiting = list(rows)
        for step in self._steps(decode(self.model, rows, self._end_ids)):
            for row, token in step:
                tokens[row.index].append(token)
            for row in [row for row in waiting if row.done]:
                request, prompt = fitting[row.index]
                written = tokens[row.index]
                logprobs = None if row.logprobs is None else pieces(self._decoded, written, row.logprobs)
                text = self._text(written)
                yield ChatReply(request.key, text, len(prompt), len(written), row.truncated, logprobs=logprobs)
            waiting = [row for row in waiting if not row.done]

    def _steps(self, decoding: Iterator[T]) -> Iterator[T]:
        """Each step with the model to itself, and nothing between them: whoever takes a reply may be away for long."""
        while True:
            with self._busy:
                step = next(decoding, None)
            if step is None:
                return
            yield step

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        """The reply in pieces that are whole characters, decoded together with those of other threads; the generator
        returns the finished reply.

        Raises PromptTooLong when the prompt does not fit, ModelError when the model fails.
        """
        from raft.llm.decode import Row

        prompt = self._fitting_prompt(request)
        row = Row(0, prompt, request.max_tokens, request.temperature, request.seed)
        tokens: list[int] = []
        said = ""
        with contextlib.closing(self._streams.tokens(row)) as arriving:
            for token in arriving:
                if token is None:
                    yield ""
                    continue
                tokens.append(token)
                text = self._text(tokens)
                if text.startswith(said) and len(text) > len(said) and not text.endswith("\ufffd"):
                    yield text[len(said) :]
                    said = text
        text = self._text(tokens)
        if len(text) > len(said):
            yield text[len(said) :]
        return ChatReply(request.key, text, len(prompt), len(tokens), row.truncated, cached_tokens=row.cached)

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
        prompt_tokens = len(prompt) + soft_length(self.model)
        if limit is None or prompt_tokens + request.max_tokens <= limit:
            return None
        return (
            f"a prompt of {prompt_tokens} tokens and {request.max_tokens} to write exceed the model's window of {limit}"
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return self._decoded(tokens).strip(STRIPPED)

    def _decoded(self, tokens: Sequence[int]) -> str:
        with self._tokenizing:
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def _spare_mb(model: Any) -> int:
    """A quarter of what a GPU has left, where the model is on one; elsewhere as much as is asked for."""
    import torch

    return torch.cuda.mem_get_info(model.device)[0] // (4 * 10**6) if model.device.type == "cuda" else 10**9


def soft_length(model: Any) -> int:
    """Positions that a soft prompt takes before every prompt; 0 without one."""
    soft = getattr(model, "soft_prefix", None)
    return 0 if soft is None else int(soft.get_seq_length())


def make_batches(
    prompts: Sequence[tuple[ChatRequest, list[int]]], batch_tokens: int
) -> Iterator[list[tuple[ChatRequest, list[int]]]]:
    """Batches of prompts of like length, longest first, at most ``batch_tokens`` tokens with padding."""
    ordered = sorted(prompts, key=lambda pair: (-len(pair[1]), pair[0].key))
    while ordered:
        rows = max(1, min(MAX_STREAMS, batch_tokens // max(1, len(ordered[0][1]))))
        yield ordered[:rows]
        ordered = ordered[rows:]


def _merge_adapter(model: Any, folder: Path, four_bit: bool) -> Any:
    """The model with the adapter's weights added in: as fast as the base, equal to the pair up to rounding.

    A QLoRA adapter learned to correct the weights as nf4 rounds them, so those are what it is merged into.
    """
    from peft import PeftModel

    if four_bit:
        model = model.dequantize()
    tuned = PeftModel.from_pretrained(model, str(folder))
    if not tuned.peft_config["default"].is_prompt_learning:
        return tuned.merge_and_unload()
    model.soft_prefix = soft_prefix(tuned)
    return model


def soft_prefix(tuned: Any) -> Any:
    """What a soft prompt leaves in the cache: keys and values of every layer, for one row."""
    import torch
    from transformers import DynamicCache

    with torch.inference_mode():
        soft = tuned.get_prompt(batch_size=1)
        if not isinstance(soft, torch.Tensor):
            return soft
        cache = DynamicCache(config=tuned.base_model.config)
        tuned.base_model(inputs_embeds=soft.to(tuned.base_model.dtype), past_key_values=cache, use_cache=True)
        return cache
