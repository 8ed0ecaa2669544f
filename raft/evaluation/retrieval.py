"""raft evaluate retrieval: the same questions through several retrievers, no language model.

Each retriever is measured by document (a document stands where its best chunk stands) and, where the questions carry
evidence that is found in the documents, by passage (the chunks that hold it). A row of ``misses.jsonl``::

    {"retriever": "bm25", "question_id": "med-001", "question": "How soon after ...",
     "gold_document_ids": ["protocols/sepsis-adult.md"], "rank": 3, "passage_rank": null,
     "first": {"document_id": "protocols/stroke.md", "chunk_id": "protocols/stroke.md#4", "text": "## Timing ..."}}

``rank`` is that of the first gold document, ``passage_rank`` that of the first chunk with evidence; null when it was
not found.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raft import artifacts
from raft.config import EvaluateRetrievalRecipe, SearchMode, require
from raft.errors import InputError, UsageError
from raft.evaluation import statistics
from raft.evaluation.cases import (
    Searchable,
    chunks_by_document,
    leave_out_seen,
    relevant_chunks,
    seen_by,
    seen_note,
    select_questions,
)
from raft.evaluation.report import markdown_table
from raft.evaluation.scoring import Sampling
from raft.evaluation.statistics import Interval
from raft.evaluation.verdict import show, show_p
from raft.records import Chunk, QaItem, to_row

RANK_DEPTH = 10
"""Depth of MRR and nDCG, and how many distinct documents every search must reach where there are so many."""

_RERANKED_DEPTH = 50
"""Hits asked of a reranked search: asked for more, it would rerank more than it does when it is served."""

Unit = Literal["document", "passage"]
Scores = Mapping[str, Sequence[float]]
OnSearched = Callable[[int, int, str], None]
"""Told how many searches of how many are done, and the retriever's name."""

_TEXT_CHARS = 300  # of the first hit in misses.jsonl


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


@dataclass(frozen=True, slots=True)
class RetrieverScores:
    """One line of the table: the mean of each measure over ``n`` questions."""

    retriever: str
    unit: Unit
    n: int
    figures: Mapping[str, Interval]
    ms_per_query: float  # of searches in batches: a rate, no waiting time


@dataclass(frozen=True, slots=True)
class RetrievalDifference:
    """``retriever`` minus ``minus`` on the same questions; ``p_holm`` is corrected over all differences."""

    retriever: str
    minus: str
    unit: Unit
    measure: str
    difference: Interval
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class RetrievalReport:
    """What ``raft evaluate retrieval`` measured; ``misses`` go to a file of their own."""

    name: str
    question_set: Mapping[str, Any]
    settings: Mapping[str, Any]
    scores: tuple[RetrieverScores, ...]
    differences: tuple[RetrievalDifference, ...]
    notes: tuple[str, ...]
    misses: tuple[Mapping[str, Any], ...]


def evaluate_retrieval(
    recipe: EvaluateRetrievalRecipe,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    on_searched: OnSearched = lambda done, total, name: None,
) -> RetrievalReport:
    """Measure the recipe's index, or two of them, and write the report artefact ``out`` (report.json, report.md,
    misses.jsonl; nothing when None).

    Raises UsageError, InputError or ArtifactError when recipe, questions and indexes do not fit together, ModelError
    when an encoder cannot be loaded.
    """
    from raft.retrieval.index import open_index

    if not 1 <= len(recipe.index) <= 2:
        raise UsageError(f"{len(recipe.index)} indexes are given; one is measured, or two are compared", "--index DIR")
    path = require(recipe.questions, "questions", "--questions FILE")
    if out is not None:
        artifacts.check_free(out, overwrite)
    inputs = {"questions": artifacts.hash_file(path)}
    opened = {
        name: open_index(folder, labels=recipe.labels, reranker=recipe.reranker)
        for name, folder in _names(recipe.index).items()
    }
    inputs |= {f"index {name}": index.manifest.fingerprint for name, index in opened.items()}
    check_same_documents(opened)
    encoders = [index.manifest.recipe["encoder"]["model"] for index in opened.values()]
    asked = _ask(recipe, path, next(iter(opened.values())), [*encoders, recipe.reranker])
    found = list(_measure_all(retrievers(opened, modes_of(recipe)), asked, recipe, on_searched))
    draw = Sampling(recipe.confidence, recipe.resamples, recipe.seed)
    settings = recipe.model_dump(mode="json", exclude={"out"})
    report = build_report(out.name if out else path.name, asked, found, settings, draw)
    if out is not None:
        with artifacts.writing(out, "retrieval", settings, inputs, overwrite=overwrite) as draft:
            write(report, draft.folder)
            draft.facts = {"question_set": report.question_set["hash"], "questions": len(asked.items)}
    return report


def _ask(recipe: EvaluateRetrievalRecipe, path: Path, index: Searchable, models: Sequence[str | None]) -> Asked:
    """The questions that none of the models was tuned on. They need gold documents, but no answers."""
    from raft.dataset.importers import read_questions

    items = read_questions(path, need_answers=False)
    unseen = leave_out_seen(items, recipe.split, seen_by(models))
    seen = len(items) - len(unseen)
    if seen:
        print(f"raft: {seen_note(seen)}", file=sys.stderr)
    split = None if recipe.split == "all" else recipe.split
    return replace(choose_questions(unseen, index, split, recipe.limit, recipe.seed), seen=seen)


def modes_of(recipe: EvaluateRetrievalRecipe) -> list[SearchMode]:
    """The recipe's modes, and with a reranker its order too. Raises UsageError when there is none to ask."""
    if "reranked" in recipe.modes and recipe.reranker is None:
        raise UsageError("the mode reranked needs a reranker", "Give --reranker MODEL")
    added: tuple[SearchMode, ...] = ("reranked",) if recipe.reranker else ()
    return list(dict.fromkeys((*recipe.modes, *added)))


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by their last names, or by their whole paths where those are the same."""
    short = {folder.resolve().name: folder for folder in folders}
    named = short if len(short) == len(folders) else {str(folder): folder for folder in folders}
    if len(named) < len(folders):
        raise UsageError(f"the index {folders[0]} is given twice", "Give two indexes to compare")
    return named


def check_same_documents(indexes: Mapping[str, Any]) -> None:
    """Raises InputError when the indexes are not over the same documents: only then is a difference the retriever's."""
    (first, one), *others = indexes.items()
    expected = {document.id: document.text for document in one.documents} if others else {}
    for name, index in others:
        given = {document.id: document.text for document in index.documents}
        differ = sorted(d for d in expected.keys() | given.keys() if expected.get(d) != given.get(d))
        if differ:
            raise InputError(
                f"the indexes {first} and {name} hold different documents ({len(differ)} differ, e.g. {differ[0]!r})",
                "Compare indexes that were built from the same documents",
            )


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


def retrievers(indexes: Mapping[str, Searchable], modes: Sequence[SearchMode]) -> list[Retriever]:
    """Every mode of every index, named by the mode, and by the index too when there are several."""
    return [
        Retriever(mode if len(indexes) == 1 else f"{source}: {mode}", source, mode, index)
        for source, index in indexes.items()
        for mode in modes
    ]


def _measure_all(
    compared: Sequence[Retriever], asked: Asked, recipe: EvaluateRetrievalRecipe, on_searched: OnSearched
) -> Iterator[Found]:
    total = len(compared) * len(asked.items)
    passages: dict[str, Passages] = {}
    for number, retriever in enumerate(compared):
        before = number * len(asked.items)
        if retriever.source not in passages:
            passages[retriever.source] = locate_passages(retriever.index, asked.items)

        def told(done: int, before: int = before, name: str = retriever.name) -> None:
            on_searched(before + done, total, name)

        yield measure(retriever, asked, passages[retriever.source], recipe.k, recipe.batch_size, told)


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
    more. The others score a hit alike however many are asked for, but a deeper fused search joins more candidates:
    what a deeper search adds stands behind what the first one found.
    """
    reranked = retriever.mode == "reranked"
    found = [Ranking()] * len(questions)
    held: dict[int, dict[str, Chunk]] = {n: {} for n in range(len(questions))}
    waiting, k = list(held), _RERANKED_DEPTH if reranked else 5 * documents
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


def build_report(
    name: str, asked: Asked, found: Sequence[Found], settings: Mapping[str, Any], draw: Sampling
) -> RetrievalReport:
    """The report of what the retrievers found for the same questions."""
    units: list[Unit] = ["document", "passage"] if found[0].with_passages else ["document"]
    scores = tuple(_score(one, unit, asked, draw) for unit in units for one in found)
    counted = {
        "hash": artifacts.digest(sorted((to_row(item) for item in asked.items), key=lambda row: row["id"])),
        "n": len(asked.items), "with_passages": len(found[0].with_passages), "clusters": len(set(asked.clusters)),
        "without_gold": asked.without_gold, "not_indexed": asked.not_indexed,
        "seen": asked.seen,
    }  # fmt: skip
    differences = _correct([_difference(*pair, asked, draw) for pair in pairs(found)])
    return RetrievalReport(name, counted, settings, scores, differences, tuple(_notes(counted)), _misses(asked, found))


def _notes(counted: Mapping[str, Any]) -> Iterator[str]:
    if counted["seen"]:
        yield seen_note(counted["seen"])
    if counted["without_gold"]:
        yield f"{counted['without_gold']} questions without a gold document are left out"
    if counted["not_indexed"]:
        yield f"{counted['not_indexed']} questions are left out: a gold document of theirs is not in the index"


def _score(found: Found, unit: Unit, asked: Asked, draw: Sampling) -> RetrieverScores:
    clusters = _clusters(found, unit, asked)
    figures = {name: _interval(values, clusters, draw) for name, values in found.measured[unit].items()}
    milliseconds = round(1000 * found.seconds / len(asked.items), 2)
    return RetrieverScores(found.retriever.name, unit, len(clusters), figures, milliseconds)


def _clusters(found: Found, unit: Unit, asked: Asked) -> list[str]:
    return asked.clusters if unit == "document" else [asked.clusters[n] for n in found.with_passages]


def _interval(values: Sequence[float], clusters: Sequence[str], draw: Sampling) -> Interval:
    return statistics.bootstrap_interval(
        values, clusters, confidence=draw.confidence, resamples=draw.resamples, seed=draw.seed
    )


def pairs(found: Sequence[Found]) -> Iterator[tuple[Found, Found, Unit, str]]:
    """What is compared, in which unit and measure: fused with the best of the index's other modes, by document and by
    passage; and each mode of the second index with the same mode of the first, by document (their chunks differ)."""
    sources = list(dict.fromkeys(one.retriever.source for one in found))
    if len(sources) == 2:
        first, second = ([one for one in found if one.retriever.source == source] for source in sources)
        for measure_name in _headline(first[0]):
            yield from ((b, a, "document", measure_name) for a, b in zip(first, second, strict=True))
    units: tuple[Unit, ...] = ("document", "passage")
    for source in sources:
        own = [one for one in found if one.retriever.source == source]
        fused = next((one for one in own if one.retriever.mode == "fused"), None)
        others = [one for one in own if one is not fused]
        if fused is None or not others:
            continue
        for unit in units if fused.with_passages else units[:1]:
            for measure_name in _headline(fused):
                yield fused, max(others, key=lambda one: sum(one.measured[unit][measure_name])), unit, measure_name


def _headline(found: Found) -> list[str]:
    """The measures that are compared: nDCG@10, and recall@5 or that at the depth next to it."""
    depths = [int(name.partition("@")[2]) for name in found.measured["document"] if name.startswith("recall@")]
    return [f"ndcg@{RANK_DEPTH}", f"recall@{min(depths, key=lambda k: (abs(k - 5), k))}"]


def _difference(
    one: Found, other: Found, unit: Unit, measure_name: str, asked: Asked, draw: Sampling
) -> RetrievalDifference:
    values = statistics.paired_differences(one.measured[unit][measure_name], other.measured[unit][measure_name])
    clusters = _clusters(one, unit, asked)
    p = statistics.sign_flip_p(values, clusters, resamples=draw.resamples, seed=draw.seed)
    interval = _interval(values, clusters, draw)
    return RetrievalDifference(one.retriever.name, other.retriever.name, unit, measure_name, interval, p, p)


def _correct(differences: Sequence[RetrievalDifference]) -> tuple[RetrievalDifference, ...]:
    corrected = statistics.holm([row.p for row in differences])
    return tuple(replace(row, p_holm=p) for row, p in zip(differences, corrected, strict=True))


def _misses(asked: Asked, found: Sequence[Found]) -> tuple[Mapping[str, Any], ...]:
    """A row for each question and retriever whose first hit is not of a gold document."""
    rows = []
    for n, item in enumerate(asked.items):
        for one in found:
            rank = next((r for r, d in enumerate(one.ranked[n].documents, 1) if d in item.gold_document_ids), None)
            if rank != 1:
                rows.append(_miss(one, n, item, rank))
    return tuple(rows)


def _miss(found: Found, n: int, item: QaItem, rank: int | None) -> dict[str, Any]:
    ranking = found.ranked[n]
    holding = frozenset[str]().union(*(found.passages[n] or ()))
    chunk = ranking.first
    first = chunk and {"document_id": chunk.document_id, "chunk_id": chunk.id, "text": chunk.text[:_TEXT_CHARS]}
    passage_rank = next((r for r, name in enumerate(ranking.chunk_ids, 1) if name in holding), None)
    return {
        "retriever": found.retriever.name, "question_id": item.id, "question": item.question,
        "gold_document_ids": list(item.gold_document_ids), "rank": rank, "passage_rank": passage_rank, "first": first,
    }  # fmt: skip


def scores_table(report: RetrievalReport, unit: Unit) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text, of what was found by document or by passage; no rows where nothing was measured."""
    scores = [row for row in report.scores if row.unit == unit]
    names = list(scores[0].figures) if scores else []
    rows = [
        [row.retriever, str(row.n), *(show(row.figures[name], 3) for name in names), f"{row.ms_per_query:.1f}"]
        for row in scores
    ]
    return [f"by {unit}", "n", *(_title(name) for name in names), "ms a query, in batches"], rows


def differences_table(report: RetrievalReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the paired differences."""
    rows = [
        [f"{row.retriever} − {row.minus}", row.unit, _title(row.measure), _signed(row.difference), show_p(row.p),
         show_p(row.p_holm)]
        for row in report.differences
    ]  # fmt: skip
    return ["difference", "by", "measure", "mean and interval", "p", "p (Holm)"], rows


def _title(measure_name: str) -> str:
    return measure_name.replace("mrr", "MRR").replace("ndcg", "nDCG")


def _signed(interval: Interval) -> str:
    bounds = "" if interval.low is None else f" [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{interval.mean:+.3f}{bounds}"


def to_markdown(report: RetrievalReport) -> str:
    """The tables and notes as Markdown, which reads well as plain text too."""
    counted = report.question_set
    parts = [
        f"# Retrieval: {report.name}",
        f"{counted['n']} questions in {counted['clusters']} clusters of source documents, "
        f"{counted['with_passages']} of them with a located passage of evidence; intervals at "
        f"{report.settings['confidence']:.0%}.",
        *(
            markdown_table(header, rows)
            for header, rows in (scores_table(report, "document"), scores_table(report, "passage"))
            if rows
        ),
    ]
    if report.differences:
        parts.append(markdown_table(*differences_table(report)))
    parts += ["\n".join(f"- {note}" for note in report.notes)] if report.notes else []
    return "\n\n".join(parts) + "\n"


def figures(report: RetrievalReport) -> dict[str, Any]:
    """The report as a JSON-ready dict, without the misses."""
    return {key: value for key, value in to_row(report).items() if key != "misses"}


def write(report: RetrievalReport, folder: Path) -> None:
    """Write report.json, report.md and misses.jsonl into ``folder``."""
    artifacts.write_json(folder / "report.json", figures(report))
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    artifacts.write_rows(folder / "misses.jsonl", report.misses)
