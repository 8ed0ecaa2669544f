"""`raft serve` in a process of its own, for measuring: ledgers with a code each, and an endpoint that echoes.

    with running(index, ["--set", "max_new_tokens=32"], log=folder / "server.log") as server:
        server.url, server.start_seconds, server.memory_mb()

A ledger is a document of a few words, found by its name alone, with a code that stands in no other::

    Ledger amber0042 is kept in the north archive. The code of ledger amber0042 is KX-884213.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_NAMES = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty")
_PLACES = ("north", "south", "east", "west", "upper", "lower")
_WAIT_SECONDS = 300
CODE = re.compile(r"KX-\d{6}")
NONCE = re.compile(r"request (n[0-9a-f]{12})")


# --- ledgers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ledger:
    name: str
    code: str

    @property
    def text(self) -> str:
        place = _PLACES[int(self.code[-1]) % len(_PLACES)]
        return f"Ledger {self.name} is kept in the {place} archive. The code of ledger {self.name} is {self.code}."


def ledgers(count: int, seed: int = 0) -> list[Ledger]:
    draw = random.Random(seed)
    codes = draw.sample(range(100_000, 1_000_000), count)
    return [Ledger(f"{_NAMES[n % len(_NAMES)]}{n:04d}", f"KX-{code}") for n, code in enumerate(codes)]


def write_index(folder: Path, kept: Sequence[Ledger]) -> Path:
    """An index of the ledgers, made by the command line."""
    rows = [{"id": ledger.name, "text": ledger.text} for ledger in kept]
    source, index = folder / "ledgers.jsonl", folder / "index"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["index", str(source), "--out", str(index), "--set", "chunking.as_is=true"]
    subprocess.run([sys.executable, "-m", "raft", *words], check=True, stdout=subprocess.DEVNULL)
    return index


def question(ledger: Ledger, nonce: str) -> str:
    return f"What is the code of ledger {ledger.name}? (request {nonce})"


# --- the server ------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running `raft serve`. ``start_seconds`` is from its start to the first yes of /readyz."""

    process: subprocess.Popen[bytes]
    url: str
    start_seconds: float
    log: Path

    def memory_mb(self) -> float:
        """Resident memory of the process and of those that it started."""
        import psutil

        total, family = 0, psutil.Process(self.process.pid)
        for process in (family, *family.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 1e6

    def kill(self) -> int:
        """kill -9; how many of the processes that it had started are left after half a minute."""
        import psutil

        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        _, left = psutil.wait_procs(family, timeout=30)
        for process in left:
            process.kill()
        return len(left)

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=_WAIT_SECONDS)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(index: Path, more: Sequence[str], log: Path) -> Server:
    """Returns once the server is ready. Ends the benchmark when it does not become so."""
    import urllib.error
    import urllib.request

    began = time.monotonic()
    words = [sys.executable, "-m", "raft", "serve", "--index", str(index), "--port", "0", *more]
    with log.open("wb") as said:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=said, env=environment)
    url = None
    while time.monotonic() < began + _WAIT_SECONDS and process.poll() is None:
        found = re.search(r"Serving on (\S+)", log.read_text(encoding="utf-8", errors="replace"))
        url = found.group(1) if found else None
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if url and urllib.request.urlopen(f"{url}/readyz", timeout=5).status == 200:
                return Server(process, url, time.monotonic() - began, log)
        time.sleep(0.05)
    process.kill()
    raise SystemExit(f"raft serve did not start: {log.read_text(encoding='utf-8', errors='replace')[-2000:]}")


@contextlib.contextmanager
def running(index: Path, more: Sequence[str], log: Path) -> Iterator[Server]:
    server = start(index, more, log)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


# --- an endpoint that echoes -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def echoing(seed: int = 0) -> AsyncIterator[str]:
    """The base_url of an OpenAI-compatible endpoint whose streamed answer is the code of the prompt's ledger and the
    nonce of its question, in small pieces with random pauses, so that many answers are under way at once."""
    from aiohttp import web

    draw = random.Random(seed)

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        shown = body["messages"][-1]["content"]
        nonce, code = NONCE.search(shown), CODE.search(shown)
        text = f"It is told.\n<ANSWER>: {code and code.group()} {nonce and nonce.group(1)}"
        pieces = [{"delta": {"content": text[at : at + 4]}, "finish_reason": None} for at in range(0, len(text), 4)]
        head = {"id": "echo", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        with contextlib.suppress(ConnectionError):  # it was left
            await response.prepare(request)
            for piece in (*pieces, {"delta": {}, "finish_reason": "stop"}):
                await response.write(f"data: {json.dumps({**head, 'choices': [{'index': 0, **piece}]})}\n\n".encode())
                await asyncio.sleep(draw.uniform(0, 0.02))
            await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
