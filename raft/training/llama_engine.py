"""llama.cpp as the judge of a GGUF file, in a process of its own: it ends the process on a file that it cannot take,
handles signals itself and writes to every stream.

    to it     {"file": "tuned-q8_0.gguf", "context": 1024, "rows": [[{"role": ..., "content": ...}]],
               "texts": ["..."], "prompts": [[1, 9690, ...]], "answer_tokens": 48, "pairs": [[[1, 9690], [504, 260]]]}
    from it   {"rendered": ["<|im_start|>..."], "tokens": [[1, 9690, ...]], "answers": [[504, ...]],
               "logprobs": [-0.31, ...]}

It serves on a port of the loopback interface that the system chooses, behind a key that nobody else knows.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raft.errors import CheckFailed

_SURE = 1000.0  # added to one token's logit, it is what a greedy choice takes; what is reported is from before that


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked of a file. ``rows`` are the messages of each conversation to render, ``texts`` what to tokenize,
    ``prompts`` what to answer greedily with ``answer_tokens`` at most; ``pairs`` are prompts and the ids behind them
    whose log-probabilities are wanted."""

    rows: Sequence[Sequence[Mapping[str, str]]]
    texts: Sequence[str]
    prompts: Sequence[Sequence[int]]
    answer_tokens: int
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]]

    @property
    def context(self) -> int:
        """Tokens of the longest thing to be read and written."""
        asked = [len(prompt) + self.answer_tokens for prompt in self.prompts]
        return max([*asked, *(len(prompt) + len(target) for prompt, target in self.pairs)])


@dataclass(frozen=True, slots=True)
class Replies:
    """``tokens`` are the ids of each text, ``answers`` those behind each prompt without the end of the turn,
    ``logprobs`` those (natural logarithm) of all pairs' targets, one after the other."""

    rendered: list[str]
    tokens: list[list[int]]
    answers: list[list[int]]
    logprobs: list[float]


def is_installed() -> bool:
    """Whether llama.cpp is here (the extra gguf)."""
    return find_spec("xllamacpp") is not None


def ask_llama(file: Path, questions: Questions) -> Replies:
    """What llama.cpp makes of a GGUF file. Raises CheckFailed when it cannot load or run it."""
    here = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_WAIT_POLICY": "passive",  # threads that spin while others wait for the core bring all to a standstill
    }
    request = json.dumps({"file": str(file), "context": questions.context, **asdict(questions)})
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "raft.training.llama_engine"],
        input=request, capture_output=True, text=True, encoding="utf-8", errors="replace", env=environment, check=False,
    )  # fmt: skip
    if ran.returncode != 0:
        said = [line.strip() for line in ran.stderr.splitlines() if "error" in line.lower() or "failed" in line.lower()]
        why = f"exit {ran.returncode}" + (f": {said[0][:200]}" if said else "")
        raise CheckFailed(f"llama.cpp cannot run {file.name} ({why})", "Export with --form merged instead")
    return Replies(**json.loads(ran.stdout))


# --- in the other process --------------------------------------------------------------------------------------------


class _Server:
    """llama.cpp's server over one file; ``post`` asks it."""

    def __init__(self, file: str, context: int) -> None:
        import xllamacpp

        self._key = secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = file
        params.n_ctx = -(-context // 256) * 256
        params.n_parallel = 1
        params.port = 0
        params.api_keys = [self._key]
        params.warmup = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
        self._server = xllamacpp.Server(params)
        address = urlsplit(self._server.listening_address)
        self._connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=3600)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        self._connection.request("POST", path, json.dumps(body), headers)
        response = self._connection.getresponse()
        data = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(f"error {response.status} of {path}: {data[:300]!r}")
        return json.loads(data)


def _answer(server: _Server, prompt: Sequence[int], most: int) -> list[int]:
    body = {"prompt": prompt, "n_predict": most, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
    return list(server.post("/completion", body)["tokens"])


def _logprobs(server: _Server, prompt: Sequence[int], target: Sequence[int]) -> list[float]:
    """Of each token of the target, given the prompt and the tokens before it: one forced step each."""
    found = []
    for i, token in enumerate(target):
        body = {
            "prompt": [*prompt, *target[:i]], "n_predict": 1, "temperature": 0.0, "n_probs": 1,
            "logit_bias": [[token, _SURE]], "cache_prompt": True,
        }  # fmt: skip
        rows = server.post("/completion", body).get("completion_probabilities") or [{}]
        if rows[0].get("id") != token:
            raise RuntimeError(f"error: no score for token {token}")
        found.append(float(rows[0]["logprob"]))
    return found


def main() -> None:
    """Answer the questions on stdin; llama.cpp's own words go to stderr."""
    out = os.dup(1)
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    server = _Server(asked["file"], asked["context"])
    replies = {
        "rendered": [server.post("/apply-template", {"messages": rows})["prompt"] for rows in asked["rows"]],
        "tokens": [
            server.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]
            for text in asked["texts"]
        ],
        "answers": [_answer(server, prompt, asked["answer_tokens"]) for prompt in asked["prompts"]],
        "logprobs": [value for prompt, target in asked["pairs"] for value in _logprobs(server, prompt, target)],
    }
    with os.fdopen(out, "w", encoding="utf-8") as stream:
        json.dump(replies, stream)
    os._exit(0)  # what is left is to tear down threads, which a crash must not turn into a failure


if __name__ == "__main__":
    main()
