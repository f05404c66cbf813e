"""What PPO minimises on the policy's side: the loss that is scored is the loss that is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ippo.functional import aggregate, entropy_loss, kl_loss, policy_loss
from ippo.models.responses import response_logprobs, response_logprobs_and_entropy
from ippo.ppo.options import PPOOptions
from ippo.rollout.episodes import Episodes
from ippo.rollout.sequences import Sequences


@dataclass(frozen=True)
class PolicyObjective:
    """The policy's losses, one number an episode, before any weight.

    Args:
        ppo: clips, penalties, reduction.
        temperature: at which the responses were sampled.
    """

    ppo: PPOOptions
    temperature: float

    def terms(self, policy: nn.Module, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """[n] PPO losses and [n, t] log-probabilities."""
        if self.is_of_logprobs:
            logprobs = self.logprobs(policy, episodes)
            return self.of_logprobs(logprobs, episodes), logprobs
        logprobs, entropy = response_logprobs_and_entropy(policy, episodes, self.temperature)
        bonus = self.ppo.entropy_coef * entropy_loss(entropy, episodes.response_mask, self.ppo.reduction)
        return self.of_logprobs(logprobs, episodes) + bonus, logprobs

    def losses(self, policy: nn.Module, episodes: Episodes) -> Tensor:
        """[n] PPO losses: what the influence filter scores."""
        return self.terms(policy, episodes)[0]

    def of_logprobs(self, logprobs: Tensor, episodes: Episodes) -> Tensor:
        """[n] PPO losses from [n, t] log-probabilities, an entropy bonus left out."""
        ppo, mask, old = self.ppo, episodes.response_mask, episodes.old_logprobs
        clips = (ppo.clip_low, ppo.clip_high, ppo.dual_clip)
        losses = policy_loss(logprobs, old, episodes.advantages, mask, *clips, ppo.reduction, episodes.importance)
        if ppo.kl_place == "loss" and ppo.kl_coef:
            penalty = kl_loss(logprobs, episodes.reference_logprobs, mask, ppo.kl_estimator, ppo.reduction)
            losses = losses + ppo.kl_coef * penalty
        return losses

    @property
    def is_of_logprobs(self) -> bool:
        """Whether log-probabilities are all that the losses depend on."""
        return not self.ppo.entropy_coef

    def logprobs(self, policy: nn.Module, sequences: Sequences) -> Tensor:
        """[n, t] log-probabilities of the responses, as they were sampled."""
        return response_logprobs(policy, sequences, self.temperature)

    def returns(self, policy: nn.Module, episodes: Episodes) -> Tensor:
        """[n] -log pi A, each token with its own advantage (IIF's f_return, arXiv 2505.19281)."""
        return aggregate(
            -self.logprobs(policy, episodes) * episodes.advantages, episodes.response_mask, self.ppo.reduction
        )

    def answer_returns(self, policy: nn.Module, episodes: Episodes) -> Tensor:
        """[n] -log pi(y | x) A, each whole response with the advantage of its last token (IIF's form for RLHF)."""
        logprobs = aggregate(self.logprobs(policy, episodes), episodes.response_mask, "sum")
        return -logprobs * episodes.advantages.gather(1, episodes.lengths.unsqueeze(1) - 1).squeeze(1)
