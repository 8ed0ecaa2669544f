"""The pace of calls, on a clock that jumps to what comes next."""

from __future__ import annotations

import asyncio

from raft.llm.pacing import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Pace


class JumpingLoop(asyncio.SelectorEventLoop):
    """Nobody waits: when nothing is left to do, it is later at once."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


def run(work):
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


def test_no_more_than_the_most_run_at_once_and_everybody_gets_a_turn():
    async def work():
        pace, running, seen = Pace(3), 0, []

        async def call():
            nonlocal running
            await pace.enter()
            running += 1
            seen.append(running)
            await asyncio.sleep(1)
            running -= 1
            pace.leave()

        await asyncio.gather(*(call() for _ in range(10)))
        return seen, asyncio.get_running_loop().time()

    seen, seconds = run(work())
    assert (len(seen), max(seen), seconds) == (10, 3, 4.0)


def test_after_a_refusal_nobody_starts_before_the_pause_is_over():
    async def work():
        pace = Pace(4)
        started = await pace.enter()
        pace.refused(started, 7.0)
        pace.leave()
        return [await pace.enter() for _ in range(2)]

    assert run(work()) == [7.0, 7.0]


def test_calls_refused_together_are_one_refusal_and_halve_the_pace_once():
    async def work():
        pace = Pace(8)
        starts = [await pace.enter() for _ in range(8)]
        for started in starts:
            pace.refused(started, 1.0)
            pace.leave()
        first = pace.refusals
        for _ in range(4):
            await pace.enter()
        fifth = asyncio.ensure_future(pace.enter())
        await asyncio.sleep(5)
        waiting = not fifth.done()
        fifth.cancel()
        return first, waiting

    assert run(work()) == (1, True)


def test_a_lone_refusal_waits_alone_and_slows_less_than_one_soon_after_another():
    async def after(answers, refused=1):
        pace = Pace(20)
        for _ in range(answers):
            await pace.enter()
            pace.answered()
            pace.leave()
        starts = [await pace.enter() for _ in range(refused)]
        alone = [pace.refused(started, 1.0) for started in starts]
        for _ in starts:
            pace.leave()
        waiting = [asyncio.ensure_future(pace.enter()) for _ in range(20)]
        await asyncio.sleep(0.5)
        at_once = sum(each.done() for each in waiting)
        await asyncio.sleep(5)
        let_in = sum(each.done() for each in waiting)
        for each in waiting:
            each.cancel()
        return alone, at_once, let_in

    assert run(after(40)) == ([1.0], 18, 18)
    assert run(after(39)) == ([0.0], 0, 10)
    assert run(after(40, refused=2)) == ([1.0, 0.0], 0, 9)  # the second says that it is a limit


def test_whoever_waits_alone_is_called_when_all_is_given_up():
    async def work():
        pace = Pace(2)
        waiting = asyncio.ensure_future(pace.wait_alone(600.0))
        await asyncio.sleep(1)
        pace.give_up()
        await waiting
        await pace.wait_alone(2.0)
        return asyncio.get_running_loop().time()

    assert run(work()) == 3.0


def test_giving_up_lets_in_whoever_comes_later():
    async def work():
        pace = Pace(2)
        started = await pace.enter()
        pace.refused(started, 600.0)
        pace.leave()
        pace.give_up()
        await asyncio.wait_for(pace.enter(), 1)
        return asyncio.get_running_loop().time()

    assert run(work()) == 0.0


def test_pauses_without_a_named_time_double_until_an_answer_comes():
    async def work():
        pace, pauses = Pace(4), []
        for n in range(9):
            before = asyncio.get_running_loop().time()
            started = await pace.enter()
            pauses.append(started - before)
            if n == 7:
                pace.answered()
            pace.refused(started, None)
            pace.leave()
        return pauses, pace.refusals

    pauses, refusals = run(work())
    doubled = [min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**n) for n in range(7)]
    assert pauses == [0.0, *doubled, FIRST_PAUSE_SECONDS]
    assert refusals == 2


def test_a_cancelled_call_takes_no_room_from_the_others():
    async def work():
        pace = Pace(1)
        await pace.enter()
        waiting = [asyncio.ensure_future(pace.enter()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        pace.leave()
        await asyncio.wait_for(waiting[1], 5)
        other = asyncio.ensure_future(pace.enter())
        await asyncio.sleep(0)
        pace.leave()
        other.cancel()  # it had been let in, and had not yet run
        await asyncio.gather(other, return_exceptions=True)
        await asyncio.wait_for(pace.enter(), 5)

    run(work())


def test_an_endpoint_with_little_room_is_not_hammered():
    asked = refused = 0

    async def work(calls, room):
        pace, running = Pace(64), 0

        async def call():
            nonlocal running, asked, refused
            while True:
                started = await pace.enter()
                asked += 1
                running += 1
                full = running > room
                await asyncio.sleep(0.01 if full else 1.0)
                running -= 1
                pace.refused(started, None) if full else pace.answered()
                pace.leave()
                if not full:
                    return
                refused += 1

        await asyncio.gather(*(call() for _ in range(calls)))

    run(work(600, 6))
    assert asked == 600 + refused
    assert 0 < refused < 200  # 64 at once would be refused 58 times in each hundredth of a second
