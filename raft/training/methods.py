"""Which weights move. A method turns a loaded model into one that trains.

full           every weight
freeze         the topmost decoder layers and the last norm
unfreeze       the same at first, then one layer more at a time (gradual unfreezing, Howard and Ruder 2018,
               arXiv 1801.06146, section 3.3)
lora           low-rank matrices beside the linear layers (Hu et al. 2021, arXiv 2106.09685)
rslora         lora scaled by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)
dora           lora on the direction of the weights, their length by itself (Liu et al. 2024, arXiv 2402.09353)
qlora          lora over weights in 4 bits (Dettmers et al. 2023, arXiv 2305.14314)
ia3            a factor for each key, value and feed-forward unit (Liu et al. 2022, arXiv 2205.05638)
prompt_tuning  vectors in front of the prompt (Lester et al. 2021, arXiv 2104.08691)
p_tuning       the same, written by a small network (Liu et al. 2021, arXiv 2103.10385)
prefix_tuning  keys and values in front of every layer's (Li and Liang 2021, arXiv 2101.00190)
"""

from __future__ import annotations

from typing import Any

from raft.config_train import TrainRecipe
from raft.config_train_parts import Ia3Recipe, LayersRecipe, LoraRecipe, SoftPromptRecipe
from raft.config_train_rules import SOFT
from raft.errors import ModelError


def apply_method(model: Any, recipe: TrainRecipe) -> Any:
    """The model with the weights of ``recipe.method`` trainable, all others frozen. ``qlora`` expects a model loaded
    in 4 bits. Raises ModelError where the model lacks the layers that the recipe names, or PEFT cannot do it."""
    method, checkpointing = recipe.method, recipe.gradient_checkpointing
    if checkpointing and method != "qlora":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if method == "full":
        return model
    if method in ("freeze", "unfreeze"):
        return _freeze(model, recipe.layers, all_in_time=method == "unfreeze")
    if method == "qlora":
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    elif checkpointing:
        model.enable_input_require_grads()
    return _with_adapter(model, recipe)


def _with_adapter(model: Any, recipe: TrainRecipe) -> Any:
    from peft import get_peft_model

    try:
        if recipe.method in SOFT:
            _check_cache(model, recipe.method)
            return get_peft_model(model, _soft_prompt(recipe.method, recipe.soft_prompt))
        if recipe.method == "ia3":
            return get_peft_model(model, _ia3(recipe.ia3))
        return get_peft_model(model, _lora(recipe.method, recipe.lora))
    except ValueError as error:
        raise _does_not_fit(model, recipe, error) from None


def _lora(method: str, chosen: LoraRecipe) -> Any:
    from peft import LoraConfig

    targets = chosen.target_modules if isinstance(chosen.target_modules, str) else list(chosen.target_modules)
    return LoraConfig(
        r=chosen.r, lora_alpha=chosen.alpha, lora_dropout=chosen.dropout, target_modules=targets,
        use_rslora=method == "rslora", use_dora=method == "dora", task_type="CAUSAL_LM",
    )  # fmt: skip


def _ia3(chosen: Ia3Recipe) -> Any:
    from peft import IA3Config

    targets, feedforward = chosen.target_modules, chosen.feedforward_modules
    return IA3Config(
        target_modules=None if targets is None else list(targets),
        feedforward_modules=None if feedforward is None else list(feedforward), task_type="CAUSAL_LM",
    )  # fmt: skip


def _soft_prompt(method: str, chosen: SoftPromptRecipe) -> Any:
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    common: dict[str, Any] = {"num_virtual_tokens": chosen.tokens, "task_type": "CAUSAL_LM"}
    if method == "prompt_tuning":
        return PromptTuningConfig(**common)
    if method == "p_tuning":
        return PromptEncoderConfig(**common, encoder_hidden_size=chosen.encoder_hidden)
    return PrefixTuningConfig(**common)


def _check_cache(model: Any, method: str) -> None:
    """Raises ModelError for a model some of whose layers keep a window alone: what stands first would leave it."""
    from raft.training.attention import keeps_windows

    if keeps_windows(model):
        raise ModelError(
            f"method {method} puts vectors first, which the sliding windows of this model would lose",
            "Take another method, e.g. lora",
        )


def _does_not_fit(model: Any, recipe: TrainRecipe, error: ValueError) -> ModelError:
    from torch.nn import Linear

    said = " ".join(str(error).split())[:200]
    if recipe.method in SOFT:
        return ModelError(f"method {recipe.method} does not fit this model ({said})", "Take another method, e.g. lora")
    section = "ia3" if recipe.method == "ia3" else "lora"
    named = recipe.ia3.target_modules if section == "ia3" else recipe.lora.target_modules
    linear = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, Linear)})
    lead = "all-linear or to " if section == "lora" else ""
    return ModelError(
        f"{section}.target_modules {named!r} cannot be tuned in this model ({said})",
        f"Set it to {lead}some of its linear layers: {', '.join(linear)}",
    )


# --- layers ----------------------------------------------------------------------------------------------------------


_LAST_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


def decoder_layers(model: Any) -> Any:
    """The decoder's layers, lowest first. Raises ModelError where the model does not name them."""
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise ModelError(f"{type(model).__name__} does not show its decoder layers", "Take another method, e.g. lora")
    return layers


def _freeze(model: Any, chosen: LayersRecipe, all_in_time: bool) -> Any:
    """The model with its topmost layers and the norm behind them trainable; all its layers where they are to move in
    time, for an optimizer takes in no weights later on (``set_unfrozen`` says which move now)."""
    layers = decoder_layers(model)
    if chosen.top > len(layers):
        raise ModelError(f"layers.top is {chosen.top}, and the model has {len(layers)} layers", "Lower layers.top")
    model.requires_grad_(False)
    norm = next((part for name in _LAST_NORMS if (part := getattr(model.get_decoder(), name, None)) is not None), None)
    for part in (*layers[0 if all_in_time else -chosen.top :], *([] if norm is None else [norm])):
        part.requires_grad_(True)
    return model


def unfrozen_layers(chosen: LayersRecipe, count: int, step: int) -> int:
    """How many of ``count`` layers, from the top, move in the optimizer step after ``step`` finished ones."""
    return min(count, chosen.top + step // chosen.one_more_every_steps)


def set_unfrozen(model: Any, top: int) -> None:
    """Let the ``top`` topmost layers move, and no other layer. A frozen layer gets no gradient, which the optimizer
    passes over: its weights stay as they are, bit for bit."""
    layers = decoder_layers(model)
    for number, layer in enumerate(layers):
        layer.requires_grad_(number >= len(layers) - top)


def count_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters; 4-bit weights are counted at their true number."""
    trainable = total = 0
    for parameter in model.parameters():
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        count = shape.numel() if shape is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
