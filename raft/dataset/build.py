"""raft generate: index (+ teacher, + existing questions) -> dataset artefact.

    questions.jsonl   accepted questions with their quotes (grounding.GroundedQuestion)
    train.jsonl       examples (records.RaftExample), ``draws`` drawings; the examples of a group stand together
    dev.jsonl         one drawing, only where the split has questions
    test.jsonl
    chunks.jsonl      every chunk that an example refers to (records.Chunk)
    rejected.jsonl    what the quality gate refused, and why (quality.py)

The teacher's replies go into a journal in the unfinished folder as they come; after a crash nothing that was
answered is asked again. Replies are used in the order of the questions, whatever order they came in, so that a
resumed run writes the same bytes as one that was never stopped.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raft import artifacts
from raft.config import GenerateRecipe
from raft.corpus.duplicates import near_duplicates
from raft.dataset.answers import target_of
from raft.dataset.collect import (
    Gate,
    Progress,
    Rules,
    SearchableIndex,
    Teacher,
    chosen_chunks,
    explain,
    from_rows,
    from_teacher,
)
from raft.dataset.context import Asked, Context, ContextSettings, draw_contexts
from raft.dataset.grounding import GroundedQuestion
from raft.dataset.importers import read_questions
from raft.dataset.quality import also_answers
from raft.dataset.split import leaks, split_by_document
from raft.errors import InputError, UsageError
from raft.llm.chat import ChatModel
from raft.prompts import REFUSAL
from raft.records import Chunk, QaItem, RaftExample, Split, to_row
from raft.rows import Journal, write_rows

JOURNAL = "journal.jsonl"
_MAY_CHANGE = ("context", "quality", "split")  # between runs: the journal goes by the words of the prompts
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_NEAR_PER_PLACE = 4  # retriever's hits looked at for each place of a context
_QUERIES_AT_ONCE = 256
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What ``raft generate`` made: questions and examples by split, how often each rule refused, and one example.

    ``oracle_share`` is the share of examples with their oracle among those of answerable questions;
    ``reasoning`` counts questions by where their reasoning comes from.
    """

    out: Path
    questions: Mapping[str, int]
    examples: Mapping[str, int]
    groups: int
    refused: int
    refused_by_rule: Mapping[str, int]
    reasoning: Mapping[str, int]
    oracle_share: float
    sample: Mapping[str, Any]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will ask of its teacher at most; tokens by rule of thumb (characters / 4)."""

    chunks: int
    questions: int
    teacher_calls: int
    prompt_tokens: int
    completion_tokens: int


def generate_dataset(
    recipe: GenerateRecipe,
    index: SearchableIndex,
    out: Path,
    teacher: ChatModel | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> DatasetSummary:
    """Make the dataset of ``recipe`` over an open index, as the artefact ``out``.

    Raises UsageError without a teacher or existing questions; InputError for bad rows, or when no question is
    left for an example; ArtifactError when ``out`` is taken or its unfinished work differs; EndpointError when
    the teacher fails (go on with ``resume``; context, quality and split may then be others).
    """
    if teacher is None and recipe.from_qa is None:
        raise UsageError("there is neither a teacher nor a file of questions", "Give --teacher or --from-qa")
    artifacts.check_free(out, overwrite)
    inputs = {"index": index.fingerprint}
    if recipe.from_qa is not None:
        inputs["from_qa"] = artifacts.hash_file(recipe.from_qa)
    going_on = resume if teacher is not None else None  # without a teacher there is nothing worth keeping
    with artifacts.writing(
        out, "dataset", _identity(recipe), inputs, overwrite=overwrite, resume=going_on, may_change=_MAY_CHANGE
    ) as draft:
        draft.scratch.append(draft.folder / JOURNAL)
        with contextlib.closing(Journal(draft.folder / JOURNAL)) as journal:
            asked = None if teacher is None else _teacher(recipe, teacher, journal)
            gate, held_out = _collect(recipe, index, asked, progress)
        alike = _near_duplicates(index.chunks)
        strict = _stricter(index.chunks, held_out, alike)
        items = _settle(recipe, gate, strict, alike)
        examples = _draw(recipe, index, items, strict, alike, progress)
        documents = _write(draft.folder, items, examples, gate, index.chunks)
        summary = _summary(out, items, examples, gate, asked)
        facts = {key: value for key, value in asdict(summary).items() if key not in ("out", "sample")}
        draft.facts = {
            "index_fingerprint": index.fingerprint, "teacher": teacher and teacher.name,
            "labels": _labels(index, documents), **facts,
        }  # fmt: skip
    return summary


def _identity(recipe: GenerateRecipe) -> dict[str, Any]:
    """The settings that the data depend on: not where they go, nor how fast the teacher is asked."""
    settings = recipe.model_dump(mode="json", exclude={"out"})
    for name in ("concurrency", "timeout_seconds", "max_retries", "batch_tokens"):
        (settings["teacher"] or {}).pop(name, None)
    return settings


def _teacher(recipe: GenerateRecipe, model: ChatModel, journal: Journal) -> Teacher:
    temperature = recipe.teacher.temperature if recipe.teacher is not None else 0.0
    return Teacher(model, journal, max_tokens=recipe.questions.max_tokens, temperature=temperature, seed=recipe.seed)


def _collect(
    recipe: GenerateRecipe, index: SearchableIndex, teacher: Teacher | None, progress: Progress
) -> tuple[Gate, dict[str, Split]]:
    """What passed the gate and what did not; and the documents of dev and test rows that were not to be used."""
    rules = Rules(**recipe.quality.model_dump())
    writes = teacher_tasks(recipe)
    gate, held_out, reserved = Gate(), dict[str, Split](), dict[str, Split]()
    if recipe.from_qa is not None:
        wanted, others = _rows(recipe.from_qa, recipe.from_qa_splits, recipe.from_qa_limit)
        gate, held_out = from_rows(wanted, index, rules), _held_out(others)
        if teacher is not None and "reasoning" in writes:
            explain(gate, index, teacher, progress)
        reserved = held_out | _held_out(wanted)
    if teacher is not None and "questions" in writes:
        open_chunks = [chunk for chunk in index.chunks if chunk.document_id not in reserved]
        chunks = chosen_chunks(open_chunks, recipe.questions.max_chunks, recipe.seed)
        gate.extend(from_teacher(chunks, recipe.questions.per_chunk, teacher, rules, progress))
    return gate, held_out


def teacher_tasks(recipe: GenerateRecipe) -> tuple[str, ...]:
    """What a teacher is asked to write: as the recipe says, or what fits the rows there are."""
    if recipe.teacher_writes is not None:
        return recipe.teacher_writes
    return ("questions",) if recipe.from_qa is None else ("reasoning",)


def _rows(path: Path, splits: Sequence[Split], limit: int | None) -> tuple[list[QaItem], list[QaItem]]:
    """The first ``limit`` rows of these splits (or of none), and all others."""
    rows = read_questions(path)
    fitting = [row for row in rows if row.split is None or row.split in splits]
    used = {row.id for row in fitting[:limit]}
    return fitting[:limit], [row for row in rows if row.id not in used]


def _held_out(rows: Sequence[QaItem]) -> dict[str, Split]:
    """Document -> split, for the documents that these dev and test rows rest on; test overrules dev."""
    held: dict[str, Split] = {}
    for split in ("dev", "test"):
        held.update((name, split) for row in rows if row.split == split for name in row.gold_document_ids)
    return held


def _near_duplicates(chunks: Iterable[Chunk]) -> dict[str, int]:
    """Chunk id -> group, for the chunks that say nearly the same words as another one."""
    ids, texts = [], []
    for chunk in chunks:
        ids.append(chunk.id)
        texts.append(chunk.text)
    groups = near_duplicates(texts)
    size = Counter(groups)
    return {name: group for name, group in zip(ids, groups, strict=True) if size[group] > 1}


def _groups_of(items: Iterable[GroundedQuestion], alike: Mapping[str, int]) -> set[int]:
    """The groups of near-duplicates that the questions' oracles stand in."""
    return {alike[name] for item in items for name in item.oracle_ids if name in alike}


@dataclass(frozen=True, slots=True)
class _Stricter:
    """The documents of dev and test rows that were not to be used, and the near-duplicate groups of their chunks."""

    documents: Mapping[str, Split]
    groups: frozenset[int]


def _stricter(chunks: Iterable[Chunk], held_out: Mapping[str, Split], alike: Mapping[str, int]) -> _Stricter:
    held = (chunk.id for chunk in chunks if chunk.document_id in held_out) if held_out else ()
    return _Stricter(held_out, frozenset(alike[name] for name in held if name in alike))


def _settle(
    recipe: GenerateRecipe, gate: Gate, held_out: _Stricter, alike: Mapping[str, int]
) -> list[GroundedQuestion]:
    """The questions that examples can be made of, each in its split. Raises InputError when none is left."""
    places = recipe.context.distractor_range[1] + 1
    gate.refuse_where({item.id: "more_oracles_than_places" for item in gate.accepted if len(item.oracle_ids) > places})
    splits = split_by_document(gate.accepted, recipe.split.dev, recipe.split.test, recipe.seed)
    gate.refuse_where(dict.fromkeys(leaks(gate.accepted, splits, held_out.documents), "document_of_stricter_split"))
    strict = held_out.groups | _groups_of((item for item in gate.accepted if splits[item.id] != "train"), alike)
    trained = [item for item in gate.accepted if splits[item.id] == "train" and _groups_of([item], alike) & strict]
    gate.refuse_where({item.id: "near_duplicate_of_stricter_split" for item in trained})
    if not any(item.oracle_ids for item in gate.accepted):
        refused = ", ".join(f"{rule} {count}" for rule, count in gate.by_rule().items())
        raise InputError(
            f"no question is left to make an example of (refused: {refused or 'none, there was no question'})",
            "Change the questions, the teacher or the quality settings",
        )
    return [replace(item, split=splits[item.id]) for item in gate.accepted]


def _draw(
    recipe: GenerateRecipe,
    index: SearchableIndex,
    items: Sequence[GroundedQuestion],
    held_out: _Stricter,
    alike: Mapping[str, int],
    progress: Progress,
) -> dict[Split, list[RaftExample]]:
    """The examples of each split that has questions."""
    settings = recipe.context
    places = settings.distractor_range[1] + 1
    drawing = ContextSettings(
        settings.oracle_fraction,
        settings.distractor_range,
        settings.policy,
        settings.questions_per_context,
        recipe.seed,
    )
    near = _near_ids(items, index, _NEAR_PER_PLACE * places, progress)
    answers_too = also_answers(items, lambda chunk_id: index.chunk(chunk_id).text, alike)
    everywhere, in_train = _pools(index.chunks, items, held_out, alike)
    known = {item.id: item for item in items}
    examples: dict[Split, list[RaftExample]] = {}
    for split in _SPLITS:
        asked = [Asked(item.id, item.oracle_ids, near[item.id]) for item in items if item.split == split]
        pool = in_train if split == "train" else everywhere
        draws = range(settings.draws if split == "train" else 1)
        contexts = [c for draw in draws for c in draw_contexts(asked, pool, answers_too, drawing, draw)]
        made = [example for c in contexts for example in _of_context(c, known, settings.oracle_absent == "refuse")]
        if made:
            examples[split] = made
    return examples


def _pools(
    chunks: Iterable[Chunk],
    items: Sequence[GroundedQuestion],
    held_out: _Stricter,
    alike: Mapping[str, int],
) -> tuple[list[str], list[str]]:
    """The chunks that may be distractors, and those that may in train: documents that dev or test questions rest on
    are not even that, nor are near-duplicates of their oracles, or of any chunk of a document whose questions were not
    to be used."""
    strict_items = [item for item in items if item.split != "train"]
    documents = {name for item in strict_items for name in item.document_ids} | set(held_out.documents)
    groups = held_out.groups | _groups_of(strict_items, alike)
    document_of = {chunk.id: chunk.document_id for chunk in chunks}
    in_train = [
        name for name, document in document_of.items() if document not in documents and alike.get(name) not in groups
    ]
    return list(document_of), in_train


def _near_ids(
    items: Sequence[GroundedQuestion], index: SearchableIndex, k: int, progress: Progress
) -> dict[str, tuple[str, ...]]:
    """Question id -> the retriever's best ``k`` chunks."""
    found: dict[str, tuple[str, ...]] = {}
    for at in range(0, len(items), _QUERIES_AT_ONCE):
        batch = items[at : at + _QUERIES_AT_ONCE]
        hits = index.search([item.question for item in batch], min(k, len(index.chunks)))
        found |= {item.id: tuple(hit.chunk.id for hit in row) for item, row in zip(batch, hits, strict=True)}
        progress("distractors", len(found), len(items))
    return found


def _of_context(context: Context, known: Mapping[str, GroundedQuestion], refuse: bool) -> Iterator[RaftExample]:
    for member in context.members:
        item, present = known[member.question_id], member.oracle_present
        refused = not present and (refuse or item.answer_type == "unanswerable")
        yield RaftExample(
            id=f"{item.id}@{context.draw}",
            question_id=item.id,
            question=item.question,
            answer=REFUSAL if refused else item.answer,
            target=target_of(item, context.chunk_ids, present, refuse),
            answer_type=item.answer_type,
            context=context.chunk_ids,
            oracle_ids=item.oracle_ids,
            oracle_present=present,
            group=context.group,
            draw=context.draw,
        )


def _write(
    folder: Path,
    items: Sequence[GroundedQuestion],
    examples: Mapping[Split, Sequence[RaftExample]],
    gate: Gate,
    chunks: Sequence[Chunk],
) -> set[str]:
    """Write the files of the dataset; returns the documents whose words are in it."""
    for split in _SPLITS:  # a run that was stopped in its last step may have had other splits
        (folder / f"{split}.jsonl").unlink(missing_ok=True)
    for split, rows in examples.items():
        write_rows(folder / f"{split}.jsonl", map(to_row, rows))
    named = {name for rows in examples.values() for row in rows for name in (*row.context, *row.oracle_ids)}
    kept = [chunk for chunk in chunks if chunk.id in named]
    write_rows(folder / "chunks.jsonl", map(to_row, kept))
    write_rows(folder / "questions.jsonl", map(to_row, items))
    write_rows(folder / "rejected.jsonl", gate.rejected)
    return {chunk.document_id for chunk in kept}.union(*(item.document_ids for item in items))


def _labels(index: SearchableIndex, documents: Iterable[str]) -> list[str]:
    """The access labels of these documents: who lacks one must not see the dataset, nor ask what is tuned on it."""
    return sorted({label for name in documents for label in index.document(name).metadata.get("labels", ())})


def _summary(
    out: Path,
    items: Sequence[GroundedQuestion],
    examples: Mapping[Split, Sequence[RaftExample]],
    gate: Gate,
    teacher: Teacher | None,
) -> DatasetSummary:
    rows = [row for made in examples.values() for row in made]
    answerable = [row for row in rows if row.oracle_ids]
    accepted = {item.id for item in items}
    replies = teacher.used if teacher is not None else []
    return DatasetSummary(
        out=out,
        questions=dict(Counter(str(item.split) for item in items)),
        examples={split: len(made) for split, made in examples.items()},
        groups=len({row.group for row in rows}),
        refused=len({row["id"] for row in gate.rejected} - accepted),
        refused_by_rule=gate.by_rule(),
        reasoning=dict(Counter(item.reasoning_source for item in items)),
        oracle_share=round(sum(row.oracle_present for row in answerable) / len(answerable), 4),
        sample=to_row(next((row for row in rows if row.oracle_present), rows[0])),
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
    )


def estimate(recipe: GenerateRecipe, chunks: Sequence[Chunk]) -> Estimate:
    """What the recipe asks of its teacher over these chunks, before anything is asked.

    Raises InputError for bad rows of ``from_qa``.
    """
    tasks = teacher_tasks(recipe) if recipe.teacher is not None else ()
    rows = _rows(recipe.from_qa, recipe.from_qa_splits, recipe.from_qa_limit)[0] if recipe.from_qa is not None else []
    explained = sum(row.answer_type != "unanswerable" for row in rows) if "reasoning" in tasks else 0
    typical = sum(len(chunk.text) for chunk in chunks) // max(1, len(chunks)) // _CHARACTERS_PER_TOKEN
    chosen = chosen_chunks(chunks, recipe.questions.max_chunks, recipe.seed) if "questions" in tasks else []
    each = recipe.questions.per_chunk
    shown = sum(len(chunk.text) // _CHARACTERS_PER_TOKEN for chunk in chosen)
    written = each * len(chosen)
    asking = shown * (1 + each) + 100 * len(chosen) + 350 * written  # 350: system text and worked example
    return Estimate(
        chunks=len(chosen) or len(chunks),
        questions=len(rows) + written,
        teacher_calls=explained + len(chosen) + written,
        prompt_tokens=explained * (typical + 100) + asking,
        completion_tokens=explained * 40 + (30 + 80) * written,
    )
