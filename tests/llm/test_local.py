"""The local model against transformers' own generate, and against itself in other batches."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import replace

import pytest
import torch

from raft.llm import decode
from raft.llm.chat import ChatReply, ChatRequest, PromptTooLong
from raft.llm.local import LocalModel, make_batches
from raft.models import common_prefix_length, load_language_model, prompt_ids
from raft.prompts import Message, build_messages
from raft.records import Chunk

DOCUMENTS = [
    Chunk(
        "a", "a", "Adults start with 12 mg of Corvalexin by mouth, twice a day, for seven days.", 0, 76, "Corvalexin"
    ),
    Chunk("b", "b", "Ward 7 opens at 6:30 and closes at 22:00. Visitors register at the desk.", 0, 72, "Visiting"),
]
QUESTIONS = ("What do adults start with?", "When does ward 7 close?", "Where do visitors register, and from when on?")


def requests(max_tokens: int = 24) -> list[ChatRequest]:
    asked = [ChatRequest(f"doc{n}", tuple(build_messages(q, DOCUMENTS)), max_tokens) for n, q in enumerate(QUESTIONS)]
    other = [ChatRequest("closed", tuple(build_messages("What is the capital of France?", None)), max_tokens)]
    return asked + other


@pytest.fixture(scope="module")
def student(student_folder, tokenizer) -> LocalModel:
    return LocalModel("student", load_language_model(student_folder, "float32").eval(), tokenizer)


@pytest.fixture(scope="module")
def expected(student: LocalModel) -> dict[str, str]:
    """transformers' generate, one request at a time."""
    texts = {}
    for request in requests():
        ids = torch.tensor([prompt_ids(student.tokenizer, request.messages)])
        with torch.no_grad():
            out = student.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        texts[request.key] = student.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip("\n ")
    return texts


@pytest.mark.parametrize(
    ("batch_tokens", "prefill_tokens"),
    [
        pytest.param(64, 1024, id="one request a batch"),
        pytest.param(8192, 1024, id="all prefilled at once, padded"),
        pytest.param(8192, 64, id="prefilled one by one, decoded together"),
    ],
)
def test_greedy_answers_equal_those_of_generate(
    student: LocalModel, expected: dict[str, str], batch_tokens: int, prefill_tokens: int, monkeypatch
) -> None:
    student._batch_tokens = batch_tokens
    monkeypatch.setattr(decode, "PREFILL_TOKENS", prefill_tokens)
    replies = {reply.key: reply for reply in student.complete(requests())}
    assert {key: reply.text for key, reply in replies.items()} == expected
    for request in requests():
        reply = replies[request.key]
        assert reply.prompt_tokens == len(prompt_ids(student.tokenizer, request.messages))
        assert 0 < reply.completion_tokens <= 24
        assert reply.truncated == (reply.completion_tokens == 24)


def test_a_shared_prefix_changes_nothing(student: LocalModel, expected: dict[str, str]) -> None:
    student._batch_tokens = 8192
    alike = requests()[:3]
    assert common_prefix_length([prompt_ids(student.tokenizer, r.messages) for r in alike]) > 100
    assert {r.key: r.text for r in student.complete(alike)} == {r.key: expected[r.key] for r in alike}


def test_rows_that_end_early_leave_and_the_others_are_not_disturbed(student: LocalModel, expected) -> None:
    student._batch_tokens = 8192
    lengths = {"doc0": 2, "doc1": 4, "doc2": 24, "closed": 24}
    mixed = [replace(request, max_tokens=lengths[request.key]) for request in requests()]
    replies = {reply.key: reply for reply in student.complete(mixed)}
    for key, text in expected.items():
        assert text.startswith(replies[key].text)
        assert replies[key].completion_tokens <= lengths[key]
    assert replies["doc2"].text == expected["doc2"]
    assert replies["closed"].text == expected["closed"]


def finished(stream: Generator[str, None, ChatReply]) -> tuple[list[str], ChatReply]:
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


def test_streamed_pieces_make_the_same_answer(student: LocalModel, expected: dict[str, str]) -> None:
    pieces, reply = finished(student.stream(requests()[1]))
    assert "".join(pieces) == expected["doc1"] == reply.text
    assert len(pieces) > 1
    assert reply.completion_tokens > 0


def test_a_stream_is_answered_while_a_batch_waits_for_its_caller(student: LocalModel, expected) -> None:
    student._batch_tokens = 8192
    replies = student.complete([replace(requests()[0], max_tokens=2), *requests()[1:3]])
    assert next(replies).key == "doc0"
    pieces = itertools.islice(student.stream(requests()[3]), 200)  # signs of life too: no answer ends the wait
    assert "".join(pieces) == expected["closed"]
    assert {reply.key: reply.text for reply in replies} == {key: expected[key] for key in ("doc1", "doc2")}


def test_a_question_over_documents_that_were_read_lately_is_answered_as_ever(student: LocalModel, expected) -> None:
    asked = [*requests(), requests()[0]]
    replies = [finished(student.stream(request))[1] for request in asked]
    assert [reply.text for reply in replies] == [expected[request.key] for request in asked]
    shared = common_prefix_length([prompt_ids(student.tokenizer, request.messages) for request in asked[:3]])
    assert shared > 100
    cached = [reply.cached_tokens >= shared for reply in replies]
    assert cached[1:] == [True, True, False, True]


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_log_probabilities_are_those_of_a_forward_over_the_whole_reply(
    student: LocalModel, expected: dict[str, str], temperature: float
) -> None:
    student._batch_tokens = 8192
    asked = [replace(r, logprobs=n != 2, temperature=temperature, seed=n) for n, r in enumerate(requests())]
    replies = {reply.key: reply for reply in student.complete(asked)}
    checked = 0
    for request in asked:
        reply = replies[request.key]
        if not request.logprobs:
            assert reply.logprobs is None
            continue
        assert reply.logprobs is not None
        assert "".join(piece for piece, _ in reply.logprobs) == reply.text
        assert len(reply.logprobs) == reply.completion_tokens
        assert all(logprob <= 0.0 for _, logprob in reply.logprobs)
        ids = student.tokenizer(reply.text, add_special_tokens=False).input_ids
        if [student.tokenizer.decode([token]) for token in ids] == [piece for piece, _ in reply.logprobs]:
            assert sum(p for _, p in reply.logprobs) == pytest.approx(forced(student, request, ids), abs=1e-3)
            checked += 1  # what is written may be cut into other tokens when it is read
        assert temperature > 0 or reply.text == expected[request.key]
    assert checked >= 2


def forced(student: LocalModel, request: ChatRequest, ids: list[int]) -> float:
    """The log-probability of these tokens after the prompt, one softmax a position."""
    prompt = prompt_ids(student.tokenizer, request.messages)
    with torch.no_grad():
        logits = student.model(torch.tensor([prompt + ids])).logits[0]
    return sum(
        float(torch.softmax(logits[len(prompt) - 1 + n].double(), -1)[token].log()) for n, token in enumerate(ids)
    )


def test_sampling_is_seeded_by_request_and_not_by_batch(student: LocalModel) -> None:
    def sampled(seed: int, alone: bool) -> str:
        wanted = ChatRequest("x", requests()[0].messages, 6, temperature=1.5, seed=seed)
        batch = [wanted] if alone else [wanted, *requests(6)[:1]]
        return next(reply.text for reply in student.complete(batch) if reply.key == "x")

    assert sampled(1, alone=True) == sampled(1, alone=False)
    assert len({sampled(seed, alone=True) for seed in range(3)}) > 1


def test_a_prompt_beyond_the_window_is_an_error_reply_and_the_rest_goes_on(student: LocalModel) -> None:
    long = ChatRequest("long", (Message("user", "word " * 9000),), 16)
    replies = {reply.key: reply for reply in student.complete([long, *requests()[:1]])}
    assert "exceed the model's window of 8192" in (replies["long"].error or "")
    assert replies["long"].too_long
    assert (replies["doc0"].error, replies["doc0"].too_long) == (None, False)
    for refusing in (lambda: list(student.stream(long)), lambda: student.check(long)):
        with pytest.raises(PromptTooLong, match="window"):
            refusing()
    student.check(requests()[0])


def test_the_window_of_a_model_that_also_sees_is_that_of_its_text_part(tokenizer) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": 49152, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    config = Gemma3Config(text_config=text, vision_config={**size, "image_size": 28, "patch_size": 14})
    seeing = LocalModel("seeing", Gemma3ForConditionalGeneration(config).eval(), tokenizer)
    with pytest.raises(PromptTooLong, match="window of 64"):
        seeing.check(requests()[0])
    [reply] = seeing.complete([ChatRequest("short", (Message("user", "Hi"),), 4)])
    assert reply.error is None
    assert reply.completion_tokens > 0


def test_a_model_that_names_no_window_has_no_limit(tokenizer) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=49152, hidden_size=16, n_layer=1, n_head=2)
    LocalModel("endless", BloomForCausalLM(config), tokenizer).check(requests()[0])


@pytest.mark.parametrize("prefill_tokens", [1024, 8])
def test_keys_and_values_may_differ_in_width(tokenizer, prefill_tokens: int, monkeypatch) -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    monkeypatch.setattr(decode, "PREFILL_TOKENS", prefill_tokens)
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=200, hidden_size=32, intermediate_size=32, num_hidden_layers=2, first_k_dense_replace=2,
        num_attention_heads=2, num_key_value_heads=2, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8,
        qk_rope_head_dim=8, v_head_dim=4, initializer_range=0.5,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).eval()
    prompts = [[*range(3, 40), 50, 51, 52], [*range(3, 40), 60]]
    rows = [decode.Row(i, prompt, 6) for i, prompt in enumerate(prompts)]
    written: list[list[int]] = [[], []]
    for step in decode.decode(model, rows, frozenset()):
        for row, token in step:
            written[row.index].append(token)
    for prompt, tokens in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=None
        )
        assert expected[0, len(prompt) :].tolist() == tokens


def test_batches_are_of_like_length_and_lose_nothing() -> None:
    prompts = [(ChatRequest(str(n), ()), [0] * (10 + 37 * n % 400)) for n in range(200)]
    batches = list(make_batches(prompts, 2000))
    assert sorted(r.key for batch in batches for r, _ in batch) == sorted(r.key for r, _ in prompts)
    padded = sum(max(len(p) for _, p in batch) * len(batch) for batch in batches)
    used = sum(len(p) for _, p in prompts)
    assert padded <= 1.1 * used
    assert all(max(len(p) for _, p in batch) * len(batch) <= 2000 for batch in batches)
