"""What raft tune asks of Optuna: a study on disk, the values of the next trial, and which settings mattered.

The study is a file of JSON lines. A trial is written there with all its values in one line, before its training begins,
so that a stop at any moment leaves either no trial or one that can be run again with the same values. The values of
trial N are drawn by a sampler made for N alone, seeded with the recipe's seed and N, from the outcomes of the trials
before it: a resumed search proposes what an uninterrupted one would have.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft.config_tune import Space, TuneRecipe, read_settings, settings_of
from raft.errors import ModelError
from raft.rows import Journal

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

OUTCOME = "outcome"  # of a trial in the study: steps, seconds and, where it failed, the reason
BEGUN = "begun"  # of a trial in the study: the checkpoint that it began from last, and how many times it has
_DRAWS = 100  # for values that no trial has had; then there are hardly any left
_DRAWS_OF_TPE = 10  # it likes to propose its best point again; the others are drawn at random
_ENOUGH_FOR_IMPORTANCE = 20  # PED-ANOVA compares the best quarter with all: five trials with twenty


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial. ``state`` is complete, pruned or failed; ``dev_loss`` the best one that was measured (None of a failed
    trial), ``steps`` the optimizer steps taken, ``seconds`` those of the run that finished it, ``reason`` why it
    failed."""

    number: int
    settings: dict[str, Any]
    state: str
    dev_loss: float | None
    steps: int
    seconds: float
    reason: str = ""


def require_optuna() -> None:
    """Raises ModelError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ModelError("raft tune needs Optuna, which is not installed", "pip install 'raft-tune[tune]'")


def open_study(path: Path, recipe: TuneRecipe) -> Study:
    """The study in the file ``path``, made where it is missing. One process at a time may hold it."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    Journal(path).close()  # drops a last line that was cut short; Optuna would write the next one behind it
    for lock in path.parent.glob(path.name + ".lock*"):
        lock.unlink()  # of a process that was killed; Optuna would wait half a minute for it
    pruner: Any = optuna.pruners.NopPruner()
    if recipe.pruner.on:
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=recipe.pruner.startup_trials, n_min_trials=recipe.pruner.startup_trials
        )
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))), study_name="tuning", direction="minimize",
        sampler=optuna.samplers.RandomSampler(seed=recipe.seed), pruner=pruner, load_if_exists=True,
    )  # fmt: skip


def next_trial(study: Study, recipe: TuneRecipe) -> Trial | None:
    """The trial that a stop left unfinished, or a new one; None when there are enough, or no values are left."""
    from optuna.trial import Trial, TrialState

    trials = study.get_trials(deepcopy=False)
    if not trials or trials[-1].state.is_finished():
        if len(trials) >= recipe.trials:
            return None
        settings = _propose(study, recipe, len(trials))
        if settings is None:
            return None
        study.add_trial(_as_trial(settings, recipe, TrialState.RUNNING))
        trials = study.get_trials(deepcopy=False)
    return Trial(study, trials[-1]._trial_id)


def tried(frozen: FrozenTrial, recipe: TuneRecipe) -> Tried:
    """A finished trial of the study as a row."""
    from optuna.trial import TrialState

    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    state = names.get(frozen.state, "failed")
    loss = frozen.value if state == "complete" else None
    if state == "pruned":
        loss = min(frozen.intermediate_values.values())
    outcome = frozen.user_attrs[OUTCOME]
    return Tried(frozen.number, settings_of_trial(frozen, recipe), state, loss, **outcome)


def all_tried(study: Study, recipe: TuneRecipe) -> list[Tried]:
    """Every finished trial, by number."""
    return [tried(trial, recipe) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def settings_of_trial(trial: Trial | FrozenTrial, recipe: TuneRecipe) -> dict[str, Any]:
    """The values of the searched settings in a trial; trial 0 has those of the starting recipe, in the space or not."""
    if trial.number == 0:
        return settings_of(recipe.train, recipe.search)
    given = trial.params
    return {name: _choice(space, given[name]) for name, space in recipe.search.items()}


def importances(study: Study, recipe: TuneRecipe) -> dict[str, float]:
    """Share of each setting in what told the best quarter of the trials from all (PED-ANOVA, Watanabe et al. 2023,
    arXiv 2304.10255), the largest first; empty with fewer than 20 complete trials or a single setting."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    inner = _in_memory(study, recipe)
    complete = inner.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < _ENOUGH_FOR_IMPORTANCE or len(recipe.search) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = get_param_importances(inner, evaluator=PedAnovaImportanceEvaluator(target_quantile=0.25))
    return {name: round(float(share), 4) for name, share in shares.items()}


def _propose(study: Study, recipe: TuneRecipe, number: int) -> dict[str, Any] | None:
    """Values that no trial has had: a training with the same ones would give the same loss."""
    if number == 0:
        return settings_of(recipe.train, recipe.search)
    had = (settings_of_trial(trial, recipe) for trial in study.get_trials(deepcopy=False))
    before = [read_settings(recipe.train, settings) for settings in had]
    drawn = _grid(recipe) if recipe.sampler == "grid" else _draws(study, recipe, number)
    return next((settings for settings in drawn if read_settings(recipe.train, settings) not in before), None)


def _draws(study: Study, recipe: TuneRecipe, number: int) -> Iterator[dict[str, Any]]:
    distributions = _distributions(recipe)
    inner = _in_memory(study, recipe)
    for attempt in range(_DRAWS):
        inner.sampler = _sampler(recipe, number, attempt)
        params = inner.ask(distributions).params
        yield {name: _choice(space, params[name]) for name, space in recipe.search.items()}


def _sampler(recipe: TuneRecipe, number: int, attempt: int) -> BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    seed = random.Random(f"{recipe.seed}:{number}:{attempt}").getrandbits(32)
    if recipe.sampler == "random" or attempt >= _DRAWS_OF_TPE:
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=recipe.random_trials)


def _in_memory(study: Study, recipe: TuneRecipe) -> Study:
    """A copy of the finished trials that have a value of the space for every setting: TPE models settings jointly, and
    one trial outside (the starting recipe's) would keep it from that."""
    import optuna

    inner = optuna.create_study(direction="minimize")
    trials = study.get_trials(deepcopy=False)
    inner.add_trials([trial for trial in trials if trial.state.is_finished() and trial.params])
    return inner


def _grid(recipe: TuneRecipe) -> Iterator[dict[str, Any]]:
    """Every combination once, in an order drawn with the seed."""
    axes = [(name, space.values() or ()) for name, space in recipe.search.items()]
    total = math.prod(len(values) for _, values in axes)
    draw = random.Random(f"{recipe.seed}:grid")
    seen: set[int] = set()
    while len(seen) < total:
        point = rest = draw.randrange(total)
        if point in seen:
            continue
        seen.add(point)
        settings = {}
        for name, values in axes:
            rest, at = divmod(rest, len(values))
            settings[name] = values[at]
        yield settings


def _as_trial(settings: Mapping[str, Any], recipe: TuneRecipe, state: Any) -> FrozenTrial:
    """The trial with its values where all of them lie in the space, otherwise (the starting recipe) without any."""
    from optuna.trial import create_trial

    params = {name: _label(value) for name, value in settings.items()}
    try:
        return create_trial(state=state, params=params, distributions=_distributions(recipe))
    except ValueError:
        return create_trial(state=state)


def _distributions(recipe: TuneRecipe) -> dict[str, BaseDistribution]:
    return {name: _distribution(space) for name, space in recipe.search.items()}


def _distribution(space: Space) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.choices is not None:
        return CategoricalDistribution([_label(choice) for choice in space.choices])
    low, high = space.low, space.high
    if isinstance(low, int) and isinstance(high, int):
        step = int(space.step or 1)
        return IntDistribution(low, low + (high - low) // step * step, log=space.log, step=step)
    assert low is not None
    assert high is not None
    values = space.values()
    return FloatDistribution(low, values[-1] if values else high, log=space.log, step=space.step)


def _label(choice: Any) -> Any:
    """A choice as Optuna takes it: lists (names of layers) are written as JSON."""
    return json.dumps(choice) if isinstance(choice, tuple | list) else choice


def _choice(space: Space, value: Any) -> Any:
    """The choice that Optuna's value stands for; the value itself in a range."""
    if space.choices is None:
        return value
    return next(choice for choice in space.choices if _label(choice) == value)
