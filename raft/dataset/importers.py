"""Existing questions -> QaItems. One row of a ``questions.jsonl`` (see records.py for the full form)::

    {"id": "56beb4", "question": "How many points did the Panthers defense surrender?", "answer": "308",
     "answers": ["308"], "gold_doc_ids": ["sq-00-00"],
     "gold_spans": [{"doc_id": "sq-00-00", "start": 34, "end": 37}], "answer_type": "short", "split": "test"}

Evidence is read from ``evidence`` (verbatim text), or from ``gold_spans`` (character offsets into the document,
with their words in ``clause`` where a set has them; else ``Evidence.text`` is empty and the offsets say it all).
The documents of the evidence are gold documents, whether ``gold_doc_ids`` names them or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from raft.errors import InputError
from raft.records import AnswerType, Evidence, QaItem, Split
from raft.rows import read_rows

_TYPES: dict[str, AnswerType] = {
    **{name: name for name in get_args(AnswerType)},
    "yesnomaybe": "label",
    "date": "short",
    "span": "short",
    "api_call": "long",
}
_REMEDY = "corpora/medical/questions.jsonl shows the columns"


def read_questions(path: Path, *, need_answers: bool = True) -> list[QaItem]:
    """The questions of a JSON lines file (may be gzipped), in its order. Where no answers are needed, a row without
    one has the answer "".

    Raises InputError naming file, line and column of the first bad row, for an id that stands twice, and for a
    file without questions.
    """
    items: dict[str, QaItem] = {}
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path} row {number}"
        item = _to_item(row, where, need_answers)
        if item.id in items:
            raise InputError(f"{where}: id {item.id!r} stands there twice", "Give every question an id of its own")
        items[item.id] = item
    if not items:
        raise InputError(f"{path} holds no questions", _REMEDY)
    return list(items.values())


def _to_item(row: Mapping[str, Any], where: str, need_answers: bool) -> QaItem:
    kind = _text(row, "answer_type", where, default="short")
    if kind not in _TYPES:
        raise InputError(f"{where}: answer_type is {kind!r}; expected one of {', '.join(_TYPES)}", _REMEDY)
    split = row.get("split")
    if split not in (None, *get_args(Split)):
        raise InputError(f"{where}: split is {split!r}; expected train, dev or test", _REMEDY)
    unanswerable = kind == "unanswerable"
    answer = _text(row, "answer", where, default="" if unanswerable or not need_answers else None)
    evidence = () if unanswerable else _evidence(row, where)
    gold = [] if unanswerable else [*_texts(row, "gold_doc_ids", where), *(part.document_id for part in evidence)]
    aliases = [*_texts(row, "aliases", where), *_texts(row, "answers", where)]
    return QaItem(
        id=_text(row, "id", where),
        question=_text(row, "question", where),
        answer=answer,
        answer_type=_TYPES[kind],
        aliases=tuple(dict.fromkeys(alias for alias in aliases if alias != answer)),
        long_answer=_text(row, "long_answer", where, default=""),
        gold_document_ids=tuple(dict.fromkeys(gold)),
        evidence=evidence,
        split=cast(Split | None, split),
    )


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
    return tuple(_span(span, text, where) for span, text in zip(spans, said, strict=True))


def _span(span: Mapping[str, Any], text: str, where: str) -> Evidence:
    start, end = span.get("start"), span.get("end")
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        raise InputError(f"{where}: gold_spans holds start {start!r}, end {end!r}; expected 0 <= start < end", _REMEDY)
    return Evidence(_text(span, "doc_id", f"{where} gold_spans"), text, start, end)


def _objects(row: Mapping[str, Any], column: str, where: str) -> list[dict[str, Any]]:
    value = row.get(column) or []
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise InputError(f"{where}: {column} is {value!r}; expected a list of objects", _REMEDY)
    return value
