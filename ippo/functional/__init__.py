"""Pure tensor functions: no state, no Lightning, no model.

Axes are ``n`` episodes, ``t`` response tokens, ``v`` vocabulary; how they lie: :mod:`ippo.functional.layout`.
"""

from ippo.functional.accuracy import difference_error, majority_vote, pass_at_k
from ippo.functional.advantages import gae, group_relative, rloo, token_rewards, whiten
from ippo.functional.agreement import agreement, opposing_share, rank_correlation, survival_by_reward
from ippo.functional.change import binomial_evidence, cusum, with_odds
from ippo.functional.divergence import KLEstimator, adapted_kl_coef, kl
from ippo.functional.importance import engine_gaps, truncated_importance
from ippo.functional.logprobs import token_entropy, token_logprobs
from ippo.functional.losses import (
    Reduction,
    aggregate,
    clip_fraction,
    entropy_loss,
    kl_loss,
    policy_loss,
    sft_loss,
    value_loss,
)
from ippo.functional.modes import two_means
from ippo.functional.posterior import (
    Part,
    RewardErrors,
    alignments,
    estimate_reward_errors,
    prompt_priors,
    reward_posterior,
)
from ippo.functional.preference import preference_loss
from ippo.functional.probe import fit_probe, keep_where_alike_agree, left_out_chances, log_loss, narrowed, standardised
from ippo.functional.schedule import falling_factor, rate_factor
from ippo.functional.selection import (
    keep_above_gap,
    keep_but_worst_negatives,
    keep_like_gold,
    keep_max_variance,
    keep_positive,
    keep_right_or_positive,
    keep_top,
)
from ippo.functional.weights import effective_sample_size, largest_temper, proportional_weights

__all__ = [
    "KLEstimator",
    "Part",
    "Reduction",
    "RewardErrors",
    "adapted_kl_coef",
    "aggregate",
    "agreement",
    "alignments",
    "binomial_evidence",
    "clip_fraction",
    "cusum",
    "difference_error",
    "effective_sample_size",
    "engine_gaps",
    "entropy_loss",
    "estimate_reward_errors",
    "falling_factor",
    "fit_probe",
    "gae",
    "group_relative",
    "keep_above_gap",
    "keep_but_worst_negatives",
    "keep_like_gold",
    "keep_max_variance",
    "keep_positive",
    "keep_right_or_positive",
    "keep_top",
    "keep_where_alike_agree",
    "kl",
    "kl_loss",
    "largest_temper",
    "left_out_chances",
    "log_loss",
    "majority_vote",
    "narrowed",
    "opposing_share",
    "pass_at_k",
    "policy_loss",
    "preference_loss",
    "proportional_weights",
    "prompt_priors",
    "rank_correlation",
    "rate_factor",
    "reward_posterior",
    "rloo",
    "sft_loss",
    "standardised",
    "survival_by_reward",
    "token_entropy",
    "token_logprobs",
    "token_rewards",
    "truncated_importance",
    "two_means",
    "value_loss",
    "whiten",
    "with_odds",
]
