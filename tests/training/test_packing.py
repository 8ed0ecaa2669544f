"""Prefix-shared packing against separate examples: same labels, same loss, same gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from raft.config import load_recipe
from raft.config_train import TrainRecipe
from raft.config_train_parts import TokenWeightsRecipe
from raft.config_train_rules import SOFT
from raft.models import load_language_model, target_ids
from raft.training.attention import NAME, forward, use_packed_attention
from raft.training.packing import Packed, fits, merge, pack, pack_group, split_packed, to_batch, unmerge
from raft.training.plan import merge_steps
from raft.training.student import load_student
from raft.training.tokenize import Tokenized, token_weights

ids = st.integers(3, 400)


@st.composite
def groups(draw: st.DrawFn) -> list[Tokenized]:
    prefix = draw(st.lists(ids, max_size=12))
    branches = draw(
        st.lists(
            st.tuples(st.lists(ids, min_size=1, max_size=6), st.lists(ids, min_size=1, max_size=5)),
            min_size=1,
            max_size=4,
        )
    )
    return [Tokenized(str(n), prefix + rest, target) for n, (rest, target) in enumerate(branches)]


def separate_loss(model, examples: list[Tokenized]) -> torch.Tensor:
    """The slow obvious way: one forward pass an example, all logits, shifted labels."""
    total, count = torch.tensor(0.0), 0
    for example in examples:
        tokens = torch.tensor([example.prompt + example.target])
        logits = model(input_ids=tokens).logits[0, len(example.prompt) - 1 : -1]
        total = total + cross_entropy(logits, torch.tensor(example.target), reduction="sum")
        count += len(example.target)
    return total / count


def packed_loss(model, examples: list[Tokenized]) -> torch.Tensor:
    return loss_of_sequence(model, pack(examples))


def loss_of_sequence(model, sequence: Packed) -> torch.Tensor:
    batch = to_batch(sequence)
    return cross_entropy(forward(model, batch).logits[0], batch["labels"][0])


@given(groups())
@settings(max_examples=200, deadline=None)
def test_every_branch_reads_as_its_own_example(examples: list[Tokenized]) -> None:
    packed = pack(examples)
    for branch, example in enumerate(examples, 1):
        seen = [t for t, b in zip(packed.tokens, packed.branches, strict=True) if b in (0, branch)]
        where = [p for p, b in zip(packed.positions, packed.branches, strict=True) if b in (0, branch)]
        assert seen == (example.prompt + example.target)[:-1]
        assert where == list(range(len(seen)))
    assert packed.labels == [token for example in examples for token in example.target]
    assert len(packed.keep) == len(packed.labels)
    assert len(packed) <= sum(map(len, examples))


@pytest.fixture(scope="module", params=["packed", "dense"])
def tiny(request, tiny_folder):
    model = load_language_model(tiny_folder, "float32").train()
    if request.param == "packed":
        use_packed_attention(model)
        assert model.config._attn_implementation == NAME
    return model


def assert_same_loss_and_gradients(model, loss_of_one: Callable, loss_of_other: Callable) -> None:
    gradients = []
    losses = []
    for loss_of in (loss_of_one, loss_of_other):
        model.zero_grad()
        loss = loss_of(model)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[0].norm()


@given(examples=groups())
@settings(max_examples=40, deadline=None)
def test_loss_and_gradients_equal_those_of_separate_examples(tiny, examples: list[Tokenized]) -> None:
    assert_same_loss_and_gradients(
        tiny, lambda model: separate_loss(model, examples), lambda model: packed_loss(model, examples)
    )


@given(several=st.lists(groups(), min_size=2, max_size=4))
@settings(max_examples=12, deadline=None)
def test_merged_groups_have_the_loss_and_gradients_of_separate_examples(tiny, several: list[list[Tokenized]]) -> None:
    every = [example for group in several for example in group]
    merged = merge([pack(group) for group in several])
    assert len(merged) == sum(len(pack(group)) for group in several)
    assert_same_loss_and_gradients(
        tiny, lambda model: separate_loss(model, every), lambda model: loss_of_sequence(model, merged)
    )


@pytest.mark.parametrize("method", SOFT)
def test_merged_groups_behind_a_soft_prompt_are_those_that_were_merged(method: str, tiny_folder) -> None:
    torch.manual_seed(1)
    settings = [f"method={method}", "soft_prompt.tokens=4", "precision=float32"]
    settings += ["soft_prompt.encoder_hidden=16"] if method == "p_tuning" else []
    model = load_student(load_recipe(TrainRecipe, None, settings, model=str(tiny_folder)), tiny_folder).train()
    several = [
        [Tokenized("a", [5, 6, 7, 8], [9, 10]), Tokenized("b", [5, 6, 11], [12])],
        [Tokenized("c", [20, 21, 22], [23, 24, 25])],
        [Tokenized("d", [30, 31], [32]), Tokenized("e", [30, 33], [34, 35])],
    ]
    packs = [pack(group) for group in several]
    count = sum(len(sequence.labels) for sequence in packs)
    assert_same_loss_and_gradients(
        model,
        lambda model: sum(loss_of_sequence(model, each) * len(each.labels) for each in packs) / count,
        lambda model: loss_of_sequence(model, merge(packs)),
    )


@given(several=st.lists(groups(), min_size=1, max_size=4), max_tokens=st.integers(8, 60))
@settings(max_examples=60, deadline=None)
def test_what_was_merged_can_be_taken_apart(several: list[list[Tokenized]], max_tokens: int) -> None:
    packs = [pack(group) for group in several]
    merged = merge(packs)
    apart = unmerge(merged)
    assert [(p.tokens, p.positions, p.branches, p.keep, p.labels) for p in apart] == [
        (p.tokens, p.positions, p.branches, p.keep, p.labels) for p in packs
    ]
    pieces = split_packed(merged, max_tokens)
    assert [label for piece in pieces for label in piece.labels] == merged.labels
    longest = max(len(example) - 1 for group in several for example in group)
    assert all(len(piece) <= max(max_tokens, longest) for piece in pieces)


def test_a_step_is_merged_into_as_few_sequences_as_every_step_can_do_with() -> None:
    lengths = [10, 40, 30, 20, 50, 10, 20, 10, 60]  # steps of 4, the last one short
    schedule = [pack([Tokenized(str(n), [n] * length, [n])]) for n, length in enumerate(lengths)]
    merged, per_step = merge_steps(schedule, 4, max_tokens=60)
    assert per_step == 2
    assert [[int(name) for name in sequence.ids] for sequence in merged] == [[0, 1], [2, 3], [4], [5, 6, 7], [8]]
    assert all(len(sequence) <= 60 for sequence in merged)
    full = schedule[:1] * 4 + schedule[1:2] * 4  # four of 10 tokens, then four of 40
    assert merge_steps(full, 4, max_tokens=79) == (full, 4)  # as many as the second step cannot do without
    assert merge_steps(full, 4, max_tokens=80)[1] == 2
    assert merge_steps(schedule, 1, max_tokens=500) == (schedule, 1)


def test_the_student_itself_agrees_with_separate_examples(student_folder, tokenizer) -> None:
    from raft.models import prompt_ids
    from raft.prompts import build_messages
    from raft.records import Chunk

    chunks = [
        Chunk("a", "a", "Adults start with 12 mg of Corvalexin.", 0, 38),
        Chunk("b", "b", "Children start with 4 mg.", 0, 25),
    ]
    examples = [
        Tokenized(q, prompt_ids(tokenizer, build_messages(q, chunks)), target_ids(tokenizer, a))
        for q, a in (("What do adults take?", "<ANSWER>: 12 mg"), ("What do children take?", "<ANSWER>: 4 mg"))
    ]
    model = load_language_model(student_folder, "float32").eval()
    use_packed_attention(model)
    with torch.no_grad():
        assert packed_loss(model, examples).item() == pytest.approx(separate_loss(model, examples).item(), abs=1e-5)
    assert len(pack(examples)) < 0.6 * sum(map(len, examples))


def test_a_group_is_divided_at_max_tokens_and_nothing_is_lost() -> None:
    examples = [Tokenized(str(i), list(range(100)) + [1000 + i] * 20, [7] * 10) for i in range(7)]
    packs = list(pack_group(examples, max_tokens=200))
    assert all(len(p) <= 200 for p in packs)
    assert sum(len(p.labels) for p in packs) == 70
    assert len(packs) < 7
    assert len(list(pack_group(examples, 200, share_prefixes=False))) == 7


def test_an_example_longer_than_max_tokens_is_left_out() -> None:
    long = Tokenized("long", list(range(300)), [7])
    assert not fits(long, 200)
    assert list(pack_group([long], 200)) == []


def test_quotes_and_answers_weigh_what_is_asked_and_an_example_as_much_as_any(tokenizer) -> None:
    text = "Document [1] says ##begin_quote##The door is red.##end_quote## So it is.\n<ANSWER>: red"
    ids = target_ids(tokenizer, text)
    weights = token_weights(tokenizer, text, ids, TokenWeightsRecipe(quote=2.0, answer=4.0))
    assert sum(weights) == pytest.approx(len(ids))
    plain = min(weights)
    heavy = [tokenizer.decode(t) for t, w in zip(ids, weights, strict=True) if w == pytest.approx(2 * plain)]
    final = [tokenizer.decode(t) for t, w in zip(ids, weights, strict=True) if w == pytest.approx(4 * plain)]
    assert "The door is red." in "".join(heavy)
    assert len("".join(heavy)) <= len("##The door is red.##")  # a token may reach over a quote's edge
    assert "".join(final).strip() == f"red{tokenizer.eos_token}"


def test_a_weighted_loss_is_the_sum_of_its_tokens_by_weight(tiny_folder) -> None:
    from raft.training.trainer import PackedTrainer

    model = load_language_model(tiny_folder, "float32")
    example = Tokenized("a", [5, 6, 7], [8, 9, 10], [0.5, 0.5, 2.0])
    logits = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:]
    each = cross_entropy(logits, torch.tensor([8, 9, 10]), reduction="none")
    loss = PackedTrainer.compute_loss(None, model, to_batch(pack([example])), num_items_in_batch=6)
    assert loss.item() == pytest.approx(((each * torch.tensor([0.5, 0.5, 2.0])).sum() / 6).item(), abs=1e-5)
    other = Tokenized("b", [5, 6, 7], [8, 9])
    assert pack([example, other]).weights == [0.5, 0.5, 2.0, 1.0, 1.0]
    assert pack([other]).weights is None
