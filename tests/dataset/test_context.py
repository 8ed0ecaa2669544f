"""The data contract of contexts. Each bug that was seen in another generator is a test here."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from raft.dataset.context import Asked, ContextSettings, draw_contexts
from raft.errors import InputError

POOL = [f"c{n:02}" for n in range(60)]


def nothing(question_id, chunk_id):
    return False


def settings_of(**changes):
    given = {"oracle_fraction": 0.8, "distractors": (4, 4), "policy": "mixed", "questions_per_context": 4, "seed": 0}
    return ContextSettings(**(given | changes))


def near(n):
    """The retriever's hits of a question about chunk n: that chunk first, then its neighbours."""
    return tuple(POOL[(n + step) % len(POOL)] for step in range(16))


def one_each(count=240):
    return [Asked(f"q{n:03}", (POOL[n % len(POOL)],), near(n)) for n in range(count)]


@st.composite
def problems(draw):
    """Questions with none to two oracles, a sparse relation "answers too", and settings that can be met."""
    chunk = st.integers(0, len(POOL) - 1)
    oracles = draw(st.lists(st.lists(chunk, max_size=2, unique=True), min_size=1, max_size=30))
    asked = [
        Asked(f"q{n}", tuple(POOL[at] for at in found), near(found[0] if found else n))
        for n, found in enumerate(oracles)
    ]
    least = draw(st.integers(0, 5))
    most = draw(st.integers(max(least, 1), 7))
    too = draw(st.sets(st.tuples(st.sampled_from([a.id for a in asked]), st.sampled_from(POOL)), max_size=40))
    settings = ContextSettings(
        oracle_fraction=draw(st.sampled_from([0.0, 0.4, 0.8, 1.0])),
        distractors=(least, most),
        policy=draw(st.sampled_from(["random", "hard", "mixed"])),
        questions_per_context=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 1000)),
    )
    return asked, settings, too


@limits(max_examples=400, deadline=None)
@given(problems(), st.integers(0, 3))
def test_the_contract_holds_for_any_settings(problem, draw):
    asked, settings, too = problem
    known = {question.id: question for question in asked}
    contexts = draw_contexts(asked, POOL, lambda q, c: (q, c) in too, settings, draw)
    seen = Counter(member.question_id for context in contexts for member in context.members)
    assert seen == Counter(known.keys())  # every question once
    assert len({context.group for context in contexts}) == len(contexts)
    for context in contexts:
        chunks = context.chunk_ids
        assert 1 <= len(context.members) <= settings.questions_per_context
        assert len(set(chunks)) == len(chunks)  # no chunk twice
        assert settings.distractors[0] <= len(chunks) - 1 <= settings.distractors[1]  # k, not k - 1
        for member in context.members:
            oracles = known[member.question_id].oracle_ids
            if member.oracle_present:
                assert oracles
                assert set(oracles) <= set(chunks)
            else:
                assert not set(oracles) & set(chunks)
            others = set(chunks) - (set(oracles) if member.oracle_present else set())
            assert not any((member.question_id, chunk) in too for chunk in others)  # no distractor that answers


@limits(max_examples=60, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_neither_the_order_of_the_input_nor_of_the_pool_matters(problem, rng):
    asked, settings, too = problem
    answers = lambda q, c: (q, c) in too  # noqa: E731
    shuffled = draw_contexts(rng.sample(asked, len(asked)), rng.sample(POOL, len(POOL)), answers, settings, 1)
    assert shuffled == draw_contexts(asked, POOL, answers, settings, 1)


@pytest.mark.parametrize("policy", ["random", "hard", "mixed"])
@pytest.mark.parametrize("per_context", [1, 4])
def test_the_oracle_is_at_every_place_equally_often(policy, per_context):
    settings = settings_of(policy=policy, questions_per_context=per_context, oracle_fraction=1.0)
    questions = {question.id: question for question in one_each()}
    places = Counter()
    for draw in range(10):
        for context in draw_contexts(questions.values(), POOL, nothing, settings, draw):
            # one member a context, so that places are independent draws
            [oracle] = questions[context.members[0].question_id].oracle_ids
            places[context.chunk_ids.index(oracle)] += 1
    expected = sum(places.values()) / 5
    chi_square = sum((places[place] - expected) ** 2 / expected for place in range(5))
    assert chi_square < 18.47  # 4 degrees of freedom, p = 0.001


@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.8, 1.0])
def test_the_share_of_oracles_is_p_and_not_one_minus_p(fraction):
    settings = settings_of(oracle_fraction=fraction)
    present = [
        member.oracle_present
        for draw in range(10)
        for context in draw_contexts(one_each(), POOL, nothing, settings, draw)
        for member in context.members
    ]
    assert abs(sum(present) / len(present) - fraction) < 0.03


def test_p_is_drawn_for_each_question_and_not_for_a_group():
    mixed = 0
    contexts = draw_contexts(one_each(), POOL, nothing, settings_of(oracle_fraction=0.5), 0)
    for context in contexts:
        mixed += len({member.oracle_present for member in context.members}) == 2
    assert mixed > len(contexts) / 2


def test_the_length_of_a_context_does_not_tell_whether_the_oracle_is_there():
    settings = settings_of(distractors=(1, 5), oracle_fraction=0.5, questions_per_context=1)
    lengths = defaultdict(list)
    for draw in range(10):
        for context in draw_contexts(one_each(), POOL, nothing, settings, draw):
            lengths[context.members[0].oracle_present].append(len(context.chunk_ids))
    means = {present: sum(found) / len(found) for present, found in lengths.items()}
    assert abs(means[True] - means[False]) < 0.15
    assert {size for found in lengths.values() for size in found} == {2, 3, 4, 5, 6}


def test_contexts_are_full_and_drawn_anew_each_time():
    settings = settings_of()
    first, second = (draw_contexts(one_each(), POOL, nothing, settings, draw) for draw in (0, 1))
    assert sum(len(context.members) for context in first) / len(first) > 3.5
    companions = [
        {m.question_id: frozenset(o.question_id for o in c.members) for c in drawn for m in c.members}
        for drawn in (first, second)
    ]
    assert sum(companions[0][q] == companions[1][q] for q in companions[0]) < len(companions[0]) / 10
    assert {c.chunk_ids for c in first}.isdisjoint({c.chunk_ids for c in second})


def test_distractors_come_from_where_the_policy_says():
    def share_near(policy):
        settings = settings_of(policy=policy, questions_per_context=1, oracle_fraction=1.0)
        known = {question.id: question for question in one_each()}
        hits = [
            chunk in known[context.members[0].question_id].near_ids
            for context in draw_contexts(known.values(), POOL, nothing, settings, 0)
            for chunk in context.chunk_ids
            if chunk not in known[context.members[0].question_id].oracle_ids
        ]
        return sum(hits) / len(hits)

    assert share_near("hard") == 1.0
    assert 0.5 < share_near("mixed") < 0.8
    assert share_near("random") < 0.4


def test_several_questions_of_one_chunk_share_it_where_contexts_are_small():
    asked = [Asked(f"q{n}", (POOL[n // 6],), near(n // 6)) for n in range(60)]
    settings = settings_of(distractors=(1, 1), policy="hard", oracle_fraction=1.0)
    contexts = draw_contexts(asked, POOL, nothing, settings, 0)
    assert all(len(context.chunk_ids) == 2 for context in contexts)
    assert sum(len(context.members) for context in contexts) / len(contexts) > 2.5


def test_an_unanswerable_question_is_asked_over_what_the_retriever_finds():
    asked = [Asked("lost", (), near(7))]
    for policy in ("random", "hard", "mixed"):
        [context] = draw_contexts(asked, POOL, nothing, settings_of(policy=policy), 0)
        assert set(context.chunk_ids) <= set(near(7))
        assert not context.members[0].oracle_present


def test_chunks_outside_the_pool_are_never_distractors():
    pool = POOL[::2]
    asked = one_each(40)
    for context in draw_contexts(asked, pool, nothing, settings_of(oracle_fraction=0.0, policy="hard"), 0):
        assert set(context.chunk_ids) <= set(pool)


def test_what_cannot_be_filled_is_refused():
    with pytest.raises(InputError, match=r"5 chunks cannot be filled from 4 chunks"):
        draw_contexts([Asked("q", ("a",))], ["b", "c", "d", "a"], nothing, settings_of(oracle_fraction=0.0), 0)
    with pytest.raises(InputError, match="has 2 oracles; a context has 1 places"):
        draw_contexts([Asked("q", ("a", "b"))], POOL, nothing, settings_of(distractors=(0, 0)), 0)
    with pytest.raises(InputError, match="cannot be filled"):
        draw_contexts([Asked("q", ("a",))], [], nothing, settings_of(), 0)


def test_two_oracles_are_both_there_or_both_absent():
    asked = [Asked(f"q{n}", (POOL[n], POOL[n + 20]), near(n)) for n in range(20)]
    with_oracles = 0
    for context in draw_contexts(asked, POOL, nothing, settings_of(oracle_fraction=0.5), 0):
        for member in context.members:
            n = int(member.question_id[1:])
            here = {POOL[n], POOL[n + 20]} & set(context.chunk_ids)
            assert len(here) == (2 if member.oracle_present else 0)
            with_oracles += member.oracle_present
    assert 0 < with_oracles < 20
