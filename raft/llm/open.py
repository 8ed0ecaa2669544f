"""From a recipe's model settings to a ChatModel."""

from __future__ import annotations

from pathlib import Path

from raft.errors import UsageError
from raft.llm.chat import ChatModel


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
) -> ChatModel:
    """A model behind an OpenAI-compatible endpoint when ``base_url`` is given, else a local one.

    Raises UsageError when an adapter is to be loaded onto an endpoint, ModelError when the model cannot be found or
    loaded, ArtifactError when the adapter does not fit.
    """
    if base_url is not None and adapter is not None:
        raise UsageError(
            f"adapter {adapter} cannot be loaded onto the endpoint {base_url}",
            "Leave base_url out to run the model here, with the adapter, or leave the adapter out",
        )
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
    from raft.llm.local import LocalModel

    return LocalModel.load(model, adapter, batch_tokens=batch_tokens)
