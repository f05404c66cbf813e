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
        weights: [n], mean 1 over the kept, 0 elsewhere; of several filters the product of theirs.
        reasons: why each episode goes; empty for those that stay.
        judged: [n] bool, False for what another filter had dropped before; None where all were judged.
    """

    scores: Tensor
    kept: Tensor
    weights: Tensor
    reasons: list[str]
    judged: Tensor | None = None

    @property
    def count(self) -> int:
        """How many episodes were judged."""
        return len(self.kept) if self.judged is None else int(self.judged.sum())

    @property
    def survival(self) -> float:
        """Share of the judged episodes that stay."""
        return float(self.kept.float().sum() / self.count) if self.count else 0.0

    @property
    def survival_with_gradient(self) -> float | None:
        """The same share among those that have a gradient at all: a score of exactly 0 says that there is nothing to
        learn from an episode, and nothing about the direction. None where no episode has one."""
        moving = self.scores != 0 if self.judged is None else (self.scores != 0) & self.judged
        return float(self.kept[moving].float().mean()) if moving.any() else None

    @property
    def effective_sample_size(self) -> float:
        """(sum w) ** 2 / (n sum w ** 2) over the judged episodes: the share of them that the update really hears."""
        return float(effective_sample_size(self.weights if self.judged is None else self.weights[self.judged]))

    @property
    def weights_over_all(self) -> Tensor:
        """[n] the weights scaled to mean 1 over all episodes, so that the mean of weight times loss over all of them is
        the weighted mean over the kept."""
        return self.weights * self.count / self.kept.sum().clamp(min=1)

    def part(self, rows: slice) -> Selection:
        """The selection on some of the episodes."""
        judged = None if self.judged is None else self.judged[rows]
        return Selection(self.scores[rows], self.kept[rows], self.weights[rows], self.reasons[rows], judged)


def select_episodes(
    scores: Tensor,
    rewards: Tensor,
    groups: Tensor,
    keep: KeepRule,
    weight: WeightRule,
    before: Tensor | None = None,
    features: Tensor | None = None,
) -> Selection:
    """Apply a keep rule and a weight rule. An episode whose score is not finite goes, whatever the rule says.

    Args:
        scores, rewards: [n].
        groups: [n] integers, equal for the samples of one prompt.
        keep, weight: the rules.
        before: [n] the weights that episodes come with; None for 1 each. What comes with 0 was dropped, stays so, and
            is not judged. The others' weights are multiplied, and keep their mean.
        features: [n, d] what says which episodes are alike, for a keep rule that reads it.

    Example:
        >>> from ippo.influence import PositiveScore, Proportional
        >>> scores = torch.tensor([1.0, -1.0, 3.0, torch.nan])
        >>> selection = select_episodes(scores, torch.ones(4), torch.arange(4), PositiveScore(), Proportional())
        >>> selection.weights, selection.reasons
        (tensor([0.5000, 0.0000, 1.5000, 0.0000]), ['', 'score <= 0', '', 'score is not finite'])
        >>> scores, before = torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([0.0, 0.5, 1.5, 1.0])
        >>> select_episodes(scores, torch.ones(4), torch.arange(4), PositiveScore(), Proportional(), before).weights
        tensor([0.0000, 0.5000, 1.5000, 0.0000])
    """
    judged = None if before is None or bool((before == 1).all()) else before > 0
    finite = torch.isfinite(scores)
    usable = finite if judged is None else finite & judged
    kept = usable.clone()
    keep = keep if features is None else keep.with_features(features[usable])
    kept[usable] = keep(scores[usable], rewards[usable], groups[usable])
    weights = torch.zeros_like(scores)
    weights[kept] = weight.of_kept(scores[usable], rewards[usable], groups[usable], kept[usable])
    if before is not None and judged is not None and bool(kept.any()):
        weights *= before
        weights *= before[judged].mean() / weights[kept].mean()
    gone = torch.zeros_like(kept) if judged is None else ~judged
    why = [
        "" if stays else "dropped by another filter" if out else keep.reason if number else "score is not finite"
        for stays, out, number in zip(kept.tolist(), gone.tolist(), finite.tolist(), strict=True)
    ]
    return Selection(scores, kept, weights, why, judged)
