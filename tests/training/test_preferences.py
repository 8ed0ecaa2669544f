"""Preference pairs by rules: what they hold over many random examples, and what a file of pairs may say."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.corpus.spans import normalize
from raft.dataset.grounding import GroundedQuestion, Passage
from raft.dataset.targets import target_of
from raft.errors import InputError
from raft.prompts import REFUSAL, parse_answer, render_rationale, render_refusal, render_target, without_quotes
from raft.records import Chunk, RaftExample
from raft.training.preference_file import read_pairs
from raft.training.preferences import (
    KINDS,
    PreferencePair,
    _other_answers,
    _Pool,
    _Wanted,
    is_wrong,
    make_pairs,
)
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


def random_dataset(
    seed: int, form: str = "quotes", refuse: bool = True, titled: bool = True
) -> tuple[list[RaftExample], dict[str, Chunk]]:
    """Some questions, each with a chunk that answers it, over contexts in which the oracle may be absent; half of the
    datasets explain their answers, some of the questions or all of them."""
    draw = random.Random(seed)
    explained = draw.choice((0.0, 0.5, 1.0))
    facts = []
    for n in range(draw.randint(2, 8)):
        kind = draw.choice(list(ANSWERS))
        answer, thing = draw.choice(ANSWERS[kind]), f"{draw.choice(THINGS)} {n}"
        said = answer if kind in ("short", "number") else f"something {draw.choice(THINGS)}"
        text = f"The record of the {thing} shows {said} since then. Nothing else is known of it."
        facts.append((kind, answer, thing, Chunk(f"doc{n}#0", f"doc{n}", text, 0, len(text), f"Record No. {n}")))
    examples = []
    for n, (kind, answer, thing, chunk) in enumerate(facts):
        others = [fact[3] for fact in facts if fact[3] is not chunk]
        present = draw.random() < 0.7
        context = draw.sample(others, min(len(others), draw.randint(1, 3))) + ([chunk] if present else [])
        draw.shuffle(context)
        unanswerable = draw.random() < 0.1
        refused = unanswerable or (refuse and not present)
        sentences = [sentence.rstrip(".") + "." for sentence in chunk.text.split(". ")]
        passages = tuple(Passage(chunk.id, sentence) for sentence in sentences[: draw.choice((1, 1, 2))])
        reasoning = f"That is what stands there of the {thing}." if draw.random() < explained else ""
        item = GroundedQuestion(
            f"q{n}", f"What of the {thing}?", "" if unanswerable else answer, "unanswerable" if unanswerable else kind,
            () if unanswerable else passages, (chunk.document_id,), "qa", reasoning=reasoning,
        )  # fmt: skip
        names = [each.id for each in context]
        titles = [each.title for each in context] if titled else None
        examples.append(
            RaftExample(
                f"q{n}@0", item.id, item.question, REFUSAL if refused else answer,
                target_of(item, names, present, refuse=refuse, form=form, titles=titles), item.answer_type,
                tuple(names), item.oracle_ids, present and not unanswerable, "g0",
            )
        )  # fmt: skip
    return examples, {fact[3].id: fact[3] for fact in facts}


def check(pair: PreferencePair, example: RaftExample, form: str, titled: bool) -> None:
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
        assert pair.rejected == refusal_over(pair, form, titled)
        return
    assert not rejected.abstained
    assert chosen.abstained == (pair.kind == "invented")
    if example.answer_type in ("short", "number"):
        right = f" {normalize_answer(example.answer)} "
        assert right not in f" {normalize_answer(pair.rejected)} "
    else:
        assert normalize_answer(rejected.final) != normalize_answer(example.answer)
    check_form(pair, example)
    if pair.kind == "invented_quote":
        assert rejected.quotes
        assert not all(verbatim)
        assert [q.document for q in rejected.quotes] == [q.document for q in chosen.quotes]
    else:
        assert all(verbatim)
        named = [pair.documents[q.document - 1].id for q in rejected.quotes]
        assert not set(named) & set(example.oracle_ids)
        assert all(normalize(q.text) in normalize(pair.documents[q.document - 1].text) for q in rejected.quotes)


def refusal_over(pair: PreferencePair, form: str, titled: bool) -> str:
    """What a dataset says over the pair's documents where they do not hold the answer."""
    item = GroundedQuestion("q", pair.question, "", "unanswerable", (), (), "qa")
    titles = [document.title for document in pair.documents] if titled else None
    names = [document.id for document in pair.documents]
    return target_of(item, names, False, refuse=True, form=form, titles=titles)


def check_form(pair: PreferencePair, example: RaftExample) -> None:
    """Both answers explain themselves or neither does, with as many quotes, and tell of noise in the same way."""
    before, after = (split_rationale(text, pair.documents) for text in (pair.chosen, pair.rejected))
    if pair.kind == "invented":
        return
    assert (before[0] != "") == (after[0] != "")
    if example.oracle_present:
        assert len(parse_answer(pair.chosen).quotes) == len(parse_answer(pair.rejected).quotes)
        spoken = [" of Record No" in text for text, _ in (before, after)]
        assert spoken[0] == spoken[1] or len(pair.documents) == 1
    assert bool(before[1]) == bool(after[1])


def split_rationale(text: str, documents: tuple[Chunk, ...]) -> tuple[str, str]:
    """What a target tells of the documents that do not help, and its own words behind it."""
    count, titles = len(documents), [document.title for document in documents]
    holding = [[], *([place] for place in range(1, count + 1))]
    known = [render_rationale(places, count, shown) for places in holding for shown in (titles, None)]
    rationale = next((each for each in known if each and text.startswith(each)), "")
    return rationale, without_quotes(parse_answer(text.removeprefix(rationale)).reasoning)


@given(st.integers(0, 10**9), st.sampled_from(["quotes", "plain", "noise"]), st.booleans(), st.booleans())
def test_a_rejected_answer_has_the_form_of_its_target_errs_in_the_way_of_its_kind_and_holds_nothing_right(
    seed: int, form: str, refuse: bool, titled: bool
) -> None:
    examples, chunks = random_dataset(seed, form, refuse, titled)
    by_id = {example.id: example for example in examples}
    pairs = make_pairs(examples, chunks, EVEN, per_example=3, seed=seed)
    for pair in pairs:
        check(pair, by_id[pair.id.split(":")[0]], form, titled)
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
        ("12.0 mg", "12 mg", "number", False),
        ("1,000 pages", "1000 pages", "number", False),
        ("2.5 mg", "25 mg", "number", True),
        ("13 m²", "12 m²", "number", True),
        ("two doors", "2 doors", "short", False),
        ("three million", "2 million", "short", True),
        ("twenty-one", "thirty-one", "short", True),
        ("O’Brien", "O'Brien", "short", False),
        ("“Paris”", "Paris", "short", False),
        ("北京市", "北京", "short", False),
        ("上海", "北京", "short", True),
        ("Vitamin A", "A", "short", False),
        ("B", "A", "label", True),
        ("a", "A", "label", False),
        ("-", "+", "label", True),
        ("+", "+", "label", False),
    ],
)
def test_what_is_wrong(final: str, answer: str, kind: str, wrong: bool) -> None:
    example = replace(colour_examples()[0], answer=answer, answer_type=kind, target=render_target(answer, "So."))
    assert is_wrong(f"<ANSWER>: {final}", example) is wrong


def test_an_alias_of_the_answer_is_right_too() -> None:
    example = replace(colour_examples()[0], answer="fifty minutes", target=render_target("fifty minutes", "So."))
    assert is_wrong("<ANSWER>: 50 minutes", replace(example, answer="hour", target=render_target("hour", "So.")))
    assert not is_wrong("<ANSWER>: within 50 min", example, ["50 minutes"])
    assert not is_wrong("So it is: 50 minutes.\n<ANSWER>: some time", example, ["50 minutes"])
    assert is_wrong("<ANSWER>: 40 minutes", replace(example, answer="50 minutes"), ["fifty", "50 min"])
    refused = replace(example, answer=REFUSAL, target=render_refusal())
    assert not is_wrong("<ANSWER>: 50 minutes", refused, ["fifty minutes", "50 minutes"])

    examples, chunks = colour_examples(draws=1), {chunk.id: chunk for chunk in colour_chunks()}
    aliases = {example.question_id: [each.answer for each in examples] for example in examples}
    assert make_pairs(examples, chunks, {"distractor": 1.0, "invented_quote": 1.0})
    assert make_pairs(examples, chunks, {"distractor": 1.0, "invented_quote": 1.0}, known=aliases) == []


def test_labels_of_a_letter_or_a_sign_are_told_from_the_right_ones() -> None:
    chunks = {chunk.id: chunk for chunk in colour_chunks()}
    labelled = [
        replace(e, answer=label, answer_type="label", target=e.target.rpartition(":")[0] + f": {label}")
        for e, label in zip(colour_examples(draws=1), ("A", "B", "+", "-") * 2, strict=True)
    ]
    right = {e.question_id: {e.answer, "b" if e.answer == "A" else e.answer} for e in labelled}
    known = {question: sorted(answers) for question, answers in right.items()}
    shares = {"distractor": 1.0, "invented_quote": 1.0}
    pairs = [pair for seed in range(5) for pair in make_pairs(labelled, chunks, shares, known=known, seed=seed)]
    assert pairs
    for pair in pairs:
        said = parse_answer(pair.rejected).final.lower()
        assert said not in {answer.lower() for answer in right[pair.id.split("/")[0]]}


class Counted(Sequence[str]):
    """Very many answers, of which it is counted how many are looked at."""

    looked_at = 0

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, place: Any) -> Any:
        self.looked_at += 1
        return f"answer {place}"


def test_few_answers_are_looked_at_however_many_there_are() -> None:
    def drawn(seed: int) -> list[str]:
        answers = Counted()
        pool = _Pool("quotes", False, {}, {"short": answers}, [], 0.0)
        wanted = _Wanted(colour_examples()[0], (), pool, random.Random(seed), 1, False, "", None, ())
        found = list(_other_answers(wanted))
        assert len(found) == answers.looked_at < 100
        return found

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("pooled", [False, True])
def test_yes_and_no_are_invented_alike_where_the_documents_say_neither(pooled: bool) -> None:
    """Also where the questions that the documents answer are answered by yes alone."""
    examples, chunks = [], {chunk.id: chunk for chunk in colour_chunks()}
    for number, example in enumerate(colour_examples(draws=1) * 20):
        refused = replace(
            example, id=f"r{number}@0", question_id=f"r{number}", answer=REFUSAL, answer_type="yesno",
            target=render_refusal(), context=example.context[2:], oracle_present=False,
        )  # fmt: skip
        answered = replace(
            example, answer="yes", answer_type="yesno", target=example.target.rpartition(":")[0] + ": yes"
        )
        examples += [refused, *([answered] if pooled and number < 8 else [])]
    said = [parse_answer(p.rejected) for p in make_pairs(examples, chunks, {"invented": 1.0}, seed=1)]
    assert len(said) == 160
    assert 60 < sum(answer.final == "no" for answer in said) < 100
    assert all(answer.final in ("yes", "no") and answer.quotes for answer in said)


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
