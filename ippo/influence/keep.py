"""Keep rules: from scores to the episodes that stay."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
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


class RandomMatched(KeepRule):
    """The control: keep as many as another rule keeps, drawn at random, so that fewer episodes explain nothing.

    Draws from torch's global generator.

    Args:
        rule: the rule whose number is matched; :class:`PositiveScore` by default.
        within_rewards: match the number within each reward apart, so that the balance of right and wrong explains
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

    def __call__(self, scores: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
        wanted = self.rule(scores, rewards, groups)
        classes = rewards if self.within_rewards else torch.zeros_like(rewards)
        kept = torch.zeros_like(wanted)
        for value in classes.unique():
            members = (classes == value).nonzero().flatten()
            order = torch.randperm(len(members)).to(members.device)
            kept[members[order[: int(wanted[members].sum())]]] = True
        return kept
