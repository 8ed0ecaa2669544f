"""Existing questions -> QaItems. One row of a ``questions.jsonl`` (see records.py for the full form)::

    {"id": "56beb4", "question": "How many points did the Panthers defense surrender?", "answer": "308",
     "answers": ["308"], "gold_doc_ids": ["sq-00-00"],
     "gold_spans": [{"doc_id": "sq-00-00", "start": 34, "end": 37}], "answer_type": "short", "split": "test"}

Evidence is read from ``evidence`` (verbatim text), or from ``gold_spans`` (character offsets into the document,
with their words in ``clause`` where a set has them; else ``Evidence.text`` is empty and the offsets say it all), or
from ``context``, a passage of the document ``doc_id``, as SQuAD has it. The documents of the evidence are gold
documents, whether ``gold_doc_ids`` names them or not. ``COLUMNS`` lists the names that columns go by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from raft.artifacts import digest
from raft.dataset.grounding import sentences
from raft.dataset.tables import is_separated, table_rows
from raft.errors import InputError, UsageError
from raft.records import AnswerType, Evidence, QaItem, Split

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "question_id", "_id"),
    "question": ("question", "query", "instruction", "user_input"),
    "answer": ("answer", "output", "response", "reference", "ground_truth"),
    "answers": ("answers",),
    "aliases": ("aliases",),
    "answer_type": ("answer_type",),
    "long_answer": ("long_answer",),
    "gold_doc_ids": ("gold_doc_ids", "document_ids"),
    "evidence": ("evidence",),
    "gold_spans": ("gold_spans",),
    "clause": ("clause",),
    "context": ("context",),
    "doc_id": ("doc_id", "document_id", "title"),
    "split": ("split",),
}
"""Our name -> the names it is read under; of several in one file the first counts."""

_TYPES: dict[str, AnswerType] = {
    **{name: name for name in get_args(AnswerType)},
    "yesnomaybe": "label",
    "date": "short",
    "span": "short",
    "api_call": "long",
}
_LISTS = ("answers", "aliases", "gold_doc_ids", "clause")  # in a cell: JSON, or parts between semicolons
_OBJECTS = ("evidence", "gold_spans")  # in a cell: JSON
_REMEDY = "corpora/medical/questions.jsonl shows the columns"


def read_questions(path: Path, *, need_answers: bool = True, columns: Mapping[str, str] | None = None) -> list[QaItem]:
    """The questions of a file or folder (tables.py has the forms), in its order. Where no answers are needed, a row
    without one has the answer "". ``columns`` (our name -> theirs) overrides ``COLUMNS``. A row without an id gets
    one made of its question and answer.

    Raises InputError naming file, row and column of the first bad row, for an id that stands twice, and for a
    file without questions; UsageError for a column in ``columns`` that is none of ours.
    """
    names = _names(columns or {})
    items: dict[str, QaItem] = {}
    for where, given in table_rows(path):
        row = _ours(given, names)
        if is_separated(path):
            row = _from_cells(row, where)
        item = _to_item(row, where, need_answers, items)
        if item.id in items:
            raise InputError(f"{where}: id {item.id!r} stands there twice", "Give every question an id of its own")
        items[item.id] = item
    if not items:
        raise InputError(f"{path} holds no questions", _REMEDY)
    return list(items.values())


def _names(columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise UsageError(f"column {unknown[0]!r} is none of raft's", f"Expected one of {', '.join(COLUMNS)}")
    return {**COLUMNS, **{ours: (theirs,) for ours, theirs in columns.items()}}


def _ours(given: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The row under our names, without what nobody asks for."""
    found = {ours: next((name for name in theirs if name in given), None) for ours, theirs in names.items()}
    return {ours: given[name] for ours, name in found.items() if name is not None}


def _from_cells(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row of text cells with its lists read."""
    read = dict(row)
    for column in (*_LISTS, *_OBJECTS):
        cell = (row.get(column) or "").strip()
        if column in _OBJECTS or cell.startswith(("[", "{")):
            try:
                read[column] = json.loads(cell) if cell else None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: {column} is {cell[:80]!r}, not JSON ({error})", _REMEDY) from None
        else:
            read[column] = cell.split(";")
    return read


def _to_item(row: Mapping[str, Any], where: str, need_answers: bool, known: Mapping[str, QaItem]) -> QaItem:
    said = _answers(row, where)
    kind = _text(row, "answer_type", where, default="unanswerable" if said == [] else "short")
    if kind not in _TYPES:
        raise InputError(f"{where}: answer_type is {kind!r}; expected one of {', '.join(_TYPES)}", _REMEDY)
    split = row.get("split")
    if split not in (None, *get_args(Split)):
        raise InputError(f"{where}: split is {split!r}; expected train, dev or test", _REMEDY)
    unanswerable = kind == "unanswerable"
    first = said[0] if said else "" if unanswerable or not need_answers else None
    answer = _text(row, "answer", where, default=first)
    question = _text(row, "question", where)
    evidence = () if unanswerable else _evidence(row, where)
    gold = [] if unanswerable else [*_texts(row, "gold_doc_ids", where), *(part.document_id for part in evidence)]
    aliases = [*_texts(row, "aliases", where), *(said or ())]
    return QaItem(
        id=_id(row, where, question, answer, known),
        question=question,
        answer="" if unanswerable else answer,
        answer_type=_TYPES[kind],
        aliases=() if unanswerable else tuple(dict.fromkeys(alias for alias in aliases if alias != answer)),
        long_answer=_text(row, "long_answer", where, default=""),
        gold_document_ids=tuple(dict.fromkeys(gold)),
        evidence=evidence,
        split=cast(Split | None, split),
    )


def _id(row: Mapping[str, Any], where: str, question: str, answer: str, known: Mapping[str, QaItem]) -> str:
    """The row's id, a number as its digits; or one made of its words, counted up where they repeat."""
    given = row.get("id")
    if given is not None:
        return str(given) if type(given) is int else _text(row, "id", where)
    name = f"q-{digest([question, answer])[:16]}"
    found, count = name, 1
    while found in known:
        count += 1
        found = f"{name}-{count}"
    return found


def _answers(row: Mapping[str, Any], where: str) -> list[str] | None:
    """The accepted answers; none at all in SQuAD's form says that the question is unanswerable. None: not stated."""
    value = row.get("answers")
    if isinstance(value, dict):
        given = _texts(value, "text", f"{where} answers")
        return given if given or row.get("answer") is None else None
    return _texts(row, "answers", where) or None


def _text(row: Mapping[str, Any], column: str, where: str, default: str | None = None) -> str:
    value = row.get(column)
    if value is None:
        value = default
    if not isinstance(value, str):
        raise InputError(f"{where}: {column} is {value!r}; expected text", _REMEDY)
    if default is None and not value.strip():
        raise InputError(f"{where}: {column} is empty", _REMEDY)
    return value.strip()


def _texts(row: Mapping[str, Any], column: str, where: str) -> list[str]:
    value = row.get(column) or []
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise InputError(f"{where}: {column} is {value!r}; expected a list of texts", _REMEDY)
    return [part.strip() for part in value if part.strip()]


def _evidence(row: Mapping[str, Any], where: str) -> tuple[Evidence, ...]:
    given = _objects(row, "evidence", where)
    if any("text" in part for part in given):
        return tuple(
            Evidence(_text(part, "doc_id", f"{where} evidence"), _text(part, "text", f"{where} evidence"))
            for part in given
        )
    spans = _objects(row, "gold_spans", where)
    clauses = _texts(row, "clause", where) if isinstance(row.get("clause"), list) else []
    said: Sequence[str] = clauses if len(clauses) == len(spans) else [""] * len(spans)
    found = tuple(_span(span, text, where) for span, text in zip(spans, said, strict=True))
    return found or _of_context(row, where)


def _span(span: Mapping[str, Any], text: str, where: str) -> Evidence:
    start, end = span.get("start"), span.get("end")
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        raise InputError(f"{where}: gold_spans holds start {start!r}, end {end!r}; expected 0 <= start < end", _REMEDY)
    return Evidence(_text(span, "doc_id", f"{where} gold_spans"), text, start, end)


def _of_context(row: Mapping[str, Any], where: str) -> tuple[Evidence, ...]:
    """SQuAD's form: the sentence of ``context`` that holds the first answer, else all of it. Without the name of its
    document a passage proves nothing that could be looked up."""
    context, document = row.get("context"), row.get("doc_id")
    if not isinstance(context, str) or not context.strip() or document is None:
        return ()
    name = _text(row, "doc_id", where)
    answers = row.get("answers")
    starts = answers.get("answer_start") if isinstance(answers, dict) else None
    at = starts[0] if isinstance(starts, list) and starts else None
    held = [span for span in sentences(context) if type(at) is int and span[0] <= at < span[1]]
    return (Evidence(name, context[slice(*held[0])] if held else context.strip()),)


def _objects(row: Mapping[str, Any], column: str, where: str) -> list[dict[str, Any]]:
    value = row.get(column) or []
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise InputError(f"{where}: {column} is {value!r}; expected a list of objects", _REMEDY)
    return value
