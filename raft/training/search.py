"""RAFT dataset -> the settings of raft train with the lowest dev loss: what ``raft tune`` does.

    search(load_recipe(TuneRecipe, Path("configs/tune/cpu.toml")), Path("runs/datasets/mine"), Path("runs/mine"))

Every trial is a whole training (raft/training/objectives.py) in ``OUT.partial/trials/NUMBER``; trial 0 has the starting
settings, so that the gain can be stated. One trained model is kept at a time, the best so far.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from raft.artifacts import MANIFEST, RESUME, Draft, check_free, parse_manifest, remove, writing
from raft.config_train import TrainRecipe
from raft.config_train_rules import PREFERENCE_OBJECTIVES
from raft.config_tune import TuneRecipe, settings_of, with_settings
from raft.errors import InputError, ModelError, RecipeError
from raft.llm.local import resolve_base
from raft.models import model_fingerprint, quiet_libraries, resolve_encoder
from raft.places import partial_folder
from raft.training.instructions import is_rows_file
from raft.training.objectives import run_objective
from raft.training.plan import data_facts, make_plan
from raft.training.preference_rows import make_preference_plan
from raft.training.retrieval import make_tuning_plan
from raft.training.search_report import write_report
from raft.training.search_study import (
    BEGUN,
    OUTCOME,
    Tried,
    all_tried,
    importances,
    next_trial,
    open_study,
    require_optuna,
    settings_of_trial,
    tried,
)

if TYPE_CHECKING:
    from optuna import Study, Trial

STUDY = "study.log"
_ATTEMPTS = 2  # of a trial that ends its process each time
BEST_MODEL = "best"
OnTrial = Callable[[Tried], None]


@dataclass(frozen=True, slots=True)
class SearchSummary:
    """``start_dev_loss`` is that of the starting recipe (None where its training failed), ``settings`` are the searched
    ones of the best trial, ``model`` is the folder of its trained model (None where none is kept)."""

    out: Path
    trials: int
    complete: int
    pruned: int
    failed: int
    start_dev_loss: float | None
    best_dev_loss: float
    best_trial: int
    settings: dict[str, Any]
    model: Path | None
    seconds: float


def search(
    recipe: TuneRecipe,
    dataset: Path,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_trial: OnTrial | None = None,
) -> SearchSummary:
    """Train with other settings again and again, and write the artefact ``out``: the trials, and the best recipe.

    ``on_trial`` is given each trial as it finishes. Trials that run out of memory or diverge count as failed, and so do
    those whose values do not go together, or that end the process twice at the same place.

    Raises ArtifactError when the dataset is missing or damaged, ``out`` is taken or partial work differs, InputError
    when there is nothing to measure a dev loss on or no example fits, ModelError when Optuna or the model is missing,
    or no trial gave a dev loss.
    """
    require_optuna()
    quiet_libraries()
    check_free(out, overwrite)
    inputs = check_inputs(recipe.train, dataset)
    settings = recipe.model_dump(mode="json", exclude={"dataset": True, "out": True, "train": {"dataset", "out"}})
    with writing(
        out, "tuning", settings, inputs, overwrite=overwrite, resume=resume, may_change=("trials",)
    ) as draft:  # fmt: skip
        began = time.monotonic()
        study = open_study(draft.folder / STUDY, recipe)
        _put_back(draft.folder, all_tried(study, recipe))
        _run_trials(study, recipe, dataset, draft.folder / "trials", on_trial or (lambda _: None))
        trials = all_tried(study, recipe)
        summary = _summary(recipe, out, trials, time.monotonic() - began)
        _finish(draft, study, recipe, dataset, trials, summary)
    return summary


def check_inputs(start: TrainRecipe, dataset: Path) -> dict[str, str]:
    """The fingerprints of the dataset and of the model that is tuned. Raises InputError when it leaves nothing to
    measure a dev loss on, ArtifactError when it is missing or damaged, ModelError when the model cannot be found."""
    inputs, _ = data_facts(start, dataset)
    if start.objective in ("encoder", "reranker"):
        base = resolve_encoder(start.model, "reranker" if start.objective == "reranker" else "encoder")
    else:
        base = resolve_base(start.model)
    _check_dev(start, dataset, base)
    return inputs | {"model": model_fingerprint(base)}


def _check_dev(start: TrainRecipe, dataset: Path, base: Path) -> None:
    """Raises InputError where a training would measure no dev loss: what it will run says so before any of it does."""
    pairs = start.preference.pairs
    if start.objective == "pretrain":
        remedy = "An index of two documents or more keeps one back"
    elif is_rows_file(dataset):
        remedy = "A file of two rows or more keeps one back"
    elif pairs is not None:
        remedy = 'Mark some of its rows with "split": "dev"'
    else:
        remedy = "Generate it with a share for dev: split.dev = 0.1"
        if not (dataset / "dev.jsonl").exists():
            raise _no_dev(dataset, "has no dev split", remedy)
    if not _dev_of(start, dataset, base):
        raise _no_dev(pairs or dataset, "holds nothing for dev that a training could measure a loss on", remedy)


def _dev_of(start: TrainRecipe, dataset: Path, base: Path) -> Sequence[Any]:
    """What a training would measure its dev loss on."""
    if start.objective in ("encoder", "reranker"):
        return make_tuning_plan(start, dataset).dev
    if start.objective in PREFERENCE_OBJECTIVES:
        return make_preference_plan(start, dataset, base).dev
    return make_plan(start, dataset, base).dev


def _no_dev(where: Path, what: str, remedy: str) -> InputError:
    return InputError(f"{where} {what}, and what is searched is the lowest dev loss", remedy)


def best_of(trials: Sequence[Tried]) -> Tried | None:
    """The complete trial with the lowest dev loss, the first of equals."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return min(complete, key=lambda trial: (trial.dev_loss, trial.number), default=None)


def _run_trials(study: Study, recipe: TuneRecipe, dataset: Path, folder: Path, on_trial: OnTrial) -> None:
    folder.mkdir(exist_ok=True)
    while (trial := next_trial(study, recipe)) is not None:
        best = best_of(all_tried(study, recipe))
        kept = [str(best.number)] if best and recipe.keep == "best" else []
        _clear(folder, {*kept, str(trial.number), f"{trial.number}.partial"})
        out = folder / str(trial.number)
        if _attempt(trial, out) > _ATTEMPTS:
            _give_up(trial)
        else:
            _run_trial(trial, recipe, dataset, out)
        on_trial(tried(study.get_trials(deepcopy=False)[trial.number], recipe))


def _attempt(trial: Trial, out: Path) -> int:
    """How many times, this one among them, the trial has begun where it begins now: from the same checkpoint. One that
    gets further each time is not what ends its process."""
    from raft.training.trainer import last_checkpoint

    checkpoint = last_checkpoint(partial_folder(out) / "checkpoints")
    place = MANIFEST if (out / MANIFEST).exists() else checkpoint.name if checkpoint else ""
    before = trial.user_attrs.get(BEGUN, {})
    count = before["count"] + 1 if before.get("place") == place else 1
    trial.set_user_attr(BEGUN, {"place": place, "count": count})
    return int(count)


def _forget_attempt(trial: Trial) -> None:
    """An error that was said, and CTRL-C, are no reason to give a trial up."""
    with contextlib.suppress(OSError):  # a full disk, it may be
        trial.set_user_attr(BEGUN, {})


def _give_up(trial: Trial) -> None:
    from optuna.trial import TrialState

    reason = (
        f"its process was ended {_ATTEMPTS} times at the same place without a word, as the system does when memory "
        "runs out"
    )
    trial.set_user_attr(OUTCOME, {"steps": 0, "seconds": 0.0, "reason": reason})
    trial.study.tell(trial, state=TrialState.FAIL)


def _run_trial(trial: Trial, recipe: TuneRecipe, dataset: Path, out: Path) -> None:
    """Train with the trial's settings and tell the study how it ended. An interruption leaves the trial unfinished."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    watch = _Watch(trial, recipe)
    began = time.monotonic()
    loss, reason = None, ""
    try:
        state = TrialState.COMPLETE
        loss = _train(_recipe_of(trial, recipe), dataset, out, watch)
    except TrialPruned:
        state = TrialState.PRUNED
    except (ModelError, RecipeError) as error:  # values that fit alone may not fit together
        state, reason = TrialState.FAIL, str(error)
    except BaseException:
        _forget_attempt(trial)
        raise
    _free_memory()
    outcome = {"steps": watch.step, "seconds": round(time.monotonic() - began, 1), "reason": reason}
    if state == TrialState.COMPLETE:
        outcome |= {key: parse_manifest(out).facts[key] for key in ("steps", "seconds")}  # whole already, it may be
    trial.set_user_attr(OUTCOME, outcome)
    trial.study.tell(trial, loss, state)


def _recipe_of(trial: Trial, recipe: TuneRecipe) -> TrainRecipe:
    """The trial's, without the probe, which decides nothing between trials. Raises ModelError when values that fit
    alone do not fit together."""
    try:
        chosen = with_settings(recipe.train, settings_of_trial(trial, recipe))
    except ValidationError as error:
        raise ModelError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    return chosen.model_copy(update={"watch": chosen.watch.model_copy(update={"probe": False})})


def _train(recipe: TrainRecipe, dataset: Path, out: Path, watch: _Watch) -> float:
    """The best dev loss of the training, which goes on where a stop left it. Raises ModelError when there is none."""
    if (out / MANIFEST).exists():  # stopped after the training, before the study was told
        for leftover in ("checkpoints", RESUME):
            remove(out / leftover)
    else:
        run_objective(recipe, dataset, out, resume=True, on_step=watch)
    facts = parse_manifest(out).facts
    if facts["best_dev_loss"] is None:
        raise ModelError(f"no dev loss was measured in {facts['steps']} steps", "Lower watch.every_steps")
    return float(facts["best_dev_loss"])


class _Watch:
    """Follows a training: reports its dev losses to the study, and stops one that is worse than the median.

    Trials are compared where they have read equally much, which is after equally many steps unless
    ``optim.groups_per_step`` or ``preference.batch_size`` is searched. A resumed training repeats the losses after its
    last checkpoint: those that the study knows did not stop it the first time, except that the last may have been
    reported and not judged.
    """

    def __init__(self, trial: Trial, recipe: TuneRecipe) -> None:
        self.step = 0
        self._trial = trial
        self._last = max(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values, default=-1)
        self._warmup = math.inf if trial.number == 0 else recipe.pruner.warmup_steps
        settings = settings_of_trial(trial, recipe)
        sizes = settings_of(recipe.train, dict.fromkeys(("optim.groups_per_step", "preference.batch_size"))) | settings
        self._per_step = sizes["optim.groups_per_step"] * sizes["preference.batch_size"]

    def __call__(self, step: int, steps: int, row: Mapping[str, Any]) -> None:
        from optuna import TrialPruned

        self.step = step
        if "eval_loss" not in row:
            return
        loss, read = row["eval_loss"], step * self._per_step
        if not math.isfinite(loss):
            raise ModelError(f"the dev loss is {loss} at step {step}", "Lower optim.lr")
        if read < self._last:
            return
        if read > self._last:
            self._trial.report(loss, read)
        if step > self._warmup and self._trial.should_prune():
            raise TrialPruned


def _free_memory() -> None:
    """Give back what the last training held: its parts refer to each other in circles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _clear(folder: Path, kept: Collection[str]) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            remove(path)


def _put_back(folder: Path, trials: Sequence[Tried]) -> None:
    """Undo the last renaming of a search that was stopped behind it: with more trials another may become the best."""
    best = best_of(trials)
    if best is not None and (folder / BEST_MODEL).exists():
        (folder / BEST_MODEL).rename(folder / "trials" / str(best.number))


def _summary(recipe: TuneRecipe, out: Path, trials: Sequence[Tried], seconds: float) -> SearchSummary:
    best = best_of(trials)
    if best is None or best.dev_loss is None:
        raise ModelError(
            f"none of {len(trials)} trials gave a dev loss; trial 0: {trials[0].reason}",
            f"Delete {out}.partial and start from other settings",
        )
    states = [trial.state for trial in trials]
    return SearchSummary(
        out, len(trials), states.count("complete"), states.count("pruned"), states.count("failed"),
        trials[0].dev_loss, best.dev_loss, best.number, best.settings,
        out / BEST_MODEL if recipe.keep == "best" else None, round(seconds, 1),
    )  # fmt: skip


def _finish(
    draft: Draft, study: Study, recipe: TuneRecipe, dataset: Path, trials: Sequence[Tried], summary: SearchSummary
) -> None:
    winner = with_settings(recipe.train, summary.settings).model_copy(update={"dataset": dataset, "out": None})
    write_report(draft.folder, recipe, winner, trials, summary.best_trial, importances(study, recipe))
    if recipe.keep == "best":
        (draft.folder / "trials" / str(summary.best_trial)).rename(draft.folder / BEST_MODEL)
    draft.scratch += [draft.folder / STUDY, draft.folder / "trials"]
    draft.facts.update({key: value for key, value in asdict(summary).items() if key not in ("out", "model")})
    draft.facts.update(base_model=recipe.train.model, objective=recipe.train.objective, sampler=recipe.sampler)
