"""A learned reward: the student with a head of one output on the last token of a reply.

    RewardModel.load(Path("runs/reward_models/mine")).scores([(question, documents, reply), ...])     [1.3, -0.2, ...]

The artefact holds what every tuned model does (``adapter/`` or ``model/``) and ``head.safetensors``, [1, width].
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raft.artifacts import open_artifact
from raft.config_train import TrainRecipe
from raft.errors import ArtifactError, ModelError
from raft.llm.local import resolve_base
from raft.models import Precision, load_language_model, load_tokenizer, model_fingerprint, prompt_ids, target_ids
from raft.prompts import build_messages
from raft.records import Chunk
from raft.training.student import save_student

KIND = "reward_model"
_HEAD = "head.safetensors"
_AT_ONCE = 8  # replies scored together


def with_reward_head(student: Any, pad_token_id: int) -> Any:
    """The sequence classifier of the student's architecture around the student's own layers, adapters included, with a
    new head of one output on the last token that is no padding, whichever token that is. Raises ModelError where
    transformers has none for it."""
    import torch
    from transformers import AutoModelForSequenceClassification

    inner = student.get_base_model() if hasattr(student, "peft_config") else student
    config = copy.deepcopy(inner.config)
    config.num_labels = 1
    config.get_text_config().pad_token_id = pad_token_id
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the layers come as they are
    try:
        with torch.device("meta"):
            ranker = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        ranker = None
    if not hasattr(ranker, "score"):
        raise ModelError(f"{type(inner).__name__} has no form with a reward head", "Take another base model")
    setattr(ranker, ranker.base_model_prefix, inner.base_model)
    embedded = inner.get_input_embeddings().weight
    ranker.score = torch.nn.Linear(embedded.shape[1], 1, bias=False, device=embedded.device, dtype=torch.float32)
    torch.nn.init.normal_(ranker.score.weight, std=1 / (embedded.shape[1] + 1) ** 0.5)  # Stiennon et al. 2020, app. B.1
    ranker.forward = partial(_scored, ranker)
    return ranker


def _scored(ranker: Any, input_ids: Any, attention_mask: Any = None, **inputs: Any) -> Any:
    """Scores [B, 1] of the rows of ``input_ids`` [B, T], in the head's float32: bfloat16 would lose its small steps.

    The place to score is read off the mask. transformers' own classifier takes the last token that is not the padding
    token, which, where models pad with the token that ends a turn, is the one before the end.
    """
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutputWithPast

    layers = getattr(ranker, ranker.base_model_prefix)
    hidden = layers(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state  # [B, T, width]
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)  # [B], wherever the padding stands
    rows = torch.arange(len(last), device=hidden.device)
    return SequenceClassifierOutputWithPast(logits=ranker.score(hidden[rows, last].float()))


def save_reward_model(ranker: Any, student: Any, base: Path, recipe: TrainRecipe, folder: Path) -> None:
    """Write the student's files and the head into an artefact's folder."""
    from safetensors.torch import save_file

    save_student(student, base, recipe, folder)
    save_file({"weight": ranker.score.weight.detach().contiguous()}, folder / _HEAD)


def load_tuned(folder: Path, facts: Mapping[str, Any], precision: Precision = "auto") -> tuple[Any, Any]:
    """(model, tokenizer) of an artefact with a head, that head left out. Raises ArtifactError when it was trained on
    another base, ModelError when its base cannot be loaded."""
    from peft import PeftModel

    base = resolve_base(facts["base_model"])
    if model_fingerprint(base) != facts["base_fingerprint"]:
        raise ArtifactError(
            f"{folder} was trained on another model than {facts['base_model']} is now", "Train it again"
        )
    tokenizer = load_tokenizer(base)
    if (folder / "model").is_dir():
        return load_language_model(folder / "model", precision), tokenizer
    plain = load_language_model(base, precision, four_bit=facts["method"] == "qlora")
    return PeftModel.from_pretrained(plain, str(folder / "adapter")), tokenizer


class RewardModel:
    """A trained reward model, ready to score replies."""

    def __init__(self, ranker: Any, tokenizer: Any) -> None:
        self._ranker = ranker
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, precision: Precision = "auto") -> RewardModel:
        """Raises ArtifactError when the artefact is missing, damaged or was trained on another base, ModelError when
        its base cannot be loaded."""
        from safetensors.torch import load_file

        model, tokenizer = load_tuned(folder, open_artifact(folder, KIND).facts, precision)
        ranker = with_reward_head(model, tokenizer.pad_token_id)
        ranker.score.load_state_dict(load_file(folder / _HEAD))
        return cls(ranker.eval(), tokenizer)

    def scores(self, replies: Sequence[tuple[str, Sequence[Chunk], str]]) -> list[float]:
        """One score for each (question, documents, reply), higher for better; only differences mean something."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [
            prompt_ids(self._tokenizer, build_messages(question, documents)) + target_ids(self._tokenizer, reply)
            for question, documents, reply in replies
        ]
        device, pad = self._ranker.score.weight.device, self._tokenizer.pad_token_id
        found: list[float] = []
        for start in range(0, len(rows), _AT_ONCE):
            part = [torch.tensor(row) for row in rows[start : start + _AT_ONCE]]
            ids = pad_sequence(part, batch_first=True, padding_value=pad).to(device)
            mask = pad_sequence([torch.ones_like(row) for row in part], batch_first=True).to(device)
            with torch.inference_mode():
                found += self._ranker(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].tolist()
        return found
