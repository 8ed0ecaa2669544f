"""Adapter artefact -> what other programs load: what ``raft export`` does.

    merged    OUT/config.json, model.safetensors, tokenizer.json, ...     transformers
    gguf      OUT/tuned-q8_0.gguf                                         llama.cpp
    adapter   OUT/adapter_config.json, adapter_model.safetensors          PEFT

Each with a model card and the manifest. It gets its name only once it was loaded again by what is to load it, and
answered or scored as its source does (export_check.py).
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from raft.artifacts import RESUME, Manifest, check_free, read_manifest, write_json, writing
from raft.errors import ModelError, UsageError
from raft.llm.local import Weights, copy_seen, find_weights, load_weights
from raft.models import Precision, load_tokenizer, quiet_libraries
from raft.training.export_card import base_licence, public, write_card
from raft.training.export_check import Check, check_adapter, check_gguf, check_merged, expect
from raft.training.gguf_file import check_convertible, write_gguf

Form = Literal["merged", "gguf", "adapter"]
Quantization = Literal["f16", "q8_0", "q4_0"]


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """``size_mb`` is that of the files to load (1 MB = 10^6 bytes); ``quantization`` is None but for gguf."""

    out: Path
    form: str
    quantization: str | None
    file: str | None
    size_mb: float
    check: Check
    seconds: float


def export(
    run: Path,
    out: Path,
    form: str,
    quantization: str = "f16",
    *,
    model: str | None = None,
    precision: Precision = "auto",
    overwrite: bool = False,
) -> ExportSummary:
    """Write the export artefact ``out`` of an adapter artefact. ``model`` says where the base model lies when that is
    no longer where it was in training; ``precision`` is that of merged weights, those of a GGUF file are merged in
    float32 and then quantized.

    Raises UsageError for a form that is not known, ArtifactError when ``run`` is no adapter artefact or does not fit
    the model or ``out`` is taken, ModelError when the model cannot be loaded or does not go into this form,
    CheckFailed when what was written is not its source.
    """
    began = time.monotonic()
    _check_choice("form", form, get_args(Form))
    _check_choice("quantization", quantization, get_args(Quantization))
    quiet_libraries()
    check_free(out, overwrite)
    manifest = read_manifest(run, "adapter")
    weights = find_weights(model or str(manifest.facts["base_model"]), run)
    _check_form(run, weights, form)
    kind = quantization if form == "gguf" else None
    settings = {"form": form, "quantization": kind, "precision": "float32" if kind else precision}
    inputs = {"adapter": manifest.fingerprint, "model": str(manifest.facts["base_fingerprint"])}
    name = run.resolve().name
    file = f"{name}-{kind}.gguf" if kind else None
    licence = base_licence(str(manifest.facts["base_model"]), weights.folder)
    with writing(out, "export", settings, inputs, overwrite=overwrite) as draft:
        if file is not None:
            check = _write_gguf(weights, draft.folder / file, quantization, name, licence)
        else:
            check = (_write_merged if form == "merged" else _write_adapter)(weights, draft.folder, precision)
        size = sum(path.stat().st_size for path in draft.folder.iterdir() if path.name != RESUME) / 1e6
        summary = ExportSummary(out, form, kind, file, round(size, 3), check, round(time.monotonic() - began, 1))
        draft.facts.update(_facts(manifest, summary), base_licence=licence)
        copy_seen(run, draft.folder)
        write_card(draft.folder, name=name, run=manifest, form=form, exported=draft.facts)
    return summary


def _facts(run: Manifest, summary: ExportSummary) -> dict[str, Any]:
    """What the export's manifest says of the run that it is of, and of itself."""
    carried = ("base_model", "base_fingerprint", "method", "dataset_fingerprint", "labels")
    own = {"file": summary.file, "size_mb": summary.size_mb, "check": asdict(summary.check)}
    return {key: run.facts.get(key) for key in carried} | own


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name} is {value!r}", f"Expected one of {', '.join(known)}")


def _check_form(run: Path, weights: Weights, form: str) -> None:
    """Raise what speaks against this form before anything large is loaded."""
    is_whole = (run / "model").is_dir()
    if form == "adapter" and is_whole:
        raise UsageError(f"{run} holds all weights (method {weights.method}), no adapter", "Use --form merged")
    if form != "adapter" and not is_whole and _is_soft_prompt(run / "adapter"):
        raise ModelError(
            f"{run} is a soft prompt (method {weights.method}): it stands before the input and cannot be merged into "
            "weights",
            "Use --form adapter, or tune with method lora",
        )
    if form == "gguf":
        from transformers import AutoConfig

        check_convertible(AutoConfig.from_pretrained(weights.folder), load_tokenizer(weights.folder))


def _is_soft_prompt(folder: Path) -> bool:
    from peft import PeftConfig

    return bool(PeftConfig.from_pretrained(str(folder)).is_prompt_learning)


def _write_merged(weights: Weights, folder: Path, precision: Precision) -> Check:
    model, tokenizer = load_weights(weights, precision).eval(), load_tokenizer(weights.folder)
    expected, device = expect(model, tokenizer), model.device
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model  # one of the two at a time
    return check_merged(folder, expected, device)


def _write_gguf(weights: Weights, file: Path, quantization: str, name: str, licence: str) -> Check:
    model, tokenizer = load_weights(weights, "float32").eval(), load_tokenizer(weights.folder)
    expected = expect(model, tokenizer, scored=True)
    write_gguf(model, tokenizer, file, quantization, name, licence)
    del model
    return check_gguf(file, expected, tokenizer, quantization)


def _write_adapter(weights: Weights, folder: Path, precision: Precision) -> Check:
    assert weights.adapter is not None
    model: Any = load_weights(weights, precision).eval()
    expected = expect(model, load_tokenizer(weights.folder))
    del model
    shutil.copytree(weights.adapter / "adapter", folder, dirs_exist_ok=True)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = public(str(settings["base_model_name_or_path"]))
    write_json(folder / "adapter_config.json", settings)
    return check_adapter(folder, expected, weights, precision)
