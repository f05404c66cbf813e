"""The page of a diagnosis, and its picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ippo.experiments.comparison.page import table
from ippo.experiments.comparison.statistics import interval
from ippo.experiments.diagnosis import blame, side_by_side, stopping
from ippo.experiments.diagnosis.contrasts import CLASSES, CONTRASTS, kept_share
from ippo.experiments.diagnosis.records import Run

PICTURE = "![AUC over iterations](auc.png)"
_MINIMA, _PATIENCES = (0.1, 0.2, 0.3, 0.4, 0.5), (5, 10, 20)


def report(runs: Sequence[Run], command: str) -> str:
    """All sections as Markdown."""
    lines = [
        "# What the scores saw",
        "",
        f"`{command}` · {len(runs)} runs. Intervals: bootstrap 95 % over runs.",
        "",
        "## Good episodes against bad ones",
        "",
        "Area under the ROC curve: the chance that an episode of the first class scores higher than one of the second; "
        "0.5 is blind. Of each iteration with five of both, and the mean of the first, second and last third.",
        "",
        *_contrasts(runs),
        "",
        PICTURE,
        "",
        *_side_by_side(runs),
        "## What was kept",
        "",
        "Share of each class, and how many there were.",
        "",
        *_kept(runs),
        "",
        "## Which tokens carry the blame",
        "",
        *_blame(runs),
        "",
        "## Where a stop would have ended them",
        "",
        *_stops(runs),
    ]
    return "\n".join(lines) + "\n"


def plot(runs: Sequence[Run], path: Path, width: int = 5) -> None:
    """AUC over iterations, the mean of the runs, smoothed."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for contrast in CONTRASTS:
        found = [run.aucs[contrast] for run in runs]
        places = sorted(set().union(*found))
        if places:
            means = [float(np.mean([of_run[place] for of_run in found if place in of_run])) for place in places]
            axis.plot(places, stopping.smooth(means, width), label=contrast)
    axis.axhline(0.5, color="black", linewidth=0.8, linestyle="--")
    axis.set(xlabel="iteration", ylabel="AUC of the score", ylim=(0, 1))
    axis.grid(alpha=0.3)
    if axis.lines[:-1]:
        axis.legend(fontsize=7, ncol=2)
    figure.savefig(path, dpi=120)


def _contrasts(runs: Sequence[Run]) -> list[str]:
    rows = []
    for contrast in CONTRASTS:
        cells = []
        found = [run.aucs[contrast] for run in runs]
        ends = [run.episodes["iteration"].max() + 1 for run in runs]
        for third in range(3):
            means = [
                float(np.mean(part))
                for of_run, end in zip(found, ends, strict=True)
                if (part := [value for place, value in of_run.items() if place * 3 // end == third])
            ]
            cells.append(_with_interval(means))
        rows.append([contrast, *cells])
    return table(["", "first third", "second", "last"], rows)


def _side_by_side(runs: Sequence[Run]) -> list[str]:
    """The section on further scores; none where the runs have one score only."""
    names = [name for name in runs[0].scores if all(name in run.scores for run in runs)]
    if len(names) == 1:
        return []
    labels = [side_by_side.label(name) for name in names]

    def figures(figure: Callable[..., float], *arguments: Any) -> str:
        """A cell: the mean over the runs that know it."""
        found = [figure(run.episodes, *arguments) for run in runs]
        return _with_interval([value for value in found if not np.isnan(value)])

    aucs = [[figures(side_by_side.mean_auc, name, contrast) for contrast in side_by_side.AUCS] for name in names]
    shares = [[figures(side_by_side.positive_share, name, of) for of in side_by_side.SHARES.values()] for name in names]
    ranks = [
        [figures(side_by_side.rank_correlation, one, other).split(" ")[0] for other in names[:place]]
        + [""] * (len(names) - 1 - place)
        for place, one in enumerate(names)
    ]
    numbered = [f"{place}: {label}" for place, label in enumerate(labels, start=1)]
    return [
        "## The same episodes, scored otherwise",
        "",
        "AUC, the mean of all iterations:",
        "",
        *table(["", *side_by_side.AUCS], _headed(labels, aucs)),
        "",
        "Share with a score above zero:",
        "",
        *table(["", *side_by_side.SHARES], _headed(labels, shares)),
        "",
        "Rank correlation within iterations, the mean:",
        "",
        *table(["", *(str(place) for place in range(1, len(names)))], _headed(numbered, ranks)),
        "",
    ]


def _headed(heads: Sequence[str], rows: Sequence[list[str]]) -> list[list[str]]:
    return [[head, *row] for head, row in zip(heads, rows, strict=True)]


def _kept(runs: Sequence[Run]) -> list[str]:
    rows = []
    for name, of in CLASSES.items():
        cells = []
        for rewarded in (True, False):
            found = [kept_share(run.episodes, of, rewarded) for run in runs]
            shares = [share for share, size in found if size]
            cells += [_with_interval(shares), f"{sum(size for _, size in found):,}"]
        rows.append([name, *cells])
    return table(["", "kept, where rewarded", "n", "kept, where not", "n"], rows)


def _blame(runs: Sequence[Run]) -> list[str]:
    told = [run for run in runs if "token_scores" in run.episodes and run.steps]
    if not told:
        return [
            "Not known: it needs runs of the embedded task with `--filter.token_scores true`, which writes the part of "
            "each token into the episode files."
        ]
    rows = []
    for kind in blame.KINDS:
        each = [blame.of_run(run.episodes, run.steps, kind) for run in told]
        total = sum(each, blame.Blame())
        if not total.episodes:
            continue
        lifts = [[one.token_lift for one in each if one.episodes], [one.line_lift for one in each if one.episodes]]
        shares = [f"{total.hits / total.guilty:.2f}", f"{total.chance_hits / total.guilty:.2f}"]
        lines = [f"{total.found_lines / total.episodes:.2f}", f"{total.chance_lines / total.episodes:.2f}"]
        rows.append([kind, f"{total.episodes:,}", *shares, _with_interval(lifts[0]), *lines, _with_interval(lifts[1])])
    head = ["", "episodes", "tokens found", "by chance", "times chance", "step found", "by chance", "times chance"]
    return [
        "Of rewarded right answers with a wrong or a senseless step. *Tokens found*: of the lowest-scored tokens of "
        "the chain, as many as its bad lines have, the share that lies in them. *Step found*: how often the "
        f"first line with a token of at least {blame.BLAME:g} of the lowest score is the first bad one; those after "
        "it may only go on from its number.",
        "",
        *table(head, rows),
    ]


def _stops(runs: Sequence[Run]) -> list[str]:
    ended = [run.iterations for run in runs if run.iterations]
    if not ended:
        return ["Not known: none of the runs has ended."]
    rules: dict[str, Callable[[Any], int | None]] = {
        f"fewer than {minimum:g} survive": partial(stopping.too_few_survive, minimum=minimum) for minimum in _MINIMA
    }
    told = all(one.get("gold_loss") is not None for iterations in ended for one in iterations)
    if told:
        rules |= {
            f"gold loss, patience {patience}": partial(stopping.no_longer_falls, patience=patience)
            for patience in _PATIENCES
        }
    rows = []
    for name, rule in rules.items():
        found = [stopping.stop(iterations, end) for iterations in ended if (end := rule(iterations)) is not None]
        cells = [f"{len(found)} of {len(ended)}"]
        for key, sign in (("iteration", ""), ("after_peak", "+"), ("lost", "+"), ("saved", "")):
            values = [float(getattr(one, key)) for one in found]
            digits = ".1f" if key in ("iteration", "after_peak") else ".3f"
            cells.append(f"{np.mean(values):{sign}{digits}}" if values else "–")
        rows.append([name, *cells])
    lowest = [min(one["kept_fraction"] for one in iterations) for iterations in ended]
    return [
        "By the filter's own stop (`min_survival`, patience 2), and by Lightning's `EarlyStopping` on "
        "`influence/gold_loss`, the gold solutions' loss, where the runs have it each time. Peak and EM are the "
        f"rollouts', smoothed over five iterations. The smallest share that ever survived was {min(lowest):.2f}.",
        "",
        *table(["stop", "stopped", "iteration", "after the peak", "EM lost", "time saved"], rows),
        *(["", _course(ended)] if told else []),
    ]


def _course(ended: Sequence[Any]) -> str:
    """Does the gold loss go with EM?"""
    found = [stopping.course(iterations) for iterations in ended]
    peaks, lows, correlations = zip(*found, strict=True)
    shown = ", ".join(f"{correlation:.2f}" for correlation in correlations)
    return (
        f"Run by run: EM peaks at iteration {', '.join(map(str, peaks))}, the gold loss is lowest at "
        f"{', '.join(map(str, lows))}; correlation of the two over iterations {shown}."
    )


def _with_interval(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, low, high = interval(values)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if len(values) > 1 else f"{mean:.2f}"
