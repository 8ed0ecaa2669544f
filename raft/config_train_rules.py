"""Which settings of raft train go together: objectives by methods, and what each of them never reads."""

from __future__ import annotations

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
WITHOUT_EFFECT: dict[str, dict[str, str]] = {
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
    return of_other_methods(method) | WITHOUT_EFFECT.get(objective, {})


def of_other_methods(method: str) -> dict[str, str]:
    """The settings and tables that belong to other methods, each with the reason."""
    others = {name: methods for name, methods in _OF_METHODS.items() if method not in methods}
    return {name: f"it belongs to {', '.join(methods)}" for name, methods in others.items()}
