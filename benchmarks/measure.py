"""Time and memory of one command, with what it ran on.

    python benchmarks/measure.py NAME -- raft demo --corpus legal

Runs the command, then writes benchmarks/results/NAME.json::

    {"command": "raft demo", "exit_code": 0, "seconds": 711.2, "peak_memory_mb": 3912,
     "date": "2026-11-21", "commit": "3f8c516",
     "machine": {"cpu": "AMD EPYC", "cores": 2, "memory_gb": 24, "gpu": null, "python": "3.11.7", "torch": "2.13.0"}}

``peak_memory_mb`` is the largest resident memory of any process the command started.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from raft.artifacts import write_json

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory and GPU."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", help="of the file in benchmarks/results")
    parser.add_argument("command", nargs="+", help="after --")
    given = parser.parse_args()
    began = time.monotonic()
    exit_code = subprocess.run(given.command, check=False).returncode
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    RESULTS.mkdir(exist_ok=True)
    result = {
        "command": shlex.join([Path(given.command[0]).name, *given.command[1:]]),
        "exit_code": exit_code,
        "seconds": round(seconds, 1),
        "peak_memory_mb": int(peak * (1 if sys.platform == "darwin" else 1024) / 1e6),
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": machine(),
    }
    write_json(RESULTS / f"{given.name}.json", result)
    print(f"{RESULTS / given.name}.json: {result['seconds']} s, {result['peak_memory_mb']} MB")
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
