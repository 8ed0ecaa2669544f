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

import contextlib
import errno
import functools
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raft.artifacts import MANIFEST, digest, hash_file, home, open_artifact, write_json
from raft.errors import ArtifactError, InputError, ModelError, RaftError

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

    Vectors = np.ndarray[tuple[int, int], np.dtype[np.float32]]

Backend = Literal["torch", "onnx", "openvino"]
Precision = Literal["float32", "bfloat16", "int8"]
Task = Literal["query", "document"]

_PAD_TO = 16  # tokens; fewer lengths mean fewer kernels to compile
CONVERTED = "converted encoder, format 2"  # the kind of its artefact; another one is converted again

_PACKAGES = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnx", "onnxscript"), "torch": ()}


class NotConvertible(ModelError):
    """The model itself stands in the way of a conversion."""


class Body(Protocol):
    """The part of an encoder that holds the weights. Its methods may be called by several threads at once.

    ``window`` counts the tokens that are read of a text, special ones included; ``token_offsets`` and ``token_counts``
    leave those out, and cut nothing off. ``prompts`` holds those that the model's files name, empty ones too.
    """

    dimension: int
    window: int
    special_tokens: int
    prompts: dict[str, str]

    def token_offsets(self, text: str) -> list[tuple[int, int]]: ...
    def token_counts(self, texts: Sequence[str]) -> list[int]: ...
    def encode(self, texts: Sequence[str], task: Task, prompt: str = "") -> Vectors: ...


def choose(backend: str, precision: str, strict: bool = True) -> tuple[Backend, Precision]:
    """What runs the encoder here. Raises ModelError when the wanted backend is not installed, or does not have the
    wanted precision.

    Not ``strict``, what is not installed gives way to torch in float32, with a line on stderr: the vectors are the
    same but for rounding.
    """
    wanted = f"encoder.backend = {backend!r}"
    if backend == "auto":
        wanted = f"encoder.precision = {precision!r}"
        quick = precision == "auto" and _is_installed("openvino") and not _has_gpu()
        backend = "openvino" if quick or precision in ("bfloat16", "int8") else "torch"
    chosen: Backend = backend  # type: ignore[assignment]
    if not _is_installed(chosen):
        what, install = f"{wanted} needs packages that are not installed", f"pip install 'raft-tune[{chosen}]'"
        if strict:
            raise ModelError(what, f"{install}, or set encoder.backend to torch and encoder.precision to auto")
        warn(f"{what} ({install}); torch in float32 takes its place")
        return "torch", "float32"
    allowed = ("float32", "bfloat16", "int8") if chosen == "openvino" else ("float32",)
    if precision == "auto":
        return chosen, "bfloat16" if chosen == "openvino" and _has_bfloat16() else "float32"
    if precision not in allowed:
        raise ModelError(
            f"encoder.precision = {precision!r}: the backend {chosen} has {', '.join(allowed)}",
            "Choose one of these, or another encoder.backend",
        )
    return chosen, precision  # type: ignore[return-value]


@functools.cache
def warn(line: str) -> None:
    """Say it on stderr, once a process."""
    print(f"raft: {line}", file=sys.stderr)


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


def open_body(folder: Path, backend: Backend, precision: Precision, give_way: tuple[type[RaftError], ...] = ()) -> Body:
    """The encoder in ``folder``, converted at its first use. Raises ModelError or InputError when that cannot be done.

    For the errors of ``give_way`` torch takes its place, with a line on stderr. That a model cannot be converted is
    remembered, so that it is tried once and not at each start.
    """
    if backend == "torch":
        return TorchBody(load_model(folder))
    name = f"encoder-{fingerprint(folder)[:16]}-{backend}" + ("-int8" if precision == "int8" else "")
    converted = home() / "models" / name
    refusal = converted.with_name(f"{name}-{precision}.refused.json")
    why = _remembered(refusal) if give_way and not converted.exists() else ""
    if not why:
        try:
            return _open_converted(folder, converted, backend, precision)
        except give_way as error:
            why = error.what
            if isinstance(error, NotConvertible):
                with contextlib.suppress(OSError):
                    write_json(refusal, {"why": why, "packages": _converters()})
    body = TorchBody(load_model(folder))
    warn(f"{why}; torch takes its place")
    return body


def _remembered(refusal: Path) -> str:
    """Why the packages that are installed could not convert a model; "" when that has not been tried."""
    found = _read_json(refusal)
    same = isinstance(found, dict) and found.get("packages") == _converters()
    return str(found.get("why", "")) if same else ""


def _converters() -> dict[str, str]:
    versions = {}
    for name in ("raft-tune", "torch", "transformers", "sentence-transformers", "openvino", "nncf", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _open_converted(folder: Path, converted: Path, backend: Backend, precision: Precision) -> Body:
    if not _is_whole(converted):
        with _one_at_a_time(converted.with_name(converted.name + ".lock")):
            if not _is_whole(converted):  # another process may have made it meanwhile
                from raft.retrieval.convert import convert

                convert(folder, converted, backend, precision)
    return ConvertedBody(converted, backend, precision)


def _is_whole(converted: Path) -> bool:
    try:
        open_artifact(converted, CONVERTED)
    except ArtifactError:  # not there yet, damaged, or of another format
        return False
    return True


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Wait for the lock on this file, which stays where it is; the system's, it dies with its process."""
    import fcntl

    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = held.enter_context(path.open("ab"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF):  # of file systems that know none
                raise InputError(
                    f"{path} cannot be written ({error.strerror or error})", "Set RAFT_HOME to a folder that can"
                ) from None
        yield


def load_model(folder: Path) -> SentenceTransformer:
    """Raises ModelError when the folder holds no sentence-transformers model."""
    from raft.models import quiet_libraries

    quiet_libraries()
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"encoder {folder} cannot be loaded ({first_line(error)})",
            "Give a sentence-transformers model: hub id, local folder or package:NAME",
        ) from error
    named = _settings_of(folder).get("prompts") or {}  # the library adds an empty one for queries and documents
    model.prompts = {name: prompt for name, prompt in model.prompts.items() if prompt or name in named}
    return model


def ranks_by_length(folder: Path) -> bool:
    """Whether the model's files say that its vectors are compared by their inner product, of any length."""
    modules = _read_json(folder / "modules.json")
    rows = [row for row in modules if isinstance(row, dict)] if isinstance(modules, list) else []
    normalized = any(str(row.get("type", "")).endswith("Normalize") for row in rows)
    return _settings_of(folder).get("similarity_fn_name") == "dot" and not normalized


def _settings_of(folder: Path) -> dict[str, Any]:
    found = _read_json(folder / "config_sentence_transformers.json")
    return found if isinstance(found, dict) else {}


def _read_json(path: Path) -> Any:
    """None when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


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

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        with self._lock:
            encoded = self._tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def encode(self, texts: Sequence[str], task: Task, prompt: str = "") -> Vectors:
        import torch

        with self._lock:
            inputs = self._model.preprocess(list(texts), prompt=prompt or None, task=task)
        inputs = {key: value.to(self._model.device) if hasattr(value, "to") else value for key, value in inputs.items()}
        with torch.inference_mode():
            pooled = self._model(inputs, task=task)["sentence_embedding"].float()
            pooled = pooled[:, : self.dimension]  # of a model that is cut to its first numbers (Matryoshka)
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
        multiple = _PAD_TO if self.window % _PAD_TO == 0 else None  # never past the positions that the model has
        self._cut.enable_padding(pad_id=facts["pad_id"], pad_token=facts["pad_token"], pad_to_multiple_of=multiple)
        self._run = _openvino_runner(folder, precision) if backend == "openvino" else _onnx_runner(folder)

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        (encoding,) = self._whole.encode_batch([text], add_special_tokens=False)  # unlike encode, beside other threads
        offsets: list[tuple[int, int]] = encoding.offsets
        return offsets

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [len(encoding) for encoding in self._whole.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode(self, texts: Sequence[str], task: Task, prompt: str = "") -> Vectors:
        import numpy as np

        found = self._cut.encode_batch([prompt + text for text in texts])
        parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        arrays = {
            name: np.array([getattr(encoding, parts[name]) for encoding in found], dtype=np.int64)
            for name in self._inputs
        }
        vectors: Vectors = self._run(arrays)
        return vectors


def _openvino_runner(folder: Path, precision: Precision) -> Any:
    """One inference request a thread; two or more threads keep all cores at work."""
    import numpy as np
    import openvino

    # What int8 leaves in floating point need not be finer than bfloat16.
    hint = "bf16" if precision == "bfloat16" or (precision == "int8" and _has_bfloat16()) else "f32"
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    names = {given.get_any_name() for given in compiled.inputs}
    local = threading.local()

    def run(arrays: dict[str, Any]) -> Any:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        local.request.infer({key: value for key, value in arrays.items() if key in names}, share_inputs=True)
        return local.request.get_output_tensor(0).data.copy()

    # The library sets itself up at its first request, behind a lock that it holds while it waits for Python's: two
    # threads that make their first requests at once would wait for each other for ever.
    run({name: np.ones((1, 2), dtype=np.int64) for name in names})
    return run


def _onnx_runner(folder: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}

    def run(arrays: dict[str, Any]) -> Any:
        return session.run(None, {key: value for key, value in arrays.items() if key in names})[0]

    return run
