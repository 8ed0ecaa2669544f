"""Sweeps over the invented world, with an index in memory, and their scores for answers by script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

from raft.config import SweepName
from raft.dataset.counterfactual import vocabulary_of
from raft.evaluation.cases import SYSTEMS, build_cases
from raft.evaluation.contexts import Making, Source, Sweep, find_sources, make_sweep
from raft.evaluation.scoring import Sampling
from raft.evaluation.sweep_scores import SweepScores, score_sweep
from raft.evaluation.sweeps import read_attacks
from raft.prompts import render_target
from raft.records import Chunk
from tests.evaluation import world

NAMES: tuple[SweepName, ...] = get_args(SweepName)
DRAW = Sampling(confidence=0.9, resamples=200, seed=0)


def answerable(index: world.MemoryIndex | None = None, seed: int = 0) -> list[Source]:
    items = [item for item in world.questions() if item.split == "test"]
    index = index or world.index()
    cases = build_cases(index, items, top_k=3, mode="fused", seed=seed)
    return find_sources(index, cases, most=12, mode="fused", seed=seed)


def making(sources: Sequence[Source] = (), **changes: object) -> Making:
    vocabulary = vocabulary_of(world.chunks(), [source.grounded for source in sources])
    how = Making((0, 1, 2, 4, 8, 12), 4, 3, 0, vocabulary, frozenset(), read_attacks(), {})
    return replace(how, **changes)  # type: ignore[arg-type]


def made(name: SweepName, **changes: object) -> Sweep:
    sources = answerable()
    return make_sweep(name, sources, making(sources, **changes))


def ids(chunks: Sequence[Chunk]) -> list[str]:
    return [chunk.id for chunk in chunks]


def scored(
    name: SweepName, say: Callable[[str, str], str], systems: Sequence[str] = ("rag", "raft"), **changes: object
) -> SweepScores:
    """The scores of a sweep whose answer to a question at a point is what ``say`` says, for every system."""
    sweep = made(name, **changes)
    rows = {
        (system, c.case.item.id): {
            "text": say(c.question_id, point) if system == "raft" else render_target(c.case.item.answer),
            "error": None, "truncated": False, "prompt_tokens": 1, "completion_tokens": 1, "seconds": 0.1,
        }
        for system in systems
        for point, contexts in sweep.contexts.items()
        for c in contexts
    }  # fmt: skip
    return score_sweep(sweep, [SYSTEMS[system] for system in systems], rows, (), DRAW)  # type: ignore[index]


def figure(scores: SweepScores, point: str, measure: str, system: str = "raft") -> float:
    (found,) = [p for p in scores.points if (p.point, p.system) == (point, system)]
    return found.figures[measure].mean


def right(question_id: str) -> str:
    return render_target(next(item.answer for item in world.questions() if item.id == question_id))
