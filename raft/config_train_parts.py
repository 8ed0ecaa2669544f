"""The parts of raft train's recipe: its tables, each checked by itself (config_train.py has the whole)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from raft.config import Fraction
from raft.recipe import Recipe

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
