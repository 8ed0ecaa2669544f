"""Rows that join others on the way, and what they find of earlier prompts: always what transformers' own generate
writes for one request alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from raft.errors import ModelError
from raft.llm.decode import Decoding, Row
from raft.llm.local_streams import Streams
from raft.llm.prefixes import Prefixes

SIZE = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.5, "eos_token_id": None,
    "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
END = 7
DOCUMENTS = [list(range(20 + n, 190, 3)) for n in range(3)]
PROMPTS = [[*DOCUMENTS[n % 3], *range(100 + n, 100 + 2 * n)] for n in range(9)]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZE)).eval()


def alone(model: torch.nn.Module, prompt: Sequence[int], max_tokens: int) -> list[int]:
    ids = torch.tensor([list(prompt)])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, eos_token_id=END
    )
    tokens = made[0, ids.shape[1] :].tolist()
    return tokens[: tokens.index(END)] if END in tokens else tokens


def streams(model: torch.nn.Module, batch_tokens: int = 32768, cache_mb: int = 10) -> Streams:
    return Streams(
        model, frozenset({END}), threading.Lock(), most_rows=64, batch_tokens=batch_tokens, cache_mb=cache_mb
    )


def heard(from_model: Streams, row: Row) -> list[int]:
    return [token for token in from_model.tokens(row) if token is not None]


def rows(max_tokens: int = 12) -> list[Row]:
    return [Row(n, prompt, max_tokens - n % 4) for n, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("reuse", [True, False])
def test_who_joins_writes_what_it_writes_alone(model: LlamaForCausalLM, every: int, reuse: bool) -> None:
    decoding, waiting = Decoding(model, frozenset({END})), rows()
    asked, kept = list(waiting), Prefixes(10**7) if reuse else None
    written: dict[int, list[int]] = {row.index: [] for row in asked}
    for step in range(200):
        while waiting and (every == 0 or step % every == 0):
            decoding.join([waiting.pop(0)], kept)
            if every:
                break
        for row, token in decoding.step():
            written[row.index].append(token)
        if not waiting and all(row.done for row in asked):
            break
    assert written == {row.index: alone(model, row.prompt, row.max_tokens) for row in asked}
    assert [row.cached > 40 for row in asked] == [reuse and n > 2 for n in range(len(asked))]


def test_who_leaves_makes_room(model: LlamaForCausalLM) -> None:
    """Without that, a batch that others join for ever would grow for ever."""
    decoding = Decoding(model, frozenset())
    decoding.join([Row(0, PROMPTS[0] * 4, 3)])
    for number in range(1, 40):
        decoding.join([Row(number, [number, 2, 3], 4)])
        decoding.step()
    assert decoding._state is not None
    assert decoding._state.mask.shape[1] <= 3 + 4
    assert decoding._state.cache.get_seq_length() == decoding._state.mask.shape[1]


@pytest.mark.parametrize("batch_tokens", [32768, 100])
def test_streams_of_many_threads_are_those_of_each_alone(model: LlamaForCausalLM, batch_tokens: int) -> None:
    from_model = streams(model, batch_tokens)
    asked = rows()
    with ThreadPoolExecutor(len(asked)) as threads:
        found = list(threads.map(lambda row: heard(from_model, row), asked))
    assert found == [alone(model, row.prompt, row.max_tokens) for row in asked]
    assert from_model._running == []


def test_sampling_is_seeded_by_request_and_not_by_company(model: LlamaForCausalLM) -> None:
    def sampled(company: int) -> list[int]:
        from_model, row = streams(model), Row(0, PROMPTS[4], 8, temperature=1.5, seed=3)
        others = [Row(1 + n, PROMPTS[n], 8, temperature=1.0, seed=n) for n in range(company)]
        with ThreadPoolExecutor(1 + company) as threads:
            return list(threads.map(lambda one: heard(from_model, one), [*others, row]))[-1]

    assert sampled(0) == sampled(3)


def test_who_stops_listening_is_not_decoded_any_more(model: LlamaForCausalLM) -> None:
    from_model = streams(model)
    row = Row(0, PROMPTS[0], 400)
    stream = from_model.tokens(row)
    while next(stream) is None:
        pass
    stream.close()
    assert heard(from_model, Row(1, PROMPTS[1], 5)) == alone(model, PROMPTS[1], 5)
    assert row.length < 400
    assert row.done


def test_a_model_that_fails_is_an_error_for_all_who_wait_and_the_next_is_answered(model: LlamaForCausalLM) -> None:
    from_model = streams(model)
    first = from_model.tokens(Row(0, PROMPTS[0], 400))
    while next(first) is None:
        pass
    with pytest.raises(ModelError, match="the model failed"):
        heard(from_model, Row(1, [5, 10**6], 4))  # a token that the model does not have
    with pytest.raises(ModelError, match="the model failed"):
        list(first)
    assert heard(from_model, Row(2, PROMPTS[2], 6)) == alone(model, PROMPTS[2], 6)


def test_a_failure_before_the_first_step_is_an_error_too_and_the_next_is_answered(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_model = streams(model)
    with monkeypatch.context() as broken:
        broken.setattr(Decoding, "__init__", lambda *_: torch.empty(-1))
        with pytest.raises(ModelError, match="the model failed"):
            list(itertools.islice(from_model.tokens(Row(0, PROMPTS[0], 4)), 20))
    assert heard(from_model, Row(1, PROMPTS[1], 4)) == alone(model, PROMPTS[1], 4)


def test_layers_that_keep_a_window_alone_are_neither_joined_nor_used_again() -> None:
    torch.manual_seed(0)
    sliding = MistralForCausalLM(MistralConfig(**SIZE, sliding_window=16)).eval()
    from_model, asked = streams(sliding), rows()
    with ThreadPoolExecutor(len(asked)) as threads:
        found = list(threads.map(lambda row: heard(from_model, row), asked))
    assert found == [alone(sliding, row.prompt, row.max_tokens) for row in asked]
    assert not any(row.cached for row in asked)


def test_a_soft_prompt_stands_before_every_row(model: LlamaForCausalLM) -> None:
    """As ids of the model's own in front of the prompt, whose keys and values it has instead."""
    ids = [11, 12, 13, 14]
    soft = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids]), past_key_values=soft, use_cache=True)
    model.soft_prefix = soft
    try:
        from_model, asked = streams(model), rows()
        with ThreadPoolExecutor(len(asked)) as threads:
            found = list(threads.map(lambda row: heard(from_model, row), asked))
    finally:
        del model.soft_prefix
    assert found == [alone(model, [*ids, *row.prompt], row.max_tokens) for row in asked]
    assert not any(row.cached for row in asked)
