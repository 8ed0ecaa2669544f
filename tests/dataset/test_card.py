"""The card is what Hugging Face reads, and holds no markup of anybody else."""

from __future__ import annotations

import datasets
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from raft.dataset.card import UNKNOWN_LICENCE, card_text, escaped, fenced, licence_id, write_card
from tests.lodges import lodge_examples, write_lodges

FACTS = {
    "questions": {"train": 40, "dev": 8, "test": 12}, "examples": {"train": 120, "dev": 8, "test": 12},
    "groups": 70, "oracle_share": 0.8125, "refused_by_rule": {"quote_missing": 3}, "teacher": "gpt-x",
    "labels": ["hr", "legal"], "prompt_tokens": 12345, "completion_tokens": 678, "cost": 0.25,
    "question_types": {"numeric": 60}, "review": {"accepted": 5},
}  # fmt: skip
RECIPE = {"context": {"oracle_fraction": 0.8, "distractors": [2, 4]}, "teacher": {"model": "gpt-x", "api_key": None}}
EXAMPLE = lodge_examples()["train"][0]


def card(**changes):
    given = {"name": "lodges", "facts": FACTS, "recipe": RECIPE, "licences": ["CC-BY-4.0", ""], "sample": EXAMPLE}
    return card_text(**(given | changes))


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_front_matter_is_what_hugging_face_expects():
    head = front(card(language="en"))
    assert head["license"] == "unknown"
    assert head["task_categories"] == ["question-answering"]
    assert head["language"] == ["en"]
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == [
        {"split": split, "path": f"{split}.jsonl"} for split in ("train", "dev", "test")
    ]
    assert "language" not in front(card(language="German, perhaps"))


def test_load_dataset_finds_the_splits_through_the_card(tmp_path):
    folder = write_lodges(tmp_path / "lodges")
    write_card(folder, name="lodges", facts=FACTS, recipe=RECIPE, licences=[])
    data = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in data.items()} == FACTS["examples"]
    assert data["train"][0]["id"] == EXAMPLE.id
    questions = datasets.load_dataset(str(folder), "questions", cache_dir=str(tmp_path / "cache"))
    assert len(questions["train"]) == 60


def test_numbers_and_making_are_said():
    text = card()
    for said in (
        "| train | 40 | 120 |", "81.2%", r"| quote\_missing | 3 |", "12,345 tokens", "prices: 0.25",
        r"gpt\-x", "| numeric | 60 |", r"context.oracle\_fraction = 0.8", EXAMPLE.question, EXAMPLE.target,
        "**hr, legal**",
    ):  # fmt: skip
        assert said in text, said
    assert "api" not in text  # what is not set is left out


def test_labels_and_licences_are_said_plainly():
    assert "must not see this dataset" in card()
    assert "bear no access label" in card(facts=FACTS | {"labels": []})
    text = card(licences=["MIT", "", "MIT", ""])
    assert f"- {UNKNOWN_LICENCE} (2 documents)\n- MIT (2 documents)" in text
    assert f"- {UNKNOWN_LICENCE}" in card(licences=[])


@pytest.mark.parametrize(
    ("licences", "said"),
    [
        ([], "unknown"), (["", "mit"], "unknown"), (["MIT", "mit "], "other"), (["MIT", "MIT "], "mit"),
        (["CC BY 4.0"], "other"), (["a", "b"], "other"), (["x: y\n- z"], "other"),
    ],
)  # fmt: skip
def test_the_licence_of_the_front_matter(licences, said):
    assert licence_id(licences) == said


def test_older_facts_make_a_card_too():
    text = card_text(name="old", facts={}, recipe={}, licences=[])
    assert front(text)["configs"] == [
        {"config_name": name, "data_files": f"{name}.jsonl"} for name in ("questions", "chunks")
    ]
    assert "## One example" not in text


@given(st.text(alphabet=st.sampled_from("<>&|`*_[]()!#\\\n\t \x1bab:/.-~$+1"), max_size=60))
def test_words_of_others_are_plain_text_in_markdown(text):
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(f"Said: {escaped(text)}")
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    children = tokens[1].children
    assert {child.type for child in children} <= {"text", "text_special"}
    shown = "".join(child.content for child in children)
    clean = "".join(char if char.isprintable() else " " for char in text)
    assert shown.split() == f"Said: {clean}".split()


@given(st.text(alphabet=st.sampled_from("`~<a>\n \x1b"), max_size=60))
def test_a_block_cannot_be_left(text):
    tokens = MarkdownIt().parse(fenced(text) + "\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    assert "\x1b" not in tokens[0].content
