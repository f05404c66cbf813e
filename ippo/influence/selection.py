"""Keep rule and weights together: what becomes of every episode of a buffer, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ippo.functional import effective_sample_size
from ippo.influence.keep import KeepRule
from ippo.influence.weight import WeightRule


@dataclass(frozen=True)
class Selection:
    """Decisions about ``n`` episodes.

    Args:
        scores: [n], as they were given.
        kept: [n] bool.
        weights: [n], mean 1 over the kept, 0 elsewhere.
        reasons: why each episode goes; empty for those that stay.
    """

    scores: Tensor
    kept: Tensor
    weights: Tensor
    reasons: list[str]

    @property
    def survival(self) -> float:
        """Share of the episodes that stay."""
        return float(self.kept.float().mean()) if len(self.kept) else 0.0

    @property
    def effective_sample_size(self) -> float:
        """(sum w) ** 2 / (n sum w ** 2) over the whole buffer: the share of it that the update really hears."""
        return float(effective_sample_size(self.weights))

    @property
    def weights_over_all(self) -> Tensor:
        """[n] the weights scaled to mean 1 over all episodes, so that the mean of weight times loss over all of them is
        the weighted mean over the kept."""
        return self.weights * len(self.kept) / self.kept.sum().clamp(min=1)

    def part(self, rows: slice) -> Selection:
        """The selection on some of the episodes."""
        return Selection(self.scores[rows], self.kept[rows], self.weights[rows], self.reasons[rows])


def select_episodes(scores: Tensor, rewards: Tensor, groups: Tensor, keep: KeepRule, weight: WeightRule) -> Selection:
    """Apply a keep rule and a weight rule. An episode whose score is not finite goes, whatever the rule says.

    Args:
        scores, rewards: [n].
        groups: [n] integers, equal for the samples of one prompt.
        keep, weight: the rules.

    Example:
        >>> from ippo.influence import PositiveScore, Proportional
        >>> scores = torch.tensor([1.0, -1.0, 3.0, torch.nan])
        >>> selection = select_episodes(scores, torch.ones(4), torch.arange(4), PositiveScore(), Proportional())
        >>> selection.weights, selection.reasons
        (tensor([0.5000, 0.0000, 1.5000, 0.0000]), ['', 'score <= 0', '', 'score is not finite'])
    """
    finite = torch.isfinite(scores)
    kept = finite.clone()
    kept[finite] = keep(scores[finite], rewards[finite], groups[finite])
    weights = torch.zeros_like(scores)
    weights[kept] = weight(scores[kept])
    why = [
        "" if stays else keep.reason if usable else "score is not finite"
        for stays, usable in zip(kept.tolist(), finite.tolist(), strict=True)
    ]
    return Selection(scores, kept, weights, why)
