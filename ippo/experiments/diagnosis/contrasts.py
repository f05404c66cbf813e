"""How well a score tells good episodes from bad ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_auroc

Columns = Mapping[str, Any]
Mask = NDArray[np.bool_]

UNFAITHFUL = ("wrong_step", "nonsense", "shortcut")


def _of(*kinds: str) -> Callable[[Columns], Mask]:
    return lambda episodes: np.isin(episodes["chain"], kinds)


FAITHFUL, WRONG, FALSE_POSITIVE = _of("faithful"), _of("wrong", "hacked"), _of(*UNFAITHFUL)
RIGHT = _of("faithful", *UNFAITHFUL)


def rewarded(of: Callable[[Columns], Mask]) -> Callable[[Columns], Mask]:
    return lambda episodes: of(episodes) & episodes["rewarded"]


def unrewarded(of: Callable[[Columns], Mask]) -> Callable[[Columns], Mask]:
    return lambda episodes: of(episodes) & ~episodes["rewarded"]


def _flipped(episodes: Columns) -> Mask:
    return episodes["rewarded"] == WRONG(episodes)


CONTRASTS: dict[str, tuple[Callable[[Columns], Mask], Callable[[Columns], Mask]]] = {
    "right reward, flipped reward": (lambda episodes: ~_flipped(episodes), _flipped),
    "rewarded: right, wrong": (rewarded(RIGHT), rewarded(WRONG)),
    "unrewarded: wrong, right": (unrewarded(WRONG), unrewarded(RIGHT)),
    "rewarded: right, hacked": (rewarded(RIGHT), rewarded(_of("hacked"))),
    "rewarded: faithful, unfaithful": (rewarded(FAITHFUL), rewarded(FALSE_POSITIVE)),
    "rewarded: faithful, wrong step": (rewarded(FAITHFUL), rewarded(_of("wrong_step"))),
    "rewarded: faithful, nonsense": (rewarded(FAITHFUL), rewarded(_of("nonsense"))),
    "rewarded: faithful, shortcut": (rewarded(FAITHFUL), rewarded(_of("shortcut"))),
    "all: faithful, wrong": (FAITHFUL, WRONG),
    "all: faithful, unfaithful": (FAITHFUL, FALSE_POSITIVE),
}
"""Pairs of classes, the better one first. A score that sees the difference is higher for the first."""

CLASSES: dict[str, Callable[[Columns], Mask]] = {
    "right and faithful": FAITHFUL,
    "right by a wrong step": _of("wrong_step"),
    "right with nonsense": _of("nonsense"),
    "right by a shortcut": _of("shortcut"),
    "wrong": _of("wrong"),
    "wrong, through the hole": _of("hacked"),
}


def auc(better: NDArray[np.float64], worse: NDArray[np.float64]) -> float:
    """The chance that a score of the better class is the higher one, ties counted half: 1 sees all, 0.5 nothing.

    Scores go in as ranks: the metric squashes what lies outside of [0, 1], and would tie what differs little.

    Example:
        >>> auc(np.array([3.0, 1000.0, 1001.0]), np.array([2.0, 3.0]))  # of six pairs five, and a tie
        0.9166666865348816
    """
    scores = torch.from_numpy(np.concatenate([better, worse]))
    _, ranks = scores.unique(return_inverse=True)
    truth = torch.arange(len(scores)) < len(better)
    return float(binary_auroc(ranks / ranks.max().clamp(min=1), truth.long()))


def auc_by_iteration(episodes: Columns, contrast: str, column: str = "score", fewest: int = 5) -> dict[int, float]:
    """The AUC of each iteration that has enough episodes of both classes. Scores of two iterations have two scales."""
    better, worse = (of(episodes) for of in CONTRASTS[contrast])
    found = {}
    for iteration in np.unique(episodes["iteration"]).tolist():
        here = episodes["iteration"] == iteration
        scores = [episodes[column][of & here] for of in (better, worse)]
        if min(map(len, scores)) >= fewest:
            found[iteration] = auc(*scores)
    return found


def kept_share(episodes: Columns, of: Callable[[Columns], Mask], rewarded: bool) -> tuple[float, int]:
    """Share of a class that a filter kept, and the size of the class; NaN where it is empty."""
    members = of(episodes) & (episodes["rewarded"] == rewarded)
    return float(episodes["kept"][members].mean()) if members.any() else float("nan"), int(members.sum())
