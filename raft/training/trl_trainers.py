"""TRL's trainers for rows laid out beforehand: in order, quiet, and resumable.

The two answers of a pair share their whole prompt: ``dpo`` and ``orpo`` compute them as branches behind one prefix
(packing.py), and hand TRL the log-probabilities it asks for; ``kto`` and ``reward`` take TRL's padded batches, ``grpo``
and ``rloo`` generate. What stands in a row is token ids made by raft.models, so that training sees the very prompts
that serving will send.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from raft.training.attention import forward
from raft.training.moved import load_moved, save_moved
from raft.training.packing import pack, to_batch
from raft.training.preference_rows import TokenPair
from raft.training.tokenize import Tokenized

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that its interface may change; the tests would show it
    from trl.experimental.orpo import ORPOConfig as ORPOConfig
    from trl.experimental.orpo import ORPOTrainer


class _Quiet:
    """Before one of TRL's trainers: rows as they are, checkpoints that hold what the optimizer moves and nothing else,
    no model card, and no word to anybody about what is trained here."""

    def _send_telemetry(self) -> None:
        """None."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trainer: Any = self
        save_moved(trainer, Path(output_dir or trainer.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        trainer: Any = self
        load_moved(trainer.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        trainer: Any = self
        self._load_from_checkpoint(trainer.state.best_model_checkpoint)


class _InOrder(_Quiet):
    """The same for trainers of pairs, whose rows are taken in the order given."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        trainer: Any = self
        return torch.utils.data.SequentialSampler(trainer.train_dataset)


class _NoReference(torch.nn.Module):
    """Stands where TRL wants a reference model that is never called: its log-probabilities are computed beforehand, by
    the model itself while it still is the reference. That needs no second copy, whatever the method changes."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def no_reference(config: Any) -> Any:
    """What a trainer is given in the place of a reference model."""
    return _NoReference(config)


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """What TRL's losses and figures ask of each token of some answers, each [answers, tokens], 0 where there is none.
    The language-model head runs at answers alone; TRL's own would, on a CPU, at every token of the prompts too."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor


def _score(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The four scores of ``labels`` [...] under ``logits`` [..., vocabulary]; gradients flow through the first."""
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(-1, labels[..., None])[..., 0]
    with torch.no_grad():
        return chosen, -(log_probs.exp() * log_probs).sum(-1), logits.mean(-1), logits.argmax(-1) == labels


def score_answers(model: Any, packed: dict[str, Any], lengths: Sequence[int]) -> AnswerScores:
    """The scores [2, M] of the two branches of a packed pair, of ``lengths`` tokens."""
    logits = forward(model, packed).logits[0].float()  # [N, vocabulary]
    scores = _score(logits, packed["labels"][0])
    return AnswerScores(*(pad_sequence(list(each.split(list(lengths))), batch_first=True) for each in scores))


def score_labels(
    model: Any, labels: torch.Tensor, temperature: float = 1.0, *, fused_lm_head: bool = True, **inputs: Any
) -> AnswerScores:
    """The scores [B, T - 1] of those of the ``labels`` [B, T] that are not -100, each predicted by the token before it;
    the head runs from the first of them in any row on. It takes what TRL gives its own fused head."""
    wanted = labels[:, 1:] != -100  # [B, T - 1]
    first = int(wanted.any(0).int().argmax())
    keep = torch.arange(first, wanted.shape[1], device=labels.device)
    logits = model(**inputs | {"use_cache": False}, logits_to_keep=keep).logits.float() / temperature
    scores = _score(logits, labels[:, 1 + first :].clamp(min=0))
    hidden = ~wanted[:, first:]
    return AnswerScores(*(pad(each.masked_fill(hidden, 0), (first, 0)) for each in scores))


class PackedPairs:
    """Collator of ``dpo`` and ``orpo``: one pair as one packed sequence. TRL reads lengths and masks off short rows
    that hold the last token of the prompt and the answers. ``reference`` has the summed log-probabilities of both
    answers by number of the pair."""

    def __init__(self, pairs: Sequence[TokenPair], filler: int) -> None:
        self._pairs = pairs
        self._filler = filler
        self.reference: dict[int, tuple[float, float]] = {}

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        number = rows[0]["row"]
        pair = self._pairs[number]
        answers = pair.chosen, pair.rejected
        both = pack([Tokenized(pair.id, pair.prompt, answer) for answer in answers])
        ids = [torch.tensor([pair.prompt[-1], *answer]) for answer in answers]
        ones = [torch.ones_like(row) for row in ids]
        mask = pad_sequence(ones, batch_first=True)  # [2, 1 + M]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self._filler),
            "attention_mask": mask,
            "completion_mask": torch.cat([torch.zeros_like(mask[:, :1]), mask[:, 1:]], dim=1),
            "packed": to_batch(both),
            "lengths": tuple(map(len, answers)),
        }
        if number in self.reference:
            for name, value in zip(("chosen", "rejected"), self.reference[number], strict=True):
                batch[f"ref_{name}_logps"] = torch.tensor([value])
        return batch


class PackedDPOTrainer(_InOrder, DPOTrainer):
    """TRL's DPOTrainer (Rafailov et al. 2023, arXiv 2305.18290, equation 7) over packed pairs."""

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The dataset, once the collator knows the log-probabilities of the model as it is before its first step."""
        model: Any = self.model
        collator: Any = self.data_collator
        model.eval()
        with torch.no_grad():
            for number in sorted(set(dataset["row"]) - set(collator.reference)):
                batch: Any = self._prepare_inputs(collator([{"row": number}]))
                sums = score_answers(model, batch["packed"], batch["lengths"]).log_probs.sum(1)
                collator.reference[number] = (sums[0].item(), sums[1].item())
        return dataset

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        def scores(**_: Any) -> AnswerScores:  # of the packed pair, whatever TRL would have given the model
            return score_answers(model, inputs["packed"], inputs["lengths"])

        return super()._compute_loss(scores, inputs, return_outputs)


class PackedORPOTrainer(_InOrder, ORPOTrainer):
    """TRL's ORPOTrainer (Hong et al. 2024, arXiv 2403.07691, equation 6) over packed pairs. Its likelihood is that of
    the chosen answer alone, as in the paper: TRL's own counts the prompt too, here mostly documents."""

    @staticmethod
    def tokenize_row(feature: Any, model: Any = None) -> Any:
        return feature

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        scores = score_answers(model, batch["packed"], batch["lengths"])
        counts = torch.tensor(batch["lengths"], device=scores.log_probs.device)
        mean = scores.log_probs.sum(1) / counts
        return mean[:1], mean[1:], scores.mean_logits[:1], scores.mean_logits[1:], -mean[0]


class FromTable:
    """A collator that looks rows up by their number before TRL's own pads them."""

    def __init__(self, table: Sequence[dict[str, Any]], collator: Callable[[list[Any]], Any]) -> None:
        self.table = table
        self._collator = collator

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> Any:
        return self._collator([self.table[row["row"]] for row in rows])


class TableKTOTrainer(_InOrder, KTOTrainer):
    """TRL's KTOTrainer (Ethayarajh et al. 2024, arXiv 2402.01306, equation 7), its reference computed beforehand."""

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        model: Any = self.model
        collator: Any = self.data_collator
        model.eval()
        numbers = dataset["row"]
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            batch = self._prepare_inputs(collator([{"row": number} for number in part]))
            own, mismatched = self.compute_ref_log_probs(partial(score_labels, model), batch)
            for number, one, other in zip(part, own.tolist(), mismatched.tolist(), strict=True):
                collator.table[number].update(ref_logps=one, ref_KL_logps=other)
        return dataset

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return super()._compute_loss(partial(score_labels, model), inputs, return_outputs)


class TableRewardTrainer(_InOrder, RewardTrainer):
    """TRL's RewardTrainer: -log sigmoid(r(chosen) - r(rejected)) (Bradley and Terry 1952; Ouyang et al. 2022, arXiv
    2203.02155, equation 1)."""


class _GivenPrompts(_Quiet):
    """Before GRPOTrainer or RLOOTrainer: prompts are token ids already."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, batch_size: int | None = None,
        compute_entropy: bool = False, **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:  # fmt: skip
        """Log-probabilities, and entropies if asked for, of the last ``logits_to_keep`` tokens: [B, logits_to_keep]."""
        trainer: Any = self
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, :-logits_to_keep] = -100
        size = batch_size or len(input_ids)
        parts = [
            score_labels(model, label, trainer.temperature, input_ids=ids, attention_mask=mask)
            for ids, mask, label in zip(
                *(each.split(size) for each in (input_ids, attention_mask, labels)), strict=True
            )
        ]
        log_probs, entropy = (
            torch.cat([getattr(part, name) for part in parts])[:, -logits_to_keep:] for name in ("log_probs", "entropy")
        )
        return log_probs, entropy if compute_entropy else None, None


class GivenGRPOTrainer(_GivenPrompts, GRPOTrainer):
    """TRL's GRPOTrainer (Shao et al. 2024, arXiv 2402.03300, equation 3)."""


class GivenRLOOTrainer(_GivenPrompts, RLOOTrainer):
    """TRL's RLOOTrainer (Ahmadian et al. 2024, arXiv 2402.14740, section 3.3)."""
