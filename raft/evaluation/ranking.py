"""The rankings of retrievers and their scores, question by question.

found = measure(Retriever("bm25", "legal", "bm25", index), asked, locate_passages(index, asked.items), (1, 5, 10))
found.measured["document"]["recall@5"]      # a number for each question
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raft.config import SearchMode
from raft.errors import InputError
from raft.evaluation.cases import Searchable, chunks_by_document, relevant_chunks, select_questions
from raft.records import Chunk, QaItem
from raft.retrieval.index import RERANKED

RANK_DEPTH = 10
"""Depth of MRR and nDCG, and how many distinct documents every search must reach where there are so many."""

Unit = Literal["document", "passage"]
Scores = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Retriever:
    """A way to search that is compared: a mode of an index."""

    name: str
    source: str
    mode: SearchMode
    index: Searchable


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked, and what was left out of the file's questions: those without a gold document, those whose gold
    documents the index lacks, and those that a tuned model has seen."""

    items: tuple[QaItem, ...]
    without_gold: int
    not_indexed: int
    seen: int = 0

    @property
    def clusters(self) -> list[str]:
        """The source document of each question."""
        return [item.gold_document_ids[0] for item in self.items]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The chunks found for a question, best first: their ids, the documents they are of, and the first one itself."""

    chunk_ids: tuple[str, ...] = ()
    chunk_documents: tuple[str, ...] = ()
    first: Chunk | None = None

    @property
    def documents(self) -> list[str]:
        """The documents found, each where its best chunk stands."""
        return list(dict.fromkeys(self.chunk_documents))


Passages = Sequence[tuple[frozenset[str], ...] | None]
"""For each question the chunks of each passage to find, None where its evidence is not located."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a retriever found: its ranking for each question, and the scores of each question by unit.

    ``measured["passage"]`` has a score for each question whose passages are known.
    """

    retriever: Retriever
    ranked: tuple[Ranking, ...]
    passages: Passages
    measured: Mapping[Unit, Scores]
    seconds: float

    @property
    def with_passages(self) -> list[int]:
        """The questions that are measured by passage."""
        return [n for n, passages in enumerate(self.passages) if passages is not None]


def choose_questions(items: Sequence[QaItem], index: Searchable, split: Any, limit: int | None, seed: int) -> Asked:
    """The questions of the split (all when None) with every gold document in the index, at most ``limit``.

    Raises InputError when none is left, besides what ``select_questions`` raises.
    """
    chosen = select_questions(items, split, None, seed, need_answers=False)
    with_gold = [item for item in chosen if item.gold_document_ids]
    known = {chunk.document_id for chunk in index.chunks}
    indexed = [item for item in with_gold if known.issuperset(item.gold_document_ids)]
    if not with_gold:
        raise InputError(f"none of {len(chosen)} questions names a gold document", "Give them gold_doc_ids")
    if not indexed:
        missing = next(d for d in with_gold[0].gold_document_ids if d not in known)
        raise InputError(
            f"gold document {missing!r} is not in the index, and no other question has all of its own there "
            f"({len(with_gold)} questions, {len(known)} documents indexed)",
            "Give the index that was built from the documents of these questions",
        )
    asked = select_questions(indexed, None, limit, seed, need_answers=False)
    return Asked(tuple(asked), len(chosen) - len(with_gold), len(with_gold) - len(indexed))


def locate_passages(index: Searchable, items: Sequence[QaItem]) -> Passages:
    """The chunks of the index that hold each passage of evidence."""
    by_document = chunks_by_document(index)
    located = [relevant_chunks(index, item, by_document) for item in items]
    return [join_passages(relevant) if by_evidence else None for relevant, by_evidence in located]


def measure(
    retriever: Retriever,
    asked: Asked,
    passages: Passages,
    depths: Sequence[int],
    batch_size: int = 64,
    on_searched: Callable[[int], None] = lambda done: None,
) -> Found:
    """Search every question and score the rankings, with recall at each of ``depths``."""
    deepest = max(RANK_DEPTH, *depths)
    retriever.index.search([asked.items[0].question], 1, retriever.mode)  # loads the models before the clock starts
    began = time.monotonic()
    ranked: list[Ranking] = []
    for at in range(0, len(asked.items), batch_size):
        batch = [item.question for item in asked.items[at : at + batch_size]]
        ranked += search_deep(retriever, batch, deepest)
        on_searched(len(ranked))
    seconds = time.monotonic() - began
    gold = [item.gold_document_ids for item in asked.items]
    by_document = score_rankings([ranking.documents for ranking in ranked], gold, depths)
    located = [(ranking, wanted) for ranking, wanted in zip(ranked, passages, strict=True) if wanted is not None]
    by_passage = score_rankings(
        [passage_ranking(ranking.chunk_ids, wanted) for ranking, wanted in located],
        [range(len(wanted)) for _, wanted in located],
        depths,
    )
    measured: dict[Unit, Scores] = {"document": by_document, "passage": by_passage}
    return Found(retriever, tuple(ranked), passages, measured, seconds)


def search_deep(retriever: Retriever, questions: Sequence[str], documents: int) -> list[Ranking]:
    """What is found for each question, deep enough that so many distinct documents stand there (fewer where the
    search finds fewer): a long document may fill many ranks.

    What is measured is what is served. A reranked search is asked once, for it would rerank more hits when asked for
    more than it reads when it is served. The others score a hit alike however many are asked for, but a deeper fused
    search joins more candidates: what it adds stands behind what the first one found.
    """
    reranked = retriever.mode == "reranked"
    found = [Ranking()] * len(questions)
    held: dict[int, dict[str, Chunk]] = {n: {} for n in range(len(questions))}
    waiting, k = list(held), RERANKED if reranked else 5 * documents
    while waiting:
        results = retriever.index.search([questions[n] for n in waiting], k, retriever.mode)
        short = []
        for n, hits in zip(waiting, results, strict=True):
            chunks = held.pop(n) | {hit.chunk.id: hit.chunk for hit in hits}  # a known one keeps its place
            found[n] = _cut([*chunks.values()], documents)
            if len(hits) >= k and len(found[n].documents) < documents and not reranked:
                short.append(n)
                held[n] = chunks
        waiting, k = short, 4 * k
    return found


def _cut(chunks: Sequence[Chunk], documents: int) -> Ranking:
    """The ranking down to where so many chunks and so many distinct documents are found: thousands are held."""
    seen: set[str] = set()
    depth = 0
    for depth, chunk in enumerate(chunks, 1):
        seen.add(chunk.document_id)
        if len(seen) >= documents and depth >= documents:
            break
    kept = chunks[:depth]
    ids, of = tuple(chunk.id for chunk in kept), tuple(chunk.document_id for chunk in kept)
    return Ranking(ids, of, kept[0] if kept else None)


def join_passages(passages: Sequence[frozenset[str]]) -> tuple[frozenset[str], ...]:
    """The chunks of each passage; passages that share a chunk become one thing to find, since one hit shows both."""
    joined: list[frozenset[str]] = []
    for passage in passages:
        touching = [other for other in joined if other & passage]
        joined = [other for other in joined if not other & passage] + [passage.union(*touching)]
    return tuple(joined)


def passage_ranking(ranked: Sequence[str], passages: Sequence[Collection[str]]) -> list[Hashable]:
    """The ranking of chunk ids with the number of a passage in place of the first chunk that holds it, so that a
    passage is found once however many chunks hold it, and every chunk keeps its rank."""
    ranking: list[Hashable] = []
    found: set[int] = set()
    for chunk_id in ranked:
        number = next((n for n, ids in enumerate(passages) if n not in found and chunk_id in ids), None)
        if number is not None:
            found.add(number)
        ranking.append(chunk_id if number is None else number)
    return ranking


def score_rankings(
    rankings: Sequence[Sequence[Hashable]], wanted: Sequence[Collection[Hashable]], depths: Sequence[int]
) -> dict[str, list[float]]:
    """For each measure its value for each ranking, by ir_measures: recall (Manning, Raghavan & Schütze 2008, section
    8.4), reciprocal rank (Voorhees 1999) and nDCG with binary gains (Järvelin & Kekäläinen 2002).

    ``wanted`` holds what each ranking should find; nothing stands twice in a ranking.
    """
    import ir_measures
    from ir_measures import RR, R, nDCG

    measures = {f"recall@{k}": R @ k for k in sorted(set(depths))}
    measures |= {f"mrr@{RANK_DEPTH}": RR @ RANK_DEPTH, f"ndcg@{RANK_DEPTH}": nDCG @ RANK_DEPTH}
    names = {measure: name for name, measure in measures.items()}
    scores = {name: [0.0] * len(rankings) for name in measures}  # a question that nothing was found for scores 0
    numbers: dict[Hashable, str] = {}  # ids are the user's text, which trec_eval's C strings may not hold

    def number(name: Hashable) -> str:
        return numbers.setdefault(name, str(len(numbers)))

    qrels = [ir_measures.Qrel(str(n), number(name), 1) for n, names_ in enumerate(wanted) for name in names_]
    deepest = max(RANK_DEPTH, *depths)
    run = [
        ir_measures.ScoredDoc(str(n), number(name), -rank)
        for n, ranking in enumerate(rankings)
        for rank, name in enumerate(ranking[:deepest])
    ]
    for value in ir_measures.iter_calc(list(measures.values()), qrels, run) if qrels and run else ():
        scores[names[value.measure]][int(value.query_id)] = float(value.value)
    return scores
