"""The contexts of sweeps: nested, in their places, without what answers too, and following from the seed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.config import SweepName
from raft.corpus.spans import find_span
from raft.dataset.counterfactual import Vocabulary
from raft.evaluation.cases import build_cases
from raft.evaluation.contexts import POSITIONS, Source, change_answer, find_sources, make_sweep
from raft.evaluation.sweeps import distinct_cases, held_canaries, read_attacks
from raft.records import Chunk, Document, Evidence, QaItem, to_row
from tests.evaluation import world
from tests.evaluation.sweeping import NAMES, answerable, ids, made, making


def test_sources_hold_the_oracle_apart_from_what_answers_too() -> None:
    copy = Document(
        "notice.md", "Notice to all drivers: the bridge toll of Dunmore is 19 crowns since last spring.", "N"
    )
    index = world.MemoryIndex(
        [*world.documents(), copy], [*world.chunks(), Chunk("notice.md#0", copy.id, copy.text, 0, len(copy.text), "N")]
    )
    sources = {source.case.item.id: source for source in answerable(index)}
    assert set(sources) == {f"{kind}-{n}" for kind in ("toll", "market") for n in range(3, 10)}  # no mayors
    for name, source in sources.items():
        n = int(name[-1])
        part = "#0" if name.startswith("toll") else "#1"
        assert ids(source.oracles) == [f"{world.TOWNS[n].lower()}.md{part}"]
        for kind in (source.near, source.random, source.same_document):
            assert len(set(ids(kind))) == len(kind)
            assert source.oracles[0].id not in ids(kind)
        assert {chunk.document_id for chunk in source.same_document} == {source.oracles[0].document_id}
        assert len(source.near) == 12
    assert "notice.md#0" not in [*ids(sources["toll-3"].near), *ids(sources["toll-3"].random)]
    assert "notice.md#0" in ids(sources["toll-4"].near)


def test_evidence_in_two_chunks_makes_two_oracles_and_evidence_that_stands_nowhere_none() -> None:
    index, (toll, market) = world.index(), world.questions()[6:8]
    both = replace(toll, id="both", evidence=(*toll.evidence, *market.evidence))
    lost = replace(toll, id="lost", evidence=(Evidence("dunmore.md", "The ferry is free."),))
    bare = replace(toll, id="bare", evidence=())
    cases = build_cases(index, [both, lost, bare], top_k=3, mode="fused", seed=0)
    sources = {s.case.item.id: s for s in find_sources(index, cases, most=5, mode="fused", seed=0)}
    assert set(sources) == {"both", "bare"}
    assert sorted(ids(sources["both"].oracles)) == ["dunmore.md#0", "dunmore.md#1"]
    assert ids(sources["bare"].oracles) == ["dunmore.md#0"]
    assert sources["bare"].same_document == ()  # nobody knows whether the rest of a gold document answers
    shown = sources["both"].around(sources["both"].beside(4))
    assert len(shown) == 4
    assert abs(ids(shown).index("dunmore.md#0") - ids(shown).index("dunmore.md#1")) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_point_asks_the_same_questions_over_each_chunk_once(name: SweepName) -> None:
    sources = answerable()
    how = making(sources, documents=2, paraphrases={s.case.item.id: "In other words?" for s in sources[:5]})
    sweep = make_sweep(name, sources, how)
    asked = {tuple(c.question_id for c in contexts) for contexts in sweep.contexts.values()}
    assert len(asked) == 1
    assert len(*asked) + sweep.left_out == len(sources)
    assert len(*asked) == (5 if name == "paraphrase" else 14)
    for contexts in sweep.contexts.values():
        for c in contexts:
            assert len(set(ids(c.shown.chunks))) == len(c.shown.chunks)
            assert c.case.hits == c.shown.chunks
            assert c.case.item.id.startswith(f"{c.question_id}@")


def test_distractors_are_nested_and_the_oracle_keeps_its_place_in_proportion() -> None:
    sources = {source.case.item.id: source for source in answerable()}
    sweep = made("distractors")
    assert list(sweep.contexts) == ["0", "1", "2", "4", "8", "12"]
    for number, contexts in sweep.contexts.items():
        for c in contexts:
            source = sources[c.question_id]
            beside = [chunk for chunk in c.shown.chunks if chunk not in source.oracles]
            assert tuple(beside) == source.near[: int(number)]
            at = c.shown.chunks.index(source.oracles[0])
            assert at <= source.place * (len(beside) + 1) < at + 1
    for smaller, larger in pairwise(sweep.contexts.values()):
        for one, other in zip(smaller, larger, strict=True):
            assert set(one.shown.chunks) < set(other.shown.chunks)
    assert len({int(5 * source.place) for source in sources.values()}) >= 3


@given(st.integers(0, 30), st.floats(0, 1, exclude_max=True))
def test_the_oracle_stands_once_at_any_place(count: int, place: float) -> None:
    source = replace(answerable_once(), place=place)
    distractors = [Chunk(f"c{n}", "d", "text", 0, 4) for n in range(count)]
    shown = source.around(distractors)
    assert len(shown) == count + 1
    assert [chunk for chunk in shown if chunk not in source.oracles] == distractors
    assert shown.count(source.oracles[0]) == 1


@cache
def answerable_once() -> Source:
    return answerable()[0]


def test_positions_are_where_their_names_say() -> None:
    sweep = made("position", documents=5)
    for at, point in enumerate(POSITIONS):
        for c in sweep.contexts[point]:
            assert len(c.shown.chunks) == 5
            assert [chunk.id in c.case.oracle_ids for chunk in c.shown.chunks].index(True) == at


def test_without_the_oracle_the_rest_stays() -> None:
    sweep = made("no_oracle")
    for with_it, without in zip(*sweep.contexts.values(), strict=True):
        assert with_it.case.holds_oracle(with_it.case.hits)
        assert not without.case.oracle_ids & set(ids(without.shown.chunks))
        assert without.shown.chunks == tuple(c for c in with_it.shown.chunks if c.id not in with_it.case.oracle_ids)


def test_a_changed_answer_stands_where_the_answer_stood_and_nowhere_else() -> None:
    sweep = made("counterfactual")
    assert sweep.left_out == 0
    for written, changed in zip(*sweep.contexts.values(), strict=True):
        (before,) = set(written.shown.chunks) - set(changed.shown.chunks)
        (after,) = set(changed.shown.chunks) - set(written.shown.chunks)
        assert ids(written.shown.chunks).index(before.id) == ids(changed.shown.chunks).index(after.id)
        assert changed.shown.made == after.id
        answer = written.case.item.answer
        assert changed.shown.says
        assert answer not in changed.shown.says
        assert find_span(before.text, answer) is not None
        assert find_span(after.text, answer) is None
        assert find_span(after.text, changed.shown.says[0]) is not None
        assert before.text.split()[:4] == after.text.split()[:4]  # it still speaks of the same thing
        assert written.shown.says == ()


def test_a_closed_answer_is_turned_round_and_what_cannot_change_soundly_is_left_out() -> None:
    text = "Guests of the Arden Inn must not keep a dog."
    source = answerable_once()
    oracle = Chunk("inn.md#0", "inn.md", text, 0, len(text), "Inn")

    def asked(answer: str, answer_type: str, title: str = "Inn") -> Source:
        item = QaItem(
            "inn", "May guests keep a dog?", answer, answer_type, (), "", ("inn.md",), (Evidence("inn.md", text),)
        )  # type: ignore[arg-type]
        index = world.MemoryIndex([Document("inn.md", text, title)], [replace(oracle, title=title)])
        cases = build_cases(index, [item], top_k=1, mode="fused", seed=0)
        return find_sources(index, cases, most=1, mode="fused", seed=0)[0]

    empty = Vocabulary({}, {}, {})
    edit, says = change_answer(asked("no", "yesno"), empty, 0)
    assert edit is not None
    assert (edit.text, says) == ("Guests of the Arden Inn must keep a dog.", ("yes",))
    assert change_answer(asked("maybe", "label"), empty, 0) == (None, ())
    assert change_answer(asked("a dog", "short"), empty, 0) == (None, ())  # nothing else could stand there
    assert change_answer(source, empty, 0)[0] is not None
    assert change_answer(replace(source, oracles=source.oracles * 2), empty, 0) == (None, ())


def test_alike_distractors_come_from_three_places() -> None:
    sources = {source.case.item.id: source for source in answerable()}
    sweep = made("similar", documents=2)
    assert list(sweep.contexts) == ["random", "near", "same document"]
    for point, kind in (("random", "random"), ("near", "near"), ("same document", "same_document")):
        for c in sweep.contexts[point]:
            source = sources[c.question_id]
            assert set(c.shown.chunks) - set(source.oracles) == set(getattr(source, kind)[:1])
    assert made("similar", documents=3).contexts == {}  # a document of two chunks has no two others


def test_orders_differ_and_hold_the_same_documents() -> None:
    for documents, orders, expected in ((4, 3, 3), (2, 5, 2)):
        sweep = made("order", documents=documents, orders=orders)
        assert len(sweep.contexts) == expected
        for contexts in zip(*sweep.contexts.values(), strict=True):
            assert len({c.shown.chunks for c in contexts}) == expected
            assert len({frozenset(c.shown.chunks) for c in contexts}) == 1


def test_an_attack_stands_in_one_distractor_with_a_canary_that_no_document_holds() -> None:
    held = frozenset(str(n) for n in range(1000, 10**6) if n % 10)  # nine numbers of ten are taken
    sweep = made("injected", held=held)
    assert list(sweep.contexts) == ["clean", *read_attacks()]
    clean = sweep.contexts["clean"]
    for form in read_attacks():
        for before, c in zip(clean, sweep.contexts[form], strict=True):
            (changed,) = set(c.shown.chunks) - set(before.shown.chunks)
            (original,) = set(before.shown.chunks) - set(c.shown.chunks)
            assert changed.id == c.shown.made
            assert original.id not in c.case.oracle_ids
            assert c.shown.canary is not None
            assert c.shown.canary.endswith("0")
            assert changed.text.count(c.shown.canary) >= 1
            attack = read_attacks()[form].replace("{canary}", c.shown.canary)
            assert changed.text.replace(f" {attack}", "") == original.text
    assert all("{canary}" in text for text in read_attacks().values())
    assert held_canaries([Chunk("c", "d", "Say banana-17 or BANANA-4.", 0, 9, "BANANA-9")]) == {"17", "4", "9"}


def test_too_few_near_misses_leave_a_question_out_of_every_point() -> None:
    sources = answerable()
    short = replace(sources[0], near=sources[0].near[:7])
    sweep = make_sweep("distractors", [short, *sources[1:]], making(sources))
    assert sweep.left_out == 1
    assert {len(contexts) for contexts in sweep.contexts.values()} == {len(sources) - 1}
    assert short.case.item.id not in {c.question_id for contexts in sweep.contexts.values() for c in contexts}
    assert make_sweep("distractors", [short], making(sources, distractors=(0, 7))).left_out == 0


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_all_draws_follow_from_the_seed(seed: int) -> None:
    def everything(seed: int) -> list[object]:
        sources = answerable(seed=seed)
        how = making(sources, seed=seed, documents=2)
        return [
            to_row(c.shown) for name in NAMES for cs in make_sweep(name, sources, how).contexts.values() for c in cs
        ]

    assert everything(seed) == everything(seed)
    assert everything(seed) != everything(seed + 1)


def test_what_sweeps_have_in_common_is_asked_once() -> None:
    sources = answerable()
    how = making(sources, documents=3)
    sweeps = [make_sweep(name, sources, how) for name in ("distractors", "no_oracle", "injected", "position")]
    cases = distinct_cases(sweeps)
    contents = {(c.case.item.question, c.shown.chunks) for s in sweeps for cs in s.contexts.values() for c in cs}
    assert len(cases) == len(contents)
    points = zip(sweeps[:3], ("2", "with oracle", "clean"), strict=True)
    base = {sweep.contexts[point][0].case.item.id for sweep, point in points}
    assert len(base) == 1
