"""The recipe of raft train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from raft.config import DEFAULT_ENCODER, DEFAULT_STUDENT
from raft.config_train_parts import (
    Attention,
    ClassifyRecipe,
    Ia3Recipe,
    LayersRecipe,
    LoraRecipe,
    Method,
    Objective,
    OptimRecipe,
    ParallelRecipe,
    PreferenceTuningRecipe,
    ReplayRecipe,
    RetrievalTuningRecipe,
    SoftPromptRecipe,
    TokenWeightsRecipe,
    WatchRecipe,
)
from raft.config_train_rules import (
    PREFERENCE_OBJECTIVES,
    SOFT,
    WITHOUT_EFFECT,
    idle_settings,
    impossible,
    of_other_methods,
)
from raft.recipe import Recipe, mistakes_of

# Nothing that is learned depends on these; the weights that a model's name stands for are compared by their hash
MAY_CHANGE_ON_RESUME = (
    "model", "watch.explode_factor", "watch.samples", "watch.trackers", "watch.probe", "retry_out_of_memory",
)  # fmt: skip
_RETRIEVAL_LR = {"encoder": 2e-5, "reranker": 5e-5}
_WRITING_LR = {"sft": 2e-4, "pretrain": 2e-4}
_ADAPTER_LR = _WRITING_LR | dict.fromkeys(PREFERENCE_OBJECTIVES, 2e-5) | {"reward": 1e-4, "classify": 1e-4}
_WHOLE_SLOWER = 10  # times, where whole layers move


class TrainRecipe(Recipe):
    """raft train: RAFT dataset -> tuned model (an adapter, full weights, an encoder or a reranker)."""

    dataset: Path | None = Field(
        None, description="dataset made by raft generate (pretrain: index made by raft index; sft also: JSON lines of "
        "instructions; classify also: JSON lines of text and label)"
    )  # fmt: skip
    out: Path | None = Field(None, description="folder of the new artefact")
    objective: Objective = Field(
        "sft",
        description="sft: write the answer; pretrain: read on in the corpus (dataset is an index then); dpo, kto, "
        "orpo: prefer good answers; reward: tell them from bad ones; grpo, rloo: find them by trying; encoder, "
        "reranker: find the oracle among other chunks; classify: say which class a text is of, or (dataset) whether "
        "documents hold the answer",
    )
    model: str = Field(
        DEFAULT_STUDENT,
        description="base model: hub id, local folder, GGUF file or package:NAME "
        f"(unset, encoder and reranker start from {DEFAULT_ENCODER})",
    )
    method: Method = Field("lora", description="which weights move (encoder and reranker: full, also when unset)")
    seed: int = Field(0, description="every draw follows from it")
    max_tokens: int = Field(
        2048,
        ge=64,
        description="longest packed sequence; longer groups are divided, longer examples dropped and counted",
    )
    documents: bool = Field(
        True, description="false: ask without documents and learn the bare answer (DSF, the baseline of the paper)"
    )
    share_prefixes: bool = Field(True, description="pack a group's questions behind one copy of their documents")
    pack_unrelated: bool = Field(
        True, description="compute short groups of one step as one sequence of up to max_tokens, in which none sees "
        "another: what is learned stays the same"
    )  # fmt: skip
    replay: ReplayRecipe = ReplayRecipe()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on a GPU that has it, float32 elsewhere"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations twice to save memory")
    attention: Attention = Field(
        "auto", description="auto: part by part, as packed sequences see each other; sdpa: one dense mask; flex: one "
        "kernel (GPU); flash: FlashAttention (GPU), where sequences share no prefix"
    )  # fmt: skip
    liger: bool = Field(False, description="Liger's kernels for norms, rotary positions and feed-forward layers (GPU)")
    parallel: ParallelRecipe = ParallelRecipe()
    retry_out_of_memory: bool = Field(
        True, description="when memory runs out, go on from the last checkpoint with sequences in smaller pieces"
    )
    lora: LoraRecipe = LoraRecipe()
    ia3: Ia3Recipe = Ia3Recipe()
    soft_prompt: SoftPromptRecipe = SoftPromptRecipe()
    layers: LayersRecipe = LayersRecipe()
    token_weights: TokenWeightsRecipe = TokenWeightsRecipe()
    optim: OptimRecipe = OptimRecipe()
    watch: WatchRecipe = WatchRecipe()
    labels: tuple[str, ...] = Field((), description="pretrain: access labels held; other documents are not read")
    preference: PreferenceTuningRecipe = PreferenceTuningRecipe()
    retrieval: RetrievalTuningRecipe = RetrievalTuningRecipe()
    classify: ClassifyRecipe = ClassifyRecipe()
    stages: tuple[dict[str, Any], ...] = Field(
        (), description="trainings one after the other, each from the model before: name, and what differs from above"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_objective(cls, data: Any) -> Any:
        """The base, the method and the learning rate where nothing is said: all weights of a small encoder move, and
        2e-4, right for an adapter, would wipe out what it knows."""
        if not isinstance(data, dict):
            return data
        objective, whole = data.get("objective", "sft"), data.get("method") in ("full", "freeze", "unfreeze")
        if objective in _WRITING_LR and (not whole or data.get("stages")):  # as OptimRecipe says; stages find their own
            return data
        if objective not in (*_RETRIEVAL_LR, *_ADAPTER_LR):
            return data
        lr = _RETRIEVAL_LR.get(objective) or _ADAPTER_LR[objective] / (_WHOLE_SLOWER if whole else 1)
        optim = data.get("optim", {})
        given = {**data, "optim": {"lr": lr, **optim} if isinstance(optim, dict) else optim}
        return given if objective in _ADAPTER_LR else {"model": DEFAULT_ENCODER, "method": "full", **given}

    @model_validator(mode="after")
    def _prefixes_need_a_cache(self) -> TrainRecipe:
        if self.method == "prefix_tuning" and self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing computes without a cache, in which prefix_tuning keeps what it learns: "
                "take prompt_tuning, or leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _possible_pair(self) -> TrainRecipe:
        if reason := impossible(self.objective, self.method):
            raise ValueError(f"objective {self.objective} and method {self.method} do not go together: {reason}")
        return self

    @model_validator(mode="after")
    def _possible_on_a_machine(self) -> TrainRecipe:
        if reason := impossible_machine(self):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _stages_are_recipes(self) -> TrainRecipe:
        stages = stages_of(self)
        for name, stage in stages:
            if stage.objective in (*_RETRIEVAL_LR, "reward", "classify"):
                raise ValueError(f"stage {name}: objective {stage.objective} makes no model that could go on learning")
        for name, stage in stages[:-1]:
            if stage.method in SOFT:
                raise ValueError(f"stage {name}: what {stage.method} learns is no part of the weights; put it last")
        return self

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> TrainRecipe:
        """Refuses what the objective, the method or all of the stages would silently ignore."""
        if self.stages:
            idle = [_changed(self, idle_settings(stage.objective, stage.method)) for _, stage in stages_of(self)]
            if unread := [name for name in idle[0] if all(name in each for each in idle)]:
                raise ValueError(f"no stage has use for {', '.join(unread)}")
            return self
        defaults = TrainRecipe.model_construct()
        reasons = WITHOUT_EFFECT[self.objective].items()
        ignored = [f"{key} ({why})" for key, why in reasons if attrgetter(key)(self) != attrgetter(key)(defaults)]
        if ignored:
            raise ValueError(f"objective {self.objective} has no use for {', '.join(ignored)}")
        if ignored := [f"{name} ({why})" for name, why in _changed(self, of_other_methods(self.method)).items()]:
            raise ValueError(f"method {self.method} has no use for {', '.join(ignored)}")
        return self


def impossible_machine(recipe: TrainRecipe) -> str | None:
    """Why the settings for GPUs and processes cannot be had with the others; None when they can."""
    kind, method, flash = recipe.parallel.kind, recipe.method, recipe.attention == "flash"
    if kind != "ddp" and method in ("qlora", "unfreeze", *SOFT):
        return f"parallel.kind {kind} cannot divide what method {method} trains: take lora, or kind ddp"
    if kind != "ddp" and recipe.watch.samples:
        return f"parallel.kind {kind} leaves no process a whole model, which watch.samples needs: take kind ddp"
    if flash and recipe.objective == "sft" and recipe.share_prefixes:
        return "attention flash knows no shared prefix: set share_prefixes = false, or take attention flex or auto"
    if flash and method in SOFT:
        return f"attention flash knows no vectors before the prompt, which method {method} learns"
    return "attention flash computes in bfloat16 alone" if flash and recipe.precision == "float32" else None


def _changed(recipe: TrainRecipe, names: Mapping[str, str]) -> dict[str, str]:
    """Those of the settings and of the tables' settings that differ from their defaults, each with its reason."""
    defaults = TrainRecipe.model_construct()
    found = {}
    for name, why in names.items():
        own = attrgetter(name)(recipe)
        if isinstance(own, Recipe):
            found.update(_changed(recipe, {f"{name}.{field}": why for field in type(own).model_fields}))
        elif own != attrgetter(name)(defaults):
            found[name] = why
    return found


def stages_of(recipe: TrainRecipe) -> list[tuple[str, TrainRecipe]]:
    """(name, recipe) of each stage: the recipe's own settings, overridden by the stage's. Raises ValueError naming the
    stage and all that is wrong with it."""
    common = recipe.model_dump(exclude_unset=True, exclude={"stages", "out"})
    found = []
    for number, stage in enumerate(recipe.stages, 1):
        own = dict(stage)
        if idle := sorted({"out", "stages", "model"} & own.keys()):
            raise ValueError(f"stage {number} sets {', '.join(idle)}: say model and out above the stages")
        name = str(own.pop("name", own.get("objective", "sft")))
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"stage {number} is named {name!r}: letters, digits, - and _ alone make a folder's name")
        pair = (str(own.get(key, common.get(key, usual))) for key, usual in (("objective", "sft"), ("method", "lora")))
        inherited = without(common, idle_settings(*pair))  # what other stages need; its own are refused
        try:
            found.append((name, TrainRecipe.model_validate(merged(inherited, own))))
        except ValidationError as error:
            mistakes = "; ".join(mistakes_of(TrainRecipe, error)).replace("Value error, ", "")
            raise ValueError(f"stage {name}: {mistakes}") from None
    return found


def without(table: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The table without the settings of these dotted names."""
    kept = dict(table)
    for name in names:
        first, _, rest = name.partition(".")
        if not rest:
            kept.pop(first, None)
        elif isinstance(kept.get(first), dict):
            kept[first] = without(kept[first], [rest])
    return kept


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables as one, table by table; where they differ, the one above holds."""
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both
