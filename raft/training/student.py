"""The student: the base model made ready for a training, and what is kept of it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raft.config_train import TrainRecipe
from raft.models import load_language_model, load_tokenizer

WHOLE = ("full", "freeze", "unfreeze")  # methods of which all weights are kept


def load_student(recipe: TrainRecipe, base: Path) -> Any:
    """The model in the folder ``base``, with the weights of ``recipe.method`` trainable and all others frozen. It
    attends to packed sequences part by part where it can (attention.py), and then knows no masks: what is padded, or
    begins with a cache, needs ``set_attn_implementation("sdpa")`` again.

    Raises ModelError when it cannot be loaded or the method does not fit it.
    """
    from raft.training.attention import use_packed_attention
    from raft.training.methods import apply_method

    model = load_language_model(base, recipe.precision, four_bit=recipe.method == "qlora")
    use_packed_attention(model)
    return apply_method(model, recipe)


def save_student(model: Any, base: Path, recipe: TrainRecipe, folder: Path) -> None:
    """Write ``model/`` (all weights and the tokenizer) or ``adapter/`` (PEFT's files) into an artefact's folder."""
    if recipe.method in WHOLE:
        model.save_pretrained(folder / "model")
        load_tokenizer(base).save_pretrained(folder / "model")
        return
    model.peft_config["default"].base_model_name_or_path = recipe.model  # a path of this machine helps nobody
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)  # the vocabulary never changes here
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the manifest tells more
