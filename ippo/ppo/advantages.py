"""From rewards to advantages, for a whole rollout buffer."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ippo.distributed import total
from ippo.functional import gae, group_relative, rloo, token_rewards, whiten
from ippo.ppo.options import PPOOptions
from ippo.rollout.episodes import Episodes


def with_advantages(episodes: Episodes, ppo: PPOOptions) -> Episodes:
    """The same episodes with ``advantages`` and ``returns`` filled in.

    GAE works on the rewards a token: the KL penalty where it belongs into the reward, and the episode's reward on its
    last token. The group estimators give every token of an episode the same advantage, and the critic the episode's
    reward as its target. All sums that whitening needs run over all ranks.
    """
    mask = episodes.response_mask
    if ppo.advantage == "gae":
        kl_coef = ppo.kl_coef if ppo.kl_place == "reward" else 0.0
        rewards = token_rewards(
            episodes.rewards, episodes.old_logprobs, episodes.reference_logprobs, mask, kl_coef, ppo.kl_estimator
        )
        advantages, returns = gae(rewards, episodes.values, mask, ppo.gamma, ppo.lam)
        if ppo.whiten:
            advantages = whiten(advantages, mask, total=total)
    else:
        estimator = group_relative if ppo.advantage == "group_relative" else rloo
        advantages = _per_token(estimator(episodes.rewards, episodes.groups), mask)
        returns = _per_token(episodes.rewards, mask)
    return dataclasses.replace(episodes, advantages=advantages, returns=returns)


def _per_token(values: Tensor, mask: Tensor) -> Tensor:
    """[n] -> [n, t], zero under padding."""
    return values.unsqueeze(1) * mask
