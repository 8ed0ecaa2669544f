"""What a reply is worth, by itself. One scored reply, as a row of ``report.json``::

    {"question_id": "med-001", "system": "raft", "chunk_ids": ["c17", "c3"], "oracle_given": true,
     "text": "Document [1] says ##begin_quote##...", "final": "12 mg",
     "quotes": [{"text": "Adults start with 12 mg", "chunk_id": "c17", "start": 40, "end": 63, "oracle": true}],
     "abstained": false, "well_formed": true, "error": null, "truncated": false, "em": 1.0, "f1": 1.0,
     "label": null, "right": true, "prompt_tokens": 812, "completion_tokens": 31, "seconds": 0.8,
     "rouge_l": 1.0, "contains": 1.0, "numeric": 1.0, "truthfulness": 1.0, "citation_recall": 1.0, "groundedness": 1.0,
     "confidence": 0.94, "critical_f1": 1.0, "relevance": 0.41, "nli_groundedness": 0.97}

A reply that failed is such a row too: ``error`` says why, and it scores 0. A metric that raises, or gives what is no
number, ends the run with its name and the question's: no score vanishes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raft.config import SystemName
from raft.dataset.grounding import CLOSED_TYPES
from raft.dataset.support import has_numbers, quantities
from raft.errors import InputError
from raft.evaluation import metrics
from raft.evaluation.cases import Case, System
from raft.evaluation.groundedness import Claim, lexical
from raft.qa import check_quotes, read_answer
from raft.records import Answer, Chunk, QaItem

RIGHT_F1 = 0.5
SCORING = 2
"""Which rules score: another number, other scores for the same replies. Reports of two numbers do not compare."""

AGAINST_REFERENCES: Mapping[str, Callable[[str, Sequence[str]], float | None]] = {
    "em": metrics.exact_match,
    "f1": metrics.token_f1,
    "rouge_l": metrics.rouge_l,
    "contains": metrics.contains_answer,
    "numeric": metrics.numeric_match,
    "critical_f1": metrics.critical_f1,
}
"""What is asked of every answer to an answerable question: (final answer, its references) -> score."""


@dataclass(frozen=True, slots=True)
class ScoredQuote:
    """A quote and where it stands: ``start`` and ``end`` are offsets in the text of the chunk, not the document."""

    text: str
    chunk_id: str | None
    start: int | None
    end: int | None
    oracle: bool


@dataclass(frozen=True, slots=True)
class Result:
    """One system's scored answer to one question. ``label`` is the closed label that the answer was read as.

    ``right``: the label for label questions, declining for unanswerable ones, else a token F1 of at least RIGHT_F1 and
    the numbers of a reference.
    ``abstained``: it declines in words; an empty answer is wrong, whatever is asked.
    ``numeric`` is None where no reference has a number, ``citation_recall`` where no oracle was given or no quotes are
    asked for, ``groundedness`` (of the final answer in the documents given, by its words) for systems without
    documents, refusals, and questions whose answer is yes, no or a label. ``critical_f1`` is None where no reference
    states a number or a negation. ``confidence`` (confidence.py) is None where the model gave no log-probabilities.
    ``relevance`` and ``nli_groundedness`` are None until measures.py has set them.
    """

    question_id: str
    system: SystemName
    chunk_ids: tuple[str, ...]
    oracle_given: bool
    text: str
    final: str
    quotes: tuple[ScoredQuote, ...]
    abstained: bool
    well_formed: bool
    error: str | None
    truncated: bool
    em: float
    f1: float
    label: str | None
    right: bool
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    rouge_l: float
    contains: float
    numeric: float | None
    truthfulness: float
    citation_recall: float | None
    groundedness: float | None
    confidence: float | None = None
    critical_f1: float | None = None
    relevance: float | None = None
    nli_groundedness: float | None = None


def score_reply(row: Mapping[str, Any], system: System, case: Case, labels: Sequence[str]) -> Result:
    """The Result of a journal row: the reply of ``system`` to ``case``.

    Raises InputError, with the names of metric and question, when a metric raises or gives what is no number: when an
    answerable question has no reference, say.
    """
    item, failed = case.item, row["error"] is not None
    chunks = system.chunks_of(case) or ()
    answer = Answer("", "", well_formed=False) if failed else read_answer(row["text"], system.short)
    scores = score_answer(answer, item, failed)
    label = None if failed or answer.abstained else metrics.read_label(answer.final, labels)
    gold = gold_label(item, labels)
    right = label == gold if gold is not None else _is_right(answer, item, scores["f1"])
    quotes = tuple(_score_quotes(answer, chunks, case))
    return Result(
        question_id=item.id, system=system.name, chunk_ids=tuple(chunk.id for chunk in chunks),
        oracle_given=case.holds_oracle(chunks), text=row["text"], final=answer.final, quotes=quotes,
        abstained=_declines(answer), well_formed=answer.well_formed, error=row["error"], truncated=row["truncated"],
        label=label, right=right, prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"],
        seconds=row["seconds"],
        truthfulness=metrics.truthfulness(right, failed or answer.abstained),
        citation_recall=_citation_recall(system, quotes, case, chunks),
        groundedness=_groundedness(system, answer, failed, item, chunks) if gold is None else None,
        confidence=row.get("confidence"), **scores,
    )  # fmt: skip


def score_answer(answer: Answer, item: QaItem, failed: bool = False) -> dict[str, Any]:
    """The score by each metric of AGAINST_REFERENCES. An unanswerable question scores 1 when the system declines, else
    0; an answerable one on which it declines scores 0, and so does a reply that failed. None stays None.

    Raises InputError as ``score_reply`` does.
    """
    if item.answer_type == "unanswerable":
        right = float(_declines(answer) and not failed)
        return dict.fromkeys(AGAINST_REFERENCES, right) | {"numeric": None, "critical_f1": None}
    references = [item.answer, *item.aliases]
    scores = {
        name: measured(name, item.id, metric, answer.final, references) for name, metric in AGAINST_REFERENCES.items()
    }
    if item.answer_type in CLOSED_TYPES:  # "no" is an answer there, no negation of one
        scores["critical_f1"] = None
    if failed or answer.abstained:
        return {name: None if score is None else 0.0 for name, score in scores.items()}
    return scores


def _declines(answer: Answer) -> bool:
    """Whether it says that there is no answer. Silence says nothing, and is no right answer to anything."""
    return answer.abstained and bool(answer.final.strip())


def _is_right(answer: Answer, item: QaItem, f1: float) -> bool:
    """Whether it says enough of the words of one reference, and all of its numbers; 99 crowns have half of the words of
    23 crowns, and of the alias twenty-three crowns, which therefore must stand there whole."""
    if item.answer_type == "unanswerable" or f1 < RIGHT_F1:
        return f1 >= RIGHT_F1
    references = [reference for reference in (item.answer, *item.aliases) if reference.strip()]
    some_numbers = any(quantities(reference) for reference in references)

    def bears_out(reference: str) -> bool:
        if some_numbers and not quantities(reference):
            return metrics.contains_answer(answer.final, [reference]) == 1.0
        return metrics.token_f1(answer.final, [reference]) >= RIGHT_F1 and has_numbers(reference, "", answer.final)

    return any(map(bears_out, references))


def measured(name: str, question_id: str, metric: Callable[..., float | None], *given: Any) -> float | None:
    """``metric(*given)``. Raises InputError, with the names of metric and question, when it raises or gives what is no
    finite number."""
    try:
        score = metric(*given)
        if score is not None and not math.isfinite(score):
            raise ValueError(f"it gave {score}; expected a number")
    except Exception as error:  # whatever it is: caught to be named, never to be left out
        raise InputError(
            f"metric {name} failed on question {question_id!r} ({type(error).__name__}: {error})",
            "Correct the question, or leave it out of the file",
        ) from error
    return score


def gold_label(item: QaItem, labels: Sequence[str]) -> str | None:
    """The label that is the question's reference answer, or None when its reference is no label."""
    wanted = metrics.label_words(item.answer)
    return next((label for label in labels if wanted and metrics.label_words(label) == wanted), None)


def _citation_recall(
    system: System, quotes: Sequence[ScoredQuote], case: Case, chunks: Sequence[Chunk]
) -> float | None:
    if not system.quotes:
        return None
    given = [chunk.id for chunk in chunks]
    quoted = [quote.chunk_id for quote in quotes]
    return measured("citation_recall", case.item.id, metrics.citation_recall, quoted, case.relevant, given)


def _groundedness(system: System, answer: Answer, failed: bool, item: QaItem, chunks: Sequence[Chunk]) -> float | None:
    """None where there is nothing to judge. A failure and an empty answer are judged: they are not grounded."""
    if system.documents == "none" or _declines(answer) or item.answer_type in CLOSED_TYPES:
        return None
    return measured("groundedness", item.id, lexical, claim_of(item, "" if failed else answer.final, chunks))


def claim_of(item: QaItem, final: str, chunks: Sequence[Chunk]) -> Claim:
    """The final answer to a question and the documents that were given for it, as groundedness judges them."""
    texts = ("\n".join((chunk.title, *chunk.headings, chunk.text)) for chunk in chunks)  # as a prompt shows them
    return Claim(item.question, final, tuple(texts))


def _score_quotes(answer: Answer, chunks: Sequence[Chunk], case: Case) -> list[ScoredQuote]:
    scored = []
    for quote in check_quotes(answer, chunks):
        if quote.chunk is None or quote.start is None or quote.end is None:
            scored.append(ScoredQuote(quote.text, None, None, None, False))
            continue
        start, end = quote.start - quote.chunk.start, quote.end - quote.chunk.start
        scored.append(ScoredQuote(quote.text, quote.chunk.id, start, end, quote.chunk.id in case.oracle_ids))
    return scored
