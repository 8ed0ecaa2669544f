"""What is asked: the questions, the documents each system is given, and the in-context examples.

Retrieval runs once; every system with documents is given the same hits. One case::

    Case(item=QaItem(id="med-001", ...), hits=(chunk 17, chunk 3, chunk 88, chunk 40),
         with_oracle=(chunk 17, chunk 3, chunk 51, chunk 88),      # chunk 51 holds the evidence, 40 gave way
         ranked=(chunk ids of the deeper search), relevant=(frozenset({"chunk 51"}),), by_evidence=True)
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from raft.artifacts import MANIFEST, parse_manifest
from raft.config import SearchMode
from raft.dataset.grounding import ground, locate, shorten
from raft.dataset.targets import target_of
from raft.errors import ArtifactError, InputError
from raft.evaluation.metrics import recall_at_k
from raft.evaluation.systems import SYSTEMS as SYSTEMS
from raft.evaluation.systems import System as System
from raft.llm.local import run_of
from raft.prompts import Shot, render_target
from raft.records import Chunk, Document, Evidence, Hit, QaItem, Split, question_key

RECALL_DEPTHS = (1, 3, 5, 10)


class Searchable(Protocol):
    """The part of an index that evaluation needs."""

    @property
    def chunks(self) -> Sequence[Chunk]: ...

    def document(self, document_id: str) -> Document: ...

    def search(self, queries: Sequence[str], k: int, mode: SearchMode = "fused") -> list[list[Hit]]: ...


@dataclass(frozen=True, slots=True)
class Case:
    """A question with what retrieval found for it.

    ``hits`` are the documents that systems are given, best first; ``with_oracle`` the same number with every oracle
    among them. ``ranked`` lists the hits of the deeper search behind recall@k. Each element of ``relevant`` holds
    the chunk ids any of which is one oracle: the chunks that hold one passage of evidence (``by_evidence``), else
    the chunks of one gold document. Unanswerable questions have none.
    """

    item: QaItem
    hits: tuple[Chunk, ...]
    with_oracle: tuple[Chunk, ...]
    ranked: tuple[Chunk, ...]
    relevant: tuple[frozenset[str], ...]
    by_evidence: bool

    @property
    def unanswerable(self) -> bool:
        return self.item.answer_type == "unanswerable"

    @property
    def cluster(self) -> str:
        """The source document; an unanswerable question stands for itself."""
        gold = self.item.gold_document_ids
        return f"document {gold[0]}" if gold else f"question {self.item.id}"

    @property
    def oracle_ids(self) -> frozenset[str]:
        return frozenset[str]().union(*self.relevant)

    @property
    def oracle_rank(self) -> int | None:
        """Rank, from 1, of the first oracle in the deeper search; None when it found none."""
        return next((rank for rank, c in enumerate(self.ranked, 1) if c.id in self.oracle_ids), None)

    def holds_oracle(self, chunks: Sequence[Chunk]) -> bool:
        """True when the chunks hold every oracle of the question (False when it has none)."""
        return bool(self.relevant) and recall_at_k([c.id for c in chunks], self.relevant, len(chunks)) == 1.0


def seen_by(models: Iterable[str | Path | None]) -> dict[str, set[str]]:
    """All that these models were tuned on: the union of the seen.json (training/plan.py writes it) of those that are
    artefacts of raft train, and of the artefacts that those were tuned from. Others say nothing.

    Raises ArtifactError when an artefact lacks its seen.json.
    """
    seen: dict[str, set[str]] = {"questions": set(), "documents": set()}
    known: set[Path] = set()
    waiting = [Path(model) for model in models if model is not None]
    while waiting:
        model = waiting.pop()
        folder = run_of(str(model))
        if folder in known or not (folder / MANIFEST).is_file():
            continue
        known.add(folder)
        if not (folder / "seen.json").is_file():
            if parse_manifest(folder).kind == "model":  # a file that was converted: nobody tuned it here
                continue
            raise ArtifactError(f"{folder} has no seen.json: nothing says what it was tuned on", "Train it again")
        for name, values in json.loads((folder / "seen.json").read_text(encoding="utf-8")).items():
            seen[name].update(values)
        base = parse_manifest(folder).facts.get("base_model")
        waiting += [Path(base)] if base else []
    return seen


def seen_note(count: int) -> str:
    """What is said about the questions that ``leave_out_seen`` leaves out."""
    return f"{count} questions are left out: a tuned model saw them or their documents"


def leave_out_seen(items: Sequence[QaItem], split: str, seen: Mapping[str, Collection[str]]) -> list[QaItem]:
    """The questions that may test what was tuned on ``seen`` (as ``seen_by`` gives it).

    Questions of the same words go when they are of the asked split "test" or "all". With "all" nobody has said
    which are for testing: those that rest on a document of the training questions go too. The splits "train" and
    "dev" are asked for by someone who wants to see the fit.
    """
    if split not in ("test", "all"):
        return list(items)
    questions = set(seen.get("questions", ()))
    documents = set(seen.get("documents", ())) if split == "all" else set[str]()
    return [
        item
        for item in items
        if split not in (item.split, "all")
        or not (question_key(item.question) in questions or documents & set(item.gold_document_ids))
    ]


def select_questions(
    items: Sequence[QaItem], split: Split | None, limit: int | None, seed: int, *, need_answers: bool = True
) -> list[QaItem]:
    """The questions of the split (all when None), at most ``limit`` drawn with the seed, in the file's order.

    Raises InputError for an id that occurs twice, a question without a reference that is not marked unanswerable
    (unless no answers are needed), and a split without questions.
    """
    repeated = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if repeated:
        raise InputError(f"question id {repeated[0]!r} occurs more than once ({len(repeated)} such ids)", "Rename them")
    chosen = [item for item in items if split is None or item.split == split]
    if not chosen:
        found = ", ".join(f"{n} {name or 'without a split'}" for name, n in Counter(i.split for i in items).items())
        raise InputError(
            f"no question of split {split or 'all'!r} (found: {found or 'none'})",
            "Give the rows a split, or take all that no training has seen: --set split=all",
        )
    for item in chosen if need_answers else ():
        if item.answer_type != "unanswerable" and not item.answer.strip():
            raise InputError(
                f"question {item.id!r} has no reference answer", 'Add one, or set its answer_type to "unanswerable"'
            )
    if limit is None or limit >= len(chosen):
        return chosen
    kept = set(random.Random(seed).sample(range(len(chosen)), limit))
    return [item for n, item in enumerate(chosen) if n in kept]


def build_cases(index: Searchable, items: Sequence[QaItem], *, top_k: int, mode: SearchMode, seed: int) -> list[Case]:
    """One case a question, in order; retrieval is asked once, for all of them.

    Raises InputError when a question's gold document is not in the index.
    """
    by_document = chunks_by_document(index)
    missing = sorted({d for item in items for d in item.gold_document_ids if d not in by_document})
    if missing:
        raise InputError(
            f"gold document {missing[0]!r} is not in the index ({len(missing)} missing, {len(by_document)} indexed)",
            "Give the index that was built from the documents of these questions",
        )
    chunks = {chunk.id: chunk for chunk in index.chunks}
    found = index.search([item.question for item in items], max(top_k, *RECALL_DEPTHS), mode)
    cases = []
    for item, hits in zip(items, found, strict=True):
        ranked = tuple(hit.chunk for hit in hits)
        relevant, by_evidence = relevant_chunks(index, item, by_document)
        shown = insert_oracle(ranked, relevant, chunks, top_k, f"{seed}:{item.id}")
        cases.append(Case(item, ranked[:top_k], shown, ranked, relevant, by_evidence))
    return cases


def chunks_by_document(index: Searchable) -> dict[str, list[Chunk]]:
    """The chunks of each document, in its order."""
    grouped: dict[str, list[Chunk]] = defaultdict(list)
    for chunk in index.chunks:
        grouped[chunk.document_id].append(chunk)
    return dict(grouped)


def relevant_chunks(
    index: Searchable, item: QaItem, by_document: Mapping[str, Sequence[Chunk]]
) -> tuple[tuple[frozenset[str], ...], bool]:
    """The oracle chunks of each evidence passage, or of each gold document where a passage cannot be located."""
    located = [_holding(index, evidence, by_document.get(evidence.document_id, ())) for evidence in item.evidence]
    if located and all(located):
        return tuple(located), True
    return tuple(frozenset(chunk.id for chunk in by_document[d]) for d in item.gold_document_ids), False


def _holding(index: Searchable, evidence: Evidence, chunks: Sequence[Chunk]) -> frozenset[str]:
    """Ids of the chunks of its document that hold the evidence whole; if none does, that hold at least half of it."""
    span = locate(index.document(evidence.document_id), evidence) if chunks else None
    if span is None:
        return frozenset()
    held = {chunk.id: min(span[1], chunk.end) - max(span[0], chunk.start) for chunk in chunks}
    length = span[1] - span[0]
    needed = length if max(held.values()) == length else length / 2
    return frozenset(name for name, characters in held.items() if characters >= needed)


def insert_oracle(
    ranked: Sequence[Chunk],
    relevant: Sequence[Collection[str]],
    chunks: Mapping[str, Chunk],
    top_k: int,
    draw: str,
) -> tuple[Chunk, ...]:
    """The first ``top_k`` of ``ranked`` with one chunk of each missing oracle put in, in place of the last ones.

    What stays keeps its order; the place of what comes in is drawn from ``draw``. Of an oracle that several chunks
    can stand for, the best ranked one comes in, else the first of its document. ``chunks`` maps ids to chunks.
    """
    shown = list(ranked[:top_k])
    ranks = {chunk.id: rank for rank, chunk in enumerate(ranked)}
    present = {chunk.id for chunk in shown}
    needed = dict.fromkeys(
        min(ids, key=lambda name: (ranks.get(name, len(ranks)), chunks[name].start, name)) for ids in relevant
    )
    missing = [name for name in needed if name not in present][: top_k - len(present & needed.keys())]
    places = random.Random(draw)
    for name in missing:
        if len(shown) >= top_k:
            del shown[max(i for i, chunk in enumerate(shown) if chunk.id not in needed)]
        shown.insert(places.randrange(len(shown) + 1), chunks[name])
    return tuple(shown)


def select_shots(items: Sequence[QaItem], asked: Sequence[QaItem], count: int, seed: int) -> list[QaItem]:
    """``count`` answerable questions drawn with the seed, to be shown as examples: of the train split or without a
    split, none of them asked, none resting on a document of an asked question.

    Raises InputError when there are too few.
    """
    asked_ids = {item.id for item in asked}
    asked_documents = {name for item in asked for name in item.gold_document_ids}
    pool = [
        item
        for item in items
        if item.split in ("train", None)
        and item.answer.strip()
        and item.id not in asked_ids
        and not asked_documents & set(item.gold_document_ids)
    ]
    if len(pool) < count:
        raise InputError(
            f"{len(pool)} questions of the train split may serve as examples; {count} shots are asked for",
            "Evaluate fewer questions (split, limit), lower shots, or leave the few-shot systems out of systems",
        )
    return random.Random(seed).sample(pool, count)


def closed_book_shots(examples: Sequence[QaItem]) -> tuple[Shot, ...]:
    """The examples without documents, with the first sentences of their long answers as reasoning."""
    return tuple(Shot(item.question, render_target(item.answer, shorten(item.long_answer))) for item in examples)


def document_shots(
    index: Searchable, examples: Sequence[QaItem], *, top_k: int, mode: SearchMode, seed: int
) -> tuple[Shot, ...]:
    """The examples over ``top_k`` documents, the oracle among the retriever's near misses, answered in the very form
    that RAFT is trained on."""
    by_document = chunks_by_document(index)
    chunks = {chunk.id: chunk for chunk in index.chunks}
    shots = []
    for item, hits in zip(examples, index.search([item.question for item in examples], top_k, mode), strict=True):
        named = {*item.gold_document_ids, *(evidence.document_id for evidence in item.evidence)}
        grounded = ground(item, {d: index.document(d) for d in named if d in by_document}, by_document)
        oracles = [frozenset({name}) for name in grounded.oracle_ids][:top_k]
        shown = insert_oracle([hit.chunk for hit in hits], oracles, chunks, top_k, f"{seed}:{item.id}")
        present = {chunk.id for chunk in shown}
        kept = replace(grounded, quotes=tuple(quote for quote in grounded.quotes if quote.chunk_id in present))
        target = target_of(kept, [chunk.id for chunk in shown], present=True, refuse=False)
        shots.append(Shot(item.question, target, shown))
    return tuple(shots)
