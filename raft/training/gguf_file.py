"""A model and its tokenizer -> one GGUF file, as llama.cpp reads it.

    header      llama.block_count = 30, llama.rope.freq_base = 100000, ...
    vocabulary  tokens by id, their kinds, BPE merges, pre-tokenizer, special tokens, chat template
    tensors     blk.0.attn_q.weight [576, 576] Q8_0, ...

Three architectures whose graph llama.cpp computes as transformers does, with byte-level BPE vocabularies; any other is
refused by name. Norms and biases stay in float32, rows that do not divide into blocks in float16, and with q4_0 the
embeddings, which are a fifth of a small model and its output too, in q8_0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from raft.errors import ModelError

ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}  # transformers' model_type -> gguf's name
_FILE_TYPES = {"f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
_BETTER_KEPT = ("token_embd.weight", "output.weight")
_REMEDY = "Export it with --form merged, and convert that with llama.cpp's own convert_hf_to_gguf.py"

# How text is cut before its bytes are merged, as tokenizer.json writes it: (type, what tells it apart) for each part.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_PRE_TOKENIZERS = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", _QWEN2), ("ByteLevel", False)): "qwen2",
    (("Split", _LLAMA3), ("ByteLevel", False)): "llama-bpe",
}
_WHOLE_WORDS_FIRST = {"llama-bpe"}  # llama.cpp looks a whole word up before it merges; tokenizer.json: ignore_merges


def check_convertible(config: Any, tokenizer: Any) -> None:
    """Raise ModelError where ``write_gguf`` cannot write this model: another architecture, rotary positions or
    tokenizer than it knows. Needs no weights."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise ModelError(f"a {kind} model cannot be written as GGUF here (only {', '.join(ARCHITECTURES)})", _REMEDY)
    rope = rope_type(config)
    if rope not in (("default", "linear", "llama3") if kind == "llama" else ("default",)):
        raise ModelError(f"a {kind} model with rotary positions of type {rope} cannot be written as GGUF here", _REMEDY)
    unlike = {
        f"hidden_act {config.hidden_act}": config.hidden_act != "silu",
        "a sliding window": getattr(config, "use_sliding_window", False),
        "a partial rotary factor": (config.rope_parameters or {}).get("partial_rotary_factor", 1.0) != 1.0,
    }
    if found := [name for name, is_so in unlike.items() if is_so]:
        raise ModelError(f"a {kind} model with {' and '.join(found)} cannot be written as GGUF here", _REMEDY)
    pre_tokenizer_name(tokenizer)


def rope_type(config: Any) -> str:
    """How the model scales its rotary positions; "default" where it does not."""
    return str((config.rope_parameters or {}).get("rope_type", "default"))


def pre_tokenizer_name(tokenizer: Any) -> str:
    """llama.cpp's name for the way the tokenizer cuts text into words. Raises ModelError where it knows none."""
    state = _tokenizer_state(tokenizer)
    model, name = state["model"], _PRE_TOKENIZERS.get(_parts(state.get("pre_tokenizer")))
    fits = (
        model["type"] == "BPE"
        and name is not None
        and not model.get("byte_fallback")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and bool(model.get("ignore_merges")) == (name in _WHOLE_WORDS_FIRST)
    )
    if not fits or name is None:
        raise ModelError(
            f"a tokenizer of type {model['type']} that cuts text as {json.dumps(state.get('pre_tokenizer'))[:200]} "
            "cannot be written as GGUF here",
            _REMEDY,
        )
    return name


def _tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"a {type(tokenizer).__name__} cannot be written as GGUF here: no tokenizer.json", _REMEDY)
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return state


def _parts(spec: Any) -> tuple[tuple[str, Any], ...]:
    """A pre-tokenizer's parts, each with what tells it apart; () where one has a setting that llama.cpp lacks."""
    if spec is None:
        return ()
    parts: list[tuple[str, Any]] = []
    for part in spec["pretokenizers"] if spec["type"] == "Sequence" else [spec]:
        if part["type"] == "ByteLevel" and not part["add_prefix_space"]:
            parts.append(("ByteLevel", part.get("use_regex", True)))
        elif part["type"] == "Digits":
            parts.append(("Digits", part["individual_digits"]))
        elif part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
            parts.append(("Split", part["pattern"].get("Regex")))
        else:
            return ()
    return tuple(parts)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_gguf(model: Any, tokenizer: Any, file: Path, quantization: str, name: str, licence: str = "") -> None:
    """Write the model, its weights as ``quantization`` (f16, q8_0, q4_0), under the given name. One tensor after the
    other is quantized, so that little more memory is needed than the model has. Raises ModelError as
    ``check_convertible`` does, and for weights that llama.cpp has no place for."""
    import gguf
    import numpy

    check_convertible(model.config, tokenizer)
    arch = gguf.MODEL_ARCH[ARCHITECTURES[model.config.model_type]]
    tensors = [(key, weights, _kind(key, weights.shape, quantization)) for key, weights in _tensors(model, arch)]
    with closing(gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])) as writer:
        _add_settings(writer, model.config, quantization, name)
        if licence:
            writer.add_license(licence)
        _add_vocabulary(writer, tokenizer, len(model.get_input_embeddings().weight))
        for key, weights, kind in tensors:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            writer.add_tensor_info(
                key, weights.shape, numpy.dtype("float32"), weights.numel() // block * size, raw_dtype=kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, weights, kind in tensors:
            writer.write_tensor_data(gguf.quants.quantize(weights.float().cpu().contiguous().numpy(), kind))


def _tensors(model: Any, arch: Any) -> Iterator[tuple[str, Any]]:
    """The weights under llama.cpp's names, in its order of rows."""
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    output = model.get_output_embeddings().weight
    is_tied = output.data_ptr() == model.get_input_embeddings().weight.data_ptr()  # then it is taken for both
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, weights in model.state_dict().items():
        if is_tied and key == "lm_head.weight":
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"llama.cpp has no place for the weights {key} of this model", _REMEDY)
        part = key.split(".")[-2]
        if arch == gguf.MODEL_ARCH.LLAMA and part in heads:
            weights = _interleaved(weights, heads[part])
        yield name, weights
    if rope_type(config) != "default":
        yield "rope_freqs.weight", _rope_factors(model)


def _interleaved(weights: Any, heads: int) -> Any:
    """The rows of a query or key projection as llama.cpp turns them for the Llama architecture: the two of a rotary
    pair stand side by side there, and half a head apart in transformers."""
    return weights.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _rope_factors(model: Any) -> Any:
    """By what each rotary frequency is divided [half a head]: how llama.cpp takes scaled positions of any kind."""
    import torch

    rotary = model.get_decoder().rotary_emb
    theta = model.config.rope_parameters["rope_theta"]
    steps = torch.arange(len(rotary.inv_freq), dtype=torch.float32, device=rotary.inv_freq.device)
    return theta ** (-steps / len(steps)) / rotary.inv_freq.float()


def _kind(name: str, shape: Any, quantization: str) -> Any:
    """gguf's type for a tensor."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    if len(shape) == 1:
        return kinds.F32
    kind = kinds.Q8_0 if quantization == "q4_0" and name in _BETTER_KEPT else kinds[quantization.upper()]
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else kinds.F16


def _add_settings(writer: Any, config: Any, quantization: str, name: str) -> None:
    import gguf

    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[quantization]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_vocabulary(writer: Any, tokenizer: Any, rows: int) -> None:
    """The tokenizer as it was in training: ``rows`` tokens, as many as the model has embeddings."""
    from gguf import TokenType

    model = _tokenizer_state(tokenizer)["model"]
    tokens, kinds = [f"[PAD{i}]" for i in range(rows)], [TokenType.UNUSED] * rows
    added = tokenizer.added_tokens_decoder
    if (largest := max([*model["vocab"].values(), *added])) >= rows:
        raise ModelError(f"the tokenizer has a token {largest}, but the model embeds only {rows}", _REMEDY)
    for token, i in model["vocab"].items():
        tokens[i], kinds[i] = token, TokenType.NORMAL
    for i, token in added.items():
        special = token.special or i in tokenizer.all_special_ids
        tokens[i], kinds[i] = token.content, TokenType.CONTROL if special else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    for role in ("bos", "eos", "unk", "pad"):
        if (token_id := getattr(tokenizer, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(token_id)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.get_chat_template())


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether llama.cpp is to put the first token before a prompt: the tokenizer does, and so did every prompt in
    training, which is the chat template's text and nothing else."""
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("a").input_ids[0] != bos:
        return False
    rows = [{"role": "user", "content": "a"}]
    text = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    return bool(tokenizer(text, add_special_tokens=False).input_ids[0] == bos)
