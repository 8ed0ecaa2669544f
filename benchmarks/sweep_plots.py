"""The curves of raft evaluate sweep for the documentation: token F1 over the number of distractors, a panel a set.

    python benchmarks/sweep_plots.py runs/sweeps/nq runs/sweeps/pubmedqa --titles "Natural Questions" PubMedQA

Reads each folder's sweep.json; writes docs/images/sweep_distractors.svg, with 95 % intervals as shades, and keeps the
folder's tables as benchmarks/results/sweep_NAME.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from measure import RESULTS

COLOURS = {"rag": "#8a5a00", "raft": "#1f5f6b"}


def draw(axes: Any, sweep: dict[str, Any], titles: dict[str, dict[str, str]], title: str) -> None:
    for system, named in titles.items():
        points = [point for point in sweep["points"] if point["system"] == system]
        places = [int(point["point"]) for point in points]
        figures = [point["figures"]["f1"] for point in points]
        axes.plot(places, [each["mean"] for each in figures], marker="o", color=COLOURS[system], label=named["title"])
        low, high = ([each[end] for each in figures] for end in ("low", "high"))
        axes.fill_between(places, low, high, color=COLOURS[system], alpha=0.15, linewidth=0)
    axes.set(title=f"{title} ({sweep['n']} questions)", xlabel="distractors beside the oracle", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "raft", "font.size": 10}
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sweeps", nargs="+", type=Path)
    parser.add_argument("--titles", nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=RESULTS.parent.parent / "docs/images/sweep_distractors.svg")
    given = parser.parse_args()
    figure, panels = pyplot.subplots(1, len(given.sweeps), figsize=(4.6 * len(given.sweeps), 3.2), squeeze=False)
    for axes, folder, title in zip(panels[0], given.sweeps, given.titles, strict=True):
        report = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        sweep = next(each for each in report["sweeps"] if each["name"] == "distractors")
        draw(axes, sweep, report["systems"], title)
        shutil.copyfile(folder / "sweep.md", RESULTS / f"sweep_{folder.name.replace('-', '_')}.md")
    panels[0][0].set_ylabel("token F1")
    panels[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(given.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
