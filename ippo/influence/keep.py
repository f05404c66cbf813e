"""Keep rules: from scores to the episodes that stay."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class KeepRule(ABC):
    """Decides over the whole buffer, all ranks together.

    ``reason`` is why an episode goes, as the audit files say it.
    """

    reason: str

    @abstractmethod
    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        """[n] bool, True for episodes that stay; scores are finite."""


class PositiveScore(KeepRule):
    """Keep what points the way of the direction: score > 0 (arXiv 2604.01597).

    Example:
        >>> import torch
        >>> PositiveScore()(torch.tensor([0.2, 0.0, -0.1]), torch.ones(3), torch.arange(3))
        tensor([ True, False, False])
    """

    reason = "score <= 0"

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        return scores > 0
