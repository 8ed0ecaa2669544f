"""Every form, read back with the libraries that it is for."""

from __future__ import annotations

import json

import datasets
import pytest

from raft.dataset.exporters import MARKER, export_dataset, hf_rows
from raft.dataset.importers import read_questions
from raft.errors import ArtifactError, InputError, UsageError
from raft.prompts import build_messages
from raft.records import RaftExample
from tests.lodges import lodge_chunks, lodge_examples, lodge_questions, write_lodges


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_lodges(tmp_path_factory.mktemp("data") / "lodges")


def loaded(out, cache, split="train"):
    data = datasets.load_dataset("json", data_files=str(out / f"{split}.jsonl"), cache_dir=str(cache))
    return list(data["train"])


def prompts(split="train"):
    """(system, user, target) of every example, from the project's own prompt."""
    chunks = lodge_chunks()
    for example in lodge_examples()[split]:
        system, user = build_messages(example.question, [chunks[name] for name in example.context])
        yield system.content, user.content, example.target


def test_hugging_face_datasets_read_the_same_examples_back(folder, tmp_path):
    summary = export_dataset(folder, "hf", tmp_path / "out")
    data = datasets.load_from_disk(str(tmp_path / "out"))
    assert summary.rows == {split: len(rows) for split, rows in data.items()} == {"train": 120, "dev": 8, "test": 12}
    chunks = lodge_chunks()
    for split, expected in lodge_examples().items():
        for row, example in zip(data[split], expected, strict=True):
            same = {name: row[name] for name in row if name not in ("context", "context_ids", "oracle_positions")}
            same |= {"context": tuple(row["context_ids"]), "oracle_ids": tuple(row["oracle_ids"])}
            assert RaftExample(**same) == example
            assert row["context"] == [chunks[name].text for name in example.context]
            assert [row["context_ids"][place - 1] for place in row["oracle_positions"]] == (
                list(example.oracle_ids) if example.oracle_present else []
            )
    assert not (tmp_path / "out" / ".cache").exists()
    assert not any(str(tmp_path) in path.read_text("latin-1") for path in (tmp_path / "out").rglob("*.json"))


def test_openai_lines_are_the_prompt_that_raft_trains_on(folder, tmp_path):
    export_dataset(folder, "openai", tmp_path / "out")
    rows = loaded(tmp_path / "out", tmp_path / "cache")
    assert len(rows) == 120
    for row, said in zip(rows, prompts(), strict=True):
        assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
        assert tuple(turn["content"] for turn in row["messages"]) == said


def test_sharegpt_and_what_llama_factory_needs(folder, tmp_path):
    export_dataset(folder, "sharegpt", tmp_path / "out")
    for row, said in zip(loaded(tmp_path / "out", tmp_path / "cache"), prompts(), strict=True):
        assert [turn["from"] for turn in row["conversations"]] == ["system", "human", "gpt"]
        assert tuple(turn["value"] for turn in row["conversations"]) == said
    known = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert set(known) == {"raft_train", "raft_dev", "raft_test"}
    assert all((tmp_path / "out" / entry["file_name"]).is_file() for entry in known.values())
    columns, tags = known["raft_train"]["columns"], known["raft_train"]["tags"]
    row = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
    spoken = [turn[tags["role_tag"]] for turn in row[columns["messages"]]]
    assert spoken == [tags["system_tag"], tags["user_tag"], tags["assistant_tag"]]


def test_alpaca_and_completion(folder, tmp_path):
    export_dataset(folder, "alpaca", tmp_path / "alpaca")
    for row, said in zip(loaded(tmp_path / "alpaca", tmp_path / "cache"), prompts(), strict=True):
        assert (row["system"], row["instruction"], row["output"]) == said
        assert row["input"] == ""
    columns = json.loads((tmp_path / "alpaca" / "dataset_info.json").read_text())["raft_train"]["columns"]
    assert set(columns.values()) == set(row)
    export_dataset(folder, "completion", tmp_path / "completion")
    for row, (system, user, target) in zip(loaded(tmp_path / "completion", tmp_path / "cache"), prompts(), strict=True):
        assert row == {"prompt": f"{system}\n\n{user}\n\n", "completion": target}


def test_questions_are_read_back_by_the_evaluation(folder, tmp_path):
    summary = export_dataset(folder, "evaluation", tmp_path / "out", splits=["test", "dev"])
    assert summary.rows == {"dev": 8, "test": 12}
    items = read_questions(tmp_path / "out" / "questions.jsonl")
    expected = [item for item in lodge_questions() if item.split != "train"]
    assert len(items) == len(expected)
    for item, was in zip(items, expected, strict=True):
        assert (item.id, item.question, item.answer, item.answer_type) == (
            was.id, was.question, was.answer, was.answer_type
        )  # fmt: skip
        assert (item.split, item.gold_document_ids, item.long_answer) == (was.split, was.document_ids, was.reasoning)
        assert [(part.document_id, part.text) for part in item.evidence] == [(was.document_ids[0], was.quotes[0].text)]


def test_one_split_is_exported_alone(folder, tmp_path):
    for form in ("hf", "openai"):
        assert export_dataset(folder, form, tmp_path / form, splits=["dev"]).rows == {"dev": 8}
    assert {path.name for path in (tmp_path / "openai").iterdir()} == {"dev.jsonl", MARKER}


def test_what_stands_there_is_replaced_on_demand_and_only_an_export(folder, tmp_path):
    out = tmp_path / "out"
    export_dataset(folder, "openai", out)
    with pytest.raises(ArtifactError, match="exists already"):
        export_dataset(folder, "alpaca", out)
    export_dataset(folder, "alpaca", out, splits=["dev"], overwrite=True)
    assert {path.name for path in out.iterdir()} == {"dev.jsonl", "dataset_info.json", MARKER}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("years of work")
    for taken in (tmp_path / "own", folder):
        with pytest.raises(ArtifactError, match="is not an export of raft"):
            export_dataset(folder, "openai", taken, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "own"}


@pytest.mark.parametrize("form", ["hf", "openai", "evaluation"])
def test_a_failure_leaves_the_old_export_and_nothing_half_written(folder, tmp_path, form):
    from raft.artifacts import writing
    from raft.rows import read_rows, write_rows

    out = tmp_path / "out"
    export_dataset(folder, form, out)
    before = sorted(path.name for path in out.rglob("*"))
    with writing(tmp_path / "holed", "dataset", {}, {}) as draft:
        for name in ("train", "questions"):
            write_rows(draft.folder / f"{name}.jsonl", read_rows(folder / f"{name}.jsonl"))
        last = list(lodge_examples()["train"][-1].oracle_ids)
        rows = (row for row in read_rows(folder / "chunks.jsonl") if row["id"] not in last)
        write_rows(draft.folder / "chunks.jsonl", rows)
    with pytest.raises(InputError, match=r"which chunks\.jsonl lacks"):
        export_dataset(tmp_path / "holed", form, out, overwrite=True)
    assert sorted(path.name for path in out.rglob("*")) == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "holed"}


def test_what_a_killed_export_left_is_taken_up_and_other_work_is_not(folder, tmp_path):
    left = tmp_path / "out.partial"
    left.mkdir()
    (left / MARKER).write_text("{}")
    (left / "train.jsonl").write_text("half a li")
    (left / "deep").mkdir()
    export_dataset(folder, "openai", tmp_path / "out", splits=["dev"])
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "dev.jsonl", MARKER}
    left = tmp_path / "two.partial"
    left.mkdir()
    (left / "resume.json").write_text("{}")
    with pytest.raises(ArtifactError, match="unfinished work that is not an export"):
        export_dataset(folder, "openai", tmp_path / "two")
    assert (left / "resume.json").exists()


def test_a_split_that_is_not_there(folder, tmp_path):
    rows = lodge_examples()
    small = write_lodges(tmp_path / "small", {"train": rows["train"]})
    with pytest.raises(UsageError, match=r"has no split 'test'. Expected one of train"):
        export_dataset(small, "openai", tmp_path / "out", splits=["test"])
    assert list(hf_rows(str(small), "test")) == []
