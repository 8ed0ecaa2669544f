"""From a recipe to the engines that are served, and to what takes their place when it is made anew.

stock = Stock.open(recipe)       # indexes and models, each opened once and shared by all engines over it
catalog = Catalog(stock.engines())
...
if stock.refresh():              # an index was updated, or an adapter made again
    catalog.swap(stock.engines())
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from raft.artifacts import MANIFEST
from raft.config import SearchMode, require
from raft.config_serve import ServeRecipe
from raft.errors import UsageError
from raft.records import EVERYTHING, Filter, Hit
from raft.serving.catalog import FIRST, model_name
from raft.serving.engine import AnswerEngine

if TYPE_CHECKING:
    from raft.llm.chat import ChatModel
    from raft.retrieval.index import Index
    from raft.retrieval.milvus import MilvusRetriever

T = TypeVar("T")
log = logging.getLogger("raft.serving")


def open_engine(recipe: ServeRecipe) -> AnswerEngine:
    """The engine of a recipe's first index and first model. Raises what ``Stock.open`` raises."""
    alone = recipe.model_copy(update={"collections": (), "adapters": ()})
    return Stock.open(alone).engines()[FIRST]


class OneAtATime:
    """A retriever for many threads: it is searched by one after another, because its fast tokenizer must not be used
    by two at once."""

    def __init__(self, retriever: Index | MilvusRetriever) -> None:
        self.fingerprint = retriever.fingerprint
        self._retriever = retriever
        self._turn = threading.Lock()

    def search(
        self, queries: Sequence[str], k: int, mode: SearchMode = "fused", where: Filter = EVERYTHING
    ) -> list[list[Hit]]:
        with self._turn:
            return self._retriever.search(queries, k, mode, where)


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model, and the access labels that who asks it must hold."""

    model: ChatModel
    needs: frozenset[str]


class Kept(Generic[T]):
    """What ``opened`` gives, made from the artefacts in ``folders``; ``value`` is the last that could be opened."""

    def __init__(self, opened: Callable[[], T], folders: Sequence[Path]) -> None:
        self._opened = opened
        self._folders = [folder for folder in folders if (folder / MANIFEST).is_file()]
        self._failed = False
        self.value = self._open()

    def refresh(self, again: bool) -> bool:
        """Open what was made anew, and with ``again`` what could not be opened the last time; True when that is done.
        What cannot be opened is logged, and the old value stays."""
        now = self._manifests()
        gone = None in now  # while an artefact is replaced there is no manifest for a moment
        if gone or not (now != self._seen or (again and self._failed)):
            return False
        try:
            self.value = self._open()
            self._failed = False
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the new one, the old one answers
            log.error("%s; what was opened before stays in use", error)
            self._failed = True
        return not self._failed

    def _open(self) -> T:
        """Open it; once more where it is replaced meanwhile, so that nothing is a mixture of two."""
        while True:
            self._seen = self._manifests()
            value = self._opened()
            if self._manifests() == self._seen:
                return value

    def _manifests(self) -> list[bytes | None]:
        return [_content(folder / MANIFEST) for folder in self._folders]


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


class Stock:
    """The indexes and models of a recipe by their names in the recipe; the first of each is called FIRST and None."""

    def __init__(
        self, recipe: ServeRecipe, indexes: dict[str, Kept[OneAtATime]], models: dict[str | None, Kept[Tuned]]
    ) -> None:
        self._recipe = recipe
        self._indexes = indexes
        self._models = models

    @classmethod
    def open(cls, recipe: ServeRecipe) -> Stock:
        """Indexes are opened and verified first, models after them.

        Raises UsageError when no index is named, a collection has the first one's name, or a model was tuned on
        documents that need labels the recipe does not hold; ArtifactError when an index or an adapter does not fit;
        ModelError.
        """
        folders = {FIRST: Path(require(recipe.index, "index", "--index"))}
        if any(collection.name == FIRST for collection in recipe.collections):
            raise UsageError(f"a collection is called {FIRST}, the first index's own name", "Give it another name")
        folders |= {collection.name: collection.index for collection in recipe.collections}
        indexes = {name: Kept(partial(_open_index, recipe, folder), [folder]) for name, folder in folders.items()}
        adapters: dict[str | None, Path | None] = {None: recipe.model.adapter}
        adapters |= {tuned.name: tuned.adapter for tuned in recipe.adapters}
        return cls(recipe, indexes, {name: _kept_model(recipe, adapter) for name, adapter in adapters.items()})

    def engines(self) -> dict[str, AnswerEngine]:
        """An engine for each index and model together, by model name; the first of both comes first."""
        recipe = self._recipe
        return {
            model_name(collection, adapter): AnswerEngine(
                index.value, tuned.value.model, index.value.fingerprint,
                top_k=recipe.top_k, mode=recipe.search, max_new_tokens=recipe.max_new_tokens,
                temperature=recipe.model.temperature, follow_ups=recipe.follow_ups, needs=tuned.value.needs,
            )
            for adapter, tuned in self._models.items()
            for collection, index in self._indexes.items()
        }  # fmt: skip

    def refresh(self, again: bool = False) -> bool:
        """Open the new versions of indexes and models; True when there was one. The old one and the new one are in
        memory together until the last request that began with the old one ends. A collection in Milvus has no
        manifest here, and is not looked at."""
        kept: list[Kept[OneAtATime] | Kept[Tuned]] = [*self._indexes.values(), *self._models.values()]
        refreshed = [each.refresh(again) for each in kept]
        return any(refreshed)


def _open_index(recipe: ServeRecipe, folder: Path) -> OneAtATime:
    from raft.retrieval.milvus import open_retriever

    return OneAtATime(open_retriever(folder, labels=recipe.labels, reranker=recipe.reranker))


def _kept_model(recipe: ServeRecipe, adapter: Path | None) -> Kept[Tuned]:
    from raft.llm.local import run_of

    runs = [run_of(str(tuned)) for tuned in (adapter, recipe.model.model) if tuned is not None]
    return Kept(partial(_open_model, recipe, adapter), runs)


def _open_model(recipe: ServeRecipe, adapter: Path | None) -> Tuned:
    from raft.llm.open import open_chat_model

    chosen = recipe.model
    tuned = filter(None, (adapter, chosen.model))
    needs = frozenset[str]().union(*(_checked_labels(str(name), recipe.labels) for name in tuned))
    settings = chosen.model_dump(exclude={"model", "temperature"}) | {"adapter": adapter}
    return Tuned(open_chat_model(chosen.model, **settings), needs)


def _checked_labels(tuned: str, held: Sequence[str]) -> set[str]:
    """The labels of the documents that an adapter, or a run in the model's place, was tuned on: it may repeat their
    words to anybody. Raises UsageError when not all of them are held."""
    from raft.llm.local import inherited_labels

    needs = inherited_labels(tuned)
    if missing := sorted(needs - {*held}):
        raise UsageError(
            f"{tuned} was tuned on documents that need the access label {', '.join(missing)}",
            "For users who hold it, give it with --label (raft ask), or as labels in the recipe or "
            f"--set 'labels={json.dumps(missing, ensure_ascii=False)}' (raft serve)",
        )
    return needs
