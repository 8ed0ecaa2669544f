"""Reading a recipe: the validated settings of one command, from TOML and from ``--set``.

    load_recipe(TrainRecipe, Path("configs/train/cpu.toml"), ["optim.lr=2e-4"], dataset=Path("runs/datasets/mine"))

Unknown keys are refused with the nearest known name, and every mistake is reported at once. Why TOML and not YAML: YAML
readers take ``2e-5`` for a string and ``NO`` for false.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from raft.errors import InputError, RecipeError, UsageError


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


R = TypeVar("R", bound=Recipe)


def load_recipe(kind: type[R], path: Path | None = None, settings: Sequence[str] = (), **given: Any) -> R:
    """The recipe of ``path`` (defaults when None), overridden by ``settings`` ("optim.lr=2e-4") and then by
    the ``given`` values that are not None.

    Raises InputError when the file cannot be read, UsageError for a malformed setting, RecipeError with all
    mistakes at once.
    """
    data = _read_toml(path) if path is not None else {}
    for setting in settings:
        _apply_setting(data, setting)
    for key, value in given.items():
        if value is not None:
            _put(data, key.split("__"), value)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        mistakes = mistakes_of(kind, error)
        plural = "s" if len(mistakes) > 1 else ""
        where = path or "the settings"
        raise RecipeError(f"{where}: {len(mistakes)} mistake{plural}: {'; '.join(mistakes)}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"recipe {path} cannot be read ({error.strerror})", "Shipped recipes lie in configs/VERB/NAME.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid TOML: {error}") from None


def _apply_setting(data: dict[str, Any], setting: str) -> None:
    key, equals, raw = setting.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {setting!r} is not KEY=VALUE", "Write for example --set optim.lr=2e-4")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw  # a bare word is a string: --set method=qlora
    _put(data, key.strip().split("."), value)


def _put(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        below = data.setdefault(key, {})
        if not isinstance(below, dict):
            below = data[key] = {}
        data = below
    data[keys[-1]] = value


def mistakes_of(kind: type[Recipe], error: ValidationError) -> list[str]:
    """What is wrong with the settings of a recipe, a sentence each."""
    return [_mistake(kind, dict(item)) for item in error.errors()]


def _mistake(kind: type[Recipe], item: dict[str, Any]) -> str:
    path = [str(part) for part in item["loc"]]
    name = ".".join(path) or "recipe"
    if item["type"] == "extra_forbidden":
        known = _known_keys(kind, [part for part in path[:-1] if not part.isdigit()])  # a number is a place in a list
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {name!r} ({hint})"
    if not path:
        return str(item["msg"])
    if item["type"] == "missing":  # what was given instead is a whole table, which may hold an address with a key
        return f"{name}: {item['msg']}"
    return f"{name} = {item['input']!r}: {item['msg']}"


def _known_keys(kind: type[Recipe], path: Sequence[str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(part)
        nested = (
            [t for t in _types_of(field.annotation) if isinstance(t, type) and issubclass(t, Recipe)] if field else []
        )
        if not nested:
            return []
        kind = nested[0]
    return list(kind.model_fields)


def _types_of(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation, *inner]


def require(value: Any, name: str, flag: str) -> Any:
    """The value, or a UsageError that names the flag and the recipe key that set it."""
    if value is None:
        raise UsageError(f"{name} is not set", f"Give {flag}, or {name} in the recipe")
    return value
