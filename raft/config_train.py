"""The recipe of raft train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from raft.config import DEFAULT_ENCODER, DEFAULT_STUDENT, Fraction
from raft.recipe import Recipe, mistakes_of

Objective = Literal[
    "sft", "pretrain", "dpo", "kto", "orpo", "reward", "grpo", "rloo", "classify", "encoder", "reranker"
]  # fmt: skip
Method = Literal[
    "lora", "qlora", "rslora", "dora", "ia3", "prompt_tuning", "p_tuning", "prefix_tuning", "full", "freeze", "unfreeze"
]


Attention = Literal["auto", "sdpa", "flex", "flash"]


class LoraRecipe(Recipe):
    """What the methods lora, qlora, rslora and dora add to the weights."""

    r: int = Field(16, ge=1, le=1024, description="rank")
    alpha: int = Field(32, ge=1, description="scale: the adapter is multiplied by alpha / r")
    dropout: Fraction = Field(0.0, description="share of the adapter's inputs dropped in training")
    target_modules: str | tuple[str, ...] = Field("all-linear", description="layers that get an adapter (PEFT's names)")


class Ia3Recipe(Recipe):
    target_modules: tuple[str, ...] | None = Field(
        None, description="layers that get factors (PEFT's names); unset: PEFT's choice for the architecture"
    )
    feedforward_modules: tuple[str, ...] | None = Field(
        None, description="those of them whose inputs are scaled in place of their outputs; unset: PEFT's choice"
    )


class SoftPromptRecipe(Recipe):
    """What the methods prompt_tuning, p_tuning and prefix_tuning learn."""

    tokens: int = Field(20, ge=1, le=1024, description="vectors (prefix_tuning: keys and values) before the prompt")
    encoder_hidden: int = Field(128, ge=1, description="p_tuning: width of the network that writes the vectors")


class LayersRecipe(Recipe):
    """Which layers the methods freeze and unfreeze let move."""

    top: int = Field(2, ge=1, description="decoder layers, counted from the top; unfreeze: at the beginning")
    one_more_every_steps: int = Field(10, ge=1, description="unfreeze: optimizer steps until the next one moves too")


class OptimRecipe(Recipe):
    lr: float = Field(2e-4, gt=0, le=1.0, description="highest learning rate (unset, where whole layers move: 2e-5)")
    epochs: float = Field(3.0, gt=0, description="times through the training questions")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps, whatever epochs says")
    groups_per_step: int = Field(
        2, ge=1, description="context groups (conversations, texts) whose gradients make one optimizer step"
    )
    warmup_fraction: Fraction = Field(0.05, description="share of the steps in which lr rises from 0")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="how lr falls after warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's pull of weights towards 0")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")


class TokenWeightsRecipe(Recipe):
    """How much the parts of an answer count in the loss of sft, its other words counting 1. The weights of an example
    are scaled to 1 on average, so that no example counts more than another. Dev losses are never weighted."""

    quote: float = Field(1.0, gt=0, description="each token of a quote")
    answer: float = Field(1.0, gt=0, description="each token of the final answer")


class ReplayRecipe(Recipe):
    """General instructions among the examples, so that what the base could do is not forgotten."""

    data: Path | None = Field(
        None, description="sft, pretrain: JSON lines of general instructions (raft/training/instructions.py), mixed in"
    )
    share: float = Field(
        0.1, gt=0, lt=1, description="how many of the tokens that the loss counts are theirs; drawn anew every epoch"
    )

    @model_validator(mode="after")
    def _share_of_something(self) -> ReplayRecipe:
        if self.data is None and self.share != type(self).model_fields["share"].default:
            raise ValueError(f"share = {self.share:g} of nothing: replay.data names the file")
        return self


class ClassifyRecipe(Recipe):
    """What the objective classify adds to the training settings."""

    balance: bool = Field(
        False, description="classes count alike in the loss, however many examples each has (probabilities shift)"
    )


Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow"]


class WatchRecipe(Recipe):
    every_steps: int = Field(20, ge=1, description="optimizer steps between dev loss and checkpoint")
    patience: int = Field(3, ge=1, description="stop after this many dev losses in a row without a better one")
    dev_groups: int = Field(32, ge=1, description="dev context groups (conversations, texts) used at each evaluation")
    explode_factor: float = Field(
        10.0, ge=0, description="stop where three losses in a row exceed 5 and this many times the median of the 50 "
        "before; 0: only where the loss is no number"
    )  # fmt: skip
    samples: int = Field(
        0, ge=0, le=16, description="dev questions answered at each evaluation, in samples.jsonl (costs time)"
    )
    trackers: tuple[Tracker, ...] = Field(
        (), description="who else is told the figures: tensorboard (files in the artefact), trackio, wandb, mlflow"
    )
    probe: bool = Field(
        True, description="measure on general questions and texts, before and after, what a model that writes forgets"
    )

    @model_validator(mode="after")
    def _factor_above_one(self) -> WatchRecipe:
        if 0 < self.explode_factor <= 1:
            raise ValueError(f"explode_factor is {self.explode_factor:g}: give more than 1, or 0 to switch it off")
        return self


# Nothing that is learned depends on these; the weights that a model's name stands for are compared by their hash
MAY_CHANGE_ON_RESUME = (
    "model", "watch.explode_factor", "watch.samples", "watch.trackers", "watch.probe", "retry_out_of_memory",
)  # fmt: skip


class ParallelRecipe(Recipe):
    """How several processes, started by torchrun or accelerate launch, share a training. What is not said here comes
    from accelerate's environment."""

    kind: Literal["ddp", "fsdp", "deepspeed"] = Field(
        "ddp", description="ddp: each process holds the whole model; fsdp, deepspeed: it is divided among them"
    )
    shard_weights: bool = Field(
        True, description="fsdp, deepspeed: weights are gathered layer by layer, each time they are needed (ZeRO 3); "
        "false: once a step (deepspeed: never divided, ZeRO 2), which takes more memory and less time"
    )  # fmt: skip
    cpu_offload: bool = Field(False, description="fsdp, deepspeed: keep in main memory what is not being computed with")
    deepspeed_config: Path | None = Field(
        None, description="deepspeed: its own JSON file, in place of the two settings above"
    )

    @model_validator(mode="after")
    def _of_the_kind(self) -> ParallelRecipe:
        settings = (("shard_weights", True), ("cpu_offload", False))
        own = [name for name, default in settings if getattr(self, name) != default]
        if self.kind == "ddp" and own:
            raise ValueError(f"kind ddp divides nothing and has no use for {', '.join(own)}")
        if self.deepspeed_config is not None and (self.kind != "deepspeed" or own):
            what = f"stands in place of {', '.join(own)}" if own else f"belongs to kind deepspeed, not {self.kind}"
            raise ValueError(f"deepspeed_config {what}")
        return self


class RetrievalTuningRecipe(Recipe):
    """What ``objective = "encoder"`` and ``"reranker"`` add to the training settings."""

    negatives: int = Field(
        4, ge=1, le=64, description="chunks that do not answer, beside each oracle: its question's distractors first"
    )
    batch_size: int = Field(16, ge=1, description="questions whose gradients make one optimizer step")
    max_tokens: int | None = Field(
        None, ge=8, description="longest text read in training, in tokens (unset: as the base)"
    )
    temperature: float = Field(
        0.05, gt=0, le=1.0, description="encoder: cosines are divided by it before the softmax; lower is sharper"
    )
    texts_at_once: int | None = Field(
        None, ge=1, description="encoder: texts whose activations are held at once (unset: a whole batch's)"
    )
    tuned_share: float = Field(
        1.0, gt=0, le=1.0, description="encoder: the weights kept are this share of the tuned ones, the rest the base's"
    )
    query_prompt: str | None = Field(
        None, description="encoder: text before every query, kept in its files; unset: as the base's files say"
    )
    document_prompt: str | None = Field(None, description="encoder: text before every chunk; unset: as for queries")


PREFERENCE_OBJECTIVES = ("dpo", "kto", "orpo", "reward", "grpo", "rloo")
SOFT = ("prompt_tuning", "p_tuning", "prefix_tuning")  # methods that put learned vectors before the prompt


def impossible(objective: str, method: str) -> str | None:
    """Why this objective cannot be reached by this method; None when it can."""
    if objective in ("encoder", "reranker"):
        return None if method == "full" else "it moves all weights, method must be full"
    if objective in ("kto", "reward", "grpo", "rloo") and method in SOFT:
        return "its batches are padded, which vectors before the prompt do not allow here; take lora, or dpo"
    if objective in ("dpo", "orpo") and method in ("p_tuning", "prefix_tuning"):
        return "take prompt_tuning, or lora"
    return None


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


_RETRIEVAL_LR = {"encoder": 2e-5, "reranker": 5e-5}
_WRITING_LR = {"sft": 2e-4, "pretrain": 2e-4}
_ADAPTER_LR = _WRITING_LR | dict.fromkeys(PREFERENCE_OBJECTIVES, 2e-5) | {"reward": 1e-4, "classify": 1e-4}
_WHOLE_SLOWER = 10  # times, where whole layers move
_NO_PACKING = {
    **{"preference": "nothing is preferred", "labels": "only pretrain reads documents"},
    "classify": "only the objective classify reads it",
    "pack_unrelated": "nothing is packed",
    "max_tokens": "retrieval.max_tokens is its limit",
    "liger": "no language model is tuned",
    "share_prefixes": "nothing is packed",
    "documents": "only sft can do without",
    "token_weights": "no answer is written",
    "gradient_checkpointing": "retrieval.batch_size and retrieval.texts_at_once decide over memory",
    "retry_out_of_memory": "no sequence can run in pieces",
    **dict.fromkeys(("lora", "ia3", "soft_prompt", "layers"), "all weights move"),
    "optim.groups_per_step": "retrieval.batch_size counts the questions of a step",
    "watch.dev_groups": "every dev question is used",
    "watch.samples": "no answer is written",
}
_OF_RETRIEVAL = {"retrieval": "only the objectives encoder and reranker read it"}
_OF_PREFERENCE = {"preference": "only the objectives dpo, kto, orpo, reward, grpo and rloo read it"}
_OF_PRETRAINING = {"labels": "only pretrain reads documents"}
_OF_SFT = {"documents": "only sft can do without"}
_OF_CLASSIFYING = {"classify": "only the objective classify reads it"}
_OF_PACKING = {
    "replay": "only sft and pretrain replay",
    "attention": "only sft and pretrain choose it",
    "parallel": "several processes train sft and pretrain alone",
}
_BY_TRL = (
    _OF_RETRIEVAL
    | _OF_PRETRAINING
    | _OF_SFT
    | _OF_PACKING
    | _OF_CLASSIFYING
    | {
        "pack_unrelated": "only sft, pretrain and classify pack sequences",
        "token_weights": "only sft reads them",
        "share_prefixes": "only sft packs context groups",
        "retry_out_of_memory": "only sft and pretrain run sequences in pieces",
        "optim.groups_per_step": "preference.batch_size counts what makes a step",
    }
)
_WITHOUT_EFFECT: dict[str, dict[str, str]] = {
    "sft": {**_OF_RETRIEVAL, **_OF_PREFERENCE, **_OF_PRETRAINING, **_OF_CLASSIFYING},
    "pretrain": {
        **_OF_RETRIEVAL,
        **_OF_PREFERENCE,
        **_OF_CLASSIFYING,
        **_OF_SFT,
        "watch.samples": "documents ask nothing",
        "share_prefixes": "documents share none",
        "token_weights": "all tokens count alike",
    },
    "classify": {
        **_OF_RETRIEVAL,
        **_OF_PREFERENCE,
        **_OF_PRETRAINING,
        **_OF_SFT,
        **_OF_PACKING,
        "liger": "no language model is tuned",
        "token_weights": "no answer is written",
        "watch.samples": "no answer is written",
    },
    **dict.fromkeys(PREFERENCE_OBJECTIVES, _BY_TRL),
    "reward": _BY_TRL | {"watch.samples": "no answer is written"},
    **dict.fromkeys(("grpo", "rloo"), _BY_TRL | {"watch.explode_factor": "what they log as a loss measures nothing"}),
    "encoder": _NO_PACKING | _OF_PACKING,
    "reranker": _NO_PACKING
    | _OF_PACKING
    | dict.fromkeys(
        (f"retrieval.{name}" for name in ("temperature", "texts_at_once", "tuned_share", "query_prompt",
                                          "document_prompt")),
        "it belongs to encoder",
    ),
}  # fmt: skip
_OF_METHODS: dict[str, tuple[str, ...]] = {
    "lora": ("lora", "qlora", "rslora", "dora"),
    "ia3": ("ia3",),
    "soft_prompt": SOFT,
    "soft_prompt.encoder_hidden": ("p_tuning",),
    "layers": ("freeze", "unfreeze"),
    "layers.one_more_every_steps": ("unfreeze",),
}  # what some methods read, and no other does


def idle_settings(objective: str, method: str) -> dict[str, str]:
    """The settings, and whole tables of them, that a training by this objective and method never reads, each with the
    reason."""
    return of_other_methods(method) | _WITHOUT_EFFECT.get(objective, {})


def of_other_methods(method: str) -> dict[str, str]:
    """The settings and tables that belong to other methods, each with the reason."""
    others = {name: methods for name, methods in _OF_METHODS.items() if method not in methods}
    return {name: f"it belongs to {', '.join(methods)}" for name, methods in others.items()}


class RejectedRecipe(Recipe):
    """How often each kind of rejected answer is drawn, against the others that an example allows; 0: never. How each
    is made: raft/training/preferences.py."""

    distractor: float = Field(
        1.0, ge=0, description="answers from a document that does not hold the answer, quoting it"
    )
    invented_quote: float = Field(0.5, ge=0, description="another answer, with a quote that stands nowhere")
    refusal: float = Field(0.5, ge=0, description="refuses although the documents hold the answer")
    invented: float = Field(1.0, ge=0, description="answers although they do not, where the dataset refuses")


class RewardWeights(Recipe):
    """What a reply earns for each reward, from 0 to its weight (raft/training/rewards.py); 0: the reward is off."""

    format: float = Field(0.2, ge=0, description="the reply has the form that is read without guessing")
    answer: float = Field(1.0, ge=0, description="its answer is right (yes or no, numbers, labels: exact; others: F1)")
    quote: float = Field(0.3, ge=0, description="share of its quotes that stand verbatim in the document they name")
    oracle: float = Field(0.3, ge=0, description="share of its quotes that come from a document with the answer")
    abstention: float = Field(0.4, ge=0, description="it refuses where it has to, and nowhere else")
    model: float = Field(1.0, ge=0, description="score of preference.reward_model, where that is set")


class PreferenceTuningRecipe(Recipe):
    """What the objectives dpo, kto, orpo, reward, grpo and rloo add to the training settings."""

    batch_size: int = Field(8, ge=1, description="pairs (grpo, rloo: prompts) whose gradients make one optimizer step")
    pairs_at_once: int = Field(
        2, ge=1, description="kto (at least 2), reward: pairs whose activations are held at once; divides batch_size"
    )
    pairs: Path | None = Field(
        None, description="JSON lines of question, documents, chosen, rejected, in place of pairs made by rules"
    )
    pairs_per_example: int = Field(1, ge=1, le=4, description="rejected answers of each example, of different kinds")
    rejected: RejectedRecipe = RejectedRecipe()
    beta: float = Field(
        0.1, gt=0, description="dpo, kto: how far to stay near the untuned model, higher is nearer; orpo: odds' weight"
    )
    loss: Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "sigmoid_norm"] = Field(
        "sigmoid", description="dpo: the loss, by TRL's names"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="dpo, loss robust: share of pairs taken as swapped")
    sft_weight: float = Field(0.0, ge=0, description="dpo: weight of the chosen answers' own loss (nats a token)")
    desirable_weight: float = Field(1.0, ge=0, description="kto: weight of chosen answers")
    undesirable_weight: float = Field(1.0, ge=0, description="kto: weight of rejected answers")
    center: float = Field(0.0, ge=0, description="reward: pull of a pair's two scores towards a sum of 0")
    generations: int = Field(4, ge=2, description="grpo, rloo: replies to each prompt, compared with one another")
    max_new_tokens: int = Field(160, ge=1, description="grpo, rloo: longest reply, in tokens")
    temperature: float = Field(1.0, gt=0, description="grpo, rloo: of the replies drawn")
    kl: float = Field(
        0.04, ge=0, description="grpo, rloo: price of leaving the untuned model (full, freeze: holds a second copy; 0: "
        "none)"
    )  # fmt: skip
    group_loss: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = Field(
        "grpo", description="grpo: how tokens of longer and shorter replies are weighed, by TRL's names"
    )
    rewards: RewardWeights = RewardWeights()
    reward_model: Path | None = Field(None, description="grpo, rloo: artefact of objective reward that scores too")

    @model_validator(mode="after")
    def _fits_together(self) -> PreferenceTuningRecipe:
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"label_smoothing belongs to loss robust, not {self.loss}")
        if self.pairs is None and not any(self.rejected.model_dump().values()):
            raise ValueError("every kind in preference.rejected is 0: no pair can be made")
        learned = self.reward_model is not None and self.rewards.model
        if not learned and not any(self.rewards.model_dump(exclude={"model"}).values()):
            raise ValueError("every weight in preference.rewards is 0: nothing is paid for")
        return self


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
        reasons = _WITHOUT_EFFECT[self.objective].items()
        ignored = [f"{key} ({why})" for key, why in reasons if attrgetter(key)(self) != attrgetter(key)(defaults)]
        if ignored:
            raise ValueError(f"objective {self.objective} has no use for {', '.join(ignored)}")
        if ignored := [f"{name} ({why})" for name, why in _changed(self, of_other_methods(self.method)).items()]:
            raise ValueError(f"method {self.method} has no use for {', '.join(ignored)}")
        return self


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
            found.append((name, TrainRecipe.model_validate(_merged(inherited, own))))
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


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both tables as one; where they differ, the one above holds."""
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = _merged(below[key], above[key])
    return both
