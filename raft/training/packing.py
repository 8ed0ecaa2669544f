"""Prefix-shared packing: questions over the same documents become one sequence, the documents once.

    examples   [docs q1 a1] [docs q2 a2]                       three times "docs" saved for every further question
    packed     docs q1 a1 q2 a2
    position   0..  d.. ..  d.. ..                             each branch goes on where the documents end
    branch     0 0  1  1    2  2
    mask       a token sees what stands before it in branch 0 and in its own branch, never a sibling

Loss and gradients equal those of the separate examples (tests/training/test_packing.py holds them together). Several
such sequences can be merged into one: each keeps its own prefix (``parents``), and none sees another.
The language-model head runs at answer positions alone (``keep``): prompts are 5 to 20 times longer than answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
    ids: tuple[str, ...] = ()  # of the examples, or the documents, that it is made of
    parents: tuple[int, ...] | None = None  # what each segment goes on from, -1: nothing (None: all from the prefix)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def segments(self) -> tuple[int, ...]:
        """Tokens of the shared prefix (0 if there is none), then of each branch; of merged sequences one after the
        other."""
        counts = Counter(self.branches)
        return tuple(counts[branch] for branch in range(max(counts) + 1))


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
    ids = tuple(example.id for example in examples)
    return Packed(tokens, positions, branches, keep, labels, weights if weighted else None, ids)


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


def split_packed(packed: Packed, max_tokens: int) -> list[Packed]:
    """The sequence as pieces of at most ``max_tokens`` tokens: some of its branches each, behind a copy of the prefix.
    A branch that is longer than that with its prefix has a piece to itself. The pieces' labels are those of the whole
    in order; their losses and gradients, each divided by what the whole's are divided by, add up to its own."""
    if packed.parents is not None:
        pieces_of_all = [piece for part in unmerge(packed) for piece in split_packed(part, max_tokens)]
        return [merge(part) for part in _in_line(pieces_of_all, max_tokens)]
    prefix, *branches = packed.segments
    pieces: list[list[int]] = [[]]
    room = max_tokens - prefix
    for branch, length in enumerate(branches, 1):
        if pieces[-1] and length > room:
            pieces.append([])
            room = max_tokens - prefix
        pieces[-1].append(branch)
        room -= length
    return [packed] if len(pieces) == 1 else [_segments(packed, (0, *piece)) for piece in pieces]


def merge(sequences: Sequence[Packed]) -> Packed:
    """The sequences as one, in which none sees another: each keeps its own prefix, and positions begin anew."""
    if len(sequences) == 1:
        return sequences[0]
    tokens, positions, branches, keep, labels = (list[int]() for _ in range(5))
    parents: list[int] = []
    for each in sequences:
        count, first, start = len(each.segments), len(parents), len(tokens)
        tokens += each.tokens
        positions += each.positions
        branches += [first + branch for branch in each.branches]
        keep += [start + place for place in each.keep]
        labels += each.labels
        parents += [first + p if p >= 0 else p for p in each.parents or (-1, *[0] * (count - 1))]
    weights = [weight for each in sequences for weight in each.weights or [1.0] * len(each.labels)]
    weighted = any(each.weights is not None for each in sequences)
    ids = tuple(name for each in sequences for name in each.ids)
    return Packed(tokens, positions, branches, keep, labels, weights if weighted else None, ids, tuple(parents))


def unmerge(packed: Packed) -> list[Packed]:
    """The sequences that were merged, in order; each names the examples of all."""
    if packed.parents is None:
        return [packed]
    roots = [segment for segment, parent in enumerate(packed.parents) if parent < 0]
    return [_segments(packed, range(start, end)) for start, end in pairwise([*roots, len(packed.parents)])]


def _in_line(sequences: Sequence[Packed], max_tokens: int) -> list[list[Packed]]:
    """Neighbours together as long as they stay within ``max_tokens``."""
    found: list[list[Packed]] = []
    for each in sequences:
        if found and sum(map(len, found[-1])) + len(each) <= max_tokens:
            found[-1].append(each)
        else:
            found.append([each])
    return found


def _segments(packed: Packed, chosen: Sequence[int]) -> Packed:
    """The prefix, first of the chosen segments, and its branches among them."""
    number = {segment: new for new, segment in enumerate(chosen)}
    kept = [at for at, branch in enumerate(packed.branches) if branch in number]
    place = {at: new for new, at in enumerate(kept)}
    answers = [n for n, at in enumerate(packed.keep) if at in place]
    return replace(
        packed,
        tokens=[packed.tokens[at] for at in kept],
        positions=[packed.positions[at] for at in kept],
        branches=[number[packed.branches[at]] for at in kept],
        keep=[place[packed.keep[n]] for n in answers],
        labels=[packed.labels[n] for n in answers],
        weights=None if packed.weights is None else [packed.weights[n] for n in answers],
        parents=None,
    )


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
        **({} if packed.parents is None else {"parents": packed.parents}),
        "logits_to_keep": torch.tensor(packed.keep),  # [N]
        "labels": labels,
        "shift_labels": labels,  # tells the trainer that labels are aligned already, so that it counts them all
        **({} if packed.weights is None else {"weights": torch.tensor(packed.weights)}),  # [N]
    }
