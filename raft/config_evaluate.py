"""The recipes of raft evaluate general and raft evaluate judge."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from raft.config import ChatModelRecipe
from raft.recipe import Recipe


class EvaluateGeneralRecipe(Recipe):
    """raft evaluate general: what a tuned model can do beside what it was tuned for, before and after."""

    adapter: Path | None = Field(None, description="tuned model: an artefact of raft train")
    model: str | None = Field(
        None, description="the model before: hub id, folder or package:NAME; unset: the adapter's"
    )
    out: Path | None = Field(None, description="folder of the new artefact")
    tasks: tuple[str, ...] = Field((), description="tasks of lm-evaluation-harness, asked of both models")
    task_folder: Path | None = Field(None, description="folder of your own tasks for it (YAML)")
    limit: int | None = Field(None, ge=1, description="at most this many questions of each task")
    batch_size: int = Field(8, ge=1, description="requests of a task computed at once")
    max_new_tokens: int = Field(64, ge=1, description="longest reply to an everyday question, in tokens")
    seed: int = Field(0, description="every draw follows from it")
    resamples: int = Field(
        2000, ge=100, description="bootstrap resamples behind the interval of the perplexities' ratio"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of every interval")

    @model_validator(mode="after")
    def _a_folder_has_tasks(self) -> Self:
        if self.task_folder is not None and not self.tasks:
            raise ValueError(f"task_folder is {self.task_folder}, but tasks names none of its tasks")
        return self


class EvaluateJudgeRecipe(Recipe):
    """raft evaluate judge: a chat model judges the answers of a report, once it was compared with people."""

    report: Path | None = Field(None, description="report made by raft evaluate")
    labels: Path | None = Field(None, description="JSONL of answers that people have judged, 100 or more")
    model: ChatModelRecipe = Field(ChatModelRecipe(), description="the judge: another model than those that it judges")
    out: Path | None = Field(None, description="folder of the new artefact")
    seed: int = Field(0, description="every draw follows from it")
    max_new_tokens: int = Field(200, ge=1, description="longest verdict, in tokens")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind every interval")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of every interval")
