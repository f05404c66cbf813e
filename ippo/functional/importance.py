"""How far what sampled is from the policy, and what makes up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from ippo.functional.divergence import bounded_exp
from ippo.functional.layout import at_least_float32, check_axes, zero_padding


def engine_gaps(logprobs: Tensor, engine_logprobs: Tensor, mask: Tensor) -> Tensor:
    """How far the engine's log-probability of each token is from the policy's.

    Args:
        logprobs: [n, t], of the sampled tokens under the policy, in nats.
        engine_logprobs: [n, t], the same as the engine that drew them had them.
        mask: [n, t], True on response tokens.

    Returns:
        [n, t], not negative, in nats; 0 under the padding; float32 for half precision.

    Raises:
        ValueError: if shapes disagree.

    Example:
        >>> policy, engine = torch.tensor([[0.5, 0.2, 0.9]]).log(), torch.tensor([[0.25, 0.4, 0.1]]).log()
        >>> engine_gaps(policy, engine, torch.tensor([[True, True, False]]))  # log 2 both ways
        tensor([[0.6931, 0.6931, 0.0000]])
    """
    check_axes("nt nt nt", logprobs=logprobs, engine_logprobs=engine_logprobs, mask=mask)
    return zero_padding(at_least_float32(logprobs) - at_least_float32(engine_logprobs), mask).abs()


def truncated_importance(logprobs: Tensor, engine_logprobs: Tensor, mask: Tensor, cap: float = 2.0) -> Tensor:
    r"""The factor by which a token that an engine drew counts in a mean over the policy's own tokens.

    .. math:: w_t = \min\left(\frac{\pi(y_t)}{q(y_t)},\ C\right)

    Pi is the policy at the time of sampling, by its own kernels, and q what the engine really drew from. The factor is
    a constant: no gradient passes. Above C the sample is trusted no further, which bounds the variance and leaves some
    bias.

    Args:
        logprobs: [n, t], of the sampled tokens under the policy, in nats.
        engine_logprobs: [n, t], under the engine, in nats.
        mask: [n, t], True on response tokens.
        cap: the constant C, at least 1.

    Returns:
        [n, t], in [0, C]; 1 under the padding; float32 for half precision.

    Raises:
        ValueError: if shapes disagree or ``cap`` is below 1.

    Source:
        Truncation: Ionides 2008, J. Comput. Graph. Stat. 17, 295-311. Between engine and trainer, a token at a time:
        Yao et al. 2025, Your efficient RL framework secretly brings you off-policy RL training.

    Example:
        >>> policy, engine = torch.tensor([[0.5, 0.2, 0.9]]).log(), torch.tensor([[0.4, 0.4, 0.1]]).log()
        >>> truncated_importance(policy, engine, torch.ones(1, 3))  # 5/4, 1/2, and 9 cut to 2
        tensor([[1.2500, 0.5000, 2.0000]])
    """
    check_axes("nt nt nt", logprobs=logprobs, engine_logprobs=engine_logprobs, mask=mask)
    if cap < 1:
        raise ValueError(f"cap must be at least 1, got {cap}")
    log_ratio = at_least_float32(logprobs.detach()) - at_least_float32(engine_logprobs.detach())
    return torch.clamp(bounded_exp(zero_padding(log_ratio, mask)), max=cap)
