"""What runs an encoder: sentence-transformers on torch, or its converted form on OpenVINO or ONNX Runtime.

A conversion (raft/retrieval/convert.py) is made once, of the whole model, into
``RAFT_HOME/models/encoder-FINGERPRINT-BACKEND``. From then on neither torch nor sentence-transformers is loaded, and
an encoder is there in a fraction of a second::

    model.xml + model.bin, or model.onnx     token ids and mask -> vectors of length 1
    tokenizer.json                           the model's tokenizer
    encoder.json                             {"dimension": 384, "window": 256, "prompts": {...}, "inputs": [...]}

(sentence-transformers has the same two backends, through packages that exclude the transformers release that this
project needs.)
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raft.artifacts import MANIFEST, digest, hash_file, home, open_artifact
from raft.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    Vectors = np.ndarray[tuple[int, int], np.dtype[np.float32]]

Backend = Literal["torch", "onnx", "openvino"]
Precision = Literal["float32", "bfloat16", "int8"]
Task = Literal["query", "document"]

CONVERTED = "converted encoder, format 1"  # the kind of its artefact; another one is converted again

_PACKAGES = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnx", "onnxscript"), "torch": ()}


class Body(Protocol):
    """The part of an encoder that holds the weights. Its methods may be called by several threads at once.

    ``window`` counts the tokens that are read of a text, special ones included.
    """

    dimension: int
    window: int
    special_tokens: int
    prompts: dict[str, str]

    def token_offsets(self, text: str) -> list[tuple[int, int]]: ...
    def encode(self, texts: Sequence[str], task: Task) -> Vectors: ...


def choose(backend: str, precision: str) -> tuple[Backend, Precision]:
    """What runs the encoder here. Raises ModelError when the wanted backend is not installed, or does not have the
    wanted precision."""
    if backend == "auto":
        backend = "openvino" if precision != "float32" and _is_installed("openvino") and not _has_gpu() else "torch"
    chosen: Backend = backend  # type: ignore[assignment]
    if not _is_installed(chosen):
        raise ModelError(
            f"encoder.backend = {chosen!r} needs packages that are not installed",
            f"pip install 'raft-tune[{chosen}]', or set encoder.backend to torch",
        )
    allowed = ("float32", "bfloat16", "int8") if chosen == "openvino" else ("float32",)
    if precision == "auto":
        return chosen, "bfloat16" if chosen == "openvino" and _has_bfloat16() else "float32"
    if precision not in allowed:
        raise ModelError(
            f"encoder.precision = {precision!r}: the backend {chosen} has {', '.join(allowed)}",
            "Choose one of these, or another encoder.backend",
        )
    return chosen, precision  # type: ignore[return-value]


def _is_installed(backend: Backend) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in _PACKAGES[backend])


def _has_gpu() -> bool:
    """Whether torch would run on a GPU; torch, slow to load, is only asked where there is a driver."""
    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia/version").exists():
        return False
    import torch

    return torch.cuda.is_available()


def _has_bfloat16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def fingerprint(folder: Path) -> str:
    """Hash of an encoder's files: equal ones give equal vectors."""
    kinds = {".safetensors", ".bin", ".json", ".txt", ".model"}
    files = sorted(path for path in folder.rglob("*") if path.suffix in kinds and path.is_file())
    own = {MANIFEST, "log.jsonl", "seen.json"}  # of an artefact of raft train: what made it is not what it is
    return digest({str(path.relative_to(folder)): hash_file(path) for path in files if path.name not in own})


def open_body(folder: Path, backend: Backend, precision: Precision) -> Body:
    """The encoder in ``folder``, converted at its first use. Raises ModelError when that cannot be done."""
    if backend == "torch":
        return TorchBody(load_model(folder))
    name = f"encoder-{fingerprint(folder)[:16]}-{backend}" + ("-int8" if precision == "int8" else "")
    converted = home() / "models" / name
    try:
        open_artifact(converted, CONVERTED)
    except ArtifactError:  # not there yet, or damaged
        from raft.retrieval.convert import convert

        convert(folder, converted, backend, precision)
    return ConvertedBody(converted, backend, precision)


def load_model(folder: Path) -> SentenceTransformer:
    """Raises ModelError when the folder holds no sentence-transformers model."""
    from raft.models import quiet_libraries

    quiet_libraries()
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"encoder {folder} cannot be loaded ({first_line(error)})",
            "Give a sentence-transformers model: hub id, local folder or package:NAME",
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class TorchBody:
    """A sentence-transformers model. Its tokenizer is not safe to share between threads, so one call at a time cuts
    texts into tokens."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._tokenizer: Any = model.tokenizer
        dimension = model.get_embedding_dimension()
        if dimension is None:
            raise ModelError("the encoder does not say how long its vectors are", "Choose another encoder")
        self.dimension = int(dimension)
        self.window = int(model.max_seq_length or self._tokenizer.model_max_length)
        self.special_tokens = int(self._tokenizer.num_special_tokens_to_add())
        self.prompts = {name: prompt or "" for name, prompt in model.prompts.items()}

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        with self._lock:
            encoded = self._tokenizer(
                text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
            )
        return [(start, end) for start, end in encoded["offset_mapping"]]

    def encode(self, texts: Sequence[str], task: Task) -> Vectors:
        import torch

        with self._lock:
            inputs = self._model.preprocess(list(texts), task=task)
        inputs = {key: value.to(self._model.device) if hasattr(value, "to") else value for key, value in inputs.items()}
        with torch.inference_mode():
            pooled = self._model(inputs, task=task)["sentence_embedding"].float()
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()  # type: ignore[no-any-return]


class ConvertedBody:
    """A conversion, as ``convert`` writes it."""

    def __init__(self, folder: Path, backend: Backend, precision: Precision) -> None:
        from tokenizers import Tokenizer

        facts = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        self.dimension, self.window, self.prompts = facts["dimension"], facts["window"], facts["prompts"]
        self._inputs: list[str] = facts["inputs"]
        self._whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._whole.no_truncation()
        self._whole.no_padding()
        self.special_tokens = int(self._whole.num_special_tokens_to_add(False))
        self._cut = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._cut.enable_truncation(self.window)
        self._cut.enable_padding(pad_id=facts["pad_id"], pad_token=facts["pad_token"])
        self._run = _openvino_runner(folder, precision) if backend == "openvino" else _onnx_runner(folder)

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        offsets: list[tuple[int, int]] = self._whole.encode(text, add_special_tokens=False).offsets
        return offsets

    def encode(self, texts: Sequence[str], task: Task) -> Vectors:
        import numpy as np

        found = self._cut.encode_batch(list(texts))
        parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        arrays = {
            name: np.array([getattr(encoding, parts[name]) for encoding in found], dtype=np.int64)
            for name in self._inputs
        }
        vectors: Vectors = self._run(arrays)
        return vectors


def _openvino_runner(folder: Path, precision: Precision) -> Any:
    """One inference request a thread; two or more threads keep all cores at work."""
    import openvino

    hint = "bf16" if precision == "bfloat16" else "f32"
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    names = {given.get_any_name() for given in compiled.inputs}
    local = threading.local()

    def run(arrays: dict[str, Any]) -> Any:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        local.request.infer({key: value for key, value in arrays.items() if key in names}, share_inputs=True)
        return local.request.get_output_tensor(0).data.copy()

    return run


def _onnx_runner(folder: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}

    def run(arrays: dict[str, Any]) -> Any:
        return session.run(None, {key: value for key, value in arrays.items() if key in names})[0]

    return run
