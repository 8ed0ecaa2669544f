"""The dataset card: ``README.md`` of a dataset, for whoever is handed the folder.

It opens as Hugging Face expects it, so that ``datasets.load_dataset(folder)`` finds the splits::

    ---
    license: unknown
    task_categories:
    - question-answering
    size_categories:
    - n<1K
    configs:
    - config_name: examples
      default: true
      data_files:
      - split: train
        path: train.jsonl
    ---
    # Dataset wards

Words that come from documents, questions or models are escaped: they can neither add markup nor links.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raft.artifacts import MANIFEST
from raft.records import RaftExample

CARD = "README.md"
UNKNOWN_LICENCE = "unknown: ask the owner of the documents"
_SPLITS = ("train", "dev", "test")
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_LICENCE_ID = re.compile(r"[a-z][a-z0-9.-]*[a-z0-9]")
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$:@-]|(?<=www)\.)", re.IGNORECASE)
_MOST_LINE = 300  # characters of a document's word or a setting that the card shows

Facts = Mapping[str, Any]


def write_card(
    folder: Path,
    *,
    name: str,
    facts: Facts,
    recipe: Mapping[str, Any],
    licences: Sequence[str],
    sample: RaftExample | None = None,
    language: str | None = None,
) -> Path:
    """Write ``README.md`` into the folder of a dataset; gives its path. The parameters are those of ``card_text``."""
    path = folder / CARD
    text = card_text(name=name, facts=facts, recipe=recipe, licences=licences, sample=sample, language=language)
    path.write_text(text, encoding="utf-8")
    return path


def card_text(
    *,
    name: str,
    facts: Facts,
    recipe: Mapping[str, Any],
    licences: Sequence[str],
    sample: RaftExample | None = None,
    language: str | None = None,
) -> str:
    """The card of a dataset.

    ``facts`` and ``recipe`` are those of its manifest; what is not in them is left out. ``licences`` holds the
    licence of each source document, "" where its metadata names none. ``language`` is an ISO 639 code.
    """
    parts = [
        _front_matter(facts, licences, language),
        f"# Dataset {escaped(name)}",
        "Questions over documents for retrieval-augmented fine-tuning (RAFT, arXiv 2403.10131), made by `raft`. "
        f"`raft dataset check` proves that it keeps its word; `{MANIFEST}` holds the hash of every file.",
        *_section("Numbers", _numbers(facts)),
        *_section("Licences of the sources", _licence_lines(licences)),
        *_section("Who may see it", [_access(facts)]),
        *_section("How it was made", _making(facts, recipe)),
        *_section("Files", _FILES),
        *_sample_section(sample),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: object) -> str:
    """Words of others as one line of plain Markdown: no markup, no HTML, no link, no control character."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    line = line if len(line) <= _MOST_LINE else line[: _MOST_LINE - 4] + " ..."
    html = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", html)


def fenced(text: str) -> str:
    """Words of others as a block that shows them as they are: its fence is longer than any of theirs."""
    clean = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", clean)), default=0))
    return f"{fence}text\n{clean}\n{fence}"


def licence_id(licences: Sequence[str]) -> str:
    """What the front matter says: the one licence of all sources, "other" for several, "unknown" where one is."""
    names = {licence.strip() for licence in licences}
    if not names or "" in names:
        return "unknown"
    only = names.pop().lower() if len(names) == 1 else ""
    return only if _LICENCE_ID.fullmatch(only) else "other"


def _front_matter(facts: Facts, licences: Sequence[str], language: str | None) -> str:
    import yaml

    examples = _counts(facts, "examples")
    splits = [name for name in _SPLITS if examples.get(name)]
    total = sum(examples.values())
    head: dict[str, Any] = {"license": licence_id(licences), "task_categories": ["question-answering"]}
    if language and _LANGUAGE.fullmatch(language):
        head["language"] = [language]
    head["size_categories"] = [next((name for most, name in _SIZES if total < most), "n>10M")]
    head["tags"] = ["raft", "retrieval-augmented-generation", "synthetic" if facts.get("teacher") else "rag"]
    data = [{"split": name, "path": f"{name}.jsonl"} for name in splits]
    configs = [{"config_name": "examples", "default": True, "data_files": data}] if data else []
    configs += [{"config_name": name, "data_files": f"{name}.jsonl"} for name in ("questions", "chunks")]
    head["configs"] = configs
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "\n".join(lines)] if lines else []


def _counts(facts: Facts, name: str) -> dict[str, int]:
    """A mapping of counts among the facts; empty where there is none."""
    value = facts.get(name)
    return {str(key): int(n) for key, n in value.items()} if isinstance(value, Mapping) else {}


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]] if rows else []


def _numbers(facts: Facts) -> list[str]:
    questions, examples = _counts(facts, "questions"), _counts(facts, "examples")
    names = [name for name in _SPLITS if questions.get(name) or examples.get(name)]
    rows = [[name, questions.get(name, 0), examples.get(name, 0)] for name in names]
    lines = _table(("split", "questions", "examples"), rows)
    if isinstance(share := facts.get("oracle_share"), int | float):
        lines += ["", f"{share:.1%} of the examples of answerable questions hold their oracle among the documents."]
    if facts.get("groups"):
        lines += ["", f"They stand over {facts['groups']} contexts, those of one group over the same."]
    for name, title in _COUNTED.items():
        counts = _counts(facts, name)
        ordered = sorted(counts, key=lambda key: (-counts[key], key))
        table = _table((title, "count"), [(key, counts[key]) for key in ordered])
        lines += ["", *table] if table else []
    return lines


_COUNTED = {
    "question_types": "type of question",
    "sources": "source of questions",
    "reasoning": "source of reasoning",
    "flags": "flag for reviewers",
    "refused_by_rule": "rule that refused questions",
}


def _licence_lines(licences: Sequence[str]) -> list[str]:
    """One line for each licence, with how many documents bear it."""
    counted = Counter(licence.strip() for licence in licences)
    ordered = sorted(counted, key=lambda name: (-counted[name], name))
    lines = [f"- {escaped(name) if name else UNKNOWN_LICENCE} ({counted[name]} documents)" for name in ordered]
    return lines or [f"- {UNKNOWN_LICENCE}"]


def _access(facts: Facts) -> str:
    labels = facts.get("labels") or ()
    if not labels:
        return "Its documents bear no access label."
    named = ", ".join(escaped(label) for label in labels)
    return f"Its documents bear access labels: **{named}**. Who does not hold all of them must not see this dataset."


def _making(facts: Facts, recipe: Mapping[str, Any]) -> list[str]:
    teacher = facts.get("teacher")
    lines = [f"- teacher: {escaped(teacher) if teacher else 'none'}"]
    if facts.get("imported_from"):
        lines.append(f"- imported from the output of {escaped(facts['imported_from'])}")
    if facts.get("prompt_tokens") or facts.get("completion_tokens"):
        read, wrote = int(facts.get("prompt_tokens") or 0), int(facts.get("completion_tokens") or 0)
        lines.append(f"- the teacher read {read:,} tokens and wrote {wrote:,}")
    if cost := facts.get("cost"):
        lines.append(f"- cost, in the money of the teacher's prices: {escaped(cost)}")
    if review := facts.get("review"):
        lines.append(f"- reviewed by people: {escaped(json.dumps(review, ensure_ascii=False, default=str))}")
    settings = [f"  - {escaped(key)} = {escaped(value)}" for key, value in _leaves(recipe)]
    return [*lines, "- recipe:", *settings] if settings else lines


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The settings of a recipe as (dotted name, value); what is not set is left out."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, json.dumps(value, ensure_ascii=False, default=str)


_FILES = [
    "- `train.jsonl`, `dev.jsonl`, `test.jsonl`: examples; the ids of their context are in prompt order",
    "- `questions.jsonl`: questions with the passages that prove their answer",
    "- `chunks.jsonl`: the text of every chunk that an example names",
    "- `rejected.jsonl`: what the quality gate refused, with its reasons",
    f"- `{MANIFEST}`: recipe, inputs and the hash of every file",
]


def _sample_section(sample: RaftExample | None) -> list[str]:
    if sample is None:
        return []
    where = "one of which holds the answer" if sample.oracle_present else "none of which holds the answer"
    over = f"Over {len(sample.context)} documents, {where}:"
    return ["## One example", over, fenced(f"Question: {sample.question}\n\n{sample.target}")]
