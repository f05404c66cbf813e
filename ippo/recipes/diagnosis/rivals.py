"""Several scores of the same episodes, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchmetrics.functional import spearman_corrcoef

from ippo.recipes.diagnosis.contrasts import UNFAITHFUL, auc_by_iteration
from ippo.recipes.diagnosis.records import OTHERS, Run

AUCS = (
    "rewarded: right, wrong",
    "rewarded: faithful, unfaithful",
    "unrewarded: wrong, right",
    "right reward, flipped reward",
)
"""The contrasts that are shown of each score."""

SHARES: dict[str, Callable[[Any], Any]] = {
    "rewarded: faithful": lambda episodes: episodes["rewarded"] & (episodes["chain"] == "faithful"),
    "unfaithful": lambda episodes: episodes["rewarded"] & np.isin(episodes["chain"], UNFAITHFUL),
    "wrong": lambda episodes: episodes["rewarded"] & (episodes["chain"] == "wrong"),
    "not rewarded: right": lambda episodes: ~episodes["rewarded"] & (episodes["chain"] != "wrong"),
    "wrong ": lambda episodes: ~episodes["rewarded"] & (episodes["chain"] == "wrong"),
}
"""Classes of which the share that scores above zero is shown: what the paper's rule would keep."""


def label(column: str) -> str:
    """What a column of scores is called."""
    return column.removeprefix(OTHERS).replace("_", " ")


def mean_auc(run: Run, column: str, contrast: str) -> float:
    """Over the iterations that tell one; NaN where none does."""
    found = list(auc_by_iteration(run.episodes, contrast, column).values())
    return float(np.mean(found)) if found else float("nan")


def positive_share(run: Run, column: str, of: Callable[[Any], Any]) -> float:
    """Of a class, the share that scores above zero; NaN where it is empty."""
    members = of(run.episodes)
    return float((run.episodes[column][members] > 0).mean()) if members.any() else float("nan")


def rank_correlation(run: Run, one: str, other: str) -> float:
    """Spearman's, within each iteration, averaged. Scores of two iterations have two scales."""
    found = []
    for iteration in np.unique(run.episodes["iteration"]):
        here = run.episodes["iteration"] == iteration
        pair = [torch.from_numpy(run.episodes[column][here].astype(float)) for column in (one, other)]
        found.append(float(spearman_corrcoef(*pair)))
    return float(np.mean(found))
