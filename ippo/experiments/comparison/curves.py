"""Curves of a comparison as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ippo.experiments.comparison.cells import Summary

_TITLES = {
    "em": "EM of the rollouts",
    "reward": "mean reward: what the verifier believes",
    "hacked": "wrong, through the verifier's hole",
    "false_positive": "unfaithful share of right answers",
    "kept_fraction": "kept fraction",
    "effective_sample_size": "effective sample size",
}


def plot(runs: Mapping[str, Sequence[Summary]], path: Path, width: int = 5) -> None:
    """Mean over seeds, iteration by iteration, each point the mean of up to ``width`` iterations.

    Args:
        runs: of each arm, by its label. Where runs end early, curves end with the first that does.
        path: of the PNG.
        width: of the moving mean.
    """
    figure = Figure(figsize=(14, 7), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(2, 3).flat, _TITLES.items(), strict=True):
        for label, of_arm in runs.items():
            length = min(len(run["iterations"]) for run in of_arm)
            if not length:
                continue
            curve = np.mean([[one.get(key) or 0.0 for one in run["iterations"][:length]] for run in of_arm], axis=0)
            wide = max(1, min(width, length // width))  # of a short run every point is shown
            smooth = np.convolve(curve, np.ones(wide) / wide, mode="valid")
            axis.plot(np.arange(len(smooth)) + wide - 1, smooth, label=label, marker=None if length > 20 else ".")
        axis.set(title=title, xlabel="iteration", ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
