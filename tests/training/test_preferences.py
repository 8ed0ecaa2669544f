"""Preference pairs by rules: what they hold over many random examples, and what a file of pairs may say."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.corpus.spans import normalize
from raft.errors import InputError
from raft.prompts import parse_answer, render_rationale, render_refusal, render_target
from raft.records import Chunk, Quote, RaftExample
from raft.training.preferences import KINDS, PreferencePair, is_wrong, make_pairs, read_pairs
from raft.training.rewards import normalize_answer
from tests.factories import colour_chunks, colour_examples

EVEN = dict.fromkeys(KINDS, 1.0)
THINGS = ("door", "roof", "gate", "wall", "desk", "lamp")
ANSWERS = {
    "short": ("red paint", "old oak", "clear glass", "grey stone", "dry clay", "blue steel"),
    "number": ("12 mg", "40 days", "7 hours", "350 km", "2.5 litres", "1,000 pages"),
    "yesno": ("yes", "no"),
    "label": ("major", "minor", "none"),
}


def random_dataset(seed: int, form: str = "quotes", refuse: bool = True) -> tuple[list[RaftExample], dict[str, Chunk]]:
    """Some questions, each with a chunk that answers it, over contexts in which the oracle may be absent."""
    draw = random.Random(seed)
    facts = []
    for n in range(draw.randint(2, 8)):
        kind = draw.choice(list(ANSWERS))
        answer, thing = draw.choice(ANSWERS[kind]), f"{draw.choice(THINGS)} {n}"
        said = answer if kind in ("short", "number") else f"something {draw.choice(THINGS)}"
        text = f"The record of the {thing} shows {said} since then. Nothing else is known of it."
        facts.append((kind, answer, thing, Chunk(f"doc{n}#0", f"doc{n}", text, 0, len(text), f"Doc {n}")))
    examples = []
    for n, (kind, answer, thing, chunk) in enumerate(facts):
        others = [fact[3] for fact in facts if fact[3] is not chunk]
        present = draw.random() < 0.7
        context = draw.sample(others, min(len(others), draw.randint(1, 3))) + ([chunk] if present else [])
        draw.shuffle(context)
        unanswerable = draw.random() < 0.1
        if unanswerable:
            kind, answer = "unanswerable", ""
        target = _target(form, answer, thing, chunk, context, (refuse and not present) or unanswerable)
        names = tuple(each.id for each in context)
        oracles = () if unanswerable else (chunk.id,)
        examples.append(
            RaftExample(f"q{n}@0", f"q{n}", f"What of the {thing}?", answer, target, kind, names, oracles,
                        present and not unanswerable, "g0")
        )  # fmt: skip
    return examples, {fact[3].id: fact[3] for fact in facts}


def _target(form: str, answer: str, thing: str, chunk: Chunk, context: list[Chunk], refused: bool) -> str:
    if refused:
        return render_target("not in the documents") if form == "plain" else render_refusal()
    place = context.index(chunk) + 1 if chunk in context else None
    if form == "plain":
        return render_target(answer)
    quotes = [Quote(chunk.text.split(". ")[0] + ".", place)] if place else []
    told = render_target(answer, f"That is what stands there of the {thing}.", quotes)
    return f"{render_rationale([place], len(context))} {told}" if form == "noise" and place else told


def check(pair: PreferencePair, example: RaftExample) -> None:
    chosen, rejected = parse_answer(pair.chosen), parse_answer(pair.rejected)
    texts = [normalize(document.text) for document in pair.documents]
    verbatim = [any(normalize(quote.text) in text for text in texts) for quote in rejected.quotes]
    assert pair.chosen == example.target != pair.rejected
    assert rejected.well_formed
    assert is_wrong(pair.rejected, example)
    if pair.kind == "refusal":
        assert rejected.abstained
        assert example.oracle_present
        assert not chosen.abstained
        return
    assert not rejected.abstained
    assert chosen.abstained == (pair.kind == "invented")
    if example.answer_type in ("short", "number"):
        right = f" {normalize_answer(example.answer)} "
        assert right not in f" {normalize_answer(pair.rejected)} "
    else:
        assert normalize_answer(rejected.final) != normalize_answer(example.answer)
    if pair.kind == "invented_quote":
        assert rejected.quotes
        assert not all(verbatim)
        assert [q.document for q in rejected.quotes] == [q.document for q in chosen.quotes]
    else:
        assert all(verbatim)
        named = [pair.documents[q.document - 1].id for q in rejected.quotes]
        assert not set(named) & set(example.oracle_ids)
        assert all(normalize(q.text) in normalize(pair.documents[q.document - 1].text) for q in rejected.quotes)


@given(st.integers(0, 10**9), st.sampled_from(["quotes", "plain", "noise"]), st.booleans())
def test_a_rejected_answer_errs_in_the_way_of_its_kind_and_holds_nothing_right(
    seed: int, form: str, refuse: bool
) -> None:
    examples, chunks = random_dataset(seed, form, refuse)
    by_id = {example.id: example for example in examples}
    pairs = make_pairs(examples, chunks, EVEN, per_example=3, seed=seed)
    for pair in pairs:
        check(pair, by_id[pair.id.split(":")[0]])
    assert len({pair.id for pair in pairs}) == len(pairs)


@given(st.integers(0, 10**9))
def test_pairs_do_not_depend_on_the_order_of_the_examples(seed: int) -> None:
    examples, chunks = random_dataset(seed)
    shuffled = random.Random(seed).sample(examples, len(examples))
    one, other = (make_pairs(order, chunks, EVEN, per_example=2, seed=3) for order in (examples, shuffled))
    assert sorted(one, key=lambda pair: pair.id) == sorted(other, key=lambda pair: pair.id)
    assert one == make_pairs(examples, chunks, EVEN, per_example=2, seed=3)


def test_most_examples_get_a_pair_and_each_kind_occurs() -> None:
    made: list[PreferencePair] = []
    count = 0
    for seed in range(60):
        examples, chunks = random_dataset(seed)
        made += make_pairs(examples, chunks, EVEN, seed=seed)
        count += len(examples)
    assert len(made) > 0.9 * count
    assert {pair.kind for pair in made} == set(KINDS)


def test_kinds_are_drawn_by_their_shares() -> None:
    examples, chunks = colour_examples(draws=1), {chunk.id: chunk for chunk in colour_chunks()}
    made = [
        pair.kind
        for seed in range(60)
        for pair in make_pairs(examples, chunks, {"distractor": 3.0, "refusal": 1.0}, seed=seed)
    ]
    assert set(made) == {"distractor", "refusal"}
    assert 0.68 < made.count("distractor") / len(made) < 0.82
    assert make_pairs(examples, chunks, {"invented": 1.0}) == []  # every target of them answers


def test_the_answer_to_another_question_of_the_same_context_comes_first() -> None:
    examples, chunks = colour_examples(draws=1), {chunk.id: chunk for chunk in colour_chunks()}
    pair = make_pairs(examples, chunks, {"distractor": 1.0})[0]
    answer = parse_answer(pair.rejected)
    assert answer.final in ("blue", "green")
    assert answer.quotes[0].text.endswith(f"is {answer.final}.")


def test_an_invented_quote_says_another_answer_in_the_same_words() -> None:
    examples, chunks = colour_examples(draws=1), {chunk.id: chunk for chunk in colour_chunks()}
    for pair in make_pairs(examples, chunks, {"invented_quote": 1.0}):
        answer = parse_answer(pair.rejected)
        assert answer.quotes[0].text.rsplit(" ", 1)[0] in pair.chosen
        assert answer.quotes[0].text.endswith(f"is {answer.final}.")


@pytest.mark.parametrize(
    ("final", "answer", "kind", "wrong"),
    [
        ("12 mg", "12 mg by mouth", "short", False),
        ("12 mg by mouth", "12 mg", "number", False),
        ("12 milligrams", "12 mg", "number", False),
        ("13 mg", "12 mg", "number", True),
        ("Yes, always", "yes", "yesno", False),
        ("no", "yes", "yesno", True),
        ("red old oak", "red oak wood", "short", False),
        ("not in the documents", "red", "short", True),
    ],
)
def test_what_is_wrong(final: str, answer: str, kind: str, wrong: bool) -> None:
    example = replace(colour_examples()[0], answer=answer, answer_type=kind, target=render_target(answer, "So."))
    assert is_wrong(f"<ANSWER>: {final}", example) is wrong


def test_a_missing_chunk_is_named() -> None:
    with pytest.raises(InputError, match=r"q0/0 names chunk 'doors#0', which chunks.jsonl lacks"):
        make_pairs(colour_examples(), {}, EVEN)


# --- from a file -----------------------------------------------------------------------------------------------------

ROW = {
    "question": "What colour?",
    "documents": [{"title": "Doors", "text": "It is red."}, "doors#1"],
    "chosen": "<ANSWER>: red",
    "rejected": "<ANSWER>: blue",
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_pairs_are_read_from_a_file(tmp_path: Path) -> None:
    chunks = {chunk.id: chunk for chunk in colour_chunks()}
    first, second = read_pairs(write(tmp_path / "p.jsonl", ROW, ROW | {"split": "dev", "id": "mine"}), chunks)
    assert (first.id, first.kind, first.split) == ("pair-1", "given", "train")
    assert (second.id, second.split) == ("mine", "dev")
    assert [(c.title, c.text) for c in first.documents] == [("Doors", "It is red."), ("Doors", chunks["doors#1"].text)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen": " "}, "row 1 has no 'chosen'"),
        ({"question": 3}, "row 1 has no 'question'"),
        ({"rejected": "<ANSWER>: red "}, "row 1: chosen and rejected are the same"),
        ({"documents": None}, "row 1 has no list 'documents'"),
        ({"documents": ["nowhere#1"]}, "row 1: document 1 is 'nowhere#1', which is no chunk"),
        ({"documents": [{"title": "Doors"}]}, "row 1: document 1 is neither a chunk's id nor {title, text}"),
        ({"split": "test"}, "row 1: split is 'test', expected train or dev"),
        ({"split": "dev"}, r"holds no pair to train on \(1 rows\)"),
    ],
)
def test_rows_that_cannot_be_used_are_named(change: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read_pairs(write(tmp_path / "p.jsonl", ROW | {"documents": []} | change), {})
