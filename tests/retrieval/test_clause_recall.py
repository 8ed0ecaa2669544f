"""The rule of the clause-level benchmark: half of a gold span, in the right document."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from raft.records import Chunk, Hit

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "clause_recall.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clause_recall", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hit(document: str, start: int, end: int, rank: int) -> Hit:
    return Hit(Chunk(f"{document}#{rank}", document, "x" * (end - start), start, end), 1.0, rank)


@pytest.mark.parametrize(("start", "end", "holds"), [(0, 15, True), (0, 14, False), (15, 30, True), (12, 18, True)])
def test_a_chunk_holds_at_least_half_of_the_span(benchmark: ModuleType, start: int, end: int, holds: bool) -> None:
    span = {"doc_id": "a", "start": 10, "end": 20}
    assert benchmark.holds_half(hit("a", start, end, 1).chunk, span) is holds
    assert not benchmark.holds_half(hit("b", 0, 99, 1).chunk, span)


def test_the_first_hit_with_any_span_counts(benchmark: ModuleType) -> None:
    spans = [{"doc_id": "a", "start": 10, "end": 20}, {"doc_id": "b", "start": 0, "end": 4}]
    hits = [hit("a", 0, 9, 1), hit("b", 0, 9, 2), hit("a", 10, 20, 3)]
    assert benchmark.first_rank(hits, spans) == 2
    assert benchmark.first_rank(hits[:1], spans) == float("inf")


def test_intervals_hold_the_mean_and_widen_with_dependence(benchmark: ModuleType) -> None:
    found = np.repeat([1.0, 0.0], 50)
    low, high = benchmark.interval(found, [str(n) for n in range(100)])
    assert low < 0.5 < high
    wide_low, wide_high = benchmark.interval(found, [str(n // 10) for n in range(100)])
    assert wide_high - wide_low > 1.5 * (high - low)
