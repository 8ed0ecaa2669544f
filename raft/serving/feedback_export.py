"""Feedback -> what the next training and the next evaluation read.

For the answer "Document [1] says ...\\n<ANSWER>: 5 mg", rated down and corrected to "12 mg"::

    OUT/pairs.jsonl       {"id": "feedback-6d1f", "question": "What is the first dose?", "documents": ["dose.md#0"],
                           "chosen": "Document [1] says ##begin_quote##Adults start with 12 mg.##end_quote##\\n<ANSWER>:
                           12 mg", "rejected": "Document [1] says ...\\n<ANSWER>: 5 mg"}
    OUT/train.jsonl       the corrected and the liked answers that quote their documents, as examples
    OUT/kto.jsonl         {"prompt": [...], "completion": [...], "label": false}: every rated answer, in TRL's form
    OUT/evaluation.jsonl  {"id": ..., "question": ..., "answer": "12 mg", "gold_doc_ids": ["dose.md"], ...}

OUT is a dataset: ``raft train --data OUT`` learns its examples, and with ``objective=dpo`` and
``preference.pairs=OUT/pairs.jsonl`` its pairs. It bears the access labels of the documents that stand in it, and those
that its answers were given under: what a model was tuned on, and what was said before a follow-up, may stand in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raft import artifacts
from raft.corpus.spans import find_span, normalize
from raft.dataset.answers import answer_type_of
from raft.dataset.grounding import (
    GroundedQuestion,
    Passage,
    best_sentence,
    content_words,
    quote_around,
    sentences,
)
from raft.errors import InputError
from raft.prompts import (
    REFUSAL,
    build_messages,
    is_refusal,
    neutralize,
    parse_answer,
    render_refusal,
    render_target,
)
from raft.qa import check_quotes
from raft.records import AnswerType, Chunk, Quote, RaftExample, question_key, to_row
from raft.rows import write_rows
from raft.serving.feedback import Row, read_feedback, text_hash

if TYPE_CHECKING:
    from raft.retrieval.index import Index

ExportAs = Literal["pairs", "questions", "both"]

_ONE_IN = 5  # questions of "both" is kept for evaluation, by the hash of its words
_OF_A_DATASET = ("train.jsonl", "questions.jsonl", "chunks.jsonl")
_SHORT_WORDS = 12
_FEWEST_WORDS = 4  # of a sentence of a correction that is looked for by itself


@dataclass(frozen=True, slots=True)
class Right:
    """What a person holds to be the right answer: ``answer`` in short, ``target`` as a student should write it, and the
    passages that it quotes, ``chunks`` in the order of the quotes."""

    answer: str
    target: str
    quotes: tuple[str, ...] = ()
    chunks: tuple[Chunk, ...] = ()

    @property
    def refuses(self) -> bool:
        return is_refusal(self.answer)


@dataclass(frozen=True, slots=True)
class Judged:
    """A row with the chunks that its answer was made from, in prompt order; ``right`` is None where nobody said.
    ``labels`` are those that it needs beside its documents'."""

    row: Row
    chunks: tuple[Chunk, ...]
    right: Right | None
    labels: frozenset[str]

    @property
    def question(self) -> str:
        return self.row.given.asked

    @property
    def key(self) -> str:
        return question_key(self.question)


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written: rows by file; ``left_out`` counts rows of feedback by the reason for which they are in none."""

    out: Path
    files: Mapping[str, int]
    left_out: Mapping[str, int]
    labels: tuple[str, ...]


def export_feedback(
    feedback: Path, index: Path, out: Path, form: ExportAs = "both", *, labels: Sequence[str] = (),
    overwrite: bool = False,
) -> ExportSummary:  # fmt: skip
    """Write the feedback of a file as the folder ``out``. ``labels`` are held: rows over other documents are left out.

    ``both`` keeps a fifth of the questions for evaluation, and trains on none of them. Raises InputError when the file
    cannot be read or nothing of it can be exported; ArtifactError when the index is damaged or ``out`` is taken.
    """
    artifacts.check_free(out, overwrite)
    rows = read_feedback(feedback)
    from raft.retrieval.index import open_index

    opened = open_index(index, labels=labels)
    judged, left_out = judge(rows, opened)
    held = {each.key for each in judged if form == "questions" or (form == "both" and is_held_out(each.key))}
    train = [each for each in judged if each.key not in held]
    files = _files(train, [each for each in judged if each.key in held])
    if not files:
        why = ", ".join(f"{reason} {count}" for reason, count in left_out.items()) or f"{len(rows)} rows"
        raise InputError(f"{feedback} holds nothing to export as {form} ({why})", "See raft feedback show")
    inputs = {"index": opened.fingerprint, "feedback": artifacts.digest([(row.id, row.at) for row in rows])}
    kind, needed = "dataset" if train else "questions", _labels_of(opened, judged)
    with artifacts.writing(out, kind, {"export": "feedback", "as": form}, inputs, overwrite=overwrite) as draft:
        counts = {name: write_rows(draft.folder / name, made) for name, made in files.items()}
        draft.facts |= {
            "index_fingerprint": opened.fingerprint, "labels": needed, "teacher": None, "rows": counts,
            "left_out": left_out,
        }  # fmt: skip
    return ExportSummary(out, counts, left_out, tuple(needed))


def is_held_out(key: str) -> bool:
    """Whether ``both`` keeps the question of this key (``question_key``) for evaluation, today and ever after."""
    return int(key, 16) % _ONE_IN == 0


def judge(rows: Iterable[Row], index: Index) -> tuple[list[Judged], dict[str, int]]:
    """The rows whose documents the index still has as they were, and how many are left out for which reason. A row
    whose labels are not known needs all of the index's."""
    judged, left_out = [], Counter[str]()
    of_index = frozenset[str](index.manifest.facts["labels"])
    for row in rows:
        labels = of_index if row.given.labels is None else frozenset(row.given.labels)
        try:
            chunks = tuple(index.chunk(shown.chunk_id) for shown in row.given.shown)
        except InputError:
            left_out["document gone or not to be seen"] += 1
            continue
        if [text_hash(chunk.text) for chunk in chunks] != [shown.text_hash for shown in row.given.shown]:
            left_out["document changed"] += 1
        elif not chunks:
            left_out["no document shown"] += 1
        elif not labels <= index.labels:
            left_out["given under access labels that are not held"] += 1
        else:
            judged.append(Judged(row, chunks, _right(row, chunks), labels))
    return judged, dict(left_out)


def _labels_of(index: Index, judged: Sequence[Judged]) -> list[str]:
    documents = {chunk.document_id for each in judged for chunk in each.chunks}
    shown = {label for name in documents for label in index.document(name).metadata.get("labels", ())}
    return sorted(shown.union(*(each.labels for each in judged)))


# --- the right answer ------------------------------------------------------------------------------------------------


def _right(row: Row, chunks: Sequence[Chunk]) -> Right | None:
    if row.opinion.correction is not None:
        return corrected(row.opinion.correction, row.given.asked, row.given.text, chunks)
    return liked(row.given.text, chunks) if row.opinion.rating == "up" else None


def liked(text: str, chunks: Sequence[Chunk]) -> Right | None:
    """A given answer that somebody finds right; quotes that no chunk holds are left out of its target. None where it
    has no final answer."""
    said = parse_answer(text)
    if not said.well_formed or not said.final:
        return None
    if said.abstained:
        return Right(REFUSAL, render_refusal())
    checked = check_quotes(said, chunks)
    found = [(quote.text, quote.chunk) for quote in checked if quote.chunk is not None]
    named = all(quote.document is not None for quote in said.quotes)
    as_it_is = named and all(quote.verbatim and not quote.misnamed for quote in checked)
    target = text.strip() if as_it_is else _target(said.final, found, chunks)
    return Right(said.final, target, tuple(text for text, _ in found), tuple(chunk for _, chunk in found))


def corrected(correction: str, question: str, given: str, chunks: Sequence[Chunk]) -> Right:
    """The correction as a target, with the passages that hold its words. Yes and no stand everywhere: there the quotes
    of the answer that was given are kept, which were right words for a wrong conclusion."""
    answer = " ".join(correction.split())
    if is_refusal(answer):
        return Right(REFUSAL, render_refusal())
    if answer_type_of(answer) == "yesno":
        checked = check_quotes(parse_answer(given), chunks)
        found = [(quote.text, quote.chunk) for quote in checked if quote.chunk is not None]
    else:
        found = passages_of(answer, question, chunks)
    final = parse_answer(render_target(answer)).final
    target = _target(answer, found, chunks)
    return Right(final, target, tuple(text for text, _ in found), tuple(chunk for _, chunk in found))


def passages_of(answer: str, question: str, chunks: Sequence[Chunk]) -> list[tuple[str, Chunk]]:
    """(passage, chunk) that hold the answer word for word: the sentence around the whole of it that is most like the
    question; else those around its sentences. Empty where there is none, or only with markers of the prompt in it."""
    if (whole := _passage(answer.strip(" \"'“”‘’.,;:!"), question, chunks)) is not None:
        return [whole]
    parts = [answer[slice(*span)] for span in sentences(answer)]
    long_enough = (part for part in parts if len(part.split()) >= _FEWEST_WORDS)
    found = (_passage(part.rstrip("."), question, chunks) for part in long_enough)
    return list(dict.fromkeys(passage for passage in found if passage is not None))


def _passage(words: str, question: str, chunks: Sequence[Chunk]) -> tuple[str, Chunk] | None:
    found = []
    for chunk in chunks:
        if (span := find_span(chunk.text, words)) is None:
            continue
        best = best_sentence(chunk.text, words, question)
        if best is not None and find_span(chunk.text[slice(*best)], words) is not None:
            span = best
        text = quote_around(chunk.text, span, words)
        if text.strip() and neutralize(text) == text:
            found.append((text, chunk))
    asked = content_words(question)
    return max(found, key=lambda passage: len(asked & content_words(passage[0])), default=None)


def _target(answer: str, found: Sequence[tuple[str, Chunk]], chunks: Sequence[Chunk]) -> str:
    quotes = [Quote(text, chunks.index(chunk) + 1) for text, chunk in found]
    return render_target(answer, "", quotes)


# --- the files -------------------------------------------------------------------------------------------------------


def _files(train: Sequence[Judged], held: Sequence[Judged]) -> dict[str, list[dict[str, Any]]]:
    """Rows by name of file; what a dataset must have is there even where it is empty, all else only where it is not."""
    known, asked = _latest(train), _latest(held)
    chunks = {chunk.id: chunk for each in train for chunk in each.chunks}
    files = {
        "pairs.jsonl": _pairs(train),
        "kto.jsonl": [_unpaired(each) for each in train if each.row.given.text.strip()],
        "train.jsonl": [to_row(_example(key, each, right)) for key, (each, right) in known.items()
                        if right.refuses or right.chunks],
        "questions.jsonl": [to_row(_grounded(key, each, right)) for key, (each, right) in known.items()],
        "chunks.jsonl": [to_row(chunk) for chunk in chunks.values()],
        "evaluation.jsonl": [_evaluation_row(key, each, right) for key, (each, right) in asked.items()],
    }  # fmt: skip
    return {name: rows for name, rows in files.items() if rows or (train and name in _OF_A_DATASET)}


def _latest(judged: Iterable[Judged]) -> dict[str, tuple[Judged, Right]]:
    """What was last said to be right of each question, by its key."""
    return {each.key: (each, each.right) for each in judged if each.right is not None}


def _pairs(judged: Iterable[Judged]) -> list[dict[str, Any]]:
    """Corrections against the answers that they correct, each once."""
    found = {}
    for each in judged:
        rejected = each.row.given.text.strip()
        if each.right is None or each.row.opinion.correction is None or not rejected:
            continue
        if _same_answer(each.right.target, rejected):
            continue
        documents = [chunk.id for chunk in each.chunks]
        pair = {"question": each.question, "documents": documents, "chosen": each.right.target, "rejected": rejected}
        found[str(pair)] = {"id": each.row.id} | pair
    return list(found.values())


def _same_answer(one: str, other: str) -> bool:
    return one.strip() == other.strip() or normalize(parse_answer(one).final) == normalize(parse_answer(other).final)


def _unpaired(each: Judged) -> dict[str, Any]:
    messages = build_messages(each.question, each.chunks)
    return {
        "prompt": [{"role": message.role, "content": message.content} for message in messages],
        "completion": [{"role": "assistant", "content": each.row.given.text.strip()}],
        "label": each.row.opinion.rating == "up",
    }


def _example(key: str, each: Judged, right: Right) -> RaftExample:
    oracles = tuple(dict.fromkeys(chunk.id for chunk in right.chunks))
    context = tuple(chunk.id for chunk in each.chunks)
    name = f"feedback-{key}"
    return RaftExample(
        f"{name}@0", name, each.question, right.answer, right.target, _type_of(right), context, oracles, bool(oracles),
        name,
    )  # fmt: skip


def _grounded(key: str, each: Judged, right: Right) -> GroundedQuestion:
    passages = tuple(Passage(chunk.id, text) for text, chunk in zip(right.quotes, right.chunks, strict=True))
    kind: Any = "unanswerable" if right.refuses else "factual"
    return GroundedQuestion(
        f"feedback-{key}", each.question, "" if right.refuses else right.answer, _type_of(right), passages,
        _documents(right), "qa", split="train", question_type=kind,
    )  # fmt: skip


def _evaluation_row(key: str, each: Judged, right: Right) -> dict[str, Any]:
    evidence = [
        {"doc_id": chunk.document_id, "text": text} for text, chunk in zip(right.quotes, right.chunks, strict=True)
    ]
    return {
        "id": f"feedback-{key}", "question": each.question, "answer": "" if right.refuses else right.answer,
        "aliases": [], "answer_type": _type_of(right), "long_answer": "", "gold_doc_ids": list(_documents(right)),
        "evidence": evidence, "split": "test",
    }  # fmt: skip


def _documents(right: Right) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chunk.document_id for chunk in right.chunks))


def _type_of(right: Right) -> AnswerType:
    if right.refuses:
        return "unanswerable"
    return "long" if len(right.answer.split()) > _SHORT_WORDS else answer_type_of(right.answer)
