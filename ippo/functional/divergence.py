"""How far the policy has moved from the reference, estimated from the sampled tokens alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ippo.functional.layout import at_least_float32, check_axes

KLEstimator = Literal["k1", "k2", "k3"]

LOG_RATIO_LIMIT = 20.0
"""Nats beyond which a ratio of two probabilities no longer grows. exp(20) is 5e8; exp(89) is infinite in float32, and
its gradient, or its product with an advantage of 0, is NaN. The limit is that of verl (``trainer/ppo/core_algos.py``),
which has one at -20, too: nothing here needs it, as a ratio that vanishes does no harm."""


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp(x), constant from :data:`LOG_RATIO_LIMIT` on: finite, and without a gradient there.

    Example:
        >>> bounded_exp(torch.tensor([0.0, -200.0, 20.0, 200.0]))
        tensor([1.0000e+00, 0.0000e+00, 4.8517e+08, 4.8517e+08])
    """
    return log_ratio.clamp(max=LOG_RATIO_LIMIT).exp()


def kl(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    r"""Estimate, token by token, the KL divergence of the policy from the reference, on tokens of the policy.

    With r the ratio of the reference's probability to the policy's, ``k1`` = -log r is unbiased but varies
    widely, ``k2`` = (log r)^2 / 2 varies little but is biased, ``k3`` = r - 1 - log r is unbiased, varies
    little and is never negative. As a *loss* they differ more: on average the gradient of k1 is zero, that
    of k2 is the divergence's own, and that of k3 is the gradient of the reverse divergence. Where the reference finds
    a token more than e^20 times as probable as the policy does, k3 stays at what it is there, without a gradient.

    Args:
        logprobs: [n, t], log-probabilities of the sampled tokens under the policy, in nats.
        ref_logprobs: [n, t], the same under the reference policy.
        estimator: ``"k1"``, ``"k2"`` or ``"k3"``.

    Returns:
        [n, t], in nats; float32 for half precision.

    Raises:
        ValueError: if shapes disagree or the estimator is unknown.

    Source:
        Schulman 2020, Approximating KL divergence, http://joschu.net/blog/kl-approx.html

    Example:
        >>> logprobs, ref_logprobs = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.5]]).log()
        >>> kl(logprobs, ref_logprobs, "k1")  # log 2 = 0.6931
        tensor([[ 0.6931, -0.6931]])
        >>> kl(logprobs, ref_logprobs, "k2")
        tensor([[0.2402, 0.2402]])
        >>> kl(logprobs, ref_logprobs, "k3")  # 1/2 - 1 + 0.6931, 2 - 1 - 0.6931
        tensor([[0.1931, 0.3069]])
    """
    check_axes("nt nt", logprobs=logprobs, ref_logprobs=ref_logprobs)
    log_ratio = at_least_float32(logprobs) - at_least_float32(ref_logprobs)
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    if estimator == "k3":
        log_ratio = log_ratio.clamp(min=-LOG_RATIO_LIMIT)
        return torch.expm1(-log_ratio) + log_ratio  # exp(x) - 1 loses its digits near 0
    raise ValueError(f'estimator must be "k1", "k2" or "k3", got {estimator!r}')


def adapted_kl_coef(kl_coef: float, kl: float, target: float, rate: float = 0.1) -> float:
    r"""The next price of divergence: higher where the divergence was above its target, lower where it was below.

    .. math:: e = \mathrm{clip}\left(\frac{\mathrm{KL} - \mathrm{target}}{\mathrm{target}}, -0.2, 0.2\right), \qquad
        \beta' = \beta (1 + K_\beta e)

    Args:
        kl_coef: the present price beta, in units of reward a nat.
        kl: the divergence that was measured, in nats.
        target: the one that is wanted, above 0, in nats.
        rate: K_beta.

    Returns:
        The price of the next iteration, above 0 if this one is.

    Source:
        Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.

    Example:
        >>> adapted_kl_coef(0.5, kl=0.11, target=0.1)  # 10 % above: 0.5 * (1 + 0.1 * 0.1)
        0.505
        >>> adapted_kl_coef(0.5, kl=9.0, target=0.1), adapted_kl_coef(0.5, kl=-1.0, target=0.1)  # clipped to 20 %
        (0.51, 0.49)
    """
    error = min(max((kl - target) / target, -0.2), 0.2)
    return kl_coef * (1 + rate * error)
