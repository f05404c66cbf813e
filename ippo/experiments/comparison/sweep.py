"""One comparison for each value of an option, side by side: ``sweep.md`` and its picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.figure
import numpy as np
from rich.table import Table

from ippo.experiments.comparison.page import SFT, Comparison, table
from ippo.experiments.comparison.statistics import FIGURES, QUALITY, shown, signed
from ippo.files import whole

_COSTS = ("update tokens", "kept")
_SHOWN = ("EM", "greedy EM", "unfaithful")


def folder(option: str, value: str) -> str:
    """Where the comparison at one value lies, below the sweep's directory.

    Example:
        >>> folder("task_path", "data/ecqa")
        'task_path=data_ecqa'
    """
    return f"{option}={value}".replace("/", "_")


def write(option: str, comparisons: Mapping[str, Comparison], command: str, out: Path) -> Path:
    """Write page and picture; returns the page's path.

    Args:
        option: whose values they are, as ``embedded.verifier_error``.
        comparisons: by value, in the order of the columns. They have the same arms, seeds and base.
        command: that made them.
        out: directory.
    """
    with whole(out / "sweep.md") as unfinished:
        unfinished.write_text(report(option, comparisons, command))
    plot(option, comparisons, out / "sweep.png")
    return out / "sweep.md"


def report(option: str, comparisons: Mapping[str, Comparison], command: str) -> str:
    """The page as Markdown: a table for each figure, an arm a row, a value a column."""
    first = next(iter(comparisons.values()))
    lines = [
        f"# Along {option}",
        "",
        f"`{command}` · seeds {', '.join(map(str, first.seeds))} · {first.hardware}.",
        "",
        f"Means over {len(first.seeds)} seeds; in brackets the difference from {first.arms[first.base].label}, paired "
        "by seed, with its bootstrap 95 % interval. Whole reports: "
        f"{', '.join(f'[{value}]({folder(option, value)}/report.md)' for value in comparisons)}.",
        "",
    ]
    for name in (*QUALITY, *_COSTS):
        arms = (SFT, *first.runs) if name in QUALITY else first.runs
        rows = [[first.label(arm), *cells(arm, name, comparisons)] for arm in arms]
        lines += [f"## {name}", "", *table(["arm", *comparisons], rows), ""]
    return "\n".join([*lines, f"![Differences along {option}](sweep.png)", ""])


def cells(arm: str, name: str, comparisons: Mapping[str, Comparison]) -> list[str]:
    """An arm's row of one figure: at each value its mean, and how far it is from the base."""
    row = []
    for comparison in comparisons.values():
        mean = float(np.mean(comparison.judged(arm, FIGURES[name])))
        cell = shown(mean)
        if name in QUALITY and arm != comparison.base:
            cell += f" ({signed(*comparison.differences(arm, FIGURES[name]))})"
        row.append(cell)
    return row


def screen(option: str, comparisons: Mapping[str, Comparison]) -> Table:
    """What fits on a screen: EM of each arm at each value, and how far it is from the base."""
    first = next(iter(comparisons.values()))
    grid = Table(title=f"EM along {option}, in brackets minus {first.arms[first.base].label}, 95 %")
    for head in ("", *comparisons):
        grid.add_column(head, justify="right" if head else "left")
    for arm in first.runs:
        row = (cell.replace(" (", "\n").replace(")", "") for cell in cells(arm, "EM", comparisons))
        grid.add_row(first.arms[arm].label, *row)
    return grid


def plot(option: str, comparisons: Mapping[str, Comparison], path: Path) -> None:
    """Differences from the base with their intervals, at each value, in a panel for each figure.

    Values stand side by side in the order they were given, evenly: an option need not be a number.
    """
    first = next(iter(comparisons.values()))
    others = [arm for arm in first.runs if arm != first.base]
    figure = matplotlib.figure.Figure(figsize=(12, 4.5), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(_SHOWN)), _SHOWN, strict=True):
        axis.axhline(0.0, color="black", linewidth=1.0)
        for number, arm in enumerate(others):
            found = np.array([comparison.differences(arm, FIGURES[name]) for comparison in comparisons.values()])
            mean, low, high = found.T
            places = np.arange(len(found)) + 0.06 * (number - (len(others) - 1) / 2)  # apart, so that none is hidden
            reach = np.nan_to_num([mean - low, high - mean])  # one seed has no interval
            axis.errorbar(places, mean, reach, marker="o", capsize=3, label=first.arms[arm].label)
        axis.set_xticks(range(len(comparisons)), list(comparisons))
        axis.set(title=f"{name}, minus {first.arms[first.base].label}", xlabel=option)
        axis.grid(alpha=0.3)
    if others:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)
