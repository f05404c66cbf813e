"""Several scores of the same episodes, side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torchmetrics.functional import spearman_corrcoef

from ippo.experiments.diagnosis.contrasts import (
    CLASSES,
    FALSE_POSITIVE,
    RIGHT,
    WRONG,
    Columns,
    Mask,
    auc_by_iteration,
    rewarded,
    unrewarded,
)
from ippo.experiments.diagnosis.records import OTHERS

AUCS = (
    "rewarded: right, wrong",
    "rewarded: faithful, unfaithful",
    "unrewarded: wrong, right",
    "right reward, flipped reward",
)
"""The contrasts that are shown of each score."""

SHARES: dict[str, Callable[[Columns], Mask]] = {
    "rewarded: faithful": rewarded(CLASSES["right and faithful"]),
    "rewarded: unfaithful": rewarded(FALSE_POSITIVE),
    "rewarded: wrong": rewarded(WRONG),
    "unrewarded: right": unrewarded(RIGHT),
    "unrewarded: wrong": unrewarded(WRONG),
}
"""Classes of which the share that scores above zero is shown: what the paper's rule would keep."""


def label(column: str) -> str:
    """What a column of scores is called."""
    return column.removeprefix(OTHERS).replace("_", " ")


def mean_auc(episodes: Columns, column: str, contrast: str) -> float:
    """Over the iterations that tell one; NaN where none does."""
    found = list(auc_by_iteration(_scored(episodes, column), contrast, column).values())
    return float(np.mean(found)) if found else float("nan")


def positive_share(episodes: Columns, column: str, of: Callable[[Columns], Mask]) -> float:
    """Of a class, the share that scores above zero; NaN where it is empty."""
    episodes = _scored(episodes, column)
    members = of(episodes)
    return float((episodes[column][members] > 0).mean()) if members.any() else float("nan")


def rank_correlation(episodes: Columns, one: str, other: str) -> float:
    """Spearman's, within each iteration, averaged. Scores of two iterations have two scales."""
    episodes = _scored(episodes, one, other)
    found = []
    for iteration in np.unique(episodes["iteration"]):
        here = episodes["iteration"] == iteration
        pair = [torch.from_numpy(episodes[column][here].astype(float)) for column in (one, other)]
        found.append(float(spearman_corrcoef(*pair)))
    return float(np.mean(found)) if found else float("nan")


def _scored(episodes: Columns, *columns: str) -> Columns:
    """Those that all of the columns have a score of: a filter may have looked at some iterations only."""
    known = np.all([np.isfinite(episodes[column].astype(float)) for column in columns], axis=0)
    return {name: episodes[name][known] for name in {"iteration", "chain", "rewarded", *columns}}
