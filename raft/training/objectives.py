"""From an objective to what trains for it, and several of them in sequence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from raft.artifacts import MANIFEST, read_manifest
from raft.config_train import MAY_CHANGE_ON_RESUME, TrainRecipe, stages_of, without
from raft.config_train_rules import PREFERENCE_OBJECTIVES
from raft.errors import ArtifactError
from raft.llm.local import resolve_base
from raft.models import model_fingerprint
from raft.recipe import require
from raft.training.distributed import check_processes, join, main_first
from raft.training.plan import data_facts

if TYPE_CHECKING:
    from raft.training.retrieval import TuningSummary
    from raft.training.run import Progress, TrainSummary


def run_objective(
    recipe: TrainRecipe,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Progress | None = None,
) -> TrainSummary | TuningSummary:
    """Train for ``recipe.objective`` on ``data`` and write the artefact ``out``. Raises what the objective's own
    function raises (run.train, preference.tune_preferences, classify.train_classifier, retrieval.tune)."""
    check_processes(recipe)
    return _trainer_of(recipe.objective)(recipe, data, out, resume=resume, overwrite=overwrite, on_step=on_step)


def _trainer_of(objective: str) -> Callable[..., TrainSummary | TuningSummary]:
    if objective in ("sft", "pretrain"):
        from raft.training.run import train

        return train
    if objective in PREFERENCE_OBJECTIVES:
        from raft.training.preference import tune_preferences

        return tune_preferences
    if objective == "classify":
        from raft.training.classify import train_classifier

        return train_classifier
    from raft.training.retrieval import tune

    return tune


def run_stages(
    recipe: TrainRecipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_step: Progress | None = None,
) -> list[Path]:
    """Train stage by stage, each from the model that the one before has left; gives their artefacts::

    out/1-corpus, out/2-raft

    With ``resume`` finished stages stay as they are, and the unfinished one goes on. Raises ArtifactError where a
    finished one was made by another recipe.
    """
    model, made = recipe.model, list[Path]()
    for number, (name, stage) in enumerate(stages_of(recipe), 1):
        folder = out / f"{number}-{name}"
        stage = stage.model_copy(update={"model": model})
        data = Path(require(stage.dataset, f"dataset of stage {name}", "--data"))
        join(stage)
        with main_first():
            finished = resume and _is_finished(folder, stage, data, overwrite)
        if not finished:
            run_objective(stage, data, folder, resume=resume, overwrite=overwrite, on_step=on_step)
        made.append(folder)
        model = str(folder)
    return made


def _is_finished(folder: Path, stage: TrainRecipe, data: Path, overwrite: bool) -> bool:
    """Whether the stage is done. What was made by other settings, or of something else, may be overwritten or raises
    ArtifactError: models are compared by their weights, not by the words that name them."""
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_manifest(folder, "adapter")
    was = without(dict(manifest.recipe), MAY_CHANGE_ON_RESUME)
    now = without(stage.model_dump(mode="json", exclude={"out", "dataset"}), MAY_CHANGE_ON_RESUME)
    changed = sorted(name for name in now if was.get(name) != now[name])
    inputs = data_facts(stage, data)[0] | {"model": model_fingerprint(resolve_base(stage.model))}
    changed += [name for name in inputs if manifest.inputs.get(name) != inputs[name]]
    if changed and not overwrite:
        raise ArtifactError(
            f"{folder} was made of something else (they differ in {', '.join(changed)})",
            "Give another --out, or --overwrite to train all stages again",
        )
    return not changed
