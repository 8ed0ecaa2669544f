"""Checkpoints that hold the weights that the optimizer moves, and nothing else: heads and soft prompts of any method
among them, which PEFT and transformers would leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_FILE = "trained.safetensors"


def save_moved(trainer: Any, folder: Path) -> None:
    """Write the weights of ``trainer.model`` that its optimizer has."""
    folder.mkdir(parents=True, exist_ok=True)
    moved = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    kept = {name: w.detach().contiguous() for name, w in trainer.model.named_parameters() if id(w) in moved}
    save_file(kept, folder / _FILE)


def load_moved(model: Any, folder: Path) -> None:
    """The inverse of ``save_moved``."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, kept in load_file(folder / _FILE).items():
            weights[name].copy_(kept)
