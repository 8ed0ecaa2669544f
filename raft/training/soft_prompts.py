"""Soft prompts in front of a packed sequence: V vectors that every branch sees, behind the shared prefix's own start.

    prompt_tuning, p_tuning   embeddings   [soft x V] docs q1 a1 q2 a2      the prefix is V longer
    prefix_tuning             keys and values of V positions in every layer's cache, before the sequence

PEFT's own forward pass knows neither branches nor where the head is to run, so that the model is called without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_FILE = "prompt_encoder.safetensors"


def is_soft(model: Any) -> bool:
    """Whether the model carries a soft prompt (PEFT's prompt learning methods)."""
    config = getattr(model, "peft_config", {}).get("default")
    return bool(config is not None and config.is_prompt_learning)


def save_encoder(model: Any, folder: Path) -> None:
    """Write what makes the soft prompt beside a checkpoint: PEFT keeps the vectors alone, from which the network of
    p_tuning could not go on."""
    from safetensors.torch import save_file

    save_file(
        {name: weights.contiguous() for name, weights in model.prompt_encoder.state_dict().items()}, folder / _FILE
    )


def load_encoder(model: Any, folder: Path) -> None:
    """The inverse of ``save_encoder``."""
    from safetensors.torch import load_file

    model.prompt_encoder.load_state_dict(load_file(folder / _FILE))


def with_soft_prompt(model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model without PEFT, and what it takes of a packed batch with the soft prompt before it."""
    inner, count = model.base_model, model.peft_config["default"].num_virtual_tokens
    positions = batch["position_ids"] + count
    soft = model.get_prompt(batch_size=1)
    if not isinstance(soft, torch.Tensor):  # a cache of keys and values
        return inner, {**batch, "position_ids": positions, "past_key_values": soft}
    rest = {key: value for key, value in batch.items() if key != "input_ids"}
    embedded = inner.get_input_embeddings()(batch["input_ids"])  # [1, T, width]
    own = torch.arange(count, device=positions.device)[None]
    segments, parents = batch["segments"], batch.get("parents")
    if parents is None:
        rest["segments"] = (segments[0] + count, *segments[1:])
    else:  # of several prefixes each goes on from the soft prompt
        rest |= {"segments": (count, *segments), "parents": (-1, *(parent + 1 for parent in parents))}
    return inner, {
        **rest,
        "inputs_embeds": torch.cat([soft.to(embedded.dtype), embedded], dim=1),
        "position_ids": torch.cat([own, positions], dim=1),
        "logits_to_keep": batch["logits_to_keep"] + count,
    }
