"""Tasks of lm-evaluation-harness (Gao et al. 2021, https://github.com/EleutherAI/lm-evaluation-harness), put to a model
that is loaded already::

    tasks = LoadedTasks.load(("arc_easy",), None)
    score_tasks(model, tokenizer, tasks, limit=100, batch_size=8, seed=0)
    # {("arc_easy", "acc"): (0.54, 0.0498), ("arc_easy", "acc_norm"): (0.51, 0.05)}      score, standard error

Its own tasks read their questions from the hub; those of a folder of your own may read files (``dataset_path: json``).
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft.errors import InputError, ModelError, UsageError

Scored = Mapping[tuple[str, str], tuple[float, float | None]]
_FROM_FILES = {"arrow", "csv", "json", "pandas", "parquet", "text", "xml"}  # what datasets reads without the hub
_INSTALL = "Run: pip install 'raft-tune[lm-eval]', or leave tasks out"


@dataclass(frozen=True, slots=True)
class LoadedTasks:
    """Tasks whose questions are here; ``manager`` is a TaskManager that knows them."""

    names: tuple[str, ...]
    manager: Any

    @classmethod
    def load(cls, names: Sequence[str], folder: Path | None) -> LoadedTasks:
        """The named tasks, of ``folder`` or of the harness itself, with their questions; no model is needed.

        Raises ModelError when the harness is not installed, UsageError for a name that it does not know, InputError
        when a task's questions cannot be had.
        """
        if importlib.util.find_spec("lm_eval") is None:
            raise ModelError("tasks need lm-evaluation-harness, which is not installed", _INSTALL)
        if folder is not None and not folder.is_dir():
            raise UsageError(f"task_folder {folder} is no folder", "Give the folder of the tasks' YAML files")
        manager = _manager_of(names, folder)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells of every step
        _check_hub(names, manager)
        try:
            manager.load(list(names))
        except Exception as error:  # whatever a task's own code and data raise
            raise InputError(
                f"the tasks {list(names)} cannot be loaded ({_said(error)})",
                "Check their YAML files and the data that they name",
            ) from error
        return cls(tuple(names), manager)


def _manager_of(names: Sequence[str], folder: Path | None) -> Any:
    """A manager of the folder's tasks, and, where those do not suffice, of the harness's thousands."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"Near: {', '.join(near)}" if near else "lm-eval ls tasks lists all"
            raise UsageError(f"lm-evaluation-harness has no task {name!r}", hint)
    return manager


def _check_hub(names: Sequence[str], manager: Any) -> None:
    """One quick question to the hub where a task's questions lie there: its own client would try for half a minute."""
    wanted = [_dataset_of(manager.task_index[name]) for name in names]
    hub = next((path for path in wanted if path is not None), None)
    if hub is None or os.environ.get("HF_HUB_OFFLINE") == "1":
        return  # offline, what lies in the cache is taken, and a miss is told at once
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(hub, timeout=5)
    except HfHubHTTPError:
        return  # the hub answers: what it refuses is told when the questions are loaded
    except Exception as error:  # of whichever network library its client is built on
        raise InputError(
            f"the questions of {names[0] if len(names) == 1 else list(names)} lie on the hub ({hub}), which cannot be "
            f"reached ({_said(error)})",
            "Leave tasks out, give tasks of your own (--task-folder), or, with the data in the cache, set "
            "HF_HUB_OFFLINE=1",
        ) from error


def _dataset_of(entry: Any) -> str | None:
    """The hub's data set of a task; None for files and folders, and for groups, whose tasks are not looked into."""
    path = (entry.cfg or {}).get("dataset_path")
    return None if not isinstance(path, str) or path in _FROM_FILES or Path(path).exists() else path


def score_tasks(
    model: Any, tokenizer: Any, tasks: LoadedTasks, *, limit: int | None, batch_size: int, seed: int
) -> Scored:
    """(task, metric) -> (score, standard error of its mean over the questions, None where the harness gives none). A
    metric after a filter is named ``metric (filter)``. Scores are as the harness defines them: mostly shares, from 0 to
    1. Raises ModelError when a task fails."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=list(tasks.names), task_manager=tasks.manager, limit=limit, log_samples=False, **seeds
        )
    except Exception as error:  # whatever a task's own code raises
        raise ModelError(f"a task of {list(tasks.names)} failed ({_said(error)})", "Leave it out of tasks") from error
    scores: dict[tuple[str, str], tuple[float, float | None]] = {}
    for task, figures in found["results"].items():
        for key, value in figures.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                raise ModelError(f"the task {task} gave {metric} = {value}; expected a number", "Leave it out of tasks")
            spread = figures.get(f"{metric}_stderr,{kept}")
            name = metric if kept == "none" else f"{metric} ({kept})"
            known = isinstance(spread, int | float) and math.isfinite(spread)
            scores[task, name] = (float(value), float(spread) if known else None)
    return scores


def _said(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
