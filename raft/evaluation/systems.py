"""The systems that are compared: the built-in ones, and the contenders of a recipe. One of these::

[[contenders]]
name = "terse"
title = "RAG, asked tersely"
documents = "hits"
prompt = "configs/evaluate/terse.txt"
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raft.artifacts import MANIFEST
from raft.config import ChatModelRecipe, ContenderRecipe, Documents, EvaluateRecipe, SystemName
from raft.errors import InputError, UsageError
from raft.llm.local import run_of
from raft.prompts import fill_instruction
from raft.records import Chunk

if TYPE_CHECKING:
    from raft.evaluation.cases import Case

Weights = str
"""Which model answers: "base", the untuned one; "dsf", tuned without documents; "raft", tuned with documents;
"constant", none at all; or the name of a contender with a model of its own, behind a colon."""

OPTIONS: Mapping[Weights, str] = {"dsf": "dsf_adapter", "raft": "adapter"}
"""The setting of a recipe that gives these weights."""


@dataclass(frozen=True, slots=True)
class System:
    """A way to answer: which model, over which documents, with examples or not, in which form.

    ``instruction`` takes the place of what the project says to a model. ``tuned``: whether raft train made its weights.
    """

    name: SystemName
    title: str
    documents: Documents
    weights: Weights = "base"
    shots: bool = False
    short: bool = False
    tuned: bool = False
    instruction: str | None = None

    @property
    def quotes(self) -> bool:
        """Whether it is asked to quote its documents."""
        return self.documents != "none" and not self.short

    def chunks_of(self, case: Case) -> tuple[Chunk, ...] | None:
        """The documents of its prompt, None for closed book."""
        return {"none": None, "hits": case.hits, "oracle": case.with_oracle}[self.documents]


SYSTEMS: Mapping[SystemName, System] = {
    system.name: system
    for system in (
        System("constant", "Always the commonest answer", "none", "constant", short=True),
        System("closed_book", "Closed book", "none"),
        System("few_shot", "Few-shot, closed book", "none", shots=True),
        System("rag", "RAG", "hits"),
        System("rag_short", "RAG, bare short answer", "hits", short=True),
        System("few_shot_rag", "Few-shot RAG", "hits", shots=True),
        System("rag_oracle", "RAG, oracle given", "oracle"),
        System("dsf", "DSF (tuned without documents)", "none", "dsf", tuned=True),
        System("dsf_rag", "DSF + RAG", "hits", "dsf", tuned=True),
        System("raft", "RAFT", "hits", "raft", tuned=True),
        System("raft_short", "RAFT, bare short answer", "hits", "raft", short=True, tuned=True),
        System("raft_oracle", "RAFT, oracle given", "oracle", "raft", tuned=True),
    )
}

Source = tuple[ChatModelRecipe, Path | None]
"""A model and the adapter on it."""


def sources_of(recipe: EvaluateRecipe) -> dict[Weights, Source]:
    """Where the recipe's weights lie. Contenders that share a model share an entry, so that it is opened once."""
    found: dict[Weights, Source] = {"base": (recipe.model, recipe.model.adapter)}
    for weights, adapter in (("dsf", recipe.dsf_adapter), ("raft", recipe.adapter)):
        if adapter is not None:
            found[weights] = (recipe.model, adapter)
    for contender in recipe.contenders:
        if (source := _source_of(contender, recipe.model)) not in found.values():
            found[f":{contender.name}"] = source
    return found


def used_sources(recipe: EvaluateRecipe, systems: Sequence[System]) -> dict[Weights, Source]:
    """Those of ``sources_of`` that the systems use: a model that answers nothing is not looked at."""
    used = {system.weights for system in systems}
    return {weights: source for weights, source in sources_of(recipe).items() if weights in used}


def _source_of(contender: ContenderRecipe, model: ChatModelRecipe) -> Source:
    own = contender.model or model
    return own, contender.adapter or own.adapter


def contenders_of(recipe: EvaluateRecipe) -> list[System]:
    """The recipe's contenders as systems. Raises InputError when a prompt file cannot be read, or lacks what the parser
    of answers needs."""
    weights = {source: name for name, source in reversed(sources_of(recipe).items())}
    return [
        System(
            c.name, c.title or c.name, c.documents, weights[_source_of(c, recipe.model)], c.shots, c.short,
            _is_tuned(c), None if c.prompt is None else _read_instruction(c.prompt, c),
        )
        for c in recipe.contenders
    ]  # fmt: skip


def _is_tuned(contender: ContenderRecipe) -> bool:
    own = contender.model
    if contender.adapter is not None or own is None:
        return contender.adapter is not None
    is_run = own.base_url is None and (run_of(own.model) / MANIFEST).is_file()
    return own.adapter is not None or is_run


def _read_instruction(path: Path, contender: ContenderRecipe) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
        return fill_instruction(text, documents=contender.documents != "none", short=contender.short)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"prompt {path} of contender {contender.name!r} cannot be read ({why})") from None
    except ValueError as error:
        raise InputError(
            f"prompt {path} of contender {contender.name!r} {error}",
            "They stand for the words that answers are read by: see configs/evaluate/terse.txt",
        ) from None


def choose_systems(
    names: Sequence[SystemName], given: Sequence[Weights], contenders: Sequence[System] = ()
) -> tuple[list[System], list[str]]:
    """The systems to run, the contenders last, and what must be said about those left out.

    Built-in systems whose weights are not ``given`` are left out. Raises UsageError when a name or a title stands
    twice, a title cannot be shown, nothing is left, or a tuned model is given that no system uses.
    """
    _check_names(names, contenders)
    systems = [SYSTEMS[name] for name in names if SYSTEMS[name].weights in (*given, "constant")]
    if not systems and not contenders:
        options = dict.fromkeys(OPTIONS[SYSTEMS[name].weights].replace("_", "-") for name in names)
        remedy = " or ".join(f"--{option} DIR" for option in options)
        if not names:
            raise UsageError("no system to evaluate: systems is empty, and there are no contenders", "Name some")
        raise UsageError(f"no system to evaluate: {list(names)} need a tuned model", f"Give {remedy}")
    _check_titles([*systems, *contenders])
    notes = []
    for weights, option in OPTIONS.items():
        users = [name for name in names if SYSTEMS[name].weights == weights]
        if weights in given and not users and all(system.weights != weights for system in contenders):
            raise UsageError(f"{option} is given, but none of {list(names)} uses it", f"Add {weights} to systems")
        if weights not in given and users:
            notes.append(f"no {option} is given, so that {' and '.join(users)} cannot run")
    return [*systems, *contenders], notes


def _check_names(names: Sequence[SystemName], contenders: Sequence[System]) -> None:
    own = [system.name for system in contenders]
    for what, given in (("systems names", names), ("contenders names", own)):
        repeated = [name for name in given if given.count(name) > 1]
        if repeated:
            raise UsageError(f"{what} {repeated[0]!r} more than once", "Name each system once")
    taken = [name for name in own if name in SYSTEMS]
    if taken:
        raise UsageError(f"contender {taken[0]!r} has the name of a built-in system", "Give it another name")


def _check_titles(systems: Sequence[System]) -> None:
    """Raises UsageError for titles that tell no two systems apart, or that would break a line of a table."""
    first: dict[str, SystemName] = {}
    for system in systems:
        title = " ".join(system.title.split())
        if not title or any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in system.title):
            raise UsageError(
                f"contender {system.name!r} has the title {system.title!r}; expected words without control characters",
                "Give it another title, or none: it then has its name",
            )
        if first.setdefault(title.casefold(), system.name) != system.name:
            other = first[title.casefold()]
            raise UsageError(f"{other!r} and {system.name!r} both have the title {title!r}", "Give one another title")


def find_lead(lead: SystemName | None, systems: Sequence[System], contenders: Sequence[System]) -> SystemName | None:
    """The system that all others are compared with: the one asked for, else raft, else the first contender; None where
    there is none of these. Raises UsageError when the one asked for does not run."""
    names = [system.name for system in systems]
    if lead is not None and lead not in names:
        raise UsageError(f"lead is {lead!r}; expected one of the systems that run: {', '.join(names)}")
    return next((name for name in (lead, "raft", *(c.name for c in contenders)) if name in names), None)
