"""raft generate: index (+ teacher, + existing questions) -> dataset artefact.

    questions.jsonl   accepted questions with their quotes (grounding.GroundedQuestion)
    train.jsonl       examples (records.RaftExample), ``draws`` drawings; the examples of a group stand together
    dev.jsonl         one drawing, only where the split has questions
    test.jsonl
    chunks.jsonl      every chunk that an example refers to (records.Chunk), made-up ones last
    rejected.jsonl    what the quality gate refused, and why (gate.py)
    README.md         the dataset card

The teacher's replies go into a journal in the unfinished folder as they come; after a crash nothing that was
answered is asked again. Replies are used in the order of the questions, whatever order they came in, so that a
resumed run writes the same bytes as one that was never stopped.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from raft import artifacts
from raft.config import ChatModelRecipe
from raft.config_generate import GenerateRecipe
from raft.corpus.duplicates import near_duplicates
from raft.dataset.background import Background
from raft.dataset.card import write_card
from raft.dataset.collect import (
    CANDIDATES,
    REFUSED_ONCE,
    QuestionPlan,
    chosen_chunks,
    explain,
    from_rows,
    from_teacher,
)
from raft.dataset.context import ContextSettings, Policy
from raft.dataset.edits import SPOOL, Edits, beside_edits, make_edits
from raft.dataset.entailment import load_entailment
from raft.dataset.estimate import rows_of, teacher_tasks
from raft.dataset.examples import Distractors, ExampleSettings, Tally, pool_of, settle, write_examples
from raft.dataset.gate import Gate, Rules
from raft.dataset.near import NearMisses, SearchableIndex
from raft.dataset.quality import also_answers
from raft.dataset.split import Likeness, likeness_of
from raft.dataset.summary import DatasetSummary, facts_of, labels_of, licences_of, summarize
from raft.dataset.teacher import Budget, Progress, Teacher
from raft.dataset.verify import Checks, entail, flag, judge, round_trip
from raft.errors import UsageError
from raft.llm.chat import ChatModel
from raft.llm.local import inherited_labels
from raft.llm.replies import SIDE_FILES, Replies
from raft.records import Chunk, QaItem, Split, to_row
from raft.rows import write_rows

JOURNAL = "replies.sqlite"
_SCRATCH = (JOURNAL, *(JOURNAL + end for end in SIDE_FILES), CANDIDATES, REFUSED_ONCE, SPOOL)
_MAY_CHANGE = ("context", "quality", "split")  # between runs: the journal goes by the words of the prompts
_OF_SPEED = ("concurrency", "timeout_seconds", "max_retries", "batch_tokens", "cache_mb", "workers", "ray_address")
_OF_MONEY = ("prompt_price", "completion_price", "budget_tokens", "budget_money", "cache")
_NEAR_PER_PLACE = 4  # retriever's hits looked at for each place of a context


def _silent(stage: str, done: int, total: int, note: str = "") -> None: ...


def generate_dataset(
    recipe: GenerateRecipe,
    index: SearchableIndex,
    out: Path,
    teacher: ChatModel | None = None,
    judge_model: ChatModel | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = _silent,
) -> DatasetSummary:
    """Make the dataset of ``recipe`` over an open index, as the artefact ``out``.

    Raises UsageError without a teacher or existing questions, or without what a check needs; InputError for bad rows,
    or when no question is left for an example; ArtifactError when ``out`` is taken or its unfinished work differs;
    EndpointError when the teacher fails, CheckFailed when its budget is spent (go on with ``resume``; context,
    quality and split may then be others).
    """
    _check_models(recipe, teacher, judge_model)
    artifacts.check_free(out, overwrite)
    asks = teacher is not None or judge_model is not None  # without them there is nothing worth keeping
    with artifacts.writing(
        out, "dataset", _identity(recipe), _inputs(recipe, index), overwrite=overwrite,
        resume=resume if asks else None, may_change=_MAY_CHANGE,
    ) as draft:  # fmt: skip
        draft.scratch += [draft.folder / name for name in _SCRATCH]
        with contextlib.ExitStack() as open_files:
            gate = Gate(draft.folder, _rules(recipe))
            open_files.callback(gate.close)
            draft.scratch.append(gate.scratch)
            teachers = _teachers(recipe, teacher, judge_model, draft.folder, open_files)
            misses = open_files.enter_context(NearMisses(index, _near_count(recipe)))
            splits, tally = _make(recipe, index, gate, teachers, misses, progress)
            summary = summarize(out, gate, splits, tally, [each for each in teachers if each])
            documents = {chunk.document_id for chunk in _named(index, tally)} | gate.documents
        draft.facts = _facts(recipe, index, teacher, documents) | facts_of(summary)
        licences = [*Counter(draft.facts["licences"]).elements()]
        write_card(
            draft.folder, name=out.name, facts=draft.facts, recipe=_identity(recipe), licences=licences,
            sample=tally.sample,
        )  # fmt: skip
    return summary


def _facts(
    recipe: GenerateRecipe, index: SearchableIndex, teacher: ChatModel | None, documents: Collection[str]
) -> dict[str, Any]:
    """What the manifest says of where a dataset is from, whose files hold words of these documents."""
    labels = {*labels_of(index, documents), *_labels_of_models(recipe)}
    return {
        "index_fingerprint": index.fingerprint, "teacher": teacher and teacher.name, "labels": sorted(labels),
        "licences": licences_of(index, sorted(documents)),
    }  # fmt: skip


def _labels_of_models(recipe: GenerateRecipe) -> set[str]:
    """The access labels of the documents that teacher and judge were tuned on, where they are runs of raft train: what
    they write may say what stands there, and what they refuse follows from it."""
    local = [model for model in (recipe.teacher, recipe.quality.judge) if model is not None and model.base_url is None]
    runs = [run for model in local for run in (model.model, model.adapter) if run is not None]
    return {label for run in runs for label in inherited_labels(str(run))}


def _make(
    recipe: GenerateRecipe,
    index: SearchableIndex,
    gate: Gate,
    teachers: tuple[Teacher | None, Teacher | None],
    misses: NearMisses,
    progress: Progress,
) -> tuple[dict[str, Split], Tally]:
    """Collect questions, check them, and write everything but the manifest and the card."""
    teacher, reader = teachers
    comparing = Background("raft-likeness", lambda: _likeness(index.chunks, misses.rest))
    held_out = _collect(recipe, index, teacher, gate, misses, progress)
    likeness = comparing.result()
    near = misses.of([(item.id, item.question) for item in gate], progress)
    answers = also_answers(gate.item, lambda name: index.chunk(name).text, likeness.groups)
    quality = recipe.quality
    checks = Checks(quality.retriever_k, quality.keep_unfound, quality.round_trip, recipe.seed)
    flag(gate, near, checks)
    if teacher is not None:
        round_trip(gate, near, answers, index, teacher, checks, progress)
    if quality.entailment_model is not None:
        entail(gate, index, load_entailment(quality.entailment_model), quality.min_entailment, progress)
    if reader is not None:
        judge(gate, index, reader, progress)
    with contextlib.closing(Edits(gate.folder)) as edits:
        splits, tally = _assemble(recipe, index, gate, held_out, likeness, near, edits)
        _write(gate, splits, tally, index, edits)
    return splits, tally


def _inputs(recipe: GenerateRecipe, index: SearchableIndex) -> dict[str, str]:
    """The hashes of what the dataset is made from."""
    inputs = {"index": index.fingerprint}
    if recipe.from_qa is not None:
        inputs["from_qa"] = artifacts.hash_path(recipe.from_qa)
    if recipe.questions.prompts is not None:
        inputs["prompts"] = artifacts.hash_path(recipe.questions.prompts)
    return inputs


def _check_models(recipe: GenerateRecipe, teacher: ChatModel | None, judge_model: ChatModel | None) -> None:
    if teacher is None and recipe.from_qa is None:
        raise UsageError("there is neither a teacher nor a file of questions", "Give --teacher or --from-qa")
    if teacher is None and recipe.teacher_writes:
        raise UsageError(
            f"teacher_writes is {', '.join(recipe.teacher_writes)} and there is no teacher", "Give --teacher"
        )
    if teacher is None and recipe.quality.round_trip != "off":
        raise UsageError(
            f"quality.round_trip is {recipe.quality.round_trip!r} and there is no teacher to ask", "Give --teacher"
        )
    if (judge_model is None) != (recipe.quality.judge is None):
        raise UsageError("quality.judge and the judge model must be given together", "Set quality.judge.model")


def _identity(recipe: GenerateRecipe) -> dict[str, Any]:
    """The settings that the data depend on: not where they go, nor how fast or for how much the teacher is asked."""
    settings = recipe.model_dump(mode="json", exclude={"out"})
    for model in (settings["teacher"], settings["quality"]["judge"]):
        for name in (*_OF_SPEED, *_OF_MONEY):
            (model or {}).pop(name, None)
    return settings


def _teachers(
    recipe: GenerateRecipe,
    teacher: ChatModel | None,
    judge_model: ChatModel | None,
    folder: Path,
    open_files: contextlib.ExitStack,
) -> tuple[Teacher | None, Teacher | None]:
    """Who writes, and who judges; both keep their replies in the journal of the run."""
    if teacher is None and judge_model is None:
        return None, None
    journal = Replies(folder / JOURNAL)
    open_files.callback(journal.close)
    chosen = recipe.teacher
    cache = Replies(chosen.cache) if chosen is not None and chosen.cache is not None else None
    if cache is not None:
        open_files.callback(cache.close)
    budget = Budget()
    if chosen is not None:
        budget = Budget(chosen.budget_tokens, chosen.budget_money, chosen.prompt_price, chosen.completion_price)

    def asking(model: ChatModel, settings: Any, budget: Budget) -> Teacher:
        source = None
        if settings is not None:
            source = [settings.base_url, _adapter_of(settings), settings.engine, settings.precision]
        temperature = 0.0 if settings is None else settings.temperature
        return Teacher(
            model, journal, max_tokens=recipe.questions.max_tokens, temperature=temperature, seed=recipe.seed,
            budget=budget, source=source, cache=cache,
        )  # fmt: skip

    return (
        None if teacher is None else asking(teacher, chosen, budget),
        None if judge_model is None else asking(judge_model, recipe.quality.judge, Budget()),
    )


def _adapter_of(settings: ChatModelRecipe) -> str | None:
    """What tells one adapter from another, wherever it lies."""
    return None if settings.adapter is None else artifacts.read_manifest(settings.adapter, "adapter").fingerprint


def _collect(
    recipe: GenerateRecipe,
    index: SearchableIndex,
    teacher: Teacher | None,
    gate: Gate,
    misses: NearMisses,
    progress: Progress,
) -> dict[str, Split]:
    """Put through the gate what the recipe asks for; gives the documents of the dev and test rows there are."""
    writes = teacher_tasks(recipe)
    held_out = dict[str, Split]()
    if recipe.from_qa is not None:
        wanted, others = rows_of(recipe)
        from_rows(wanted, index, gate)
        held_out = _held_out(others) | _held_out(wanted)  # those that the gate refused are evaluated on all the same
        if teacher is not None and "reasoning" in writes:
            explain(gate, index, teacher, progress)
    if teacher is not None and "questions" in writes:
        chunks = chosen_chunks(index.chunks, recipe.questions.max_chunks, recipe.seed, held_out)
        from_teacher(chunks, _plan(recipe, held_out), index, teacher, gate, misses, progress)
    return held_out


def _near_count(recipe: GenerateRecipe) -> int:
    """How many of the retriever's hits are looked at for each question."""
    places = recipe.context.distractor_range[1] + 1
    return max(_NEAR_PER_PLACE * places, recipe.quality.retriever_k)


def _rules(recipe: GenerateRecipe) -> Rules:
    bounds = {field.name: getattr(recipe.quality, field.name) for field in fields(Rules)}
    return Rules(**bounds)


def _plan(recipe: GenerateRecipe, reserved: Iterable[str]) -> QuestionPlan:
    asked = recipe.questions
    return QuestionPlan(
        asked.per_chunk, asked.types, asked.language, asked.prompts, asked.structured, asked.style, recipe.seed,
        frozenset(reserved),
    )  # fmt: skip


def _held_out(rows: Sequence[QaItem]) -> dict[str, Split]:
    """Document -> split, for the documents that these dev and test rows rest on; test overrules dev."""
    held: dict[str, Split] = {}
    for split in ("dev", "test"):
        held.update((name, split) for row in rows if row.split == split for name in row.gold_document_ids)
    return held


def _likeness(chunks: Sequence[Chunk], rest: Callable[[], bool]) -> Likeness:
    """The near-duplicates among the chunks, and what they say of their documents; begun after ``rest``, so that the
    first calls do not wait for two things at once, and not at all where the run is over by then."""
    chunks = chunks if rest() else ()
    groups = near_duplicates(_Texts(chunks))
    size = Counter(groups)
    ids = (chunk.id for chunk in chunks)
    alike = {name: group for name, group in zip(ids, groups, strict=True) if size[group] > 1}
    return likeness_of(chunks, alike)


class _Texts(Sequence[str]):
    """The texts of chunks, each read when it is wanted."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, at: Any) -> Any:
        return self._chunks[at].text

    def __iter__(self) -> Iterator[str]:
        return (chunk.text for chunk in self._chunks)


def _assemble(
    recipe: GenerateRecipe,
    index: SearchableIndex,
    gate: Gate,
    held_out: Mapping[str, Split],
    likeness: Likeness,
    near: Mapping[str, tuple[str, ...]],
    edits: Edits,
) -> tuple[dict[str, Split], Tally]:
    """Split the questions and write the examples; gives the split of each question and what the examples come to."""
    chosen = recipe.context
    places = chosen.distractor_range[1] + 1
    splits = settle(gate, (recipe.split.dev, recipe.split.test), places, held_out, likeness, recipe.seed)
    mix: dict[Policy, float] = dict(chosen.mix.items())
    drawing = ContextSettings(
        chosen.oracle_fraction, chosen.distractor_range, chosen.policy, chosen.questions_per_context, recipe.seed,
        mix,
    )  # fmt: skip
    settings = ExampleSettings(drawing, chosen.draws, chosen.oracle_absent == "refuse", chosen.reasoning)
    pool = pool_of(index.chunks, gate, splits, held_out, likeness)
    if chosen.policy == "counterfactual" or (chosen.policy == "mixed" and chosen.mix.get("counterfactual")):
        make_edits(edits, gate, splits, index, pool.train, recipe.seed)
    answers = also_answers(
        gate.item, lambda name: (edits if name in edits else index).chunk(name).text, likeness.groups
    )  # fmt: skip
    beside = Distractors(near, beside_edits(answers, gate, edits), pool, edits)
    return splits, write_examples(gate, splits, beside, index, settings)


def _write(gate: Gate, splits: Mapping[str, Split], tally: Tally, index: SearchableIndex, edits: Edits) -> None:
    """Write the questions and the chunks; ``rejected.jsonl`` and the examples are written already."""

    def chunks() -> Iterator[Chunk]:
        yield from _named(index, tally)
        yield from map(edits.chunk, sorted(name for name in tally.named if name in edits))

    write_rows(gate.folder / "chunks.jsonl", map(to_row, chunks()))
    write_rows(gate.folder / "questions.jsonl", (to_row(item) | {"split": splits[item.id]} for item in gate))


def _named(index: SearchableIndex, tally: Tally) -> Iterator[Chunk]:
    """The chunks of the index that an example refers to, in its order."""
    return (chunk for chunk in index.chunks if chunk.id in tally.named)
