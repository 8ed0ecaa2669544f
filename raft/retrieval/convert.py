"""From a sentence-transformers model to what OpenVINO or ONNX Runtime run: the whole of it, transformer, pooling and
whatever its authors put behind them, held against the original before it is kept.

    convert(Path("models/all-MiniLM-L6-v2"), Path("runs/models/encoder-3f2a-openvino"), "openvino", "bfloat16")
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.artifacts import write_json, writing
from raft.errors import ModelError
from raft.retrieval.backends import (
    CONVERTED,
    Backend,
    Body,
    ConvertedBody,
    NotConvertible,
    Precision,
    Task,
    TorchBody,
    first_line,
    load_model,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.999, "int8": 0.97}  # to the original's vectors, on average
_SAME_COSINE = 0.9999
_PROMPT = "query: "
_TASKS: tuple[Task, ...] = ("query", "document")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_CALIBRATION = (
    "Adults start with 12 mg by mouth once a day; after two weeks the dose may be raised to 24 mg.",
    "This Agreement shall be governed by and construed in accordance with the laws of the State of Delaware.",
    "What is the notice period for ending a lease of business premises?",
    "Section 4.2 Termination. Either party may terminate this Agreement upon thirty (30) days' written notice to the "
    "other party, provided that all fees accrued before the date of termination remain due and payable.",
    "We enrolled 412 patients with newly diagnosed disease and followed them for a median of 3.4 years (p < 0.01).",
    "| drug | dose | interval |",
    "No person shall operate a facility without a licence issued under this Part; a breach is an offence.",
    "The results suggest that early treatment lowers mortality, although the confidence interval was wide.",
    "Dr. Smith wrote on 3 March 2026: the invoice of 1,500.00 EUR was paid twice.",
    "def main(): return 0",
)  # what the values inside a transformer look like, for the scales of int8; of every kind of text a little


def convert(folder: Path, out: Path, backend: Backend, precision: Precision) -> None:
    """Write the conversion of the encoder in ``folder`` to ``out``. Raises NotConvertible when the model cannot be
    converted, or the conversion gives other vectors; ModelError when a package is missing, InputError when the disk is
    full or not writable."""
    recipe = {"encoder": str(folder), "backend": backend, "precision": precision}
    model = load_model(folder)
    original = TorchBody(model)
    with writing(out, CONVERTED, recipe, {}, overwrite=True) as draft:
        try:
            _check_habits(model, original)
            example = _inputs(model, list(_CALIBRATION[:2]))
            tokenizer: Any = model.tokenizer
            tokenizer.backend_tokenizer.save(str(draft.folder / "tokenizer.json"))
            facts = {
                "dimension": original.dimension, "window": original.window, "prompts": original.prompts,
                "inputs": list(example), "pad_id": tokenizer.pad_token_id, "pad_token": tokenizer.pad_token,
            }  # fmt: skip
            write_json(draft.folder / "encoder.json", facts)
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # NNCF draws its bars there
                warnings.simplefilter("ignore")  # the converters' remarks on each branch that they trace
                if backend == "openvino":
                    _to_openvino(model, example, draft.folder, precision)
                else:
                    _to_onnx(model, example, draft.folder)
            converted = ConvertedBody(draft.folder, backend, precision)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _NO_SPACE:
                raise
            what = f"encoder {folder} cannot be converted to {backend} ({first_line(error)})"
            raise NotConvertible(what, "Set encoder.backend to torch") from error
        _hold_against(original, converted, folder, precision)


def _check_habits(model: SentenceTransformer, original: Body) -> None:
    """Raises ValueError for a model that looks at more than its tokens: a conversion does not know where a prompt
    ends, nor whether it reads a query or a document."""
    if any(getattr(module, "include_prompt", True) is False for module in model.modules()):
        raise ValueError("its pooling leaves the prompt out")
    queries, documents = (original.encode(_CALIBRATION, task) for task in _TASKS)
    prompted = original.encode([_PROMPT + text for text in _CALIBRATION], "document")
    same = [(queries, documents), (original.encode(_CALIBRATION, "document", _PROMPT), prompted)]
    if min(float((one * other).sum(axis=1).mean()) for one, other in same) < _SAME_COSINE:
        raise ValueError("it reads queries otherwise than documents, or prompts otherwise than text")


def _hold_against(original: Body, converted: Body, folder: Path, precision: Precision) -> None:
    """Raises NotConvertible when the conversion gives other vectors: a model may do what no converter sees."""
    texts = ["", "Grüße, §12.3!", *_CALIBRATION, " ".join(_CALIBRATION * 3)]
    cosine = min(
        float((original.encode(texts, task) * converted.encode(texts, task)).sum(axis=1).mean()) for task in _TASKS
    )
    if cosine < _LEAST_COSINE[precision]:
        raise NotConvertible(
            f"encoder {folder} gives other vectors when converted (cosine {cosine:.4f} to its own)",
            "Set encoder.backend to torch",
        )


def _calibration_batches() -> list[list[str]]:
    """Batches of texts of every length up to some 200 tokens, the same ones each time."""
    draw = random.Random(0)
    return [
        [" ".join(draw.sample(_CALIBRATION, draw.randint(1, len(_CALIBRATION)))) for _ in range(4)] for _ in range(64)
    ]


def _inputs(model: SentenceTransformer, texts: list[str]) -> dict[str, Any]:
    """What the transformer is given for these texts: its tensors alone."""
    return {key: value for key, value in model.preprocess(texts).items() if hasattr(value, "shape")}


def _traceable(model: SentenceTransformer) -> Any:
    """The whole model with its inputs by name and one tensor as its output, as converters want it."""
    import torch

    dimension = model.get_embedding_dimension()

    class WholeModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            features = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text", **given}
            pooled = self.model(features)["sentence_embedding"][:, :dimension]
            return torch.nn.functional.normalize(pooled, dim=-1)

    return WholeModel()


def _silence_telemetry() -> None:
    """OpenVINO's and NNCF's tools report each conversion to their makers unless somebody has opted out. Without the
    package that does so they fall back on stubs of their own."""
    for name in ("openvino_telemetry", "openvino_telemetry.backend"):
        sys.modules[name] = None  # type: ignore[assignment]  # what makes an import fail
    os.environ["NNCF_CI"] = "1"


def _to_openvino(model: SentenceTransformer, example: dict[str, Any], folder: Path, precision: Precision) -> None:
    _silence_telemetry()
    import openvino

    converted = openvino.convert_model(_traceable(model), example_input=example)
    if precision == "int8":
        converted = _quantized(converted, [_inputs(model, texts) for texts in _calibration_batches()])
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def _quantized(converted: Any, samples: list[dict[str, Any]]) -> Any:
    try:
        import nncf
    except ImportError:
        raise ModelError("int8 of openvino needs nncf", "pip install 'raft-tune[openvino]'") from None
    import logging

    logging.getLogger("nncf").setLevel(logging.ERROR)
    data = nncf.Dataset(samples, lambda sample: {key: value.numpy() for key, value in sample.items()})
    return nncf.quantize(converted, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))


def _to_onnx(model: SentenceTransformer, example: dict[str, Any], folder: Path) -> None:
    import torch

    torch.onnx.export(
        _traceable(model), (), str(folder / "model.onnx"), kwargs=example,
        input_names=list(example), output_names=["vectors"],
        dynamic_shapes={name: {0: "texts", 1: "tokens"} for name in example}, dynamo=True, verbose=False,
        external_data=False,
    )  # fmt: skip
