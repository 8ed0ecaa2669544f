"""What a server serves: model names, and the engine that answers under each.

raft                       the first index, the first model
raft:legal                 another index (a collection), the first model
raft@careful               the first index, another tuned model (an adapter)
raft:legal@careful         both
"""

from __future__ import annotations

from collections.abc import Mapping

from raft.serving.engine import AnswerEngine
from raft.serving.http_errors import Refused
from raft.serving.keys import Caller

FIRST = "raft"


def model_name(collection: str = FIRST, adapter: str | None = None) -> str:
    """The name under which an index is asked through a model; ``adapter`` None is the first model."""
    of_index = FIRST if collection == FIRST else f"{FIRST}:{collection}"
    return of_index if adapter is None else f"{of_index}@{adapter}"


class Catalog:
    """The engines by model name, the default one first. A caller may ask a model whose labels it holds; any other does
    not exist for it."""

    def __init__(self, engines: Mapping[str, AnswerEngine]) -> None:
        self._engines = dict(engines)

    @property
    def concurrency(self) -> int:
        """How many answers are made at once: as many as the model that makes most."""
        return max((engine.concurrency for engine in self._engines.values()), default=1)

    def names(self, caller: Caller) -> list[str]:
        """The models that the caller may ask, the default one first."""
        return [name for name, engine in self._engines.items() if _may_ask(caller, engine)]

    def engine(self, name: str, caller: Caller) -> AnswerEngine:
        """Raises Refused 404 for a model that is not served, or that the caller may not know of."""
        engine = self._engines.get(name)
        if engine is None or not _may_ask(caller, engine):
            known = ", ".join(map(repr, self.names(caller))) or "none"
            message = f"the model {name!r} does not exist; this server has {known}"
            raise Refused(404, message, param="model", code="model_not_found")
        return engine

    def searched(self, collection: str | None = None) -> AnswerEngine:
        """The engine through which a collection is searched (None: that of the first index); its model is not asked,
        and so needs no label. Raises Refused 404 for a collection that is not served."""
        if collection is None:
            return next(iter(self._engines.values()))
        # only a collection: whether there is an adapter of this name is not for everybody to know
        engine = None if "@" in collection else self._engines.get(model_name(collection))
        if engine is None:
            message = f"the vector store {collection!r} does not exist"
            raise Refused(404, message, param="vector_store_id", code="not_found")
        return engine

    def swap(self, engines: Mapping[str, AnswerEngine]) -> None:
        """Put other engines in their place: requests in work keep those that they began with."""
        self._engines = dict(engines)


def _may_ask(caller: Caller, engine: AnswerEngine) -> bool:
    """``None`` is all the labels of the server, and no model is opened that needs more than these."""
    return caller.labels is None or engine.needs <= caller.labels
