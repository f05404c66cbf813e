"""Which episodes can be learned from: those with a reward and finite numbers."""

from __future__ import annotations

import torch

from ippo.ppo.advantages import with_advantages
from ippo.ppo.options import PPOOptions
from ippo.rewards import Earned
from ippo.rollout.episodes import Episodes

NO_REWARD = "no reward applies to it"
"""Why an episode is left out for which every reward function returned None."""


def usable(episodes: Episodes, earned: Earned, ppo: PPOOptions) -> Episodes:
    """The episodes with their advantages; what cannot be learned from is dropped, with the reason.

    Args:
        episodes: a rollout, without advantages.
        earned: what reward functions gave it.
        ppo: how advantages are estimated.
    """
    reasons = [NO_REWARD if one is None else "a log-probability, value or reward is not finite" for one in earned.total]
    mask, device = episodes.response_mask, episodes.rewards.device
    numbers = episodes.old_logprobs + episodes.reference_logprobs + episodes.values
    if episodes.importance is not None:
        numbers = numbers + episodes.importance
    finite = (torch.isfinite(numbers) | ~mask).all(1) & torch.isfinite(earned.tensor.to(device))
    episodes = episodes.select(finite, reasons)
    episodes = episodes.select(episodes.lengths > 0, "the response has no token that could be learned from")
    episodes = with_advantages(episodes, ppo)
    finite = (torch.isfinite(episodes.advantages + episodes.returns) | ~episodes.response_mask).all(1)
    return episodes.select(finite, "an advantage is not finite: a reward or value is too large")


def unrewarded_alone(episodes: Episodes) -> bool:
    """Whether all that was dropped has no reward, and nothing is broken."""
    return all(reason == NO_REWARD for part in episodes.dropped for reason in part.extras["reason"])
