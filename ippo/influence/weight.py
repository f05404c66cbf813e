"""Weights of the episodes that stay: how much more one of them teaches than another. Their mean is 1."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ippo.errors import require
from ippo.functional import largest_temper, proportional_weights


class WeightRule(ABC):
    """Weighs the kept episodes of the whole buffer, all ranks together.

    ``reads`` names what the rule needs beside scores.
    """

    reads: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, scores: Tensor) -> Tensor:
        """[n] weights with mean 1, for [n] scores of kept episodes."""

    def of_kept(self, scores: Tensor, rewards: Tensor, groups: Tensor, kept: Tensor) -> Tensor:
        """[k] weights with mean 1 of the kept ones of [n] episodes: what a rule overrides that looks at more than their
        scores.

        Args:
            scores, rewards, groups: [n], as a keep rule takes them.
            kept: [n] bool.
        """
        return self(scores[kept])


class Proportional(WeightRule):
    """Weight = score ** temper over its mean; temper 1 is I-PPO's (arXiv 2604.01597).

    Few episodes with huge scores can outweigh all others: the effective sample size then falls to a fraction of the
    buffer. ``min_effective`` tempers the weights, only as far as needed, to keep it above a floor.

    Args:
        temper: exponent of the score, from 0 (uniform) to 1 (the paper).
        min_effective: floor of the effective sample size, as a share of the kept episodes; None for no floor.

    Example:
        >>> Proportional()(torch.tensor([1.0, 3.0]))
        tensor([0.5000, 1.5000])
    """

    def __init__(self, temper: float = 1.0, min_effective: float | None = None) -> None:
        require(0.0 <= temper <= 1.0, "temper", temper, "use a number between 0 (uniform) and 1 (proportional)")
        valid = min_effective is None or 0.0 <= min_effective <= 1.0
        require(valid, "min_effective", min_effective, "use a share between 0 and 1, or null")
        self.temper, self.min_effective = temper, min_effective

    def __call__(self, scores: Tensor) -> Tensor:
        scores = scores.clamp(min=torch.finfo(scores.dtype).tiny)  # other keep rules may keep a score of 0 or below
        floor = self.min_effective
        temper = self.temper if floor is None else min(self.temper, largest_temper(scores, floor))
        return proportional_weights(scores, temper)


class Uniform(WeightRule):
    """Every kept episode counts the same.

    Example:
        >>> Uniform()(torch.tensor([1.0, 3.0]))
        tensor([1., 1.])
    """

    def __call__(self, scores: Tensor) -> Tensor:
        return torch.ones_like(scores)
