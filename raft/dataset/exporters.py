"""A dataset in the forms that other programs read. One example as ``openai`` (a line of ``OUT/train.jsonl``)::

    {"messages": [{"role": "system", "content": "Answer the question from the documents. ..."},
                  {"role": "user", "content": "Document [1] Alvoran\\n...\\n\\nQuestion: What is the first dose ...?"},
                  {"role": "assistant", "content": "Document [1] says ##begin_quote##...\\n<ANSWER>: 11 mg"}]}

The prompt is that of ``prompts.build_messages``, word for word what ``raft train`` shows a student. Every form is a
folder that appears whole or not at all. Examples pass one at a time; only the chunks are held.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raft.artifacts import RESUME, is_of_output, open_artifact, publish, remove, sync_folder, write_json
from raft.errors import ArtifactError, InputError, UsageError
from raft.places import locked, place_of
from raft.prompts import build_messages
from raft.records import Chunk, RaftExample, Split, chunk_from_row, example_from_row
from raft.rows import read_rows, write_rows

ExportForm = Literal["hf", "openai", "completion", "sharegpt", "alpaca", "evaluation"]
MARKER = ".raft-export.json"  # hidden: what reads a folder of data passes it over
_SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
Turns = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written: rows by split (``evaluation``: questions)."""

    out: Path
    form: ExportForm
    rows: Mapping[str, int]


def export_dataset(
    folder: Path, form: ExportForm, out: Path, *, splits: Sequence[Split] = (), overwrite: bool = False
) -> ExportSummary:
    """Write a dataset as the folder ``out``; without ``splits``, all that it has.

    Raises ArtifactError when the dataset is damaged, or ``out`` is taken; UsageError for a split that it lacks, or
    when another process writes ``out``; InputError for a chunk that it lacks, or when ``out`` cannot be written.
    """
    _check_free(out, overwrite)
    manifest = open_artifact(folder, "dataset")
    wanted = _wanted(folder, splits)
    with _writing(out, overwrite, {"form": form, "dataset": manifest.fingerprint}) as draft:
        if form == "evaluation":
            counts = _write_questions(folder, draft, wanted)
        elif form == "hf":
            counts = _write_hf(folder, draft, wanted)
        else:
            counts = _write_lines(folder, draft, wanted, form)
    return ExportSummary(out, form, counts)


def _wanted(folder: Path, splits: Sequence[Split]) -> list[Split]:
    has = [split for split in _SPLITS if (folder / f"{split}.jsonl").exists()]
    lacks = [split for split in splits if split not in has]
    if lacks:
        raise UsageError(f"{folder} has no split {lacks[0]!r}", f"Expected one of {', '.join(has)}")
    return [split for split in has if not splits or split in splits]


def read_examples(folder: Path, split: str) -> Iterator[RaftExample]:
    """The examples of a split, one at a time; none where the dataset has no such split.

    Raises InputError naming the row that is no example.
    """
    path = folder / f"{split}.jsonl"
    for number, row in enumerate(read_rows(path) if path.exists() else (), 1):
        try:
            yield example_from_row(row)
        except (TypeError, KeyError) as error:
            raise InputError(f"{path} row {number} is no example ({error})", "Make the dataset again") from None


def read_chunks(folder: Path) -> dict[str, Chunk]:
    """Every chunk of a dataset, by id. Raises InputError naming the row that is none."""
    found = {}
    for number, row in enumerate(read_rows(folder / "chunks.jsonl"), 1):
        try:
            chunk = chunk_from_row(row)
        except (TypeError, KeyError) as error:
            what = f"{folder / 'chunks.jsonl'} row {number} is no chunk ({error})"
            raise InputError(what, "Make the dataset again") from None
        found[chunk.id] = chunk
    return found


def _context(example: RaftExample, chunks: Mapping[str, Chunk]) -> list[Chunk]:
    try:
        return [chunks[name] for name in example.context]
    except KeyError as missing:
        raise InputError(f"example {example.id} names chunk {missing}, which chunks.jsonl lacks") from None


# --- lines for trainers ------------------------------------------------------------------------------------------


def _turns(example: RaftExample, chunks: Mapping[str, Chunk]) -> Turns:
    """The prompt that raft trains on, and the target as the assistant's turn."""
    asked = build_messages(example.question, _context(example, chunks))
    turns = [{"role": message.role, "content": message.content} for message in asked]
    return [*turns, {"role": "assistant", "content": example.target}]


def _openai(turns: Turns) -> dict[str, Any]:
    return {"messages": turns}


def _completion(turns: Turns) -> dict[str, Any]:
    """For base models without a chat template: system and user turn as one text."""
    return {"prompt": "".join(f"{turn['content']}\n\n" for turn in turns[:-1]), "completion": turns[-1]["content"]}


def _sharegpt(turns: Turns) -> dict[str, Any]:
    return {"conversations": [{"from": _SPEAKERS[turn["role"]], "value": turn["content"]} for turn in turns]}


def _alpaca(turns: Turns) -> dict[str, Any]:
    """Documents and question stay together in ``instruction``: trainers differ in what they put before ``input``."""
    system, user, assistant = (turn["content"] for turn in turns)
    return {"instruction": user, "input": "", "output": assistant, "system": system}


_LINES: Mapping[str, Callable[[Turns], dict[str, Any]]] = {
    "openai": _openai,
    "completion": _completion,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}
_FOR_LLAMA_FACTORY: Mapping[str, dict[str, Any]] = {
    "sharegpt": {
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
        "tags": {
            "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
            "system_tag": "system",
        },
    },
    "alpaca": {
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output", "system": "system"},
    },
}  # fmt: skip


def _write_lines(folder: Path, draft: Path, splits: Sequence[Split], form: str) -> dict[str, int]:
    chunks = read_chunks(folder)
    line = _LINES[form]
    counts = {}
    for split in splits:
        rows = (line(_turns(example, chunks)) for example in read_examples(folder, split))
        counts[str(split)] = write_rows(draft / f"{split}.jsonl", rows)
    if form in _FOR_LLAMA_FACTORY:
        known = {f"raft_{split}": {"file_name": f"{split}.jsonl"} | _FOR_LLAMA_FACTORY[form] for split in splits}
        write_json(draft / "dataset_info.json", known)
    return counts


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def hf_rows(folder: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of the form ``hf``. ``oracle_positions`` are the places of the oracles in ``context``, from 1, as the
    prompt numbers them."""
    chunks = read_chunks(Path(folder))
    for example in read_examples(Path(folder), split):
        places = {name: place for place, name in enumerate(example.context, 1)}
        yield {
            "id": example.id, "question_id": example.question_id, "question": example.question,
            "answer": example.answer, "answer_type": example.answer_type, "target": example.target,
            "context": [chunk.text for chunk in _context(example, chunks)], "context_ids": list(example.context),
            "oracle_ids": list(example.oracle_ids), "oracle_present": example.oracle_present,
            "oracle_positions": [places[name] for name in example.oracle_ids if name in places],
            "group": example.group, "draw": example.draw,
        }  # fmt: skip


def _write_hf(folder: Path, draft: Path, splits: Sequence[Split]) -> dict[str, int]:
    import datasets

    text, texts = datasets.Value("string"), datasets.List(datasets.Value("string"))
    features = datasets.Features({
        "id": text, "question_id": text, "question": text, "answer": text, "answer_type": text, "target": text,
        "context": texts, "context_ids": texts, "oracle_ids": texts, "oracle_present": datasets.Value("bool"),
        "oracle_positions": datasets.List(datasets.Value("int32")), "group": text, "draw": datasets.Value("int32"),
    })  # fmt: skip
    cache = draft / ".cache"
    with _quiet(datasets):
        parts = {
            split: datasets.Dataset.from_generator(
                hf_rows, features=features, cache_dir=str(cache), split=datasets.NamedSplit(split),
                gen_kwargs={"folder": str(folder), "split": split},
            )
            for split in splits
        }  # fmt: skip
        datasets.DatasetDict(parts).save_to_disk(str(draft))
    shutil.rmtree(cache)
    return {split: len(part) for split, part in parts.items()}


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bars of the library, and its own errors of a generator as what was raised in it."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None
    finally:
        if shown:
            datasets.enable_progress_bars()


# --- questions -------------------------------------------------------------------------------------------------------


def _write_questions(folder: Path, draft: Path, splits: Sequence[Split]) -> dict[str, int]:
    """questions.jsonl in the form of ``raft evaluate --questions``: with evidence and gold documents."""
    documents = {row["id"]: row["document_id"] for row in read_rows(folder / "chunks.jsonl")}
    counts: dict[str, int] = dict.fromkeys(splits, 0)

    def rows() -> Iterator[dict[str, Any]]:
        for row in read_rows(folder / "questions.jsonl"):
            if row["split"] in counts:
                counts[row["split"]] += 1
                yield _question_row(row, documents)

    write_rows(draft / "questions.jsonl", rows())
    return counts


def _question_row(row: Mapping[str, Any], documents: Mapping[str, str]) -> dict[str, Any]:
    try:
        evidence = [{"doc_id": documents[part["chunk_id"]], "text": part["text"]} for part in row["quotes"]]
    except KeyError as missing:
        raise InputError(f"question {row['id']} quotes chunk {missing}, which chunks.jsonl lacks") from None
    return {
        "id": row["id"], "question": row["question"], "answer": row["answer"], "aliases": list(row["aliases"]),
        "answer_type": row["answer_type"], "long_answer": row["reasoning"],
        "gold_doc_ids": list(row["document_ids"]), "evidence": evidence, "split": row["split"],
    }  # fmt: skip


# --- a folder that appears whole -------------------------------------------------------------------------------------


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise ArtifactError when ``out`` is taken: an export is replaced on demand, anything else never."""
    place_of(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MARKER).is_file():
        raise ArtifactError(f"{out} is not an export of raft and is never replaced", "Name another --out")
    if not overwrite:
        raise ArtifactError(f"{out} exists already", "Name another --out, or replace it with --overwrite")


@contextlib.contextmanager
def _writing(out: Path, overwrite: bool, marker: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to fill. When the block ends without an exception it is flushed and takes the place of ``out``; else
    it is removed. What a killed export left behind is replaced."""
    place = place_of(out)
    with locked(place) as draft:
        _check_free(out, overwrite)
        if (draft / RESUME).exists() or (any(draft.iterdir()) and not (draft / MARKER).exists()):
            raise ArtifactError(f"unfinished work that is not an export lies in {draft}", "Name another --out")
        try:
            for path in sorted(draft.iterdir(), key=lambda path: path.name != MARKER, reverse=True):
                remove(path)  # the marker last
            write_json(draft / MARKER, dict(marker))
            yield draft
            _flush(draft)
            publish(draft, place)
        except BaseException as error:
            shutil.rmtree(draft, ignore_errors=True)
            if isinstance(error, OSError) and is_of_output(error, place):
                said = f"{out} cannot be written ({error.strerror or error})"
                raise InputError(said, "Free disk space or name another --out") from error
            raise


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)
