"""raft evaluate retrieval: the same questions through several retrievers, no language model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raft import artifacts
from raft.config import EvaluateRetrievalRecipe, SearchMode, require
from raft.errors import InputError, UsageError
from raft.evaluation.cases import Searchable, leave_out_seen, seen_by, seen_note
from raft.evaluation.ranking import Asked, Found, Passages, Retriever, choose_questions, locate_passages, measure
from raft.evaluation.retrieval_report import RetrievalReport, build_report, write
from raft.evaluation.scoring import Sampling

OnSearched = Callable[[int, int, str], None]
"""Told how many searches of how many are done, and the retriever's name."""


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
    inputs = {"questions": artifacts.hash_path(path)}
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
