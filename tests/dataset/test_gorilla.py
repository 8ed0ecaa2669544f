"""Gorilla's rows, in each of its forms, become a dataset that keeps every promise; broken ones are named."""

from __future__ import annotations

import json

import datasets
import pytest

from raft.artifacts import open_artifact
from raft.dataset.check import check_dataset
from raft.dataset.exporters import read_chunks, read_examples
from raft.dataset.gorilla import gorilla_row, import_gorilla, row_faults
from raft.errors import ArtifactError, InputError
from raft.prompts import parse_answer
from raft.rows import read_rows
from tests.lodges import name_of, price

LODGES = 30


def text_of(n):
    words = " ".join(name_of(1000 * (n + 1) + k) for k in range(12))
    return f"The lodge of {name_of(n)} lends a lantern for {price(n)}, says {words}."


def row_of(n, oracle_at=1, **changes):
    """Row n of a Gorilla file, its oracle at a place of the context (None: not among it)."""
    documents = [text_of((n + step) % LODGES) for step in (1, 2, 3, 4)]
    if oracle_at is not None:
        documents[oracle_at] = text_of(n)
    question = f"What does the lodge of {name_of(n)} take for a lantern"
    asked = "".join(f"<DOCUMENT>{text}</DOCUMENT>\n" for text in documents) + question
    cot = (
        f"First, the context says ##begin_quote## lends a lantern for {price(n)} ##end_quote##. "
        f"So the price is known.\n<ANSWER>: {price(n)}"
    )
    return {
        "id": f"seed_task_{n}", "type": "general", "question": question,
        "context": {"title": [["placeholder_title"] * 4], "sentences": [documents]},
        "oracle_context": text_of(n), "cot_answer": cot, "instruction": asked,
    } | changes  # fmt: skip


def rows():
    return [row_of(n, None if n % 5 == 4 else n % 4) for n in range(LODGES)]


def written(path, given):
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def as_completion(row):
    return {"prompt": row["instruction"], "completion": row["cot_answer"]}


def as_chat(row):
    turns = [("system", "You answer."), ("user", row["instruction"]), ("assistant", row["cot_answer"])]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_a_file_of_gorilla_becomes_a_dataset_that_passes_every_check(tmp_path):
    out = tmp_path / "out"
    summary = import_gorilla(written(tmp_path / "raft.jsonl", rows()), out, dev=0.1, test=0.1)
    assert [finding.name for finding in check_dataset(out) if not finding.holds] == []
    assert summary.rows == LODGES
    assert sum(summary.examples.values()) + summary.refused == LODGES
    assert set(summary.examples) == {"train", "dev", "test"}
    assert set(summary.refused_by_rule) == {"distractor_of_stricter_split"}
    assert 0.6 < summary.oracle_share < 0.95
    facts = open_artifact(out, "dataset").facts
    assert facts["examples"] == summary.examples
    assert facts["imported_from"] == "gorilla"
    assert "imported from the output of gorilla" in (out / "README.md").read_text()


def test_contexts_stay_as_they_are_given(tmp_path):
    given = rows()
    import_gorilla(written(tmp_path / "raft.jsonl", given), tmp_path / "out", dev=0, test=0)
    chunks = read_chunks(tmp_path / "out")
    examples = list(read_examples(tmp_path / "out", "train"))
    assert len(examples) == LODGES
    for row, example in zip(given, examples, strict=True):
        assert [chunks[name].text for name in example.context] == row["context"]["sentences"][0]
        assert [chunks[name].text for name in example.oracle_ids] == [row["oracle_context"]]
        assert example.question == row["question"]
        said = parse_answer(example.target)
        assert said.final == price(int(row["id"].removeprefix("seed_task_")))
        assert bool(said.quotes) == example.oracle_present
        assert "So the price is known." in said.reasoning


@pytest.mark.parametrize("form", ["parquet", "folder", "dict", "completion", "chat"])
def test_every_form_gives_the_same_examples(tmp_path, form):
    given = [row_of(n, n % 4) for n in range(LODGES)]
    import_gorilla(written(tmp_path / "raft.jsonl", given), tmp_path / "plain", dev=0, test=0)
    source = tmp_path / form
    if form in ("completion", "chat"):
        source = written(tmp_path / "x.jsonl", map(as_completion if form == "completion" else as_chat, given))
    else:
        data = datasets.Dataset.from_list(given)
        if form == "parquet":
            source = tmp_path / "x.parquet"
            data.to_parquet(source)
        else:
            (data if form == "folder" else datasets.DatasetDict({"train": data})).save_to_disk(source)
    import_gorilla(source, tmp_path / "other", dev=0, test=0)
    plain, other = (list(read_examples(tmp_path / name, "train")) for name in ("plain", "other"))
    assert [(row.question, row.target, row.answer, row.oracle_present) for row in plain] == [
        (row.question, row.target, row.answer, row.oracle_present) for row in other
    ]


BROKEN = {
    "question_empty": {"question": " "},
    "question_numbered": {"question": "3. What does it take?"},
    "context_empty": {"context": {"title": [[]], "sentences": [[]]}},
    "context_repeats_document": {"context": {"sentences": [[text_of(1), text_of(2), text_of(2)]]}},
    "answer_malformed": {"cot_answer": "It is ##begin_quote##lends a lantern##end_quote## 11 crowns."},
    "answer_empty": {"cot_answer": "##begin_quote##lends a lantern##end_quote## <ANSWER>: "},
    "answer_refuses": {"cot_answer": "##begin_quote##lends a lantern##end_quote## <ANSWER>: I do not know"},
    "answer_of_several_lines": {"cot_answer": "##begin_quote##lends a lantern##end_quote## <ANSWER>: 11\n12 or 11"},
    "quote_missing": {"cot_answer": "It is known. <ANSWER>: 14 crowns"},
    "quote_not_in_oracle": {"cot_answer": "##begin_quote##lends two lanterns##end_quote## <ANSWER>: 14 crowns"},
    "oracle_missing": {"oracle_context": None},
    "oracle_altered": {"oracle_context": text_of(1)[:-1]},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_breach_of_the_contract_is_named(fault):
    row = gorilla_row(row_of(1) | BROKEN[fault], "row 1")
    assert fault in row_faults(row)
    assert row_faults(gorilla_row(row_of(1), "row 1")) == []


def test_an_answer_that_a_distractor_quotes_too_is_named():
    row = row_of(1, None)
    row["context"]["sentences"][0][0] = f"Elsewhere {name_of(1)} lends a lantern for {price(1)}, they say."
    assert row_faults(gorilla_row(row, "row 1")) == ["quotes_in_distractor"]


def test_refused_rows_keep_their_reasons_and_words(tmp_path):
    bad = [row_of(n) | broken | {"id": fault} for n, (fault, broken) in enumerate(BROKEN.items())]
    summary = import_gorilla(written(tmp_path / "x.jsonl", [*rows(), *bad]), tmp_path / "out", dev=0, test=0)
    rejected = {row["id"]: row for row in read_rows(tmp_path / "out" / "rejected.jsonl")}
    assert set(rejected) == set(BROKEN)
    assert all(fault in rejected[fault]["reasons"] for fault in ("answer_empty", "quote_missing", "oracle_missing"))
    assert rejected["quote_missing"]["said"] == BROKEN["quote_missing"]["cot_answer"]
    assert summary.refused == len(BROKEN)
    assert all(finding.holds for finding in check_dataset(tmp_path / "out"))


def test_ids_that_repeat_and_questions_that_repeat(tmp_path):
    """Gorilla counts its rows anew after each checkpoint."""
    given = [*rows(), row_of(3, 2), row_of(40, 0, id="seed_task_3")]
    import_gorilla(written(tmp_path / "x.jsonl", given), tmp_path / "out", dev=0, test=0)
    rejected = list(read_rows(tmp_path / "out" / "rejected.jsonl"))
    assert [(row["id"], row["reasons"]) for row in rejected] == [("seed_task_3-2", ["duplicate_question"])]
    assert "seed_task_3-3@0" in {row.id for row in read_examples(tmp_path / "out", "train")}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "words"}, "row 1 has the columns text"),
        ({"cot_answer": "x", "context": "words"}, "context is str"),
        ({"cot_answer": 7, "context": {"sentences": []}}, "cot_answer is 7"),
        ({"messages": "x"}, "messages is 'x'"),
        ({"cot_answer": "x", "context": {"sentences": [[3]]}}, "context holds 3"),
    ],
)
def test_rows_of_another_form_are_refused_by_name(tmp_path, row, said):
    source = written(tmp_path / "x.jsonl", [row])
    with pytest.raises(InputError, match="Expected the columns") as caught:
        import_gorilla(source, tmp_path / "out")
    assert f"{source} row 1" in caught.value.what
    assert said in caught.value.what
    assert not (tmp_path / "out").exists()


def test_nothing_left_and_nothing_replaced(tmp_path):
    source = written(tmp_path / "x.jsonl", [row_of(1, cot_answer="")])
    with pytest.raises(InputError, match=r"no row is left .*answer_malformed 1"):
        import_gorilla(source, tmp_path / "out")
    source = written(tmp_path / "x.jsonl", rows())
    import_gorilla(source, tmp_path / "out")
    with pytest.raises(ArtifactError, match="exists already"):
        import_gorilla(source, tmp_path / "out")
    first = (tmp_path / "out" / "train.jsonl").read_bytes()
    import_gorilla(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == first
