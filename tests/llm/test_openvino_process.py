"""The process of the engine, when whoever asked for it goes away."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from raft.llm.openvino_process import _send


@pytest.mark.parametrize(
    "settings", [None, {"folder": "nowhere", "blocks": 4, "precision": "float32", "batch_tokens": 64, "end_ids": []}]
)
def test_whoever_goes_before_the_engine_is_open_leaves_no_traceback(settings: dict[str, Any] | None) -> None:
    if settings is not None:
        pytest.importorskip("openvino_genai", reason="needs raft-tune[openvino]")
    with subprocess.Popen(
        [sys.executable, "-m", "raft.llm.openvino_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        if settings is not None:
            _send(process.stdin.fileno(), settings)
        process.stdin.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(60) == 0
