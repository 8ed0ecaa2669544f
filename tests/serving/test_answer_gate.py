"""Who has a turn, for how long, and who gets it back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import httpx
import pytest
from live import serving

from raft.serving.gate import Gate, Overloaded
from raft.serving.service import Exchange
from tests.llm.stub import Silent, model_of, request, wait_until_left


async def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop would log of failures that nobody looked at."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    yield found
    await asyncio.sleep(0)
    gc.collect()


@pytest.mark.parametrize("fails", [False, True])
def test_who_is_cancelled_goes_at_once_and_the_turn_is_free_when_the_thread_is(fails: bool) -> None:
    began, release = threading.Event(), threading.Event()

    def job() -> str:
        began.set()
        release.wait(20)
        if fails:
            raise ValueError("after all")
        return "late"

    async def scenario() -> None:
        gate = Gate(1, 0)
        async with watched() as found:
            leaving = asyncio.create_task(gate.run(job))
            await until(began.is_set)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert (gate.running, release.is_set()) == (1, False)
            with pytest.raises(Overloaded):
                await gate.run(lambda: "too many")
            release.set()
            await until(lambda: gate.running == 0)
            assert await gate.run(lambda: "next") == "next"
        assert found == []

    asyncio.run(scenario())


def test_who_is_cancelled_before_its_turn_leaves_the_queue() -> None:
    release, asked = threading.Event(), []

    async def scenario() -> None:
        gate = Gate(1, 1)
        first = asyncio.create_task(gate.run(lambda: release.wait(20)))
        await until(lambda: gate.running == 1)
        second = asyncio.create_task(gate.run(lambda: asked.append("second")))
        await until(lambda: gate.waiting == 1)
        second.cancel()
        await asyncio.wait([second])
        assert (gate.running, gate.waiting) == (1, 0)
        release.set()
        assert await first
        assert (gate.running, gate.waiting) == (0, 0)

    asyncio.run(scenario())
    assert asked == []


def test_what_a_stream_raises_after_it_was_left_is_nobodys() -> None:
    began, release = threading.Event(), threading.Event()

    def job() -> Generator[str, None, str]:
        began.set()
        release.wait(20)
        raise ValueError("after all")
        yield ""

    async def scenario() -> None:
        gate = Gate(1, 0)
        async with watched() as found:
            stream = gate.stream(job())
            assert await anext(stream) == ""
            step = asyncio.ensure_future(anext(stream))
            await until(began.is_set)
            step.cancel()
            release.set()
            await asyncio.wait([step])
            await stream.aclose()
            assert gate.running == 0
            del stream, step
        assert found == []

    asyncio.run(scenario())


def test_a_turn_that_waits_for_a_silent_endpoint_comes_back_as_soon_as_it_is_left() -> None:
    async def scenario(endpoint: Silent) -> None:
        gate = Gate(1, 0)
        stream = gate.stream(model_of(endpoint, timeout_seconds=60).stream(request("a")))
        assert [await anext(stream) for _ in range(3)] == [""] * 3  # two of them signs of life
        await stream.aclose()
        assert gate.running == 0

    with Silent() as endpoint:
        asyncio.run(scenario(endpoint))
        wait_until_left(endpoint.take_call())
        with pytest.raises(TimeoutError):
            endpoint.take_call(1)


@pytest.mark.parametrize("streaming", [False, True])
def test_who_leaves_a_server_whose_endpoint_is_silent_frees_the_turn_and_the_endpoint(streaming: bool) -> None:
    told: list[Exchange] = []
    body = {"model": "raft", "messages": [{"role": "user", "content": "Dose?"}], "stream": streaming}
    with Silent() as endpoint:
        model = model_of(endpoint, timeout_seconds=60)
        with serving(model, max_queue=0, listeners=[told.append], workers=1) as server:
            for _ in range(2):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{server}/v1/chat/completions", json=body, timeout=1)
                wait_until_left(endpoint.take_call())
                asyncio.run(until(lambda: told))
                assert told.pop().outcome == "cancelled"
            with pytest.raises(TimeoutError):
                endpoint.take_call(1)
