"""What a server serves: model names, and the engine that answers under each."""

from __future__ import annotations

from collections.abc import Mapping

from raft.serving.engine import AnswerEngine
from raft.serving.http_errors import Refused
from raft.serving.keys import Caller


class Catalog:
    """The engines by model name."""

    def __init__(self, engines: Mapping[str, AnswerEngine]) -> None:
        self._engines = dict(engines)

    def names(self, caller: Caller) -> list[str]:
        """The models that the caller may ask, the default one first."""
        return list(self._engines)

    def engine(self, name: str, caller: Caller) -> AnswerEngine:
        """Raises Refused 404 for a model that is not served, or that the caller may not know of."""
        if name not in self._engines:
            known = ", ".join(map(repr, self.names(caller)))
            message = f"the model {name!r} does not exist; this server has {known}"
            raise Refused(404, message, param="model", code="model_not_found")
        return self._engines[name]
