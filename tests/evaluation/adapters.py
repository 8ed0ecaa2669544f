"""Adapters of a small real model, as raft train leaves them, that answer otherwise than their base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raft.artifacts import write_json, writing
from raft.models import load_language_model, model_fingerprint
from raft.records import QaItem, question_key


def make_adapter(folder: Path, base: Path, *, seed: int = 0, learned: tuple[QaItem, ...] = (), **facts: Any) -> Path:
    """``learned`` are the questions that its seen.json names, ``facts`` what its manifest says besides."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    tuned = get_peft_model(load_language_model(base, "float32"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.5)
    with writing(folder, "adapter", {}, {}) as draft:
        tuned.save_pretrained(str(draft.folder / "adapter"))
        seen = {
            "questions": sorted(question_key(item.question) for item in learned),
            "documents": sorted({name for item in learned for name in item.gold_document_ids}),
        }
        write_json(draft.folder / "seen.json", seen)
        draft.facts = {
            "base_fingerprint": model_fingerprint(base), "base_model": str(base), "method": "lora", "labels": [],
        } | facts  # fmt: skip
    return folder
