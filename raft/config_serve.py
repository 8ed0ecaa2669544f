"""The recipe of raft serve and raft ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raft.config import ChatModelRecipe, Searching
from raft.recipe import Recipe

Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]*$")]


class CollectionRecipe(Recipe):
    """An index that is served under a name of its own: the models ``raft:NAME`` and ``raft:NAME@ADAPTER``."""

    name: Name = Field(description="in model names: small letters, digits, _ and -")
    index: Path = Field(description="index made by raft index")


class AdapterRecipe(Recipe):
    """A tuned model that is served beside the first: the models ``raft@NAME`` and ``raft:COLLECTION@NAME``."""

    name: Name = Field(description="in model names: small letters, digits, _ and -")
    adapter: Path = Field(description="artefact of raft train, of the recipe's model")


class ServedModelRecipe(ChatModelRecipe):
    """The language model that answers."""

    engine: Literal["auto", "transformers", "openvino"] = Field(
        "auto", description="what runs a local model; auto: openvino where there is no GPU and it can"
    )


class LimitsRecipe(Recipe):
    """What one caller, and all together, may ask of a server."""

    max_queue: int = Field(32, ge=0, description="requests that may wait; more are refused with 429")
    requests_per_minute: int | None = Field(None, ge=1, description="of each key; unset: no limit")
    max_body_kb: int = Field(1000, ge=1, description="larger requests are refused with 413")
    receive_seconds: float = Field(10.0, gt=0, description="time for a request's headers, and as long for its body")
    answer_seconds: float = Field(120.0, gt=0, description="longest time for one answer, waiting counted")


class ServeRecipe(Searching):
    """raft serve: retrieval + tuned model behind an OpenAI-compatible endpoint."""

    index: Path | None = Field(None, description="index made by raft index; its model is called raft")
    collections: tuple[CollectionRecipe, ...] = Field((), description="more indexes, each under a name")
    model: ServedModelRecipe = ServedModelRecipe()
    adapters: tuple[AdapterRecipe, ...] = Field((), description="more tuned models, each under a name")
    top_k: int = Field(4, ge=1, le=100, description="documents given to the model")
    max_new_tokens: int = Field(192, ge=1, description="longest answer, in tokens")
    follow_ups: Literal["join", "model", "off"] = Field(
        "join",
        description="a follow-up question is searched for with the one before it, or as the model writes it anew, or "
        "as it is",
    )
    host: str = Field("127.0.0.1", description="address to listen on; other machines need a key")
    port: int = Field(8011, ge=0, le=65535, description="0 takes a free one")
    limits: LimitsRecipe = LimitsRecipe()
    keys: Path | None = Field(None, description="file of raft keys: who may ask, and which labels each holds")
    feedback: Path | None = Field(None, description="SQLite file that keeps thumbs and corrections; unset: none")
    audit: Path | None = Field(None, description="JSON lines of who asked and which documents were shown; unset: none")
    log_texts: bool = Field(False, description="questions and answers stand in logs and audit trail too")
    cors_origins: tuple[str, ...] = Field((), description="pages of other hosts that may call, e.g. https://intranet")
    passages_as_events: bool = Field(False, description="streams carry the passages as events that Open WebUI shows")
    reload_seconds: float = Field(5.0, ge=0, description="how often indexes and adapters are looked at; 0: never")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what, named in (("collections", self.collections), ("adapters", self.adapters)):
            names = [each.name for each in named]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} has two called {', '.join(twice)}; give each its own name")
        return self
