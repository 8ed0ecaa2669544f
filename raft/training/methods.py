"""Which weights move. A method turns a loaded model into one that trains."""

from __future__ import annotations

from typing import Any

from raft.errors import ModelError


def apply_method(
    model: Any,
    method: str,
    *,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: str | tuple[str, ...],
    checkpointing: bool,
) -> Any:
    """The model made trainable: ``full`` moves every weight; ``lora`` and ``qlora`` (Hu et al. 2021, arXiv
    2106.09685; Dettmers et al. 2023, arXiv 2305.14314) freeze them and add low-rank matrices.

    ``qlora`` expects a model loaded in 4 bits. Raises ModelError when the model has no such ``target_modules``.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if method == "full":
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model
    if method == "qlora":
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    elif checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise _no_such_modules(model, target_modules, error) from None


def _no_such_modules(model: Any, target_modules: str | tuple[str, ...], error: ValueError) -> ModelError:
    from torch.nn import Linear

    linear = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, Linear)})
    said = " ".join(str(error).split())[:200]
    return ModelError(
        f"lora.target_modules {target_modules!r} cannot be tuned in this model ({said})",
        f"Set it to all-linear or to some of its linear layers: {', '.join(linear)}",
    )


def count_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters; 4-bit weights are counted at their true number."""
    trainable = total = 0
    for parameter in model.parameters():
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        count = shape.numel() if shape is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
