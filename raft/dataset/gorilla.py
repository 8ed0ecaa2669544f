"""Datasets that the RAFT script of Gorilla (github.com/ShishirPatil/gorilla) wrote -> a dataset of this project.

One of its rows (JSON lines, Parquet, or a Hugging Face folder)::

    {"id": "seed_task_0", "type": "general", "question": "What is the first dose of Alvoran in adults?",
     "context": {"title": [["placeholder_title", ...]], "sentences": [["Bentrazol is ...", "Alvoran is ...", ...]]},
     "oracle_context": "Alvoran is given to adults as a first dose of 11 mg.",
     "cot_answer": "The text says ##begin_quote## a first dose of 11 mg ##end_quote## ... <ANSWER>: 11 mg",
     "instruction": "<DOCUMENT>Bentrazol is ...</DOCUMENT>\\n... What is the first dose of Alvoran in adults?"}

Its exports ``completion`` and ``chat`` keep the instruction and the answer alone: the context is then read out of
the instruction, and the oracle is the document in which every quote stands. A row that breaks the contract goes to
``rejected.jsonl`` with its reasons. Where the oracle is not in the context the answer is learned from memory, as in
the paper: the target then quotes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from raft import artifacts
from raft.corpus.duplicates import near_duplicates
from raft.dataset.answers import answer_type_of
from raft.dataset.card import write_card
from raft.dataset.check import verbatim_span
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.dataset.repeats import duplicates
from raft.dataset.split import split_by_document
from raft.dataset.tables import table_rows
from raft.errors import InputError
from raft.prompts import ANSWER_MARK, is_refusal, neutralize, parse_answer, render_target, without_quotes
from raft.records import Chunk, Quote, RaftExample, Split, to_row
from raft.rows import write_rows

_DOCUMENT = re.compile(r"<DOCUMENT>(.*?)</DOCUMENT>\n?", re.DOTALL)
_LIST_NUMBER = re.compile(r"\s*(?:\(?\d{1,3}[.):]|[-*•])\s")
_REMEDY = "Expected the columns question, context, oracle_context and cot_answer, or prompt and completion, or messages"
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class GorillaRow:
    """A row as read: ``oracle`` is None where its form does not name one."""

    id: str
    question: str
    documents: tuple[str, ...]
    oracle: str | None
    answer: str


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What became of the rows: examples by split, and how often each rule refused one."""

    out: Path
    rows: int
    questions: Mapping[str, int]
    examples: Mapping[str, int]
    refused: int
    refused_by_rule: Mapping[str, int]
    oracle_share: float


@dataclass
class _Import:
    """What has been read so far. ``chunks`` are by their text: texts of equal words are one document."""

    names: set[str] = field(default_factory=set)
    repeats: Counter[str] = field(default_factory=Counter)  # how often an id came
    chunks: dict[str, Chunk] = field(default_factory=dict)
    questions: dict[str, GroundedQuestion] = field(default_factory=dict)
    contexts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    present: dict[str, bool] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def name_of(self, row: GorillaRow) -> str:
        """The row's id, counted up where it repeats: Gorilla counts anew after each of its checkpoints."""
        first = name = row.id or f"row-{len(self.names) + 1}"
        while name in self.names:
            self.repeats[first] += 1
            name = f"{first}-{self.repeats[first] + 1}"
        self.names.add(name)
        return name

    def chunk_of(self, text: str) -> Chunk:
        name, text = f"doc-{len(self.chunks) + 1}", text.strip()
        return self.chunks.setdefault(" ".join(text.split()), Chunk(f"{name}#0", name, text, 0, len(text)))

    def refuse(self, name: str, reasons: Sequence[str]) -> None:
        """Take a question back."""
        item = self.questions.pop(name)
        del self.contexts[name], self.present[name]
        self.rejected.append(_rejected(item.id, item.question, item.answer, reasons, item.document_ids))


def import_gorilla(
    source: Path, out: Path, *, dev: float = 0.05, test: float = 0.05, seed: int = 0, overwrite: bool = False
) -> ImportSummary:
    """Make the dataset ``out`` of a file or folder of Gorilla's. ``dev`` and ``test`` are shares of oracles.

    Raises InputError for rows of another form, or when none is left; ArtifactError when ``out`` is taken.
    """
    artifacts.check_free(out, overwrite)
    recipe = {"import": "gorilla", "split": {"dev": dev, "test": test}, "seed": seed}
    recipe |= {"context": {"oracle_absent": "from_memory"}}
    inputs = {"source": artifacts.hash_path(source)}
    with artifacts.writing(out, "dataset", recipe, inputs, overwrite=overwrite) as draft:
        read = _Import()
        rows = 0
        for rows, (where, row) in enumerate(table_rows(source), 1):  # noqa: B007 (their number is reported)
            _take(read, gorilla_row(row, where))
        for name, reason in duplicates([(item.id, item.question) for item in read.questions.values()]).items():
            read.refuse(name, [reason])
        splits = _settle(read, dev, test, seed)
        if not splits:
            raise InputError(f"{source}: no row is left to make an example of ({_reasons(read)})", _REMEDY)
        if "train" not in splits.values():
            raise InputError(f"{source}: no row falls to train", "Give --dev 0 --test 0, or another --seed")
        examples = _examples(read, splits)
        facts = _facts(read, examples)
        _write(draft.folder, read, examples)
        sample = next((row for made in examples.values() for row in made if row.oracle_present), None)
        named = {name for row in read.contexts.values() for name in row}
        write_card(draft.folder, name=out.name, facts=facts, recipe=recipe, licences=[""] * len(named), sample=sample)
        draft.facts = facts
    keys = ("questions", "examples", "refused", "refused_by_rule", "oracle_share")
    return ImportSummary(out, rows, **{key: facts[key] for key in keys})


# --- one row -------------------------------------------------------------------------------------------------------


def gorilla_row(row: Mapping[str, Any], where: str) -> GorillaRow:
    """A row in any of the three forms. Raises InputError when it has another."""
    if "messages" in row:
        said = {_text(part, "role", where): _text(part, "content", where) for part in _list(row, "messages", where)}
        return _from_prompt(row, said.get("user", ""), said.get("assistant", ""))
    if "cot_answer" not in row:
        if "prompt" not in row or "completion" not in row:
            raise InputError(f"{where} has the columns {', '.join(map(str, row))}", _REMEDY)
        return _from_prompt(row, _text(row, "prompt", where), _text(row, "completion", where))
    context = row.get("context")
    if not isinstance(context, Mapping):
        raise InputError(f"{where}: context is {type(context).__name__}; expected sentences and title", _REMEDY)
    oracle = row.get("oracle_context")
    return GorillaRow(
        str(row.get("id") or ""), _text(row, "question", where).strip(),
        tuple(_flat(context.get("sentences"), where)), oracle if isinstance(oracle, str) else "",
        _text(row, "cot_answer", where),
    )  # fmt: skip


def _from_prompt(row: Mapping[str, Any], prompt: str, answer: str) -> GorillaRow:
    question = _DOCUMENT.sub("", prompt).strip()
    return GorillaRow(str(row.get("id") or ""), question, tuple(_DOCUMENT.findall(prompt)), None, answer)


def _text(row: Any, column: str, where: str) -> str:
    value = row.get(column) if isinstance(row, Mapping) else None
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: {column} is {value!r}; expected text", _REMEDY)
    return value or ""  # an answer that a teacher never gave is a fault of the row, not of the file


def _list(row: Mapping[str, Any], column: str, where: str) -> list[Any]:
    value = row.get(column)
    if not isinstance(value, list):
        raise InputError(f"{where}: {column} is {value!r}; expected a list", _REMEDY)
    return value


def _flat(value: Any, where: str) -> Iterator[str]:
    """The sentences of a context, which lie in a list of lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _flat(part, where)
    else:
        raise InputError(f"{where}: context holds {value!r} among its sentences; expected text", _REMEDY)


def row_faults(row: GorillaRow) -> list[str]:
    """What breaks the contract in a row; empty when nothing does."""
    said = parse_answer(row.answer)
    oracles = _oracles(row)
    quotes = [quote.text for quote in said.quotes]
    documents = [" ".join(text.split()) for text in row.documents]
    faults = {
        "question_empty": not row.question,
        "question_numbered": bool(_LIST_NUMBER.match(row.question)),
        "context_empty": not documents or not all(documents),
        "context_repeats_document": len(set(documents)) < len(documents),
        "answer_malformed": not said.well_formed,
        "answer_empty": said.well_formed and not said.final,
        "answer_refuses": bool(said.final) and is_refusal(said.final),
        "answer_of_several_lines": said.well_formed and _goes_on(row.answer),
        "quote_missing": not quotes,
        "oracle_missing": not oracles or not oracles[0].strip(),
        "oracle_altered": any(_is_part(oracle, documents) for oracle in oracles if oracle.strip()),
        "quote_not_in_oracle": bool(oracles) and not _holds(oracles[0], quotes),
        "quotes_in_distractor": bool(quotes)
        and not _is_there(oracles, documents)
        and any(_holds(text, quotes) for text in row.documents),
    }
    return [name for name, broken in faults.items() if broken]


def _oracles(row: GorillaRow) -> list[str]:
    """The oracle: the one that is named, or the first document in which every quote stands."""
    if row.oracle is not None:
        return [row.oracle]
    quotes = [quote.text for quote in parse_answer(row.answer).quotes]
    return [text for text in row.documents if quotes and _holds(text, quotes)][:1]


def _holds(text: str, quotes: Sequence[str]) -> bool:
    return all(verbatim_span(text, quote) is not None for quote in quotes)


def _is_there(oracles: Sequence[str], documents: Sequence[str]) -> bool:
    return any(" ".join(oracle.split()) in documents for oracle in oracles)


def _goes_on(text: str) -> bool:
    """Whether more follows on the line of the final answer: it would be lost."""
    return len(text.rpartition(ANSWER_MARK)[2].strip().splitlines()) > 1


def _is_part(oracle: str, documents: Sequence[str]) -> bool:
    """Whether the oracle is not in the context, but a part of one of its documents is, or the other way round."""
    sought = " ".join(oracle.split())
    return not _is_there([oracle], documents) and any(sought in text or text in sought for text in documents if text)


def _take(read: _Import, row: GorillaRow) -> None:
    """Keep the row as a question with its context, or refuse it."""
    name = read.name_of(row)
    said = parse_answer(row.answer)
    final = " ".join(said.final.split())
    if faults := row_faults(row):
        refused = _rejected(name, row.question, final, faults, ())
        read.rejected.append(refused | {"said": row.answer})
        return
    oracle = read.chunk_of(_oracles(row)[0])
    spans = [verbatim_span(oracle.text, quote.text) for quote in said.quotes]
    quotes = dict.fromkeys(Passage(oracle.id, oracle.text[slice(*span)]) for span in spans if span)
    reasoning = without_quotes(said.reasoning)
    read.questions[name] = GroundedQuestion(
        name, row.question, final, answer_type_of(final), tuple(quotes), (oracle.document_id,), "teacher",
        reasoning=reasoning, reasoning_source="teacher" if reasoning else "none",
    )  # fmt: skip
    read.contexts[name] = tuple(read.chunk_of(text).id for text in row.documents)
    read.present[name] = oracle.id in read.contexts[name]


def _rejected(
    name: str, question: str, answer: str, reasons: Sequence[str], documents: Sequence[str]
) -> dict[str, Any]:
    return {
        "id": name, "question": question, "answer": answer, "question_type": "factual",
        "document_ids": list(documents), "reasons": list(reasons),
    }  # fmt: skip


# --- all rows ------------------------------------------------------------------------------------------------------


def _settle(read: _Import, dev: float, test: float, seed: int) -> dict[str, Split]:
    """Question id -> split, by oracle. Near-duplicates count as one document; a train question over a document of a
    dev or test question is refused, because contexts stay as they are given."""
    groups = dict(zip((chunk.id for chunk in read.chunks.values()), near_duplicates(list(read.chunks)), strict=True))
    own = {name: str(groups[item.oracle_ids[0]]) for name, item in read.questions.items()}
    tied = [replace(item, document_ids=(own[name],)) for name, item in read.questions.items()]
    splits = split_by_document(tied, dev, test, seed)
    strict = {own[name] for name, split in splits.items() if split != "train"}
    for name, split in splits.items():
        if split == "train" and any(str(groups[chunk_id]) in strict for chunk_id in read.contexts[name]):
            read.refuse(name, ["distractor_of_stricter_split"])
    return {name: splits[name] for name in read.questions}


def _reasons(read: _Import) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in _by_rule(read).items()) or "there was no row"


def _by_rule(read: _Import) -> dict[str, int]:
    return dict(Counter(reason for row in read.rejected for reason in row["reasons"]).most_common())


def _examples(read: _Import, splits: Mapping[str, Split]) -> dict[Split, list[RaftExample]]:
    made: dict[Split, list[RaftExample]] = {}
    for split in _SPLITS:
        for number, (name, item) in enumerate(read.questions.items()):
            if splits[name] == split:
                read.questions[name] = replace(item, split=split)
                example = _example(item, read.contexts[name], read.present[name], f"row-{number}")
                made.setdefault(split, []).append(example)
    return made


def _example(item: GroundedQuestion, context: tuple[str, ...], present: bool, group: str) -> RaftExample:
    quotes = [Quote(quote.text, context.index(quote.chunk_id) + 1) for quote in item.quotes] if present else []
    target = render_target(item.answer, item.reasoning, quotes)
    return RaftExample(
        f"{item.id}@0", item.id, item.question, neutralize(item.answer), target, item.answer_type, context,
        item.oracle_ids, present, group,
    )  # fmt: skip


def _facts(read: _Import, examples: Mapping[Split, Sequence[RaftExample]]) -> dict[str, Any]:
    rows = [row for made in examples.values() for row in made]
    return {
        "index_fingerprint": None, "teacher": None, "labels": [], "imported_from": "gorilla",
        "questions": dict(Counter(str(item.split) for item in read.questions.values())),
        "examples": {split: len(made) for split, made in examples.items()}, "groups": len(rows),
        "refused": len(read.rejected), "refused_by_rule": _by_rule(read),
        "reasoning": dict(Counter(item.reasoning_source for item in read.questions.values())),
        "oracle_share": round(sum(row.oracle_present for row in rows) / len(rows), 4),
        "prompt_tokens": 0, "completion_tokens": 0,
    }  # fmt: skip


def _write(folder: Path, read: _Import, examples: Mapping[Split, Sequence[RaftExample]]) -> None:
    for split, rows in examples.items():
        write_rows(folder / f"{split}.jsonl", map(to_row, rows))
    named = {name for rows in examples.values() for row in rows for name in (*row.context, *row.oracle_ids)}
    write_rows(folder / "chunks.jsonl", (to_row(chunk) for chunk in read.chunks.values() if chunk.id in named))
    write_rows(folder / "questions.jsonl", (asdict(item) for item in read.questions.values()))
    write_rows(folder / "rejected.jsonl", read.rejected)
