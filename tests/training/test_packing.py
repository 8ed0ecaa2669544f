"""Prefix-shared packing against separate examples: same labels, same loss, same gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from raft.config_train import TokenWeightsRecipe
from raft.models import load_language_model, target_ids
from raft.training.attention import NAME, forward, use_packed_attention
from raft.training.packing import fits, pack, pack_group, to_batch
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
    batch = to_batch(pack(examples))
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


@given(examples=groups())
@settings(max_examples=40, deadline=None)
def test_loss_and_gradients_equal_those_of_separate_examples(tiny, examples: list[Tokenized]) -> None:
    gradients = []
    losses = []
    for loss_of in (separate_loss, packed_loss):
        tiny.zero_grad()
        loss = loss_of(tiny, examples)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in tiny.parameters()]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[0].norm()


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
