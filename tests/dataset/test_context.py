"""The data contract of contexts. Each bug that was seen in another generator is a test here."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from raft.dataset.context import Asked, ContextSettings, draw_contexts
from raft.errors import InputError, RecipeError

POOL = [f"c{n:02}" for n in range(60)]
POLICIES = ["random", "hard", "same_document", "counterfactual", "mixed"]
MIXES = [
    {"random": 0.5, "hard": 0.5},
    {"random": 0.4, "hard": 0.4, "same_document": 0.2},
    {"counterfactual": 1, "same_document": 2, "random": 0},
]


def nothing(question_id, chunk_id):
    return False


def document_of(chunk_id):
    """Six chunks make a document."""
    return f"d{int(chunk_id[1:].split('~')[0]) // 6}"


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
        policy=draw(st.sampled_from(POLICIES)),
        questions_per_context=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 1000)),
        mix=draw(st.sampled_from(MIXES)),
    )
    return asked, settings, too


def edits_for(asked):
    """Two edits of each question's first oracle."""
    return {a.id: tuple(f"{a.oracle_ids[0]}~{a.id}~edit{n}" for n in range(2)) for a in asked if a.oracle_ids}


@limits(max_examples=400, deadline=None)
@given(problems(), st.integers(0, 3))
def test_the_contract_holds_for_any_settings(problem, draw):
    asked, settings, too = problem
    known = {question.id: question for question in asked}
    edits = edits_for(asked)
    if edits:
        too = {*too, *((question, names[0]) for question, names in edits.items())}  # a bad edit: it answers
    contexts = draw_contexts(
        asked, POOL, lambda q, c: (q, c) in too, settings, draw, document_of=document_of, edits=edits
    )
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
        members = {member.question_id for member in context.members}
        assert {chunk.split("~")[1] for chunk in chunks if "~" in chunk} <= members  # edits of its own questions only


@limits(max_examples=60, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_neither_the_order_of_the_input_nor_of_the_pool_matters(problem, rng):
    asked, settings, too = problem
    answers = lambda q, c: (q, c) in too  # noqa: E731
    more = {"document_of": document_of, "edits": edits_for(asked)}
    shuffled = draw_contexts(rng.sample(asked, len(asked)), rng.sample(POOL, len(POOL)), answers, settings, 1, **more)
    assert shuffled == draw_contexts(asked, POOL, answers, settings, 1, **more)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("per_context", [1, 4])
def test_the_oracle_is_at_every_place_equally_often(policy, per_context):
    settings = settings_of(policy=policy, questions_per_context=per_context, oracle_fraction=1.0)
    questions = {question.id: question for question in one_each()}
    places = Counter()
    for draw in range(10):
        for context in draw_contexts(questions.values(), POOL, nothing, settings, draw, document_of=document_of):
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


def sources(policy, mix=MIXES[0], oracle_fraction=1.0):
    """How often a distractor is an edit, else of the oracle's document, else a near miss, else something else."""
    asked = [Asked(q.id, q.oracle_ids, tuple(POOL[(int(q.oracle_ids[0][1:]) + 20 + n) % 60] for n in range(9)))
             for q in one_each()]  # fmt: skip
    known, found = {q.id: q for q in asked}, Counter()
    settings = settings_of(policy=policy, mix=mix, questions_per_context=1, oracle_fraction=oracle_fraction)
    for context in draw_contexts(asked, POOL, nothing, settings, 0, document_of=document_of, edits=edits_for(asked)):
        question = known[context.members[0].question_id]
        [oracle] = question.oracle_ids
        for chunk in set(context.chunk_ids) - {oracle}:
            kind = "same_document" if document_of(chunk) == document_of(oracle) else "random"
            found["counterfactual" if "~" in chunk else "hard" if chunk in question.near_ids else kind] += 1
    return {kind: count / found.total() for kind, count in found.items()}


def test_each_policy_takes_what_it_names_and_then_the_next():
    assert sources("hard") == {"hard": 1.0}
    assert sources("same_document") == {"same_document": 1.0}
    assert sources("counterfactual") == {"counterfactual": 0.5, "hard": 0.5}  # there are but two edits for four places
    absent = sources("same_document", oracle_fraction=0.0)  # five places, five other chunks
    assert absent == {"same_document": 1.0}


def test_a_mix_has_its_shares():
    found = sources("mixed", {"random": 0.2, "hard": 0.4, "same_document": 0.4})
    assert found["same_document"] == pytest.approx(0.4 + 0.2 * 5 / 60, abs=0.05)
    assert found["hard"] == pytest.approx(0.4 + 0.2 * 9 / 60, abs=0.05)
    assert "counterfactual" not in found


@pytest.mark.parametrize("mix", [{}, {"random": 0.0}, {"random": 1.0, "hard": -1.0}, {"random": 1.0, "mixed": 1.0}])
def test_a_mix_that_names_no_source_is_refused(mix):
    with pytest.raises(RecipeError, match="expected shares of random, hard, same_document, counterfactual"):
        draw_contexts(one_each(4), POOL, nothing, settings_of(mix=mix), 0)


@limits(max_examples=150, deadline=None)
@given(
    st.integers(1, 200), st.integers(12, 60), st.integers(0, 3), st.integers(0, 2), st.integers(0, 99),
    st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
def test_random_distractors_are_used_evenly(questions, chunks, least, more, seed, fraction):
    asked = [Asked(q.id, q.oracle_ids) for q in one_each(questions)]
    known = {q.id: q for q in asked}
    settings = settings_of(policy="random", distractors=(least, least + more), oracle_fraction=fraction, seed=seed,
                           questions_per_context=1)  # fmt: skip
    uses = Counter(dict.fromkeys(POOL[:chunks], 0))
    for context in draw_contexts(asked, POOL[:chunks], nothing, settings, 0):
        uses.update(set(context.chunk_ids) - set(known[context.members[0].question_id].oracle_ids))
    assert max(uses.values()) - min(uses.values()) <= 2


def test_a_chunk_that_rarely_fits_gets_its_turns_where_it_does():
    asked = one_each(240)
    settings = settings_of(policy="random", questions_per_context=1, oracle_fraction=0.0)
    uses = Counter()
    for context in draw_contexts(asked, POOL, lambda q, c: c == "c07" and int(q[1:]) % 2, settings, 0):
        uses.update(context.chunk_ids)
    assert uses["c07"] >= 0.8 * uses.total() / len(POOL)


def test_near_misses_are_spread_over_the_best_few():
    hub = tuple(POOL[20:28])  # every question has the same hits
    asked = [Asked(f"q{n:03}", (POOL[n % 20],), hub) for n in range(200)]
    settings = settings_of(policy="hard", questions_per_context=1, oracle_fraction=1.0)
    uses = Counter(c for x in draw_contexts(asked, POOL, nothing, settings, 0) for c in x.chunk_ids if c in hub)
    assert max(uses.values()) - min(uses.values()) <= 1


def test_the_length_tells_nothing_where_questions_share_a_context():
    asked = [Asked(f"q{n:04}", (POOL[n % 60],) if n % 10 else (), near(n)) for n in range(600)]
    lengths = defaultdict(Counter)
    for draw in range(10):
        for context in draw_contexts(asked, POOL, nothing, settings_of(distractors=(1, 5), policy="random"), draw):
            for member in context.members:
                lost = int(member.question_id[1:]) % 10 == 0
                lengths["lost" if lost else member.oracle_present][len(context.chunk_ids)] += 1
    means = {key: sum(n * size for size, n in found.items()) / found.total() for key, found in lengths.items()}
    assert max(means.values()) - min(means.values()) < 0.2, means  # 0.6 where only present oracles take up room


def test_contexts_are_full_where_there_is_room():
    contexts = draw_contexts(one_each(400), POOL, nothing, settings_of(policy="random", oracle_fraction=1.0), 0)
    assert Counter(len(context.members) for context in contexts) == {4: 100}


def test_an_unanswerable_question_is_asked_over_what_the_retriever_finds():
    asked = [Asked("lost", (), near(7))]
    for policy in POLICIES:
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
