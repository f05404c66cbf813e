"""Weights of the kept episodes, and how many episodes such weights are worth."""

from __future__ import annotations

import torch
from torch import Tensor

from ippo.functional.layout import check_axes


def effective_sample_size(weights: Tensor) -> Tensor:
    r"""The share of episodes that would, weighted equally, estimate a mean as well as these weights do.

    .. math:: \frac{(\sum_i w_i)^2}{n \sum_i w_i^2}

    Args:
        weights: [n], none negative, in any unit: only their proportions matter. A dropped episode counts
            in n where it is passed with weight 0.

    Returns:
        A scalar in (0, 1]: 1 for equal weights, 1/n if one episode has it all; 0 if there is no weight.

    Raises:
        ValueError: if ``weights`` is not [n].

    Source:
        Kish 1965, Survey Sampling.

    Example:
        >>> effective_sample_size(torch.tensor([3.0, 1.0]))  # 4 ** 2 / (2 * 10)
        tensor(0.8000)
        >>> effective_sample_size(torch.tensor([]))
        tensor(0.)
    """
    check_axes("n", weights=weights)
    if weights.numel() == 0:
        return weights.new_zeros(())
    tiny = torch.finfo(weights.dtype).tiny
    shares = weights / weights.max().clamp(min=tiny)  # squares of raw scores would overflow or vanish
    size = shares.sum().square() / (len(shares) * shares.square().sum()).clamp(min=tiny)
    return size.clamp(max=1.0)


def proportional_weights(scores: Tensor, temper: float = 1.0) -> Tensor:
    r"""Weigh episodes by a power of their score, with mean 1, so that the learning rate keeps its meaning.

    .. math:: w_i = \frac{s_i^\tau}{\frac1n \sum_j s_j^\tau}

    Args:
        scores: [n], all positive and finite; in any unit.
        temper: the power tau: 1 is the paper's weight, 0 weighs every episode alike.

    Returns:
        [n], with mean 1.

    Raises:
        ValueError: if ``scores`` is not [n] or not all positive and finite, or if ``temper`` is negative.

    Source:
        I-PPO (arXiv 2604.01597), the reweighting step (tau = 1).

    Example:
        >>> proportional_weights(torch.tensor([1.0, 4.0, 4.0]))
        tensor([0.3333, 1.3333, 1.3333])
        >>> proportional_weights(torch.tensor([1.0, 4.0, 4.0]), temper=0.5)  # 1, 2, 2 over 5/3
        tensor([0.6000, 1.2000, 1.2000])
    """
    check_axes("n", scores=scores)
    if temper < 0:
        raise ValueError(f"temper must not be negative, got {temper}")
    if scores.numel() == 0:
        return scores.clone()
    usable = scores.isfinite() & (scores > 0)
    if not usable.all():
        first = scores[~usable][0].item()
        raise ValueError(f"scores must be positive and finite, got {first}: drop such episodes, then weigh")
    powers = (scores / scores.max()) ** temper  # in units of the largest, no power overflows
    return powers / powers.mean()


def largest_temper(scores: Tensor, min_effective: float) -> float:
    """The sharpest weighting that keeps the effective sample size above a floor.

    Bisection finds it, because the effective sample size never grows with the power tau: its logarithm is
    2 K(tau) - K(2 tau) - log n with K(tau) = log sum_i s_i^tau, which is convex, so that the jvp
    2 K'(tau) - 2 K'(2 tau) is never positive.

    Args:
        scores: [n], all positive and finite.
        min_effective: the floor, a share in [0, 1].

    Returns:
        ``temper`` for :func:`proportional_weights`, in [0, 1], to 1e-9 and on the safe side of the floor;
        1 if there are no scores.

    Raises:
        ValueError: if ``scores`` is not [n] or not all positive and finite, or if the floor is not in [0, 1].

    Example:
        >>> scores = torch.tensor([1.0, 9.0])  # at tau = 1/2: (1 + 3) ** 2 / (2 * (1 + 9)) = 0.8
        >>> round(largest_temper(scores, min_effective=0.8), 6)
        0.5
    """
    if not 0 <= min_effective <= 1:
        raise ValueError(f"min_effective must be a share in [0, 1], got {min_effective}")
    check_axes("n", scores=scores)
    scores = scores.detach().cpu().double()  # thirty tiny evaluations: spare the device thirty round trips

    def is_safe(temper: float) -> bool:
        return bool(effective_sample_size(proportional_weights(scores, temper)) >= min_effective)

    if scores.numel() == 0 or is_safe(1.0):
        return 1.0
    low, high = 0.0, 1.0  # equal weights are safe, the paper's are not
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if is_safe(middle) else (low, middle)
    return low
