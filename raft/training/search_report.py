"""The files of a finished search: README.md, trials.jsonl, best.toml and pictures.

trials.jsonl   {"number": 3, "settings": {"optim.lr": 0.002}, "state": "complete", "dev_loss": 0.41, ...}
best.toml      the whole recipe of the best trial, ready for raft train
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

from raft.config_train import TrainRecipe
from raft.config_tune import Space, TuneRecipe
from raft.rows import write_rows
from raft.training.search_study import Tried

_COLUMNS = 3  # of pictures side by side


def write_report(
    folder: Path,
    recipe: TuneRecipe,
    winner: TrainRecipe,
    trials: Sequence[Tried],
    best: int,
    importances: Mapping[str, float],
) -> None:
    """Write what came out of a search into ``folder``. ``best`` is the number of the best trial, ``winner`` its recipe,
    ``importances`` the share of each setting (empty: not drawn)."""
    write_rows(folder / "trials.jsonl", map(asdict, trials))
    loss = trials[best].dev_loss
    title = f"# Trial {best} of raft tune, dev loss {loss:.4f}\n"
    (folder / "best.toml").write_text(title + to_toml(winner), encoding="utf-8")
    plot_history(trials, folder / "history.svg")
    plot_settings(trials, recipe.search, folder / "settings.svg")
    if importances:
        plot_importances(importances, folder / "importance.svg")
    (folder / "README.md").write_text(report_text(recipe, trials, best, importances), encoding="utf-8")


def to_toml(recipe: TrainRecipe) -> str:
    """The whole recipe as TOML; settings that are unset are left out."""
    return "\n".join(_table(recipe.model_dump(mode="json"))) + "\n"


def _table(values: Mapping[str, Any], name: str = "") -> list[str]:
    """A table's own values, and then, as TOML wants it, the tables in it."""
    lines, tables = [], list[str]()
    for key, value in values.items():
        if isinstance(value, dict):
            inner = f"{name}.{key}" if name else key
            tables += ["", f"[{inner}]", *_table(value, inner)]
        elif value is not None:
            lines.append(f"{key} = {_toml_value(value)}")
    return lines + tables


def _toml_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def report_text(recipe: TuneRecipe, trials: Sequence[Tried], best: int, importances: Mapping[str, float]) -> str:
    """README.md: the gain, every trial with the best first, and how to go on."""
    names = list(recipe.search)
    head = ["trial", *names, "dev loss", "state", "steps", "seconds"]
    lines = ["# Search for settings of raft train", "", gain_line(trials, best), ""]
    lines += _CAVEAT
    lines += ["", _row(head), _row(["---"] * len(head))]
    for trial in sorted(trials, key=_rank):
        values = [_cell(trial.settings[name]) for name in names]
        state = f"{trial.state}: {trial.reason}" if trial.reason else trial.state
        lines.append(_row([trial.number, *values, loss_text(trial.dev_loss), state, trial.steps, trial.seconds]))
    lines += ["", "A pruned trial shows its best dev loss until it was stopped.", ""]
    lines += ["![Dev loss by trial](history.svg)", "", "![Dev loss by setting](settings.svg)"]
    if importances:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in importances.items())
        lines += ["", f"What told the best quarter of the trials from all: {shares}.", "", "![Shares](importance.svg)"]
    return "\n".join([*lines, "", "Go on with `raft train FOLDER/best.toml --out ADAPTER`.", ""])


_CAVEAT = [
    "It is the lowest of several losses over the same dev examples, and so a little lower than it would be on others:",
    "measure the tuned model on test questions, with raft evaluate.",
]


def gain_line(trials: Sequence[Tried], best: int) -> str:
    """One line: the best dev loss, where it was found, and that of the starting recipe."""
    found, start = trials[best].dev_loss, trials[0].dev_loss
    if best == 0:
        return f"Best dev loss {loss_text(found)}: that of the starting recipe."
    if found is None or start is None:
        return f"Best dev loss {loss_text(found)} in trial {best}; the starting recipe has none: {trials[0].reason}"
    change = f" ({(found - start) / start:+.1%})" if start > 0 else ""
    return f"Best dev loss {loss_text(found)} in trial {best}; {loss_text(start)} with the starting recipe{change}."


def loss_text(loss: float | None) -> str:
    """A loss with four decimals, a dash for none."""
    return "–" if loss is None else f"{loss:.4f}"


def _rank(trial: Tried) -> tuple[int, float, int]:
    order = ("complete", "pruned", "failed")
    return order.index(trial.state), math.inf if trial.dev_loss is None else trial.dev_loss, trial.number


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _picture(path: Path, draw: Callable[[Any], None], width: float = 7, height: float = 4) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    draw(figure)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def plot_history(trials: Sequence[Tried], path: Path) -> None:
    """Write the dev loss of each trial, and the best until then, as SVG."""
    losses = {t.number: t.dev_loss for t in trials if t.state == "complete" and t.dev_loss is not None}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _scatter(axes, trials, [trial.number for trial in trials])
        axes.step(list(losses), list(accumulate(losses.values(), min)), where="post", label="best so far")
        axes.set(xlabel="trial (0: the starting recipe)", ylabel=_LOSS)
        axes.legend()

    _picture(path, draw)


def plot_settings(trials: Sequence[Tried], spaces: Mapping[str, Space], path: Path) -> None:
    """Write dev loss over each searched setting, one picture a setting, as one SVG."""
    columns = min(_COLUMNS, len(spaces))
    rows = math.ceil(len(spaces) / columns)

    def draw(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for at, (name, space) in enumerate(spaces.items()):
            axes = grid[at // columns][at % columns]
            shown = [trial for trial in trials if trial.settings[name] is not None]
            values = [trial.settings[name] for trial in shown]
            if space.choices is not None:  # side by side in their order, the starting recipe's last if it is another
                places = list(dict.fromkeys(map(_cell, (*space.choices, *values))))
                axes.set_xticks(range(len(places)), places)
                values = [places.index(_cell(value)) for value in values]
            _scatter(axes, shown, values)
            axes.set(xlabel=name, ylabel=_LOSS if at % columns == 0 else "")
            if space.log:
                axes.set_xscale("log")
        for axes in grid.flat[len(spaces) :]:
            axes.set_axis_off()

    _picture(path, draw, 4 * columns, 3 * rows)


def plot_importances(importances: Mapping[str, float], path: Path) -> None:
    """Write the share of each setting as bars, as SVG."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.barh(list(importances)[::-1], list(importances.values())[::-1])
        axes.set(xlabel="share in what told the best quarter of the trials from all")

    _picture(path, draw, 7, 1 + 0.4 * len(importances))


_LOSS = "best dev loss (nats)"


def _scatter(axes: Any, trials: Sequence[Tried], x: Sequence[Any]) -> None:
    for state, marker in (("complete", "o"), ("pruned", "x")):
        points = [(at, t.dev_loss) for at, t in zip(x, trials, strict=True) if t.state == state]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, label=state, s=24)
    axes.grid(alpha=0.3)
