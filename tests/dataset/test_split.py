from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from raft.dataset.grounding import GroundedQuestion
from raft.dataset.split import leaks, split_by_document


def question(key, documents, split=None):
    return GroundedQuestion(str(key), "Who?", "x", "short", (), tuple(documents), "qa", split=split)


QUESTIONS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([f"d{n}" for n in range(12)]), max_size=2, unique=True),
        st.sampled_from([None, None, None, "train", "dev", "test"]),
    ),
    max_size=40,
).map(lambda rows: [question(n, documents, split) for n, (documents, split) in enumerate(rows)])


@given(QUESTIONS, st.integers(0, 5), st.dictionaries(st.sampled_from(["d1", "d2"]), st.sampled_from(["dev", "test"])))
def test_without_the_leaks_no_document_is_on_two_sides(items, seed, held_out):
    splits = split_by_document(items, 0.2, 0.2, seed)
    left_out = leaks(items, splits, held_out)
    sides = {}
    for item in items:
        if item.id not in left_out:
            for document in item.document_ids:
                sides.setdefault(document, set()).add(splits[item.id])
                assert splits[item.id] == held_out.get(document, splits[item.id]) or splits[item.id] == "test"
    assert all(len(found) == 1 for found in sides.values())


@given(QUESTIONS)
def test_a_carried_split_is_kept_and_nothing_leaks_where_none_is_carried(items):
    splits = split_by_document(items, 0.3, 0.3, 1)
    assert all(item.split in (None, splits[item.id]) for item in items)
    free = [question(item.id, item.document_ids) for item in items]
    assert leaks(free, split_by_document(free, 0.3, 0.3, 1), {}) == set()


@given(QUESTIONS, st.randoms(use_true_random=False))
def test_the_order_of_questions_does_not_matter(items, rng):
    shuffled = rng.sample(items, len(items))
    assert split_by_document(items, 0.2, 0.2, 3) == split_by_document(shuffled, 0.2, 0.2, 3)


def test_shares_are_as_asked_and_seeds_differ():
    items = [question(n, [f"doc-{n}"]) for n in range(4000)]
    splits = split_by_document(items, 0.1, 0.2, 0)
    shares = {name: sum(s == name for s in splits.values()) / 4000 for name in ("train", "dev", "test")}
    assert abs(shares["dev"] - 0.1) < 0.02
    assert abs(shares["test"] - 0.2) < 0.02
    assert splits != split_by_document(items, 0.1, 0.2, 1)


def test_a_chain_of_two_document_questions_stays_together():
    chain = [question(n, [f"d{n}", f"d{n + 1}"]) for n in range(30)]
    for seed in range(10):
        random.Random(seed).shuffle(chain)
        assert len(set(split_by_document(chain, 0.3, 0.3, seed).values())) == 1


def test_documents_of_unused_test_questions_are_kept_out_of_train():
    items = [question("a", ["d1"], "train"), question("b", ["d2"], "train")]
    assert leaks(items, {"a": "train", "b": "train"}, {"d1": "test"}) == {"a"}
