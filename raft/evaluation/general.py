"""raft evaluate general: what a tuned model can do beside what it was tuned for, before the tuning and after it.

Fine-tuning on one thing costs others (Luo et al. 2023, arXiv 2308.08747). The same items go to the base and to the
tuned model: the paragraphs and questions of ``training/probe.jsonl``, the everyday questions of ``general_chat.jsonl``,
and tasks of lm-evaluation-harness where they are asked for (general_tasks.py)::

    perplexity   24.31 -> 25.02, 1.029 times [1.012, 1.047]
    choices      0.650 [0.483, 0.794] -> 0.625 [0.458, 0.773]; 2 lost, 1 gained, p = 1
    chat         markers of RAFT's answers in 0 of 24 replies -> in 9 of 24 [0.188, 0.594]
    tasks        arc_easy acc 0.54 ± 0.05 -> 0.52 ± 0.05

An adapter's weights are added for its turn and taken away for the base's (PEFT's ``disable_adapter``), so that both are
asked of one model in memory; a model tuned as a whole, or over four-bit weights, is loaded after its base.
"""

from __future__ import annotations

import gc
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raft import artifacts
from raft.config_evaluate import EvaluateGeneralRecipe
from raft.config_train_rules import SOFT
from raft.errors import ModelError, UsageError
from raft.evaluation.general_tasks import LoadedTasks, Scored, score_tasks
from raft.evaluation.statistics import Interval, bootstrap_interval, mcnemar_p
from raft.llm.chat import ChatReply, ChatRequest
from raft.llm.local import LocalModel, Weights, find_weights, load_weights, soft_prefix
from raft.models import load_language_model, load_tokenizer, model_fingerprint
from raft.prompts import Message, is_refusal, neutralize, parse_answer
from raft.recipe import require
from raft.rows import read_rows
from raft.training import probe

CHAT = Path(__file__).with_name("general_chat.jsonl")
_MOST_NATS = 700.0  # a token, as in training/probe.py; exp of more would overflow
_SORRY = re.compile(r"\A(?:(?:i am |i'm )?(?:very |so )?sorry|unfortunately)\b[\s,.!:;-]*(?:but\b)?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
_SAYS_MORE = re.compile(r"[,;:]|\b(?:but|however|(?:al)?though|if)\b", re.IGNORECASE)
_SHOWN = {"tasks", "limit", "batch_size", "max_new_tokens", "seed", "resamples", "confidence"}
Which = Literal["base", "tuned"]
OnSide = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Of the paragraphs; ``ratio`` is tuned / base, with the interval over paragraphs. Above 1: text has become less
    likely."""

    texts: int
    base: float
    tuned: float
    ratio: Interval


@dataclass(frozen=True, slots=True)
class Choices:
    """Shares of questions with four choices that are answered rightly. ``lost`` were right before and are wrong now,
    ``gained`` the other way about; ``p`` is of McNemar's exact test between the two."""

    n: int
    base: Interval
    tuned: Interval
    lost: int
    gained: int
    p: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What both say to an everyday question, without documents and without an instruction."""

    question: str
    base: str
    tuned: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Shares of the replies in which a marker of RAFT's answers stands (``leaked``), or whose answer begins with a
    refusal as RAFT's answers word it (``declined``)."""

    n: int
    base_leaked: Interval
    tuned_leaked: Interval
    base_declined: Interval
    tuned_declined: Interval
    replies: tuple[Reply, ...]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A figure of lm-evaluation-harness, with the standard error of each side's mean (None where it gives none)."""

    task: str
    metric: str
    base: float
    base_error: float | None
    tuned: float
    tuned_error: float | None


@dataclass(frozen=True, slots=True)
class GeneralReport:
    name: str
    model: str
    tuned: str
    settings: Mapping[str, Any]
    perplexity: Perplexity
    choices: Choices
    chat: Chat
    tasks: tuple[TaskScore, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """All that one side said."""

    probed: probe.Probed
    replies: Mapping[str, ChatReply]
    scored: Scored


def evaluate_general(
    recipe: EvaluateGeneralRecipe, out: Path, *, overwrite: bool = False, on_side: OnSide = lambda side: None
) -> GeneralReport:
    """Write the artefact ``out`` of kind "general" (report.json, report.md) and return its content. ``on_side`` is told
    "base" and "tuned" when their turn begins.

    Raises UsageError, InputError or ArtifactError before any model is opened when adapter, model and tasks do not fit
    together; ModelError when a model or a task cannot run.
    """
    from raft.evaluation import general_report

    artifacts.check_free(out, overwrite)
    adapter = require(recipe.adapter, "adapter", "--adapter DIR")
    manifest = artifacts.open_artifact(adapter, "adapter")
    check_writes_text(adapter, manifest.facts)
    model = recipe.model or str(manifest.facts["base_model"])
    tasks = _tasks_of(recipe, manifest.facts["method"])
    weights = find_weights(model, adapter)
    inputs = {"adapter": manifest.fingerprint, "model": model_fingerprint(weights.folder),
              "probe": artifacts.hash_path(probe.ITEMS), "chat": artifacts.hash_path(CHAT)}  # fmt: skip
    if recipe.task_folder is not None:
        inputs["task_folder"] = artifacts.hash_path(recipe.task_folder)
    settings = recipe.model_dump(mode="json", exclude={"out"})
    with artifacts.writing(out, "general", settings, inputs, overwrite=overwrite) as draft:
        asked: dict[Which, Asked] = {}
        for side in sides(weights):
            on_side(side.which)
            asked[side.which] = _ask_side(side, recipe, tasks)
            del side
            gc.collect()  # a model in reference cycles must be gone before the next one is loaded
        shown = {**recipe.model_dump(mode="json", include=_SHOWN), "inputs": inputs}
        report = _report(out.name, recipe, model, weights.name, shown, asked)
        general_report.write(report, draft.folder)
        draft.facts = {"verdict": general_report.verdict(report)}
    return report


def check_writes_text(adapter: Path, facts: Mapping[str, Any]) -> None:
    """Raises UsageError for what was tuned to score or to embed."""
    objective = facts.get("objective", "sft")
    if objective in ("reward", "classify", "encoder", "reranker"):
        raise UsageError(
            f"{adapter} was tuned with objective {objective} and writes no text", "Give a tuned language model"
        )


def _tasks_of(recipe: EvaluateGeneralRecipe, method: str) -> LoadedTasks | None:
    if not recipe.tasks:
        return None
    if method in SOFT:
        raise UsageError(
            f"tasks cannot be asked of what was tuned by {method}: lm-evaluation-harness gets a model without its soft "
            "prompt",
            "Leave tasks out",
        )
    return LoadedTasks.load(recipe.tasks, recipe.task_folder)


# --- the two sides ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Side:
    """``probed`` is what the probe measures, ``chats`` the plain model that generates: the same but for a soft prompt,
    which the probe finds in PEFT's model, and decoding in the attribute ``soft_prefix``."""

    which: Which
    probed: Any
    chats: Any
    tokenizer: Any


def sides(weights: Weights) -> Iterator[Side]:
    """The base, then the tuned model, each ready to be asked until the next is taken. Raises ModelError when one cannot
    be loaded."""
    tokenizer = load_tokenizer(weights.folder)
    base = load_language_model(weights.folder).eval()
    assert weights.adapter is not None
    if (weights.adapter / "model").is_dir() or weights.method == "qlora":
        yield Side("base", base, base, tokenizer)
        del base
        gc.collect()
        tuned = load_weights(weights).eval()
        yield Side("tuned", tuned, tuned, tokenizer)
        return
    from peft import PeftModel

    pair = PeftModel.from_pretrained(base, str(weights.adapter / "adapter")).eval()
    soft = pair.peft_config["default"].is_prompt_learning
    with nullcontext() if soft else pair.disable_adapter():  # a soft prompt stands before a base that is as it was
        yield Side("base", base, base, tokenizer)
    if soft:
        base.soft_prefix = soft_prefix(pair)
    yield Side("tuned", pair if soft else base, base, tokenizer)


def _ask_side(side: Side, recipe: EvaluateGeneralRecipe, tasks: LoadedTasks | None) -> Asked:
    probed = probe.ask(side.probed, side.tokenizer)
    check_finite(side.which, probed)  # before hours of tasks
    replies = _chat(side, recipe.max_new_tokens, recipe.seed)
    how: Any = {"limit": recipe.limit, "batch_size": recipe.batch_size, "seed": recipe.seed}
    return Asked(probed, replies, score_tasks(side.chats, side.tokenizer, tasks, **how) if tasks else {})


def _chat(side: Side, max_new_tokens: int, seed: int) -> dict[str, ChatReply]:
    """Question -> reply, as each is asked by somebody who knows nothing of documents."""
    model = LocalModel(side.which, side.chats, side.tokenizer)
    requests = [
        ChatRequest(row["question"], (Message("user", row["question"]),), max_new_tokens, 0.0, seed)
        for row in read_rows(CHAT)
    ]
    replies = {reply.key: reply for reply in model.complete(requests)}
    failed = [reply for reply in replies.values() if reply.error is not None]
    if failed:
        raise ModelError(f"the {side.which} model cannot answer {failed[0].key!r} ({failed[0].error})")
    return {request.key: replies[request.key] for request in requests}


# --- figures ---------------------------------------------------------------------------------------------------------


def _report(
    name: str, recipe: EvaluateGeneralRecipe, model: str, tuned: str, settings: Mapping[str, Any],
    asked: Mapping[Which, Asked],
) -> GeneralReport:  # fmt: skip
    base, after = asked["base"], asked["tuned"]
    tasks, notes = pair_scores(base.scored, after.scored)
    for note in notes:
        print(f"raft: {note}", file=sys.stderr)
    pairs = [(question, base.replies[question].text, after.replies[question].text) for question in base.replies]
    return GeneralReport(
        name=name, model=model, tuned=tuned, settings=settings,
        perplexity=compare_perplexity(
            base.probed, after.probed, confidence=recipe.confidence, resamples=recipe.resamples, seed=recipe.seed
        ),
        choices=compare_choices(base.probed.right, after.probed.right, recipe.confidence),
        chat=compare_chat([Reply(*pair) for pair in pairs], recipe.confidence), tasks=tasks, notes=notes,
    )  # fmt: skip


def compare_perplexity(
    base: probe.Probed, tuned: probe.Probed, *, confidence: float, resamples: int, seed: int
) -> Perplexity:
    """The ratio is exp of the mean difference of the tokens' negative log-likelihoods; its interval resamples whole
    paragraphs (``bootstrap_interval``). Raises ModelError as ``check_finite`` does."""
    check_finite("base", base)
    check_finite("tuned", tuned)
    losses, texts = [], []
    for number, (before, after) in enumerate(zip(base.texts, tuned.texts, strict=True)):
        losses += [one - other for one, other in zip(before, after, strict=True)]
        texts += [str(number)] * len(before)
    found = bootstrap_interval(losses, texts, confidence=confidence, resamples=resamples, seed=seed)
    low, high = (None if end is None else _exp(end) for end in (found.low, found.high))
    ratio = Interval(_exp(found.mean), low, high)
    return Perplexity(len(base.texts), probe.perplexity(base), probe.perplexity(tuned), ratio)


def check_finite(which: Which, probed: probe.Probed) -> None:
    """Raises ModelError for a model that gives a token a log-likelihood that is no finite number."""
    wrong = next((value for text in probed.texts for value in text if not math.isfinite(value)), None)
    if wrong is not None:
        raise ModelError(
            f"the {which} model gives a token of general text the log-likelihood {wrong}; expected a finite number",
            "Its weights are damaged, or its training diverged: train again, with a lower optim.lr",
        )


def _exp(nats: float) -> float:
    return math.exp(min(nats, _MOST_NATS))


def compare_choices(base: Sequence[bool], tuned: Sequence[bool], confidence: float) -> Choices:
    """Raises ValueError on unequal lengths."""
    pairs = list(zip(base, tuned, strict=True))
    return Choices(
        n=len(pairs), base=share_interval(base, confidence), tuned=share_interval(tuned, confidence),
        lost=sum(a and not b for a, b in pairs), gained=sum(b and not a for a, b in pairs), p=mcnemar_p(base, tuned),
    )  # fmt: skip


def compare_chat(replies: Sequence[Reply], confidence: float) -> Chat:
    base, tuned = [reply.base for reply in replies], [reply.tuned for reply in replies]
    return Chat(
        n=len(replies),
        base_leaked=share_interval([leaks(text) for text in base], confidence),
        tuned_leaked=share_interval([leaks(text) for text in tuned], confidence),
        base_declined=share_interval([declines(text) for text in base], confidence),
        tuned_declined=share_interval([declines(text) for text in tuned], confidence),
        replies=tuple(replies),
    )  # fmt: skip


def leaks(text: str) -> bool:
    """Whether a marker of RAFT's answers (prompts.py) stands in the text."""
    return neutralize(text) != text


def declines(text: str) -> bool:
    """Whether the answer (after RAFT's marker, where there is one) begins with a sentence that refuses (``is_refusal``)
    and, but for an apology, says nothing more: neither "I do not know him, but he wrote ..." nor a refusal further on
    counts, nor an empty reply."""
    answer = _SORRY.sub("", parse_answer(text).final.strip())
    first = _SENTENCE_END.split(answer, maxsplit=1)[0]
    return bool(first.strip()) and is_refusal(first) and not _SAYS_MORE.search(first)


def share_interval(holds: Sequence[bool], confidence: float) -> Interval:
    """The share of what holds, with the exact interval of a binomial's probability (Clopper & Pearson 1934), which is
    honest for few items and for none of them: 0 of 24 is below 0.15. Raises ValueError of nothing."""
    from scipy.special import betaincinv

    n, k = len(holds), sum(holds)
    if n == 0:
        raise ValueError("a share of no items")
    tail = (1 - confidence) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Interval(k / n, low, high)


def pair_scores(base: Scored, tuned: Scored) -> tuple[tuple[TaskScore, ...], tuple[str, ...]]:
    """The figures that both sides have, in the base's order, and what must be said about those of one side alone."""
    both = [key for key in base if key in tuned]
    alone = [" ".join(key) for key in (*base, *tuned) if key not in both]
    notes = (f"left out, for one of the two models alone has them: {', '.join(alone)}",) if alone else ()
    return tuple(TaskScore(*key, *base[key], *tuned[key]) for key in both), notes
