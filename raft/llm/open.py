"""From a recipe's model settings to a ChatModel."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from raft.config import shown_address
from raft.errors import ModelError, UsageError
from raft.llm.chat import ChatModel
from raft.models import Precision

Engine = Literal["auto", "transformers", "openvino"]


def open_chat_model(
    model: str,
    *,
    base_url: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    adapter: Path | None = None,
    concurrency: int = 16,
    timeout_seconds: float = 120.0,
    max_retries: int = 5,
    batch_tokens: int = 32768,
    cache_mb: int = 4096,
    engine: Engine = "transformers",
    precision: Precision = "auto",
    workers: int = 0,
    ray_address: str | None = None,
) -> ChatModel:
    """A model behind an OpenAI-compatible endpoint when ``base_url`` is given, else a local one.

    ``engine`` runs a local model; auto is openvino where it is installed, there is no GPU and it can run the model.
    ``precision`` is what it computes in. With ``workers`` that many processes open the model, through Ray.

    Raises UsageError when an adapter is to be loaded onto an endpoint, ModelError when the model cannot be found or
    loaded, ArtifactError when the adapter does not fit; with ``workers`` the last two when it is first asked.
    """
    if base_url is not None and adapter is not None:
        raise UsageError(
            f"adapter {adapter} cannot be loaded onto the endpoint {shown_address(base_url)}",
            "Leave base_url out to run the model here, with the adapter, or leave the adapter out",
        )
    if workers > 0:
        from raft.llm.ray_workers import RayModel

        settings = {
            "model": model, "base_url": base_url, "api_key_env": api_key_env, "adapter": adapter,
            "concurrency": concurrency, "timeout_seconds": timeout_seconds, "max_retries": max_retries,
            "batch_tokens": batch_tokens, "cache_mb": cache_mb, "engine": engine, "precision": precision,
        }  # fmt: skip
        return RayModel(settings, workers, ray_address)
    if base_url is not None:
        from raft.llm.openai_compatible import OpenAICompatibleModel

        return OpenAICompatibleModel(
            model,
            base_url,
            api_key_env,
            concurrency=concurrency,
            timeout_seconds=timeout_seconds,
            max_retries=max_retries,
        )
    size = {"batch_tokens": batch_tokens, "cache_mb": cache_mb}
    return _open_local(model, adapter, engine, {**size, "precision": precision})


def _open_local(model: str, adapter: Path | None, engine: Engine, settings: Mapping[str, Any]) -> ChatModel:
    """On OpenVINO where that is wanted, or where ``engine`` is auto and it can; else on transformers."""
    from raft.llm.local import LocalModel

    if engine == "transformers":
        return LocalModel.load(model, adapter, **settings)
    from raft.llm.openvino import OpenVinoModel, can_run
    from raft.llm.openvino_network import NotConvertible, is_gguf

    if engine == "openvino":
        return OpenVinoModel.load(model, adapter, **settings)
    if can_run(model):
        try:
            return OpenVinoModel.load(model, adapter, **settings)
        except ModelError as error:
            if not (isinstance(error, NotConvertible) or is_gguf(model)):  # only its own reader knows which it takes
                raise
            print(f"raft: {error.what}; transformers takes its place", file=sys.stderr)
    return LocalModel.load(model, adapter, **settings)
