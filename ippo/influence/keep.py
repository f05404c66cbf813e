"""Keep rules: from scores to the episodes that stay.

A rule that keeps scores of 0 or below goes with :class:`~ippo.influence.Uniform` weights: proportional ones give such
an episode next to nothing.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ippo.distributed import from_first
from ippo.errors import require
from ippo.functional import (
    keep_above_gap,
    keep_but_worst_negatives,
    keep_max_variance,
    keep_positive,
    keep_right_or_positive,
    keep_top,
)


class KeepRule(ABC):
    """Decides over the whole buffer, all ranks together.

    ``reason`` is why an episode goes, as the audit files say it; ``reads`` names what the rule needs beside scores.
    """

    reason: str
    reads: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        """[n] bool, True for episodes that stay; scores are finite."""

    def bind(self, gold_scores: Tensor) -> KeepRule:
        """This rule for rows that are scored along one direction: a rule that reads ``gold_scores`` takes them here.

        Args:
            gold_scores: [m] scores of the gold rows, each along the direction that the others make.
        """
        return self

    def with_features(self, features: Tensor) -> KeepRule:
        """This rule for these rows: a rule that reads ``features`` takes them here.

        Args:
            features: [n, d] what says which rows are alike.
        """
        return self

    def state_dict(self) -> dict[str, Any]:
        """What the rule has learned of earlier buffers; most learn nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        require(
            not state_dict, "keep", type(self).__name__, "it learns nothing, and the checkpoint's rule did: take that"
        )


class PositiveScore(KeepRule):
    """Keep what points the way of the direction: score > 0 (I-PPO, arXiv 2604.01597).

    Args:
        min_fraction: never keep fewer than this share of the episodes, rounded up; the highest of the other scores
            fill up. DTV (arXiv 2609.35072) takes 0.25.
        zero: keep a score of exactly 0 too, as DTV does.

    Example:
        >>> scores = torch.tensor([0.2, 0.0, -0.1, -0.4])
        >>> PositiveScore()(scores, torch.ones(4), torch.arange(4))
        tensor([ True, False, False, False])
        >>> PositiveScore(min_fraction=0.75)(scores, torch.ones(4), torch.arange(4))  # 3 of 4
        tensor([ True,  True,  True, False])
    """

    reason = "score <= 0"

    def __init__(self, min_fraction: float = 0.0, zero: bool = False) -> None:
        require(0.0 <= min_fraction <= 1.0, "min_fraction", min_fraction, "use a share between 0 (no floor) and 1")
        self.min_fraction, self.zero = min_fraction, zero
        if zero:
            self.reason = "score < 0"

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        return keep_positive(scores, self.min_fraction, self.zero)


class WorstNegatives(KeepRule):
    """Drop the worst of the episodes with a negative score, keep all else (IIF, arXiv 2505.19281).

    Args:
        share: the share of the *negative* scores that goes, rounded down to whole episodes. Of equal scores the last
            go first.

    Example:
        >>> scores = torch.tensor([0.2, -0.3, -0.1, -0.2, -0.4])
        >>> WorstNegatives(share=0.5)(scores, torch.ones(5), torch.arange(5))  # 2 of the 4 negative ones
        tensor([ True, False,  True,  True, False])
    """

    reason = "among the worst negative scores"

    def __init__(self, share: float = 1.0) -> None:
        require(0.0 <= share <= 1.0, "share", share, "use a share between 0 (drop nothing) and 1 (all negative scores)")
        self.share = share

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        return keep_but_worst_negatives(scores, self.share)


class AboveGap(KeepRule):
    """Keep the higher of two groups of scores where they lie far apart, and everything where there is one group.

    For rows that share most of their gradient, whose sign then says nothing, and no gold rows to compare with. It sees
    each batch by itself: one with few rows has a gap by chance now and then.

    Args:
        distance: how far apart two groups are: the distance of their means over the root of their mean variance. Of
            many normal scores it is 2.6.

    Example:
        >>> AboveGap()(torch.tensor([9.0, 11.0, 1.0, 10.0]), torch.ones(4), torch.arange(4))
        tensor([ True,  True, False,  True])
    """

    reason = "in the lower of two groups of scores"

    def __init__(self, distance: float = 4.0) -> None:
        require(distance > 0, "distance", distance, "use a number above 0, of which 4 is two groups at a glance")
        self.distance = distance

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        return keep_above_gap(scores, self.distance)


class TopFraction(KeepRule):
    """Keep the highest-scored share of the buffer, whatever the sign of the scores.

    Args:
        fraction: the share that stays, rounded up: of any episodes, at least one. Of equal scores the first stay.

    Example:
        >>> TopFraction(0.5)(torch.tensor([-0.1, -0.3, -0.2, -0.4]), torch.ones(4), torch.arange(4))
        tensor([ True, False,  True, False])
    """

    reason = "not among the highest scores"

    def __init__(self, fraction: float = 0.5) -> None:
        require(0.0 < fraction <= 1.0, "fraction", fraction, "use a share above 0 and up to 1 (keep all)")
        self.fraction = fraction

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        return keep_top(scores, self.fraction)


class MaxVariance(KeepRule):
    """Keep, for each prompt, the rewards of the largest variance: the highest and the lowest (PODS, arXiv 2504.13818).

    Scores do not matter.

    Args:
        samples: how many samples of each prompt stay; a prompt with no more than these keeps them all.

    Example:
        >>> rewards, groups = torch.tensor([0.0, 0.4, 1.0, 0.6, 0.2, 0.9]), torch.tensor([0, 0, 0, 0, 1, 1])
        >>> MaxVariance(samples=2)(torch.zeros(6), rewards, groups)
        tensor([ True, False,  True, False,  True,  True])
    """

    reason = "not among the rewards of the largest variance"
    reads = ("rewards", "groups")

    def __init__(self, samples: int) -> None:
        require(samples >= 2, "samples", samples, "use at least 2: one reward alone has no variance")
        self.samples = samples

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        return keep_max_variance(rewards, groups, self.samples)


class RightOrPositive(KeepRule):
    """Keep every rewarded answer, and others only with a positive score.

    Args:
        threshold: an answer is rewarded if its reward is above this.

    Example:
        >>> scores, rewards = torch.tensor([-0.2, 0.1, -0.3]), torch.tensor([1.0, 0.0, 0.0])
        >>> RightOrPositive()(scores, rewards, torch.arange(3))
        tensor([ True,  True, False])
    """

    reason = "wrong, and score <= 0"
    reads = ("rewards",)

    def __init__(self, threshold: float = 0.5) -> None:
        require(math.isfinite(threshold), "threshold", threshold, "use a reward between those of wrong and right")
        self.threshold = threshold

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        return keep_right_or_positive(scores, rewards, self.threshold)


class _Around(KeepRule):
    """A control around another rule, whose number it matches: what that rule reads and learns goes to it."""

    rule: KeepRule

    def bind(self, gold_scores: Tensor) -> KeepRule:
        return self._with(self.rule.bind(gold_scores))

    def with_features(self, features: Tensor) -> KeepRule:
        return self._with(self.rule.with_features(features))

    def state_dict(self) -> dict[str, Any]:
        return self.rule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rule.load_state_dict(state_dict)

    def _with(self, rule: KeepRule) -> KeepRule:
        bound = copy.copy(self)
        bound.rule = rule
        return bound


class RandomMatched(_Around):
    """The control: keep as many as another rule keeps, drawn at random, so that fewer episodes explain nothing.

    Draws from torch's global generator; of several ranks, all take the first one's draw.

    Args:
        rule: the rule whose number is matched; :class:`PositiveScore` by default.
        within_rewards: match the number within each reward apart, so that the balance of the two explains
            nothing either.

    Example:
        >>> scores, rewards = torch.tensor([0.2, 0.1, -0.1, -0.3]), torch.tensor([1.0, 1.0, 0.0, 0.0])
        >>> RandomMatched(within_rewards=True)(scores, rewards, torch.arange(4))  # both right ones, no wrong one
        tensor([ True,  True, False, False])
    """

    reason = "drawn at random"

    def __init__(self, rule: KeepRule | None = None, within_rewards: bool = False) -> None:
        self.rule = rule if rule is not None else PositiveScore()
        self.within_rewards = within_rewards
        self.reads = (*self.rule.reads, *(("rewards",) if within_rewards else ()))

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        wanted = self.rule(scores, rewards, groups)
        classes = rewards if self.within_rewards else torch.zeros_like(rewards)
        kept = torch.zeros_like(wanted)
        for value in classes.unique():
            members = (classes == value).nonzero().flatten()
            order = from_first(torch.randperm(len(members)).to(members.device))
            kept[members[order[: int(wanted[members].sum())]]] = True
        return kept


class RightAndRandom(_Around):
    """The control that keeps every rewarded answer, and others at random up to the number that another rule keeps.

    Where there are more rewarded answers than that, all of them stay. Draws as :class:`RandomMatched` does.

    Args:
        rule: the rule whose number is matched; :class:`PositiveScore` by default.
        threshold: an answer is rewarded if its reward is above this.

    Example:
        >>> scores, rewards = torch.tensor([-0.2, 0.1, 0.3, -0.3]), torch.tensor([1.0, 0.0, 0.0, 0.0])
        >>> kept = RightAndRandom()(scores, rewards, torch.arange(4))  # the right one, and one of three
        >>> kept[0].item(), kept.sum().item()
        (True, 2)
    """

    reason = "wrong, drawn at random"

    def __init__(self, rule: KeepRule | None = None, threshold: float = 0.5) -> None:
        require(math.isfinite(threshold), "threshold", threshold, "use a reward between those of wrong and right")
        self.rule, self.threshold = rule if rule is not None else PositiveScore(), threshold
        self.reads = tuple(dict.fromkeys((*self.rule.reads, "rewards")))

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        kept = rewards > self.threshold
        wrong = (~kept).nonzero().flatten()
        room = max(0, int(self.rule(scores, rewards, groups).sum()) - int(kept.sum()))
        order = from_first(torch.randperm(len(wrong)).to(wrong.device))
        kept[wrong[order[:room]]] = True
        return kept
