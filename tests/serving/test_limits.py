"""How often a caller may ask, and how long an answer may take."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Generator

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import ANSWERED, DrippingModel, serving

from raft.config_serve import LimitsRecipe
from raft.llm.chat import ChatReply, ChatRequest
from raft.llm.scripted import ScriptedModel
from raft.serving.gate import Gate
from raft.serving.limits import Deadline, RateLimits, TimedOut


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- how often


@given(st.integers(1, 1000), st.lists(st.floats(0, 30), max_size=60))
def test_a_minute_lets_no_more_through_than_it_may(per_minute: int, pauses: list[float]) -> None:
    """In any stretch of time: a full bucket, and what has run into it since."""
    clock = Clock()
    limits = RateLimits(clock)
    let_through = []
    for pause in pauses:
        clock.now += pause
        allowance = limits.take("a", per_minute)
        assert 0 <= allowance.remaining < per_minute
        assert 0 <= allowance.reset <= 60 + 1e-6
        if allowance.wait == 0:
            let_through.append(clock.now)
    for first, began in enumerate(let_through):
        for last, ended in enumerate(let_through[first:], first):
            assert last - first + 1 <= per_minute + (ended - began) * per_minute / 60 + 1e-3


@given(st.integers(1, 1000))
def test_who_waits_as_long_as_told_is_let_through(per_minute: int) -> None:
    clock = Clock()
    limits = RateLimits(clock)
    for n in range(per_minute):
        allowance = limits.take("a", per_minute)
        assert (allowance.wait, allowance.remaining) == (0, per_minute - 1 - n)
    refused = limits.take("a", per_minute)
    assert 0 < refused.wait <= 60 / per_minute
    assert limits.take("b", per_minute).wait == 0  # another caller has a bucket of its own
    clock.now += refused.wait
    assert limits.take("a", per_minute).wait == 0
    assert limits.take("a", per_minute).wait > 0


def test_what_is_refused_takes_nothing() -> None:
    clock = Clock()
    limits = RateLimits(clock)
    limits.take("a", 1)
    for _ in range(100):
        clock.now += 0.5
        limits.take("a", 1)
    clock.now += 10
    assert limits.take("a", 1).wait == 0


# --- how long


async def counting(pauses: list[float], closed: list[str]) -> AsyncGenerator[int, None]:
    try:
        for n, pause in enumerate(pauses):
            await asyncio.sleep(pause)
            yield n
    finally:
        closed.append("closed")


def test_pieces_come_through_and_the_source_is_closed() -> None:
    async def run() -> None:
        for due in (Deadline(), Deadline(60)):
            closed: list[str] = []
            assert [piece async for piece in due.pieces(counting([0, 0.001, 0], closed))] == [0, 1, 2]
            assert closed == ["closed"]
            left = due.pieces(counting([0] * 9, closed))
            assert await anext(left) == 0
            await left.aclose()
            assert closed == ["closed", "closed"]
        assert await Deadline(60).result(asyncio.sleep(0, "done")) == "done"

    asyncio.run(run())


def test_an_error_of_the_source_comes_through() -> None:
    async def broken() -> AsyncGenerator[int, None]:
        yield 1
        raise OSError("gone")

    async def run() -> None:
        pieces = Deadline(60).pieces(broken())
        assert await anext(pieces) == 1
        with pytest.raises(OSError, match="gone"):
            await anext(pieces)

    asyncio.run(run())


def test_the_time_counts_for_all_pieces_together_and_the_source_is_stopped() -> None:
    async def run() -> None:
        closed: list[str] = []
        with pytest.raises(TimedOut):
            async for _ in Deadline(0.2).pieces(counting([0.05] * 1000, closed)):
                pass
        await asyncio.sleep(0)
        assert closed == ["closed"]
        due = Deadline(0.05)
        with pytest.raises(TimedOut):
            await due.result(asyncio.sleep(60))
        slow = Deadline(0.05).pieces(counting([0, 0], closed))
        assert await anext(slow) == 0
        await asyncio.sleep(0.1)  # over while whoever takes the pieces was busy
        with pytest.raises(TimedOut):
            await anext(slow)
        await asyncio.sleep(0.01)
        assert closed == ["closed", "closed"]

    asyncio.run(run())


def test_nobody_waits_for_a_model_that_is_deep_in_its_work_and_the_turn_comes_back() -> None:
    """The thread of a model cannot be broken off: the gate keeps its turn until it has stopped, the client goes on."""
    release = threading.Event()

    def stuck() -> Generator[str, None, str]:
        release.wait(20)
        yield "late"
        yield "never"
        return "end"

    def quick() -> Generator[str, None, str]:
        yield "quick"
        return "end"

    async def run() -> None:
        gate = Gate(1, 1)
        with pytest.raises(TimedOut):
            async for piece in Deadline(0.1).pieces(gate.stream(stuck())):
                assert piece == ""
        assert (gate.running, release.is_set()) == (1, False)
        release.set()
        assert [p async for p in Deadline(20).pieces(gate.stream(quick()))] == ["", "quick", "end"]
        assert gate.running == 0

    asyncio.run(run())


ASK = [{"role": "user", "content": "What is the first dose of Corvalexin?"}]


def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=30)


class SlowAtFirst(ScriptedModel):
    """Writes nothing of its first answer until it is let go."""

    def __init__(self) -> None:
        super().__init__(lambda request: ANSWERED)
        self.go = threading.Event()

    def stream(self, request: ChatRequest) -> Generator[str, None, ChatReply]:
        self.go.wait(20)
        return (yield from super().stream(request))


@pytest.mark.parametrize("streaming", [False, True])
def test_an_answer_that_takes_too_long_is_refused_and_the_turn_comes_back(streaming: bool) -> None:
    model = SlowAtFirst()
    with serving(model, limits=LimitsRecipe(answer_seconds=0.5)) as server:

        def ask() -> list:
            made = client(server).chat.completions.create(model="raft", messages=ASK, stream=streaming)
            return list(made) if streaming else [made]

        with pytest.raises(openai.APIError, match="longer than one answer may take") as caught:
            ask()
        assert caught.value.code == "timeout"
        if not streaming:  # a stream had begun, without a word in it
            assert caught.value.status_code == 504
        model.go.set()
        for _ in range(20):  # on a busy machine another one may take too long
            with contextlib.suppress(openai.APIError):
                assert ask()[-1].raft["answer"] == "12 mg"
                break
        else:
            pytest.fail("the turn never came back")


def test_a_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    model = DrippingModel()
    with serving(model, limits=LimitsRecipe(answer_seconds=0.5)) as server:
        stream = client(server).chat.completions.create(model="raft", messages=ASK, stream=True)
        model.step.release()
        said = []
        with pytest.raises(openai.APIError, match="longer than one answer may take") as caught:
            said.extend(event.choices[0].delta.content for event in stream)
        assert caught.value.code == "timeout"
        model.step.release(10)
        assert model.left.wait(20)
