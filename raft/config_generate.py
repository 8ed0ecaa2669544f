"""The recipe of ``raft generate``: what is asked of whom, what stands in a context, what passes the gate.

[questions]
per_chunk = 2
types = { factual = 0.6, numeric = 0.2, multihop = 0.1, unanswerable = 0.1 }
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from raft.config import ChatModelRecipe, Fraction
from raft.recipe import Recipe
from raft.records import QuestionType

Policy = Literal["random", "hard", "same_document", "counterfactual"]


class TeacherRecipe(ChatModelRecipe):
    """The teacher, what it costs, and how much of it a run may use."""

    engine: Literal["auto", "transformers", "openvino"] = Field(
        "auto", description="what runs a local teacher; auto: openvino on a CPU where raft-tune[openvino] is installed"
    )
    prompt_price: float = Field(0.0, ge=0, description="money for a million prompt tokens")
    completion_price: float = Field(0.0, ge=0, description="money for a million written tokens")
    budget_tokens: int | None = Field(None, ge=1, description="a run stops when it has used so many tokens")
    budget_money: float | None = Field(None, gt=0, description="a run stops when it has cost so much")
    cache: Path | None = Field(
        None, description="file that keeps the replies of all runs: the same request is never paid for twice"
    )

    @model_validator(mode="after")
    def _money_needs_prices(self) -> TeacherRecipe:
        if self.budget_money is not None and not self.prompt_price and not self.completion_price:
            raise ValueError("budget_money is set but no price; set prompt_price and completion_price")
        return self


class QuestionsRecipe(Recipe):
    per_chunk: int = Field(2, ge=1, le=20, description="questions the teacher is asked for per chunk")
    max_chunks: int | None = Field(None, ge=1, description="draw at most this many chunks (all when unset)")
    max_tokens: int = Field(256, ge=16, description="longest reply of the teacher, in tokens")
    types: dict[QuestionType, float] = Field(
        {"factual": 1.0}, min_length=1, description="kinds of questions and their shares; drawn for each chunk"
    )
    language: str | None = Field(None, description="language of questions and answers; unset: that of the documents")
    prompts: Path | None = Field(None, description="folder whose TYPE.toml files replace the shipped prompts")
    structured: bool = Field(True, description="ask endpoints for JSON by a schema; those that cannot are read as text")
    style: Literal["asked", "answer_first"] = Field(
        "asked",
        description="asked: the teacher finds questions in a chunk; answer_first, for small teachers: it is shown a "
        "sentence and the answer in it, and must give that answer again when asked its own question",
    )

    @model_validator(mode="after")
    def _shares_are_positive(self) -> QuestionsRecipe:
        if any(share < 0 for share in self.types.values()) or not sum(self.types.values()):
            raise ValueError(f"types is {self.types}; expected shares of 0 and more, one of them above 0")
        return self


class ContextRecipe(Recipe):
    oracle_fraction: Fraction = Field(
        0.8, description="P of the paper: share of questions whose context holds the oracle"
    )
    distractors: int | tuple[int, int] = Field(
        4, description="k of the paper: other chunks beside the oracle, or [least, most]"
    )
    policy: Literal["random", "hard", "same_document", "counterfactual", "mixed"] = Field(
        "mixed",
        description="where distractors come from; hard: the retriever's near misses; counterfactual: edits of the "
        "oracle that do not answer; mixed: as mix says",
    )
    mix: dict[Policy, float] = Field(
        {"hard": 0.5, "random": 0.5}, min_length=1, description="shares of the policies that mixed draws from"
    )
    reasoning: Literal["quotes", "plain", "noise"] = Field(
        "quotes",
        description="what stands before the answer: verbatim quotes, nothing, or which documents are noise and quotes",
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
        if any(share < 0 for share in self.mix.values()) or not sum(self.mix.values()):
            raise ValueError(f"mix is {self.mix}; expected shares of 0 and more, one of them above 0")
        return self

    @property
    def distractor_range(self) -> tuple[int, int]:
        return self.distractors if isinstance(self.distractors, tuple) else (self.distractors, self.distractors)


class QualityRecipe(Recipe):
    min_question_words: int = Field(4, ge=1, description="shorter questions are refused")
    max_question_words: int = Field(60, ge=1, description="longer questions are refused")
    max_answer_words: int = Field(60, ge=1, description="longer answers are refused")
    min_answer_overlap: Fraction = Field(
        0.5,
        description="share of the answer's content words that the quotes must hold; its numbers must stand in the "
        "quotes and its names in the oracle; 0 switches all three off",
    )
    min_question_overlap: Fraction = Field(
        0.0, description="share of what the question speaks of that must stand in the quotes or be its document's title"
    )
    min_quote_overlap: Fraction = Field(
        0.0,
        description="share of the words around the answer, in its quote, that question and answer must hold; above 0, "
        "an exception there (not, only, unless) must stand in them too, and may, must or was stay what they are",
    )
    named_subject: bool = Field(
        False, description="refuse questions without a name or a word of their document's title"
    )
    retriever_k: int = Field(10, ge=1, le=100, description="questions whose oracle is not among the k best are flagged")
    keep_unfound: bool = Field(True, description="keep the questions whose oracle the retriever does not find")
    keep_pii: bool = Field(True, description="keep questions with personal data (flagged either way)")
    round_trip: Literal["off", "oracle", "both"] = Field(
        "off",
        description="ask the teacher again among distractors: oracle: it must give the same answer; both: and not "
        "without its oracle",
    )
    entailment_model: str | None = Field(
        None, description="cross-encoder that says whether the quotes entail the answer: hub id, folder, package:NAME"
    )
    min_entailment: Fraction = Field(0.5, description="least probability of entailment")
    judge: ChatModelRecipe | None = Field(None, description="model that reads each answer beside its oracle")

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
    labels: tuple[str, ...] = Field((), description="access labels held: documents that need others stay unseen")
    out: Path | None = Field(None, description="folder of the new artefact")
    seed: int = Field(0, description="every draw follows from it")
    teacher: TeacherRecipe | None = Field(None, description="model that writes questions and answers")
    teacher_writes: tuple[Literal["questions", "reasoning"], ...] | None = Field(
        None,
        description="unset: the reasoning of from_qa's rows, or questions about the chunks where there is no from_qa",
    )
    from_qa: Path | None = Field(
        None,
        description="existing questions with answers and evidence (JSONL, JSON, CSV, Parquet or a datasets folder)",
    )
    from_qa_limit: int | None = Field(None, ge=1, description="use at most this many rows of from_qa")
    from_qa_splits: tuple[Literal["train", "dev", "test"], ...] = Field(
        ("train", "dev"), description="splits of from_qa that are used"
    )
    from_qa_columns: dict[str, str] = Field(
        {}, description="columns of from_qa by raft's names, where they are called otherwise, e.g. question = 'Frage'"
    )
    questions: QuestionsRecipe = QuestionsRecipe()
    context: ContextRecipe = ContextRecipe()
    quality: QualityRecipe = QualityRecipe()
    split: SplitRecipe = SplitRecipe()
