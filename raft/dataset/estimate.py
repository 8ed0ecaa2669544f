"""What a run will ask of its teacher, before anything is asked: ``raft generate --dry-run``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raft.config_generate import GenerateRecipe
from raft.dataset.collect import chosen_chunks
from raft.dataset.importers import read_questions
from raft.dataset.teacher import CHARACTERS_PER_TOKEN, Budget
from raft.dataset.verify import ROUND_TRIP_DISTRACTORS
from raft.records import Chunk, QaItem

_OVERHEAD_TOKENS, _CLOZE_TOKENS = 350, 800  # system text and worked examples of a prompt; of one with the answer given
_QUESTION_TOKENS, _ANSWER_TOKENS, _REASONING_TOKENS, _VERDICT_TOKENS = 30, 80, 40, 40  # typical replies


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will ask of its models at most; tokens by rule of thumb (characters / 4), ``cost`` in the money of
    the teacher's prices (a judge's tokens at the same). Questions over two chunks cost a little more."""

    chunks: int
    questions: int
    teacher_calls: int
    judge_calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float


def estimate(recipe: GenerateRecipe, chunks: Sequence[Chunk]) -> Estimate:
    """What the recipe asks over these chunks. Raises InputError for bad rows of ``from_qa``."""
    tasks = teacher_tasks(recipe) if recipe.teacher is not None else ()
    rows, _ = rows_of(recipe)
    chosen = set(chosen_chunks(chunks, recipe.questions.max_chunks, recipe.seed, {})) if "questions" in tasks else set()
    sizes = {chunk.id: len(chunk.text) // CHARACTERS_PER_TOKEN for chunk in chunks if chosen and chunk.id in chosen}
    typical = sum(len(chunk.text) for chunk in chunks) // max(1, len(chunks)) // CHARACTERS_PER_TOKEN
    each = recipe.questions.per_chunk
    written = each * len(chosen)
    clozes = recipe.questions.style == "answer_first"
    asking = 2 * written if clozes else len(chosen)  # what the rules refuse is asked once more
    explained = sum(row.answer_type != "unanswerable" for row in rows) if "reasoning" in tasks else 0
    sides = {"off": 0, "oracle": 1, "both": 2}[recipe.quality.round_trip] if recipe.teacher is not None else 0
    questions = len(rows) + written
    again = sides * questions
    judged = questions if recipe.quality.judge is not None else 0
    shown = sum(sizes.values())
    overhead = _CLOZE_TOKENS if clozes else _OVERHEAD_TOKENS
    prompt_tokens = (
        shown * ((each if clozes else 1) + each) + overhead * asking + _OVERHEAD_TOKENS * written
        + explained * (typical + 100) + again * (typical * (1 + ROUND_TRIP_DISTRACTORS) + 150)
        + judged * (typical + 250)
    )  # fmt: skip
    completion_tokens = (
        _QUESTION_TOKENS * (asking if clozes else written) + _ANSWER_TOKENS * (written + again)
        + _REASONING_TOKENS * explained + _VERDICT_TOKENS * judged
    )  # fmt: skip
    return Estimate(
        chunks=len(chosen) or len(chunks),
        questions=questions,
        teacher_calls=explained + asking + written + again,
        judge_calls=judged,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=round(_budget(recipe).cost(prompt_tokens, completion_tokens), 2),
    )


def _budget(recipe: GenerateRecipe) -> Budget:
    teacher = recipe.teacher
    return Budget() if teacher is None else Budget(None, None, teacher.prompt_price, teacher.completion_price)


def teacher_tasks(recipe: GenerateRecipe) -> tuple[str, ...]:
    """What a teacher is asked to write: as the recipe says, or what fits the rows there are."""
    if recipe.teacher_writes is not None:
        return recipe.teacher_writes
    return ("questions",) if recipe.from_qa is None else ("reasoning",)


def rows_of(recipe: GenerateRecipe) -> tuple[list[QaItem], list[QaItem]]:
    """The rows of ``from_qa`` that the recipe uses, and all others; none without such a file."""
    if recipe.from_qa is None:
        return [], []
    rows = read_questions(recipe.from_qa, columns=recipe.from_qa_columns)
    fitting = [row for row in rows if row.split is None or row.split in recipe.from_qa_splits]
    used = {row.id for row in fitting[: recipe.from_qa_limit]}
    return fitting[: recipe.from_qa_limit], [row for row in rows if row.id not in used]
