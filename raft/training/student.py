"""The student: the base model made ready for a training, and what is kept of it afterwards."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from raft.config_train import TrainRecipe
from raft.errors import ModelError
from raft.models import load_language_model, load_tokenizer
from raft.training.distributed import device_here, has_accelerator, processes

WHOLE = ("full", "freeze", "unfreeze")  # methods of which all weights are kept


def load_student(recipe: TrainRecipe, base: Path) -> Any:
    """The model in the folder ``base``, with the weights of ``recipe.method`` trainable and all others frozen. It
    attends to packed sequences as ``recipe.attention`` says (attention.py), and then may know no masks: what is padded,
    or begins with a cache, needs ``set_attn_implementation("sdpa")`` again.

    Raises ModelError when it cannot be loaded, the method does not fit it, or this machine lacks what the recipe asks
    for.
    """
    from raft.training.attention import use_packed_attention
    from raft.training.methods import apply_method

    _check_machine(recipe)
    four_bit = recipe.method == "qlora"
    model = load_language_model(base, recipe.precision, four_bit, _device_of(recipe))
    if recipe.liger:
        _use_liger(model)
    use_packed_attention(model, recipe.attention)
    return apply_method(model, recipe)


def _device_of(recipe: TrainRecipe) -> str | None:
    """Where this process loads its model; None (main memory) where FSDP or DeepSpeed then divide it."""
    if recipe.parallel.kind != "ddp":
        return None
    return "best" if processes() == 1 else device_here() or "cpu"


def _check_machine(recipe: TrainRecipe) -> None:
    if recipe.attention in ("flex", "flash") and not has_accelerator():
        raise ModelError(
            f"attention {recipe.attention} trains on a GPU alone, and there is none", "Set attention = auto"
        )
    if recipe.liger and importlib.util.find_spec("liger_kernel") is None:
        raise ModelError(
            "Liger's kernels are not installed", "Run: pip install 'raft-tune[liger]', or set liger = false"
        )
    if recipe.liger and not has_accelerator():
        raise ModelError("Liger's kernels run on a GPU alone, and there is none", "Set liger = false")


def _use_liger(model: Any) -> None:
    """Replace the model's norms, rotary positions and feed-forward layers. Liger's losses stay out: they would compute
    logits where nothing is predicted. Raises ModelError for an architecture that Liger does not know."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    from transformers.integrations.liger import apply_liger_kernel

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ModelError(f"Liger has no kernels for models of type {model.config.model_type}", "Set liger = false")
    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})


def save_student(
    model: Any, base: Path, recipe: TrainRecipe, folder: Path, weights: dict[str, Any] | None = None
) -> None:
    """Write ``model/`` (all weights and the tokenizer) or ``adapter/`` (PEFT's files) into an artefact's folder;
    ``weights`` is the model's whole state where the model itself holds a part alone."""
    if recipe.method in WHOLE:
        twice = getattr(model, "all_tied_weights_keys", {})  # gathered, they are no longer the same tensor
        kept = None if weights is None else {name: each for name, each in weights.items() if name not in twice}
        model.save_pretrained(folder / "model", state_dict=kept)
        load_tokenizer(base).save_pretrained(folder / "model")
        return
    model.peft_config["default"].base_model_name_or_path = recipe.model  # a path of this machine helps nobody
    given = {} if weights is None else {"state_dict": weights}
    model.save_pretrained(folder / "adapter", save_embedding_layers=False, **given)  # the vocabulary never changes here
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the manifest tells more
