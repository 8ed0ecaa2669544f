"""raft dataset check, export and import, through the command line with its exit codes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import datasets
import pytest

from raft.cli import main
from raft.dataset.importers import read_questions
from tests.lodges import lodge_examples, name_of, price, write_lodges


@pytest.fixture
def raft(monkeypatch, capsys):
    """Run a command line: (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["raft", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_lodges(tmp_path_factory.mktemp("data") / "lodges")


def test_a_good_dataset_passes(raft, folder):
    code, out, err = raft("dataset", "check", folder)
    assert (code, err) == (0, "")
    assert out.count("ok ") == len(out.splitlines()) == 15
    code, out, _ = raft("dataset", "check", folder, "--json")
    assert code == 0
    assert all(finding["holds"] for finding in json.loads(out))


def test_a_leak_ends_with_exit_code_6_and_names_the_example(raft, tmp_path):
    examples = lodge_examples()
    oracle = examples["test"][0].oracle_ids[0]
    first = examples["train"][0]
    members = [row for row in examples["train"] if row.group == first.group]
    free = next(name for name in first.context if all(name not in row.oracle_ids for row in members))
    leaking = [
        replace(row, context=tuple(oracle if name == free else name for name in row.context)) if row in members else row
        for row in examples["train"]
    ]
    bad = write_lodges(tmp_path / "bad", {**examples, "train": leaking})
    code, out, err = raft("dataset", "check", bad)
    assert code == 6
    [line] = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert "oracles_apart" in line
    assert first.id in line
    assert err == f"raft: {bad} fails 1 of 15 checks: oracles_apart\n"
    code, out, _ = raft("dataset", "check", bad, "--json")
    assert code == 6
    assert [finding["name"] for finding in json.loads(out) if not finding["holds"]] == ["oracles_apart"]


@pytest.mark.parametrize("form", ["hf", "openai", "completion", "sharegpt", "alpaca", "evaluation"])
def test_every_form_is_exported(raft, folder, tmp_path, form):
    code, out, err = raft("dataset", "export", folder, "--format", form, "--out", tmp_path / "out", "--split", "dev")
    assert (code, err) == (0, "")
    assert out == f"{tmp_path / 'out'}: dev 8 rows as {form}\n"
    if form == "evaluation":
        assert len(read_questions(tmp_path / "out" / "questions.jsonl")) == 8
    elif form == "hf":
        assert len(datasets.load_from_disk(str(tmp_path / "out"))["dev"]) == 8
    else:
        assert len((tmp_path / "out" / "dev.jsonl").read_text().splitlines()) == 8


def test_wrong_words_and_taken_places(raft, folder, tmp_path):
    code, _, err = raft("dataset", "export", folder, "--format", "word", "--out", tmp_path / "out")
    assert code == 2
    assert "--format is 'word'. Expected one of hf, openai" in err
    code, _, err = raft("dataset", "export", folder, "--format", "hf", "--out", tmp_path / "out", "--split", "all")
    assert code == 2
    assert "--split is 'all'" in err
    assert raft("dataset", "export", folder, "--format", "openai", "--out", tmp_path / "out", "--json")[0] == 0
    code, _, err = raft("dataset", "export", folder, "--format", "openai", "--out", tmp_path / "out")
    assert code == 4
    assert "exists already" in err
    code, _, err = raft("dataset", "check", tmp_path / "nowhere")
    assert code == 4
    assert "no dataset at" in err


def gorilla_rows(count):
    for n in range(count):
        texts = [f"The lodge of {name_of(k)} lends a lantern for {price(k)}." for k in range(n, n + 3)]
        yield {
            "id": f"seed_task_{n}", "type": "general", "question": f"What does {name_of(n)} take for a lantern?",
            "context": {"sentences": [texts], "title": [["placeholder_title"] * 3]}, "oracle_context": texts[0],
            "cot_answer": f"##begin_quote##lends a lantern for {price(n)}##end_quote## <ANSWER>: {price(n)}",
            "instruction": "",
        }  # fmt: skip


def test_gorillas_rows_become_a_dataset_that_passes(raft, tmp_path):
    rows = [*gorilla_rows(12), {**next(gorilla_rows(1)), "cot_answer": "No idea."}]
    (tmp_path / "raft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("dataset", "import", tmp_path / "raft.jsonl", "--out", tmp_path / "out", "--dev", 0, "--test", 0)
    code, out, err = raft(*words)
    assert (code, err) == (0, "")
    assert "12 of 13 rows taken (train 12), 1 refused" in out
    assert "refused by answer_malformed: 1" in out
    assert raft("dataset", "check", tmp_path / "out")[0] == 0
    code, out, _ = raft("show", tmp_path / "out")
    assert code == 0
    assert "answer_malformed: 1" in out
    code, out, _ = raft(*words, "--overwrite", "--json")
    assert code == 0
    assert json.loads(out)["examples"] == {"train": 12}
    code, _, err = raft(*words[:5], "--dev", 0.5, "--test", 0.5)
    assert code == 2
    assert "--dev and --test are 1.0 together" in err
