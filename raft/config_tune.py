"""The recipe of raft tune: which settings of raft train are searched, and how.

    [train]
    recipe = "configs/train/cpu.toml"
    optim.epochs = 1

    [search]
    "optim.lr" = { low = 1e-5, high = 1e-2, log = true }
    "lora.r" = { choices = [4, 8, 16] }

becomes a TuneRecipe whose ``train`` is the whole starting recipe and whose ``search`` maps each name to its Space.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from raft.config_train import TrainRecipe, merged, without
from raft.config_train_rules import idle_settings, of_other_methods
from raft.recipe import Recipe, load_recipe

Number = StrictInt | StrictFloat
Choice = StrictBool | StrictInt | StrictFloat | StrictStr | tuple[StrictStr, ...]

_OTHER_LOSS = {
    "objective": "each objective has a loss of its own",
    "model": "losses per token of different models do not compare: search for each model apart",
    "seed": "the best of several seeds is luck",
    "labels": "they decide which documents are read",
    "documents": "without them a dev question is another one",
    "stages": "a search is over one training",
    "max_tokens": "it decides which dev examples fit",
    "watch.every_steps": "of more dev losses the lowest is lower by luck",
    "watch.patience": "of more dev losses the lowest is lower by luck",
    "watch.dev_groups": "it decides which dev examples are read",
    "watch.samples": "it changes nothing that is learned",
    "watch.trackers": "they change nothing that is learned",
    "watch.probe": "trials are not probed",
    "retrieval.negatives": "it decides what a dev question is asked against",
    "retrieval.batch_size": "it decides what a dev question is asked against",
    "retrieval.temperature": "the dev loss is divided by it",
    "retrieval.tuned_share": "it is applied after the dev loss is measured",
    "dataset": "give --data",
    "out": "give --out",
}  # what may not be searched, because the dev losses of two trials would not compare, or be the same
_COMPARABLE = ("preference.batch_size", "preference.pairs_at_once")  # the others decide what a preference's loss is
_NO_DEV_LOSS = ("grpo", "rloo")  # what they generate earns rewards


class Space(Recipe):
    """Where the values of one setting come from: a range, both ends among it, or choices."""

    low: Number | None = Field(None, description="smallest value")
    high: Number | None = Field(None, description="largest value")
    step: Number | None = Field(None, description="distance of neighbouring values; unset: 1 or, of a float, none")
    log: bool = Field(False, description="every factor of ten is as likely as the others")
    choices: tuple[Choice, ...] | None = Field(None, description="values without an order")

    @model_validator(mode="after")
    def _can_be_searched(self) -> Space:
        wrong = self._wrong_choices() if self.choices is not None else self._wrong_range()
        if wrong:
            raise ValueError(wrong)
        return self

    def _wrong_choices(self) -> str:
        choices = [json.dumps(choice) for choice in self.choices or ()]
        if self.low is not None or self.high is not None or self.step is not None or self.log:
            return "has a range and choices; give one of them"
        if len(choices) < 2:
            return "has fewer than two choices; a value that is fixed belongs in [train]"
        return "has the same choice twice" if len(set(choices)) < len(choices) else ""

    def _wrong_range(self) -> str:
        low, high, step = self.low, self.high, self.step
        if low is None or high is None:
            return "is no range; give low and high, or choices"
        if not all(math.isfinite(number) for number in (low, high, step or 0)):
            return "has an end that is not a number"
        if low >= high:
            return f"is an empty range; low = {low} must be below high = {high}"
        if self.log and low <= 0:
            return f"has log = true, which needs low above 0; it is {low}"
        if self.log and step is not None:
            return "has log = true and a step; give one of them"
        return f"has step = {step}; it must be above 0 and at most {high - low}" if _bad_step(low, high, step) else ""

    def values(self) -> tuple[Any, ...] | None:
        """Every value, in order; None for a range of floats without a step, which has no end of them."""
        if self.choices is not None:
            return self.choices
        low, high, step = self.low, self.high, self.step
        assert low is not None
        assert high is not None
        if isinstance(low, int) and isinstance(high, int):
            return tuple(range(low, high + 1, int(step or 1)))
        if step is None:
            return None
        return tuple(round(low + step * at, 12) for at in range(int((high - low) / step + 1e-9) + 1))


def _bad_step(low: float, high: float, step: float | None) -> bool:
    return step is not None and not 0 < step <= high - low


class PrunerRecipe(Recipe):
    """Median pruning: a trial stops when its best dev loss so far is worse than the median, at the same point of the
    training, of those that went to their end."""

    on: bool = Field(True, description="stop trials that are worse than the median")
    startup_trials: int = Field(4, ge=1, description="trials that go to their end before any is stopped")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of each trial in which it is not stopped")


class TuneRecipe(Recipe):
    """raft tune: RAFT dataset -> the settings of raft train with the lowest dev loss."""

    dataset: Path | None = Field(None, description="dataset made by raft generate, with a dev split")
    out: Path | None = Field(None, description="folder of the new artefact")
    train: TrainRecipe = Field(
        TrainRecipe(), description="settings of raft train that every trial starts from; train.recipe names a file"
    )
    search: dict[str, Space] = Field({}, description="searched settings of raft train by their dotted names")
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="tpe: where the best trials lie; random: anywhere; grid: every combination, shuffled"
    )
    trials: int = Field(20, ge=2, description="trainings at most, that with the starting settings among them")
    random_trials: int = Field(6, ge=1, description="tpe: trials drawn at random before it follows the best")
    pruner: PrunerRecipe = PrunerRecipe()
    keep: Literal["best", "none"] = Field("best", description="trained models that stay: the best trial's, or none")
    seed: int = Field(0, description="every draw of the search follows from it; trainings have train.seed")

    @field_validator("train", mode="before")
    @classmethod
    def _start(cls, given: Any) -> Any:
        """The settings of the file that ``recipe`` names, overridden by the others of the table."""
        if isinstance(given, str | Path):
            raise PydanticCustomError(
                "a_table", "must be a table: write [train] and in it recipe = {path}", {"path": json.dumps(str(given))}
            )
        if not isinstance(given, Mapping) or "recipe" not in given:
            return given
        path = Path(str(given["recipe"]))
        read = load_recipe(TrainRecipe, path).model_dump(exclude_unset=True)
        return merged(read, {key: value for key, value in given.items() if key != "recipe"})

    @field_validator("search", mode="before")
    @classmethod
    def _spaces(cls, given: Any, info: ValidationInfo) -> Any:
        """A Space for each name, its numbers of the setting's own kind. Raises every mistake at once."""
        if not isinstance(given, Mapping):
            return given
        start = info.data.get("train") or TrainRecipe()
        mistakes: list[InitErrorDetails] = []
        spaces = {}
        lines = _lines(given)
        for name, line in lines.items():
            try:
                spaces[name] = _space(name, line, start, lines.get("method"))
            except ValidationError as error:
                mistakes += [_mistake(_words(item), (name, *item["loc"]), item["input"]) for item in error.errors()]
            except ValueError as error:
                mistakes += [_mistake(str(error), (name,), line)]
        if mistakes:
            raise ValidationError.from_exception_data("search", mistakes)
        return spaces

    @model_validator(mode="after")
    def _one_training_with_a_dev_loss(self) -> TuneRecipe:
        if self.train.stages:
            raise ValueError("train.stages are several trainings; search for each apart")
        if self.train.objective in _NO_DEV_LOSS:
            raise ValueError(f"objective {self.train.objective} has no dev loss that could be searched by")
        return self

    @model_validator(mode="after")
    def _something_to_search(self) -> TuneRecipe:
        if not self.search:
            raise ValueError('nothing is searched; write for example [search] "optim.lr" = { low = 1e-5, high = 1e-2 }')
        endless = [name for name, space in self.search.items() if space.values() is None]
        if self.sampler == "grid" and endless:
            raise ValueError(f"sampler grid needs a step or choices for {', '.join(endless)}")
        return self


def with_settings(start: TrainRecipe, settings: Mapping[str, Any]) -> TrainRecipe:
    """The recipe with other values, by dotted names. Settings that its method has no use for go back to their
    defaults: where the method is searched for, each trial has those of its own. Raises pydantic's ValidationError when
    a value does not fit."""
    data = start.model_dump()
    for name, value in settings.items():
        *tables, last = name.split(".")
        table = data
        for part in tables:
            table = table[part]
        table[last] = value
    return TrainRecipe.model_validate(without(data, of_other_methods(data["method"])))


def read_settings(start: TrainRecipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that a training with them reads."""
    idle = idle_settings(start.objective, settings.get("method", start.method))
    return {name: value for name, value in settings.items() if not _is_idle(name, idle)}


def _is_idle(name: str, idle: Collection[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in idle)


def settings_of(recipe: TrainRecipe, names: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the recipe has for these dotted names."""
    return {name: attrgetter(name)(recipe) for name in names}


def _setting_names(kind: type[Recipe] = TrainRecipe, before: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Recipe):
            yield from _setting_names(nested, f"{before}{name}.")
        else:
            yield before + name


def _lines(table: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> its line, whether it stands there as one quoted word or as tables in tables, which is how
    ``--set search.optim.lr.high=1e-3`` arrives: that changes a line of the file."""
    lines: dict[str, Any] = {}

    def add(table: Mapping[str, Any], before: str) -> None:
        for key, value in table.items():
            name = before + key
            if isinstance(value, Mapping) and value and not Space.model_fields.keys() & value.keys():
                add(value, name + ".")
            elif isinstance(value, Mapping) and isinstance(lines.get(name), Mapping):
                lines[name] = {**lines[name], **value}
            else:
                lines[name] = value

    add({key: value for key, value in table.items() if "." in key}, "")
    add({key: value for key, value in table.items() if "." not in key}, "")
    return lines


def _reader(start: TrainRecipe, name: str, methods: Any) -> TrainRecipe:
    """The starting recipe; where its method does not read the setting, by the first of the methods searched for (their
    line) that does. Raises ValueError where none of them reads it."""
    choices = methods.choices if isinstance(methods, Space) else methods.get("choices") if methods else ()
    for method in (start.method, *(choices or ())):
        if not _is_idle(name, idle_settings(start.objective, method)):
            with contextlib.suppress(ValidationError):  # the line of the method says what is wrong with it
                return start if method == start.method else with_settings(start, {"method": method})
    raise ValueError(f"cannot be searched: objective {start.objective} by method {start.method} has no use for it")


def _space(name: str, line: Any, start: TrainRecipe, methods: Any = None) -> Space:
    """The line as a Space. Raises ValueError, in words, for a name or a value that raft train does not have."""
    known = list(_setting_names())
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"is no setting of raft train ({hint})")
    if name.startswith("preference.") and name not in _COMPARABLE:
        raise ValueError("cannot be searched: it decides what the dev loss is")
    if name in _OTHER_LOSS:
        raise ValueError(f"cannot be searched: {_OTHER_LOSS[name]}")
    start = _reader(start, name, methods)
    space = line if isinstance(line, Space) else Space.model_validate(line)
    if space.choices is not None:
        for choice in space.choices:
            _value_in(start, name, choice)
        return space
    low, high = (_value_in(start, name, end) for end in (space.low, space.high))
    kind = type(low)
    if kind not in (int, float):
        raise ValueError(f"is {low!r}, not a number: give choices")
    if kind is int and space.step is not None and space.step != int(space.step):
        raise ValueError(f"takes whole numbers; step = {space.step} must be one too")
    step = None if space.step is None else kind(space.step)
    return Space(low=low, high=high, step=step, log=space.log)


def _value_in(start: TrainRecipe, name: str, value: Any) -> Any:
    """The value as the recipe holds it. Raises ValueError when the recipe refuses it."""
    try:
        return attrgetter(name)(with_settings(start, {name: value}))
    except ValidationError as error:
        raise ValueError(f"cannot be {value!r}: {_words(error.errors()[0])}") from None


def _words(item: Mapping[str, Any]) -> str:
    return str(item["msg"]).removeprefix("Value error, ")


def _mistake(what: str, where: tuple[str | int, ...], given: Any) -> InitErrorDetails:
    kind = PydanticCustomError("search", "{what}", {"what": what})
    return InitErrorDetails(type=kind, loc=where, input=given)
