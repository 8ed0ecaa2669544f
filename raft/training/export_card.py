"""The model card: ``README.md`` of an export, for whoever is handed the folder.

It opens as Hugging Face expects it. Words that come from manifests and recipes are shown as code, so that they can add
neither markup nor links.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raft.artifacts import MANIFEST, Manifest
from raft.errors import RaftError
from raft.models import PACKAGE
from raft.prompts import build_messages
from raft.records import Chunk

CARD = "README.md"
UNKNOWN_LICENCE = "unknown: ask the makers of the base model"
_MOST_VALUE = 200  # characters of a value that the card shows
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCE_ID = re.compile(r"[a-z][a-z0-9.-]*[a-z0-9]")
_LIBRARIES = {"merged": "transformers", "gguf": "gguf", "adapter": "peft"}
_WHAT = {
    "merged": "all weights, the tuned part merged in, as safetensors with tokenizer and chat template",
    "gguf": "all weights, the tuned part merged in, with vocabulary and chat template in one GGUF file for llama.cpp",
    "adapter": "the tuned weights alone (PEFT); they need their base model",
}
_LOADING = {
    "merged": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```""",
    "gguf": """```
llama-server -m {file}
```""",
    "adapter": """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("BASE_MODEL")
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
```
The base must be the very one that it was tuned on; its fingerprint stands above.""",
}
_FOUR_BIT = """Its base had its weights in four bits, which it learned to correct: load it with `quantization_config`
`BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)`."""


_PATHS = ("preference.pairs", "preference.reward_model")  # settings that name a place on the machine of the training


def write_card(folder: Path, *, name: str, run: Manifest, form: str, exported: Mapping[str, Any]) -> Path:
    """Write ``README.md`` into the folder of an export; gives its path. ``run`` is the manifest of the adapter
    artefact; ``exported`` holds the export's own facts."""
    path = folder / CARD
    path.write_text(_card_text(name, run, form, exported), encoding="utf-8")
    return path


def base_licence(base_model: str, folder: Path) -> str:
    """The licence of a base model as its GGUF file or the card in its folder names it; "" where neither does."""
    try:
        if (file := _gguf_file(base_model)) is not None:
            return _licence_of_gguf(file)
        return _licence_of_card(folder / CARD)
    except (OSError, ValueError, RaftError):
        return ""


def _gguf_file(base_model: str) -> Path | None:
    if base_model.endswith(".gguf") and Path(base_model).is_file():
        return Path(base_model)
    if not base_model.startswith(PACKAGE):
        return None
    try:
        files = importlib.metadata.distribution(base_model.removeprefix(PACKAGE)).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def _licence_of_gguf(file: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(file).get_field("general.license")
    return "" if field is None else str(field.contents())


def _licence_of_card(card: Path) -> str:
    import yaml

    if not card.is_file():
        return ""
    head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        said = yaml.safe_load(head.group(1)) if head else None
    except yaml.YAMLError:
        return ""
    return str(said.get("license") or "") if isinstance(said, dict) else ""


def _card_text(name: str, run: Manifest, form: str, exported: Mapping[str, Any]) -> str:
    loading = _LOADING[form].replace("{file}", str(exported.get("file", "")))
    if form == "adapter" and run.facts.get("method") == "qlora":
        loading = f"{loading}\n\n{_FOUR_BIT}"
    parts = [
        _front_matter(run, form, exported),
        f"# Model {_code(name)}",
        f"A language model tuned to read retrieved documents (RAFT, arXiv 2403.10131), made by `raft`. This folder "
        f"holds {_WHAT[form]}. `{MANIFEST}` holds the hash of every file.",
        "## Where it comes from",
        _listed(_origin(run, exported)),
        "## Who may have it",
        _access(run.facts.get("labels") or ()),
        "## How to load it",
        loading,
        "It was tuned on prompts of this form; another form gives other answers:",
        _prompt_form(),
        "## How it was checked",
        _listed(_checked(exported)),
        "## How it was tuned",
        _listed(_numbers(run.facts)),
        _listed((key, value if key not in _PATHS else Path(str(value)).name) for key, value in _settings(run)),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(run: Manifest, form: str, exported: Mapping[str, Any]) -> str:
    import yaml

    licence = str(exported.get("base_licence", "")).lower()
    head: dict[str, Any] = {"license": licence if _LICENCE_ID.fullmatch(licence) else "unknown"}
    base = str(run.facts.get("base_model", ""))
    if _HUB_ID.fullmatch(base):
        head["base_model"] = base
    head["library_name"] = _LIBRARIES[form]
    head["pipeline_tag"] = "text-generation"
    head["tags"] = ["raft", "retrieval-augmented-generation", "question-answering"]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _origin(run: Manifest, exported: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "base model", public(str(run.facts.get("base_model")))
    yield "licence of the base model", exported.get("base_licence") or UNKNOWN_LICENCE
    yield "fingerprint of the base model", run.facts.get("base_fingerprint")
    yield "method", run.facts.get("method")
    yield "fingerprint of the dataset", run.facts.get("dataset_fingerprint")
    yield "fingerprint of the index", run.facts.get("index_fingerprint")
    yield "fingerprint of the adapter artefact", run.fingerprint
    yield "trained", run.created


def public(model: str) -> str:
    """A model's name: of a folder or file on this machine its last part, for the rest helps nobody."""
    return model if _HUB_ID.fullmatch(model) or model.startswith(PACKAGE) else Path(model).name


def _access(labels: Sequence[str]) -> str:
    if not labels:
        return "The documents behind its training data bear no access label."
    named = ", ".join(map(_code, labels))
    return (
        f"It was tuned on documents with access labels: {named}. It may repeat what stands in them: who does not hold "
        "all of these labels must not have it."
    )


def _checked(exported: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    check = exported["check"]
    yield "loaded again by", check["engine"]
    yield "greedy answers that are the source's, token by token", f"{check['same_answers']} of {check['prompts']}"
    if check["perplexity"] is not None:
        yield "perplexity on invented text", f"{check['perplexity']} (its source: {check['source_perplexity']})"
        yield "they may be apart by a factor of", check["most_ratio"]


_NUMBERS = (
    "examples", "dropped", "tokens", "steps", "best_dev_loss", "trainable_parameters", "parameters", "seconds",
    "tokens_per_second", "peak_memory_mb", "device",
)  # fmt: skip


def _numbers(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((name.replace("_", " "), facts[name]) for name in _NUMBERS if facts.get(name) is not None)


def _settings(run: Manifest) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in _leaves(run.recipe) if key != "model")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a recipe as (dotted name, value); what is not set is left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, value


def _prompt_form() -> str:
    chunk = Chunk("", "", "TEXT", 0, 4, "TITLE")
    turns = [f"{message.role}:\n{message.content}" for message in build_messages("QUESTION", [chunk, chunk])]
    return "```text\n" + "\n\n".join(turns) + "\n```"


def _listed(rows: Iterator[tuple[str, Any]]) -> str:
    return "\n".join(f"- {name}: {_code(value)}" for name, value in rows if value is not None)


def _code(value: Any) -> str:
    """A value as one line of code, in which no character means anything to Markdown."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    line = " ".join("".join(char if char.isprintable() and char != "`" else " " for char in text).split())
    return f"`{line[:_MOST_VALUE] or '-'}`"
