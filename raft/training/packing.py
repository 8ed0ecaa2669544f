"""Prefix-shared packing: questions over the same documents become one sequence, the documents once.

    examples   [docs q1 a1] [docs q2 a2]                       three times "docs" saved for every further question
    packed     docs q1 a1 q2 a2
    position   0..  d.. ..  d.. ..                             each branch goes on where the documents end
    branch     0 0  1  1    2  2
    mask       a token sees what stands before it in branch 0 and in its own branch, never a sibling

Loss and gradients equal those of the separate examples (tests/training/test_packing.py holds them together).
The language-model head runs at answer positions alone (``keep``): prompts are 5 to 20 times longer than answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raft.models import common_prefix_length
from raft.training.tokenize import Tokenized


@dataclass(frozen=True, slots=True)
class Packed:
    """One sequence of T tokens with N answer tokens. Position ``keep[i]`` predicts ``labels[i]``, which counts
    ``weights[i]`` in the loss (None: 1)."""

    tokens: list[int]  # [T]
    positions: list[int]  # [T]
    branches: list[int]  # [T], 0 is the shared prefix
    keep: list[int]  # [N]
    labels: list[int]  # [N]
    weights: list[float] | None = None  # [N]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def segments(self) -> tuple[int, ...]:
        """Tokens of the shared prefix (0 if there is none), then of each branch."""
        return tuple(self.branches.count(branch) for branch in range(max(self.branches) + 1))


def pack(examples: Sequence[Tokenized]) -> Packed:
    """The examples as one sequence behind their longest common prompt prefix."""
    prompts = [example.prompt for example in examples]
    # Every prompt keeps at least its last token for itself: it predicts the first token of the answer.
    shared = 0 if len(examples) == 1 else min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
    tokens = examples[0].prompt[:shared]
    positions, branches = list(range(shared)), [0] * shared
    keep: list[int] = []
    labels: list[int] = []
    for branch, example in enumerate(examples, 1):
        rest = example.prompt[shared:]
        first = len(tokens) + len(rest) - 1  # the last prompt token predicts the first answer token
        body = rest + example.target[:-1]  # the last answer token is predicted, never read
        tokens = tokens + body
        positions += range(shared, shared + len(body))
        branches += [branch] * len(body)
        keep += range(first, first + len(example.target))
        labels += example.target
    weights = [weight for example in examples for weight in example.weights or [1.0] * len(example.target)]
    weighted = any(example.weights is not None for example in examples)
    return Packed(tokens, positions, branches, keep, labels, weights if weighted else None)


def pack_group(examples: Sequence[Tokenized], max_tokens: int, share_prefixes: bool = True) -> Iterator[Packed]:
    """The group in as few sequences of at most ``max_tokens`` as its order allows. An example that is longer on
    its own is left out; the caller counts those with ``fits``."""
    fitting = [example for example in examples if fits(example, max_tokens)]
    pending: list[Tokenized] = []
    for example in fitting:
        if pending and (not share_prefixes or len(pack([*pending, example])) > max_tokens):
            yield pack(pending)
            pending = []
        pending.append(example)
    if pending:
        yield pack(pending)


def fits(example: Tokenized, max_tokens: int) -> bool:
    """Whether the example alone stays within ``max_tokens``."""
    return len(example) - 1 <= max_tokens


def to_batch(packed: Packed) -> dict[str, Any]:
    """The tensors of one sequence, with a batch dimension of 1, and the lengths of its segments."""
    import torch

    labels = torch.tensor([packed.labels])  # [1, N]
    return {
        "input_ids": torch.tensor([packed.tokens]),  # [1, T]
        "position_ids": torch.tensor([packed.positions]),  # [1, T]
        "segments": packed.segments,
        "logits_to_keep": torch.tensor(packed.keep),  # [N]
        "labels": labels,
        "shift_labels": labels,  # tells the trainer that labels are aligned already, so that it counts them all
        **({} if packed.weights is None else {"weights": torch.tensor(packed.weights)}),  # [N]
    }
