"""A finished report, read again from its report.json (report.py writes it and shows what is in it).

What comparing reports needs of it::

    SavedReport(path=Path("runs/reports/mine"), question_set="9f2c...", questions=({"id": "med-001", ...}, ...),
                settings={"top_k": 4, "seed": 0, ...}, systems={"rag": {"title": "RAG", "f1": {"mean": 0.42, ...}}},
                f1={"rag": (1.0, 0.4, ...)}, right={"rag": (True, False, ...)})       # in the order of the questions
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft import artifacts
from raft.errors import ArtifactError
from raft.evaluation.replies import SCORING

_AGAIN = "Evaluate again, with this version of raft"


@dataclass(frozen=True, slots=True)
class SavedReport:
    """``systems`` has the figures of each system by its name; ``f1`` and ``right`` have its score on each question."""

    path: Path
    question_set: str
    questions: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    systems: Mapping[str, Mapping[str, Any]]
    f1: Mapping[str, tuple[float, ...]]
    right: Mapping[str, tuple[bool, ...]]

    @property
    def ids(self) -> list[str]:
        return [question["id"] for question in self.questions]

    @property
    def clusters(self) -> list[str]:
        """The source document of each question, as the report clustered them."""
        return [question["cluster"] for question in self.questions]


def open_report(folder: Path) -> SavedReport:
    """The report in ``folder``, its files found unchanged.

    Raises ArtifactError when it is no finished report, is damaged, lacks what this version reads (an older one), or
    does not hold exactly one score for each system and question.
    """
    artifacts.open_artifact(folder, "report")
    try:
        saved = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder / 'report.json'} cannot be read ({error})", _AGAIN) from None
    try:
        return _read(folder, saved)
    except KeyError as error:
        raise ArtifactError(f"{folder / 'report.json'} has no {error}: an older raft wrote it", _AGAIN) from None
    except (TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{folder / 'report.json'} is no report of raft evaluate ({error})", _AGAIN) from None


def _read(folder: Path, saved: Mapping[str, Any]) -> SavedReport:
    if saved["scoring"] != SCORING:
        raise ArtifactError(
            f"{folder / 'report.json'} was scored by rules {saved['scoring']}; these are rules {SCORING}", _AGAIN
        )
    settings = {name: saved["settings"][name] for name in ("confidence", "resamples", "seed")}  # what is needed below
    settings = {**saved["settings"], **settings}
    questions = tuple({**row, "id": row["id"], "cluster": row["cluster"]} for row in saved["questions"])
    systems = {row["system"]: {**row, "title": row["title"], "f1": row["f1"]} for row in saved["systems"]}
    scored: dict[str, dict[str, tuple[float, bool]]] = {name: {} for name in systems}
    for row in saved["results"]:
        rows = scored[row["system"]]
        if row["question_id"] in rows:
            raise ValueError(f"{row['system']} has two answers to question {row['question_id']!r}")
        rows[row["question_id"]] = _score(row)
    ids = [question["id"] for question in questions]
    for name, rows in scored.items():
        if len(set(ids)) != len(ids) or rows.keys() != set(ids):
            raise ValueError(f"{name} has {len(rows)} answers to {len(ids)} questions; expected one to each")
    return SavedReport(
        path=folder, question_set=saved["question_set"]["hash"], questions=questions, settings=settings,
        systems=systems, f1={name: tuple(rows[i][0] for i in ids) for name, rows in scored.items()},
        right={name: tuple(rows[i][1] for i in ids) for name, rows in scored.items()},
    )  # fmt: skip


def _score(row: Mapping[str, Any]) -> tuple[float, bool]:
    f1, right = row["f1"], row["right"]
    if not isinstance(f1, int | float) or not math.isfinite(f1) or not isinstance(right, bool):
        raise ValueError(
            f"question {row['question_id']!r} has f1 {f1!r} and right {right!r}; expected a number, a bool"
        )
    return float(f1), right
