"""Rankings and their scores, against slow obvious versions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.errors import InputError
from raft.evaluation.ranking import (
    Asked,
    Found,
    Retriever,
    choose_questions,
    join_passages,
    locate_passages,
    measure,
    passage_ranking,
    score_rankings,
    search_deep,
)
from raft.records import Chunk, Hit, QaItem
from tests.evaluation import world


def slow_recall(ranking: list[int], wanted: set[int], k: int) -> float:
    return sum(1 for item in wanted if item in ranking[:k]) / len(wanted)


def slow_reciprocal_rank(ranking: list[int], wanted: set[int]) -> float:
    for place in range(min(10, len(ranking))):
        if ranking[place] in wanted:
            return 1 / (place + 1)
    return 0.0


def slow_ndcg(ranking: list[int], wanted: set[int]) -> float:
    gained = sum(1 / math.log2(place + 2) for place in range(min(10, len(ranking))) if ranking[place] in wanted)
    best = sum(1 / math.log2(place + 2) for place in range(min(10, len(wanted))))
    return gained / best


question = st.tuples(
    st.permutations(range(16)), st.integers(0, 16), st.sets(st.integers(0, 20), min_size=1, max_size=12)
)


@given(st.lists(question, min_size=1, max_size=5))
def test_measures_equal_the_slow_versions(questions: list[tuple[list[int], int, set[int]]]) -> None:
    rankings, wanted = [ranked[:length] for ranked, length, _ in questions], [gold for _, _, gold in questions]
    scores = score_rankings(rankings, wanted, [1, 3, 15])
    for n, (ranking, gold) in enumerate(zip(rankings, wanted, strict=True)):
        for k in (1, 3, 15):
            assert scores[f"recall@{k}"][n] == pytest.approx(slow_recall(ranking, gold, k))
        assert scores["mrr@10"][n] == pytest.approx(slow_reciprocal_rank(ranking, gold))
        assert scores["ndcg@10"][n] == pytest.approx(slow_ndcg(ranking, gold))


def test_what_a_tie_breaking_provider_could_not_hide() -> None:
    """Ranks alone decide, whatever the ids are called."""
    assert score_rankings([["z", "a"], ["a", "z"]], [["a"], ["a"]], [1])["mrr@10"] == [0.5, 1.0]


def test_any_id_can_be_scored() -> None:
    assert score_rankings([["a\0b", "ü x"]], [["ü x"]], [1])["mrr@10"] == [0.5]
    assert score_rankings([[]], [["a"]], [1])["recall@1"] == [0.0]
    assert score_rankings([], [], [1])["recall@1"] == []


def test_passages_that_share_a_chunk_are_one_thing_to_find() -> None:
    a, b, c = frozenset({"1", "2"}), frozenset({"2", "3"}), frozenset({"7"})
    assert join_passages([a, c, b]) == (c, frozenset({"1", "2", "3"}))
    assert join_passages([c, c]) == (c,)


def test_a_passage_is_found_once_and_every_chunk_keeps_its_rank() -> None:
    assert passage_ranking(["x", "2", "1", "7"], [{"1", "2"}, {"7"}]) == ["x", 0, "1", 1]


class LongDocument:
    """One long document that fills the first 80 ranks, then single-chunk ones."""

    def __init__(self, documents: int = 20) -> None:
        names = ["long"] * 80 + [f"short-{n}" for n in range(documents)]
        self.chunks = [Chunk(f"{name}#{n}", name, "text", 0, 4) for n, name in enumerate(names)]
        self.asked: list[tuple[int, int]] = []

    def search(self, queries: Sequence[str], k: int, mode: str = "fused") -> list[list[Hit]]:
        self.asked.append((len(queries), k))
        return [[Hit(chunk, 1.0, rank) for rank, chunk in enumerate(self.chunks[:k], 1)] for _ in queries]


@pytest.mark.parametrize(("documents", "expected"), [(20, 10), (3, 4)])
def test_a_search_goes_on_until_enough_documents_are_found_or_there_are_no_more(documents: int, expected: int) -> None:
    index = LongDocument(documents)
    found = search_deep(Retriever("bm25", "i", "bm25", index), ["a", "b"], 10)  # type: ignore[arg-type]
    assert [len(ranking.documents) for ranking in found] == [expected, expected]
    assert index.asked[0] == (2, 50)


def asked(items: Sequence[QaItem]) -> Asked:
    return Asked(tuple(items), 0, 0)


def answerable() -> list[QaItem]:
    return [item for item in world.questions() if item.gold_document_ids]


def measured(items: Sequence[QaItem], depths: Sequence[int] = (1,), batch_size: int = 64) -> Found:
    index = world.index()
    retriever = Retriever("bm25", "i", "bm25", index)
    return measure(retriever, asked(items), locate_passages(index, items), depths, batch_size)


def test_the_batch_changes_nothing() -> None:
    one, all_at_once = (measured(answerable(), [1, 5], size) for size in (1, 64))
    assert one.ranked == all_at_once.ranked
    assert one.measured == all_at_once.measured


def test_a_document_stands_where_its_best_chunk_stands() -> None:
    found = measured(answerable())
    index = world.index()
    for n, item in enumerate(answerable()):
        ranked = [hit.chunk for hit in index.search([item.question], 20)[0]]
        documents: list[str] = []
        for chunk in ranked:
            if chunk.document_id not in documents:
                documents.append(chunk.document_id)
        gold = documents.index(item.gold_document_ids[0]) + 1
        assert found.measured["document"]["mrr@10"][n] == pytest.approx(1 / gold if gold <= 10 else 0)
        chunks = [chunk.text for chunk in ranked]
        passage = chunks.index(item.evidence[0].text.rstrip()) + 1
        assert found.measured["passage"]["mrr@10"][n] == pytest.approx(1 / passage if passage <= 10 else 0)


def test_questions_without_gold_or_without_their_documents_are_left_out_and_counted() -> None:
    items = world.questions()
    items[4] = replace(items[4], gold_document_ids=("elsewhere.md",), evidence=())
    chosen = choose_questions(items, world.index(), None, None, 0)
    assert (len(chosen.items), chosen.without_gold, chosen.not_indexed) == (19, 2, 1)
    assert len(choose_questions(items, world.index(), "test", 5, 0).items) == 5
    strange = [replace(item, gold_document_ids=("elsewhere.md",)) for item in answerable()]
    with pytest.raises(InputError, match=r"'elsewhere.md' is not in the index"):
        choose_questions(strange, world.index(), None, None, 0)
    with pytest.raises(InputError, match="none of 2 questions names a gold document"):
        choose_questions([item for item in items if not item.gold_document_ids], world.index(), None, None, 0)


class Reranking(LongDocument):
    """Reranks as many of its hits as are asked for, the last first."""

    def search(self, queries: Sequence[str], k: int, mode: str = "fused") -> list[list[Hit]]:
        return [row[::-1] for row in super().search(queries, k, mode)]


def test_a_reranked_search_is_measured_over_the_hits_that_are_served() -> None:
    index = Reranking()
    found = search_deep(Retriever("reranked", "i", "reranked", index), ["a"], 200)  # type: ignore[arg-type]
    assert index.asked == [(1, 50)]
    assert found[0].documents == ["long"]


class Joining(LongDocument):
    """A search that puts first what a deeper look at both rankings joins, as a fused one may."""

    def search(self, queries: Sequence[str], k: int, mode: str = "fused") -> list[list[Hit]]:
        found = super().search(queries, k, mode)
        return [row[50:] + row[:50] for row in found]


def test_what_a_deeper_search_adds_stands_behind_what_is_served() -> None:
    found = search_deep(Retriever("fused", "i", "fused", Joining()), ["a"], 10)  # type: ignore[arg-type]
    assert found[0].chunk_ids[:50] == tuple(f"long#{n}" for n in range(50))
    assert len(found[0].documents) == 10
