"""Rules that ask how likely a reward is right, instead of whether a score is positive."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ippo.distributed import rank
from ippo.errors import UsageError, require
from ippo.functional import (
    alignments,
    estimate_reward_errors,
    keep_positive,
    prompt_priors,
    reward_posterior,
)
from ippo.influence.keep import KeepRule
from ippo.influence.weight import WeightRule


class RewardBelief:
    """Of every episode, how likely its reward is right; estimated anew from each buffer.

    Args:
        threshold: an episode is rewarded if its reward is above this.
        prompt_strength: how many episodes the mean reward of all is worth beside a prompt's own, see
            :func:`ippo.functional.prompt_priors`; None leaves prompts out.
        rising, doubt: see :func:`ippo.functional.reward_posterior`.
        least: episodes with a gradient, rewarded and unrewarded each, that it takes.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        prompt_strength: float | None = None,
        rising: bool = True,
        doubt: float = 0.2,
        least: int = 32,
    ) -> None:
        require(abs(threshold) < torch.inf, "threshold", threshold, "use a reward between those of wrong and right")
        given = prompt_strength is None or prompt_strength > 0
        require(given, "prompt_strength", prompt_strength, "use a number above 0, or null to leave prompts out")
        require(0 <= doubt < 0.5, "doubt", doubt, "use a number from 0 (believe the mixture) to below 0.5")
        require(least >= 2, "least", least, "use a whole number of at least 2")
        self.threshold, self.prompt_strength, self.least = threshold, prompt_strength, least
        self.rising, self.doubt = rising, doubt
        self._told = False

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor, else_what: str) -> Tensor | None:
        """[n] probabilities; None where they cannot be told, which is said once.

        Args:
            scores, rewards, groups: as of a keep rule.
            else_what: is done then.
        """
        rewarded = rewards > self.threshold
        moving = scores != 0
        each = [int((moving & kind).sum()) for kind in (rewarded, ~rewarded)]
        if min(each) < self.least:
            self._tell(f"{each[0]} rewarded and {each[1]} unrewarded episodes are too few, of {self.least}", else_what)
            return None
        aligned = alignments(scores, rewarded)
        errors = estimate_reward_errors(aligned, rewarded)
        if errors.right.agreeing <= errors.wrong.agreeing:
            self._tell("what is taken for right agrees with the gold solutions no more often than the rest", else_what)
            return None
        strength = self.prompt_strength
        prior = None if strength is None else prompt_priors(rewarded, groups, errors, strength)
        return reward_posterior(aligned, rewarded, errors, prior, self.rising, self.doubt).to(scores)

    def _tell(self, why: str, else_what: str) -> None:
        if not self._told and rank() == 0:
            warnings.warn(f"how likely a reward is right cannot be told: {why}. {else_what} (said once)", stacklevel=4)
        self._told = True


class Posterior(WeightRule):
    """Weight = the probability that the episode's reward is right, over its mean among those that stay.

    Where that cannot be told, all weigh the same, and that is said once. With a keep rule that drops nothing
    (``TopFraction(1.0)``) it takes the place of the sign; after :class:`~ippo.influence.PositiveScore` it adds to it.

    Args:
        expected_sign: weigh by max(0, 2 P - 1) instead: nothing is learned of a reward that is as likely wrong.
        sure: weigh only where the likelier side has at least this probability, from 0.5 (everywhere) to below 1; what
            is less sure keeps the weight 1.
        belief: options of :class:`RewardBelief`.

    Example:
        >>> scores = torch.tensor([3.0, 4.0, 5.0, -4.0] * 8 + [-4.0, 3.0, 4.0, 5.0] * 8)
        >>> rewards = torch.tensor([1.0] * 32 + [0.0] * 32)
        >>> weights = Posterior().of_kept(scores, rewards, torch.arange(64), torch.ones(64, dtype=torch.bool))
        >>> weights[:4].round(decimals=2)  # three that agree with the gold solutions, and one that opposes them
        tensor([1.1500, 1.1500, 1.1500, 0.5400])
    """

    reads = ("rewards", "groups")

    def __init__(self, expected_sign: bool = False, sure: float = 0.5, **belief: Any) -> None:
        require(0.5 <= sure < 1, "sure", sure, "use a probability from 0.5 (weigh everywhere) to below 1")
        self.expected_sign, self.sure = expected_sign, sure
        self.belief = RewardBelief(**belief)

    def __call__(self, scores: Tensor) -> Tensor:
        """Refused: scores alone do not tell.

        Raises:
            UsageError: always.
        """
        raise UsageError("weight", "Posterior()", "it reads rewards too: call of_kept, as select_episodes does")

    def of_kept(self, scores: Tensor, rewards: Tensor, groups: Tensor, kept: Tensor) -> Tensor:
        """See :meth:`WeightRule.of_kept`; the probabilities are told from all episodes, dropped ones among them."""
        right = self.belief(scores, rewards, groups, "All weigh the same")
        if right is None:
            return torch.ones_like(scores[kept])
        weights = (2 * right - 1).clamp(min=0) if self.expected_sign else right
        weights = torch.where(torch.maximum(right, 1 - right) >= self.sure, weights, 1.0)[kept]
        mean = weights.mean()
        return weights / mean if mean > 0 else torch.ones_like(weights)


class LikelyRight(KeepRule):
    """Keep what is likely to have got the right reward; where that cannot be told, what scores above 0.

    With ``rising=False`` high scores can be unlikely, too: right responses of a policy that is sure of them score
    little.

    Args:
        probability: that an episode takes to stay, above 0 and below 1.
        positive: keep only what scores above 0, too.
        belief: options of :class:`RewardBelief`.

    Example:
        >>> scores = torch.tensor([3.0, 4.0, 5.0, -4.0] * 8 + [-4.0, 3.0, 4.0, 5.0] * 8)
        >>> rewards = torch.tensor([1.0] * 32 + [0.0] * 32)
        >>> LikelyRight()(scores, rewards, torch.arange(64))[[0, 3, 32, 33]]
        tensor([ True, False, False,  True])
    """

    reads = ("rewards", "groups")

    def __init__(self, probability: float = 0.5, positive: bool = False, **belief: Any) -> None:
        require(0 < probability < 1, "probability", probability, "use a number between 0 and 1")
        self.probability, self.positive = probability, positive
        self.belief = RewardBelief(**belief)
        self.reason = f"its reward is right with less than {probability:g}"

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        right = self.belief(scores, rewards, groups, "What scores above 0 stays")
        if right is None:
            return keep_positive(scores)
        likely = right >= self.probability
        return likely & (scores > 0) if self.positive else likely
