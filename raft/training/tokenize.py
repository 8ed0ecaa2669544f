"""RAFT examples -> token ids, exactly as inference will see them.

A row of a dataset's ``train.jsonl`` names its chunks; the prompt is the same ``prompts.build_messages`` that
evaluation and serving use, and the loss counts on the target alone::

    prompt  <|im_start|>system ... Document [1] ... Document [2] ... Question: ...<|im_end|><|im_start|>assistant
    target  Document [2] says ##begin_quote##...##end_quote## ... <ANSWER>: 12 mg<|im_end|>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from raft.config_train_parts import TokenWeightsRecipe
from raft.errors import InputError
from raft.models import prompt_ids, target_ids
from raft.prompts import ANSWER_MARK, build_messages, is_refusal, quote_spans, render_target
from raft.records import Chunk, RaftExample, chunk_from_row, example_from_row
from raft.rows import read_rows

EVEN = TokenWeightsRecipe()  # type: ignore[call-arg]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One example as ids; ``target`` ends with the end-of-turn token. ``weights`` [len(target)] say how much each of
    its tokens counts in the loss, 1 on average; None: all the same."""

    id: str
    prompt: list[int]
    target: list[int]
    weights: list[float] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def tokenize_example(
    tokenizer: Any,
    example: RaftExample,
    chunks: Mapping[str, Chunk],
    weights: TokenWeightsRecipe = EVEN,
    documents: bool = True,
) -> Tokenized:
    """The example's ids; without ``documents`` those of its question asked closed-book and of its answer alone (DSF,
    the baseline of the paper's section 4). Raises InputError when the dataset lacks a chunk that the example names."""
    if not documents:
        messages = build_messages(example.question, None)
        return Tokenized(
            example.id, prompt_ids(tokenizer, messages), target_ids(tokenizer, render_target(example.answer))
        )
    try:
        context = [chunks[chunk_id] for chunk_id in example.context]
    except KeyError as missing:
        raise InputError(f"example {example.id} names chunk {missing}, which chunks.jsonl lacks") from None
    messages = build_messages(example.question, context)
    target = target_ids(tokenizer, example.target)
    weighed = None if weights == EVEN else token_weights(tokenizer, example.target, target, weights)
    return Tokenized(example.id, prompt_ids(tokenizer, messages), target, weighed)


def token_weights(tokenizer: Any, text: str, target: Sequence[int], weights: TokenWeightsRecipe) -> list[float]:
    """How much each token of a target counts, 1 on average: what stands in its quotes, and its final answer with the
    end of turn behind it, by ``weights``, all else alike. A target whose words had to be broken up counts evenly."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if [*encoded["input_ids"], tokenizer.eos_token_id] != list(target):
        return [1.0] * len(target)
    answer_at = text.rfind(ANSWER_MARK) + len(ANSWER_MARK)
    marked = [(start, end, weights.quote) for start, end in quote_spans(text)]
    marked.append((answer_at, len(text), weights.answer))

    def weight(start: int, end: int) -> float:
        return next((own for first, last, own in marked if start < last and end > first), 1.0)

    found = [*(weight(start, end) for start, end in encoded["offset_mapping"]), weights.answer]
    return [each * len(found) / sum(found) for each in found]


def read_groups(dataset: Path, split: str) -> dict[int, list[list[RaftExample]]]:
    """Draw -> context groups of that draw, in file order. Empty when the dataset has no such split."""
    path = dataset / f"{split}.jsonl"
    if not path.exists():
        return {}
    draws: dict[int, list[list[RaftExample]]] = {}
    examples = map(example_from_row, read_rows(path))
    for (draw, _), group in groupby(examples, key=lambda example: (example.draw, example.group)):
        draws.setdefault(draw, []).append(list(group))
    return draws


def read_chunks(dataset: Path) -> dict[str, Chunk]:
    """Every chunk the dataset's examples name, by id."""
    return {row["id"]: chunk_from_row(row) for row in read_rows(dataset / "chunks.jsonl")}


def tokenize_groups(
    tokenizer: Any,
    groups: Sequence[Sequence[RaftExample]],
    chunks: Mapping[str, Chunk],
    weights: TokenWeightsRecipe = EVEN,
    documents: bool = True,
) -> list[list[Tokenized]]:
    """Each group's examples as ids, groups kept. Without ``documents`` those are left out that are refused for want of
    a document: there is nothing to refuse then."""
    return [
        [
            tokenize_example(tokenizer, example, chunks, weights, documents)
            for example in group
            if documents or example.answer_type == "unanswerable" or not is_refusal(example.answer)
        ]
        for group in groups
    ]
