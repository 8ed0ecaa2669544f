"""What a comparison will ask, decided before any model is opened::

Plan(systems=(rag, raft), cases=(16 questions with their documents), shots={}, shot_ids=(), lead="raft",
     inputs={"questions": "9f2c...", "index": "04ab..."}, constant=None,
     notes=("RAFT was tuned on another document store: its figures are out of domain",))
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft import artifacts, qa
from raft.config import ChatModelRecipe, EvaluateRecipe, SystemName, require
from raft.errors import InputError
from raft.evaluation import cases as asking
from raft.evaluation.cases import Case, Searchable
from raft.evaluation.constant import commonest_answer
from raft.evaluation.replies import gold_label
from raft.evaluation.systems import OPTIONS, System, Weights, choose_systems, contenders_of, find_lead, used_sources
from raft.llm.local import run_of
from raft.prompts import Shot, parse_answer
from raft.records import QaItem, question_key

if TYPE_CHECKING:
    from raft.retrieval.index import Index


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before a model is opened. ``shots`` maps a system to its in-context examples;
    ``constant`` is what the system of that name says, where it runs; ``lead`` is compared with all others."""

    systems: tuple[System, ...]
    cases: tuple[Case, ...]
    shots: Mapping[SystemName, tuple[Shot, ...]]
    shot_ids: tuple[str, ...]
    inputs: Mapping[str, str]
    notes: tuple[str, ...]
    lead: SystemName | None = None
    constant: str | None = None

    def asks(self, system: System) -> list[qa.Ask]:
        """What is put to the system's model, one a case; the key is the question's id."""
        shots = self.shots.get(system.name, ())
        return [
            qa.Ask(c.item.id, c.item.question, system.chunks_of(c), shots, system.short, system.instruction)
            for c in self.cases
        ]


def plan_comparison(recipe: EvaluateRecipe, given: Sequence[Weights]) -> Plan:
    """The contenders and the built-in systems whose weights are ``given``, the questions with their documents, and the
    examples.

    Raises UsageError, InputError or ArtifactError when recipe, questions, index and adapters do not fit together.
    """
    from raft.dataset.importers import read_questions
    from raft.retrieval.index import open_index

    index_path = require(recipe.index, "index", "--index DIR")
    questions_path = require(recipe.questions, "questions", "--questions FILE")
    contenders = contenders_of(recipe)
    systems, notes = choose_systems(recipe.systems, given, contenders)
    lead = find_lead(recipe.lead, systems, contenders)
    inputs = {"questions": artifacts.hash_path(questions_path), **_inputs_of_models(recipe, systems)}
    items = list(read_questions(questions_path))
    chosen, seen_notes = _choose_questions(recipe, systems, items, index_path)
    constant = None
    if any(system.weights == "constant" for system in systems):
        constant = commonest_answer(items, chosen, recipe.answer_labels)
    index = open_index(index_path, labels=recipe.labels, reranker=recipe.reranker)
    inputs["index"] = artifacts.read_manifest(index_path, "index").fingerprint
    notes += [*seen_notes, *repeated_notes(chosen), *domain_notes(recipe, systems, index)]
    for note in notes:
        print(f"raft: {note}", file=sys.stderr)
    shots, shot_ids = _choose_shots(recipe, systems, items, chosen, index)
    cases = asking.build_cases(index, chosen, top_k=recipe.top_k, mode=recipe.search, seed=recipe.seed)
    return Plan(tuple(systems), tuple(cases), shots, shot_ids, inputs, tuple(notes), lead, constant)


def _inputs_of_models(recipe: EvaluateRecipe, systems: Sequence[System]) -> dict[str, str]:
    """What tells adapters, prompts and the contenders' own models from others of their names."""
    used = used_sources(recipe, systems)
    named = [(option, used[weights][1]) for weights, option in OPTIONS.items() if weights in used]
    named += [(f"{contender.name}.adapter", contender.adapter) for contender in recipe.contenders]
    inputs = {
        name: artifacts.open_artifact(adapter, "adapter").fingerprint for name, adapter in named if adapter is not None
    }
    for contender in recipe.contenders:
        if contender.model is not None:
            inputs |= {f"{contender.name}.{name}": value for name, value in weights_of(contender.model).items()}
        if contender.prompt is not None:
            inputs[f"{contender.name}.prompt"] = artifacts.hash_path(contender.prompt)
    return inputs


def inputs_of_base(recipe: EvaluateRecipe, systems: Sequence[System]) -> dict[str, str]:
    """What tells the recipe's model from others of its name; nothing where no system uses it, alone or with an adapter
    on it. Raises ModelError or ArtifactError when it is nowhere to be had."""
    adapters = [adapter for model, adapter in used_sources(recipe, systems).values() if model == recipe.model]
    if not adapters:
        return {}
    unused = {} if recipe.model.adapter in adapters else {"adapter": None}
    return weights_of(recipe.model.model_copy(update=unused))


def weights_of(model: ChatModelRecipe) -> dict[str, str]:
    """What tells a model's weights from others of its name; nothing tells those behind an endpoint."""
    from raft.llm.local import resolve_base
    from raft.models import model_fingerprint

    if model.base_url is not None:
        return {}
    found = {"model": model_fingerprint(resolve_base(model.model))}
    if model.adapter is not None:
        found["model_adapter"] = artifacts.open_artifact(model.adapter, "adapter").fingerprint
    return found


def _choose_questions(
    recipe: EvaluateRecipe, systems: Sequence[System], items: Sequence[QaItem], index_path: Path
) -> tuple[list[QaItem], list[str]]:
    """The questions to be asked, and what must be said about those that a model has seen."""
    encoder = artifacts.read_manifest(index_path, "index").recipe["encoder"]["model"]
    sources = [part for model, adapter in used_sources(recipe, systems).values() for part in (model.model, adapter)]
    seen = asking.seen_by((*sources, encoder, recipe.reranker))
    unseen = asking.leave_out_seen(items, recipe.split, seen)
    notes = [asking.seen_note(len(items) - len(unseen))] if len(unseen) < len(items) else []
    split = None if recipe.split == "all" else recipe.split
    chosen = asking.select_questions(unseen, split, recipe.limit, recipe.seed)
    check_labels(chosen, recipe.answer_labels)
    learned = sum(question_key(item.question) in seen["questions"] for item in chosen)
    if learned:  # of the splits train and dev, where nothing is left out
        notes.append(
            f"a tuned model learned from {learned} of the {len(chosen)} questions asked: on them the figures show how "
            "well it fits them, not how it answers new ones"
        )
    return chosen, notes


def check_labels(items: Sequence[QaItem], labels: Sequence[str]) -> None:
    """Raises InputError when answer labels are asked for and no question's reference is one of them."""
    if labels and not any(gold_label(item, labels) is not None for item in items):
        raise InputError(
            f"no question's answer is one of the answer_labels {list(labels)} (the first is {items[0].answer!r})",
            "Correct answer_labels in the recipe, or leave them out",
        )


def _choose_shots(
    recipe: EvaluateRecipe,
    systems: Sequence[System],
    items: Sequence[QaItem],
    chosen: Sequence[QaItem],
    index: Searchable,
) -> tuple[dict[SystemName, tuple[Shot, ...]], tuple[str, ...]]:
    """The examples of each system that shows some, and the ids of their questions. Who is asked for a bare answer is
    shown bare answers."""
    shown = [system for system in systems if system.shots]
    examples = asking.select_shots(items, chosen, recipe.shots, recipe.seed) if shown else []
    without: tuple[Shot, ...] = ()
    among: tuple[Shot, ...] = ()
    if any(system.documents == "none" for system in shown):
        without = asking.closed_book_shots(examples)
    if any(system.documents != "none" for system in shown):
        search: Any = {"top_k": recipe.top_k, "mode": recipe.search, "seed": recipe.seed}
        among = asking.document_shots(index, examples, **search)
    bare = tuple(replace(shot, target=parse_answer(shot.target).final) for shot in among)
    found = {s.name: without if s.documents == "none" else bare if s.short else among for s in shown}
    return found, tuple(item.id for item in examples)


def repeated_notes(items: Sequence[QaItem]) -> Iterator[str]:
    """What must be said when questions of several ids are asked in the same words: each of them counts."""
    first: dict[str, str] = {}
    before = [(item.id, first.setdefault(question_key(item.question), item.id)) for item in items]
    again = [(name, earlier) for name, earlier in before if name != earlier]
    if again:
        example = f"{again[0][0]!r} repeats {again[0][1]!r}"
        yield f"{len(again)} of {len(items)} questions repeat another one's words ({example}); each of them counts"


def domain_notes(recipe: EvaluateRecipe, systems: Sequence[System], index: Index) -> Iterator[str]:
    """What must be said of tuned models that learned from other documents than those of the index. Tuning on one
    domain may fail in another: a reader must know which of the two the figures are of."""
    for weights, (model, adapter) in used_sources(recipe, systems).items():
        run = adapter or (None if model.base_url is not None else run_of(model.model))
        if run is None or (adapter is None and not (run / artifacts.MANIFEST).is_file()):
            continue
        titles = [system.title for system in systems if system.weights == weights]
        made = artifacts.parse_manifest(run) if adapter is None else artifacts.read_manifest(adapter, "adapter")
        said = _domain_note(made.facts.get("index_fingerprint"), run, index)
        if said:
            who = " and ".join(map(repr, titles)) if len(titles) > 1 else titles[0]
            yield f"{who} {'were' if len(titles) > 1 else 'was'} tuned on another {said}"


def _domain_note(tuned_on: str | None, run: Path, index: Index) -> str | None:
    """Which other document store the run was tuned on; None when that is this one, or nothing tells."""
    if tuned_on == index.fingerprint:
        return None
    seen = asking.seen_by([run])["documents"]
    here = len(seen & {document.id for document in index.documents}) if seen else 0
    if here and (tuned_on is not None or here < len(seen)):
        return f"version of this document store: {here} of the {len(seen)} documents learned from stand here"
    if not here and (seen or tuned_on is not None):
        return "document store: figures are out of domain"
    return None
