"""The curves of raft evaluate sweep for the documentation: token F1 over the number of distractors, a panel a set.

    python benchmarks/sweep_plots.py runs/sweeps/nq runs/sweeps/pubmedqa --titles "Natural Questions" PubMedQA
    python benchmarks/sweep_plots.py runs/sweeps/nq-all runs/sweeps/pubmedqa-all --titles ... --kind conditions

Reads each folder's sweep.json; writes docs/images/sweep_distractors.svg, with 95 % intervals as shades, or
sweep_conditions.svg, where every point of the other sweeps is a line with its interval; keeps the folder's tables as
benchmarks/results/sweep_NAME.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from measure import RESULTS

COLOURS = {"rag": "#8a5a00", "raft": "#1f5f6b"}
KINDS = ("distractors", "conditions")
_IMAGES = RESULTS.parent.parent / "docs/images"


def draw_distractors(axes: Any, report: dict[str, Any], title: str) -> None:
    sweep = next(each for each in report["sweeps"] if each["name"] == "distractors")
    for system, named in report["systems"].items():
        points = [point for point in sweep["points"] if point["system"] == system]
        places = [int(point["point"]) for point in points]
        figures = [point["figures"]["f1"] for point in points]
        axes.plot(places, [each["mean"] for each in figures], marker="o", color=COLOURS[system], label=named["title"])
        low, high = ([each[end] for each in figures] for end in ("low", "high"))
        axes.fill_between(places, low, high, color=COLOURS[system], alpha=0.15, linewidth=0)
    axes.set(title=f"{title} ({sweep['n']} questions)", xlabel="distractors beside the oracle", ylabel="token F1")
    axes.set_ylim(0, None)


def draw_conditions(axes: Any, report: dict[str, Any], title: str) -> None:
    """A line for every point of every sweep, RAG's interval above RAFT's."""
    found = {(sweep["name"], each["point"], each["system"]): each["figures"]["f1"]
             for sweep in report["sweeps"] for each in sweep["points"] if "f1" in each["figures"]}  # fmt: skip
    rows = list(dict.fromkeys((sweep, point) for sweep, point, _ in found))
    for number, (system, named) in enumerate(report["systems"].items()):
        figures = [found[sweep, point, system] for sweep, point in rows]
        middle = [each["mean"] for each in figures]
        ends = [[each["mean"] - each["low"] for each in figures], [each["high"] - each["mean"] for each in figures]]
        places = [row + (number - 0.5) * 0.35 for row in range(len(rows))]
        axes.errorbar(middle, places, xerr=ends, fmt="o", markersize=4, color=COLOURS[system], label=named["title"])
    names = [sweep.replace("_", " ") for sweep, _ in rows]
    first = [number == 0 or names[number - 1] != name for number, name in enumerate(names)]
    axes.set_yticks(range(len(rows)), [f"{name if new else ''}   {point:>14}"
                                       for name, new, (_, point) in zip(names, first, rows, strict=True)])  # fmt: skip
    for row in range(1, len(rows)):
        if first[row]:
            axes.axhline(row - 0.5, color="#bbbbbb", linewidth=0.6)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="token F1", xlim=(0, None))


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "raft", "font.size": 10}
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sweeps", nargs="+", type=Path)
    parser.add_argument("--titles", nargs="+", required=True)
    parser.add_argument("--kind", choices=KINDS, default="distractors")
    given = parser.parse_args()
    kinds = {"distractors": (draw_distractors, 4.6, 3.2), "conditions": (draw_conditions, 5.4, 8.0)}
    draw, width, height = kinds[given.kind]
    figure, panels = pyplot.subplots(1, len(given.sweeps), figsize=(width * len(given.sweeps), height), squeeze=False)
    for axes, folder, title in zip(panels[0], given.sweeps, given.titles, strict=True):
        draw(axes, json.loads((folder / "sweep.json").read_text(encoding="utf-8")), title)
        axes.spines[["top", "right"]].set_visible(False)
        shutil.copyfile(folder / "sweep.md", RESULTS / f"sweep_{folder.name.replace('-', '_')}.md")
    panels[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(_IMAGES / f"sweep_{given.kind}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
