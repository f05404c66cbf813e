"""Options of the PPO iteration, checked where they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ippo.errors import require
from ippo.functional import KLEstimator


@dataclass(frozen=True)
class PPOOptions:
    """One PPO iteration. The defaults suit a pretrained model; the embedded policy has its own in
    ``configs/policies/tiny.yaml``.

    Args:
        samples_per_prompt: responses drawn for each prompt of the iteration's batch.
        unfinished_reward: what an unfinished response earns at most: the smaller of this and what the reward gave. At
            the reward of a wrong answer, or below, not to end pays nowhere.
        inner_epochs: passes over the surviving episodes.
        minibatch_size: episodes an optimizer step, on each rank.
        micro_batch_size: episodes in one forward and backward; bounds memory, changes no result.
        micro_batch_tokens: tokens in it, padding included, in training and in scoring; ``micro_batch_size`` is then an
            upper limit. None: only that counts.
        group_by_length: whether episodes of similar length share a micro-batch, which leaves less padding to compute;
            gradients add up, so that it changes no result beyond rounding. With ``micro_batch_tokens`` they always do.
        learning_rate, value_learning_rate: peak rates of AdamW for policy and value parameters.
        warmup: iterations over which both rates rise to their peak.
        schedule: ``"constant"``, or ``"linear"`` down to a tenth at ``trainer.max_epochs``.
        max_grad_norm: gradients of policy and value parameters are each clipped to this norm.
        clip_low, clip_high, dual_clip: see :func:`ippo.functional.policy_loss`.
        value_clip: values move at most this far from the old ones; None switches it off.
        value_coef: factor of the value loss. Where it is 0 and ``advantage`` asks for no values, there is no critic.
        entropy_coef: factor of an entropy bonus.
        kl_coef: price of a nat of divergence from the reference policy; 0 switches the reference off.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``.
        kl_place: the penalty goes into each token's ``"reward"`` (PPO) or into the ``"loss"`` (GRPO).
        advantage: ``"gae"``, ``"group_relative"`` (GRPO) or ``"rloo"``; the last two compare a prompt's own samples.
        gamma, lam: discount and trace decay of GAE.
        whiten: scale GAE advantages to mean 0 and variance 1 over the tokens of the whole buffer.
        reduction: ``"mean"`` weighs episodes alike, ``"sum"`` weighs tokens alike.
        importance_correction: weigh each token by min(pi / q, ``importance_cap``), where q is the probability that the
            engine drew it with. ``"auto"``: where the engine has kernels of its own and tells its log-probabilities.
        importance_cap: the largest weight; see :func:`ippo.functional.importance.truncated_importance`.
        ptx_coef: factor of the gold solutions' SFT loss in every optimizer step (PPO-ptx, Ouyang et al. 2022,
            arXiv 2203.02155, equation 2, where the mixed-in texts are of the pretraining); 0 leaves it out.
        ptx_batch_size: gold solutions drawn for it, on each rank.
        ptx_schedule: ``"constant"``, or ``"linear"`` from ``ptx_coef`` towards nothing at ``trainer.max_epochs``.
        ptx_share: the share of the gold solutions that it draws from. Below 1 the others alone make the direction that
            the filter scores along, so that no gold solution is both fitted and judged by.
    """

    samples_per_prompt: int = 8
    unfinished_reward: float = 0.0
    inner_epochs: int = 2
    minibatch_size: int = 64
    micro_batch_size: int = 64
    micro_batch_tokens: int | None = None
    group_by_length: bool = True
    learning_rate: float = 1e-6
    value_learning_rate: float = 1e-6
    warmup: int = 0
    schedule: Literal["constant", "linear"] = "constant"
    max_grad_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    value_clip: float | None = 0.2
    value_coef: float = 1.0
    entropy_coef: float = 0.0
    kl_coef: float = 1e-4
    kl_estimator: KLEstimator = "k1"
    kl_place: Literal["reward", "loss"] = "reward"
    advantage: Literal["gae", "group_relative", "rloo"] = "gae"
    gamma: float = 1.0
    lam: float = 1.0
    whiten: bool = True
    reduction: Literal["mean", "sum"] = "mean"
    importance_correction: Literal["auto", "on", "off"] = "auto"
    importance_cap: float = 2.0
    ptx_coef: float = 0.0
    ptx_batch_size: int = 32
    ptx_schedule: Literal["constant", "linear"] = "constant"
    ptx_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("samples_per_prompt", "inner_epochs", "minibatch_size", "micro_batch_size", "ptx_batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"ppo.{name}", value, "use a whole number of at least 1")
        budget = self.micro_batch_tokens
        require(budget is None or budget >= 1, "ppo.micro_batch_tokens", budget, "use at least 1, or null")
        for name in ("learning_rate", "value_learning_rate", "max_grad_norm"):
            require(getattr(self, name) > 0, f"ppo.{name}", getattr(self, name), "use a number above 0")
        for name in ("warmup", "clip_low", "clip_high", "value_coef", "entropy_coef", "kl_coef", "ptx_coef"):
            require(getattr(self, name) >= 0, f"ppo.{name}", getattr(self, name), "use 0 or more")
        for name in ("gamma", "lam"):
            require(0 <= getattr(self, name) <= 1, f"ppo.{name}", getattr(self, name), "use a number between 0 and 1")
        require(0 < self.ptx_share <= 1, "ppo.ptx_share", self.ptx_share, "use a share above 0, at most 1")
        parted = self.ptx_share == 1 or self.ptx_coef > 0
        require(parted, "ppo.ptx_share", self.ptx_share, "it parts what ppo.ptx_coef trains on: set that above 0")
        require(
            self.dual_clip is None or self.dual_clip > 1,
            "ppo.dual_clip",
            self.dual_clip,
            "use a number above 1, or null",
        )
        require(
            self.value_clip is None or self.value_clip > 0,
            "ppo.value_clip",
            self.value_clip,
            "use a number above 0, or null",
        )
        require(self.importance_cap >= 1, "ppo.importance_cap", self.importance_cap, "use a number of at least 1")
        known = self.unfinished_reward > -math.inf  # false for NaN, too
        require(known, "ppo.unfinished_reward", self.unfinished_reward, "use a number, or .inf for no ceiling")
        grouped = self.advantage != "gae"
        require(
            not grouped or self.samples_per_prompt > 1,
            "ppo.samples_per_prompt",
            self.samples_per_prompt,
            f"advantage={self.advantage} compares the samples of one prompt: draw at least 2",
        )
        require(
            not grouped or self.kl_place == "loss" or self.kl_coef == 0,
            "ppo.kl_place",
            self.kl_place,
            f"advantage={self.advantage} has one an episode: use kl_place=loss with kl_estimator=k3, or kl_coef=0",
        )
        require(
            self.kl_place == "reward" or self.kl_coef == 0 or self.kl_estimator != "k1",
            "ppo.kl_estimator",
            self.kl_estimator,
            "as a loss its gradient is noise around zero: use k3 or k2, or kl_place=reward",
        )

    @property
    def token_budget(self) -> float | None:
        """Tokens in a micro-batch of episodes of similar length, which may be unlimited; None for episodes as they
        come."""
        unlimited = math.inf if self.group_by_length else None
        return unlimited if self.micro_batch_tokens is None else self.micro_batch_tokens

    @property
    def uses_values(self) -> bool:
        """Whether a critic is asked, or trained."""
        return self.advantage == "gae" or self.value_coef > 0

    @property
    def uses_reference(self) -> bool:
        """Whether the policy is held against the one that it was before PPO."""
        return self.kl_coef > 0


@dataclass(frozen=True)
class EvaluationOptions:
    """How validation and test answers are drawn.

    Args:
        samples: responses a prompt, k of MV@k and Pass@k. Beside them the greedy response is judged.
        temperature, top_p: of the sampling. At 1.0 the policy is judged as PPO trains it.
        seed: of the draws, which depend on it and the problems alone: one policy has one figure. Another number draws
            other answers.
        reward: also ask the training reward about the sampled answers: what it believes, beside what is true. A reward
            that is paid for by the call then costs more.
    """

    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    reward: bool = False

    def __post_init__(self) -> None:
        require(self.samples >= 1, "evaluation.samples", self.samples, "use at least 1")
        require(self.temperature > 0, "evaluation.temperature", self.temperature, "use a number above 0")
        require(0 < self.top_p <= 1, "evaluation.top_p", self.top_p, "use a share above 0, at most 1")
