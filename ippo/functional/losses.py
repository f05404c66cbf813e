"""The losses of PPO and of supervised fine-tuning, one number for each episode.

An episode's loss is the mean or the sum over its tokens; weighting episodes is left to the caller, so that
the loss scored for influence is the loss trained. Every function serves reverse-mode and forward-mode
differentiation. Old log-probabilities, advantages, old values and returns are constants: detach them, and
compute them outside of a forward-mode pass, where ``torch.no_grad()`` does not stop tangents.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ippo.functional.divergence import KLEstimator, bounded_exp, kl
from ippo.functional.layout import at_least_float32, check_axes, zero_padding

Reduction = Literal["mean", "sum"]


def aggregate(values: Tensor, mask: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Reduce values a token to one number an episode.

    The mean gives every episode the same say, the sum every token. For DAPO's token-level loss divide the
    sums by the number of tokens in the batch.

    Args:
        values: [n, t].
        mask: [n, t], True on response tokens.
        reduction: ``"mean"`` or ``"sum"`` over the response tokens.

    Returns:
        [n], in units of ``values``; 0 for an empty response.

    Raises:
        ValueError: if shapes disagree or the reduction is unknown.

    Example:
        >>> values, mask = torch.tensor([[1.0, 2.0, 9.0], [9.0] * 3]), torch.tensor([[1, 1, 0], [0] * 3])
        >>> aggregate(values, mask)
        tensor([1.5000, 0.0000])
        >>> aggregate(values, mask, reduction="sum")
        tensor([3., 0.])
    """
    check_axes("nt nt", values=values, mask=mask)
    sums = zero_padding(values, mask).sum(dim=1)
    if reduction == "sum":
        return sums
    if reduction == "mean":
        return sums / mask.bool().sum(dim=1).clamp(min=1)
    raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}')


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    reduction: Reduction = "mean",
    importance: Tensor | None = None,
) -> Tensor:
    r"""PPO's clipped surrogate as a loss, with a lower and an upper clip of their own.

    .. math:: -\min(\rho_t \hat A_t,\ \mathrm{clip}(\rho_t, 1 - \epsilon_{low}, 1 + \epsilon_{high}) \hat A_t)

    Rho is the token's probability now over that at the time of sampling. Where the advantage is negative,
    ``dual_clip`` c bounds the loss by -c A, however large rho. At rho = 1 the gradient is that of -A log pi.
    Above e^20 rho no longer grows and has no gradient (:data:`~ippo.functional.divergence.LOG_RATIO_LIMIT`), so that
    no token makes the loss or its gradient infinite.

    Args:
        logprobs: [n, t], log-probabilities of the sampled tokens under the policy, in nats.
        old_logprobs: [n, t], the same at the time of sampling.
        advantages: [n, t].
        mask: [n, t], True on response tokens.
        clip_low: epsilon below 1.
        clip_high: epsilon above 1.
        dual_clip: the constant c > 1; None for the plain surrogate.
        reduction: ``"mean"`` or ``"sum"`` over the response tokens.
        importance: [n, t], by which each token's loss is multiplied, see
            :func:`ippo.functional.importance.truncated_importance`; a constant. None for 1.

    Returns:
        [n], in units of advantage.

    Raises:
        ValueError: if shapes disagree, a clip is negative, ``dual_clip`` is not above 1 or the reduction is
            unknown.

    Source:
        Schulman et al. 2017 (arXiv 1707.06347), eq. 7; two clips: DAPO, Yu et al. 2025 (arXiv 2503.14476),
        section 3.1; dual clip: Ye et al. 2020 (arXiv 1912.09729).

    Example:
        >>> logprobs = torch.tensor([[2.0, 0.5, 4.0]]).log()  # the ratios, since the old probabilities are 1
        >>> advantages, mask = torch.tensor([[1.0, 1.0, -1.0]]), torch.ones(1, 3)
        >>> policy_loss(logprobs, torch.zeros(1, 3), advantages, mask, reduction="sum")  # -1.2 - 0.5 + 4
        tensor([2.3000])
        >>> policy_loss(logprobs, torch.zeros(1, 3), advantages, mask, dual_clip=3.0, reduction="sum")
        tensor([1.3000])
        >>> importance = torch.tensor([[1.0, 2.0, 0.5]])  # -1.2 - 2 * 0.5 + 4 / 2
        >>> policy_loss(logprobs, torch.zeros(1, 3), advantages, mask, importance=importance, reduction="sum")
        tensor([-0.2000])
    """
    check_axes("nt nt nt nt", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    low, high = _clip_bounds(clip_low, clip_high)
    ratio = bounded_exp(zero_padding(at_least_float32(logprobs) - at_least_float32(old_logprobs), mask))
    advantages = zero_padding(advantages, mask)
    plain, clipped = ratio * advantages, ratio.clamp(low, high) * advantages
    surrogate = torch.where(plain <= clipped, plain, clipped)  # torch 2.15's clamp has no gradient on the range's edge
    if dual_clip is not None:
        if dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1, or None for the plain surrogate, got {dual_clip}")
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    if importance is not None:
        check_axes("nt nt", logprobs=logprobs, importance=importance)
        surrogate = importance * surrogate
    return aggregate(-surrogate, mask, reduction)


def clip_fraction(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """The share of an episode's tokens whose probability ratio has left the clip range; a diagnostic.

    Args:
        logprobs: [n, t], in nats.
        old_logprobs: [n, t], in nats.
        mask: [n, t], True on response tokens.
        clip_low: epsilon below 1.
        clip_high: epsilon above 1.

    Returns:
        [n], in [0, 1]; 0 for an empty response.

    Raises:
        ValueError: if shapes disagree or a clip is negative.

    Example:
        >>> logprobs = torch.tensor([[0.7, 0.9, 1.1, 1.25]]).log()
        >>> clip_fraction(logprobs, torch.zeros(1, 4), torch.ones(1, 4))  # 0.7 and 1.25 lie outside
        tensor([0.5000])
        >>> clip_fraction(logprobs, torch.zeros(1, 4), torch.ones(1, 4), clip_high=0.28)
        tensor([0.2500])
    """
    check_axes("nt nt nt", logprobs=logprobs, old_logprobs=old_logprobs, mask=mask)
    low, high = _clip_bounds(clip_low, clip_high)
    ratio = (at_least_float32(logprobs) - at_least_float32(old_logprobs)).exp()
    is_outside = (ratio < low) | (ratio > high)
    return aggregate(is_outside.to(ratio.dtype), mask)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float | None = 0.2,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Half the critic's squared error, where a move further than ``clip`` from the old value gains nothing.

    .. math:: \tfrac12 \max\big((V - \hat R)^2,\ (V_{old} + \mathrm{clip}(V - V_{old}, -c, c) - \hat R)^2\big)

    Args:
        values: [n, t], the critic's values.
        old_values: [n, t], the same at the time of sampling.
        returns: [n, t], the targets, see :func:`~ippo.functional.advantages.gae`.
        mask: [n, t], True on response tokens.
        clip: how far a value may move, in units of reward; None for the plain squared error.
        reduction: ``"mean"`` or ``"sum"`` over the response tokens.

    Returns:
        [n], in squared units of reward.

    Raises:
        ValueError: if shapes disagree, ``clip`` is negative or the reduction is unknown.

    Source:
        Huang et al. 2022, The 37 implementation details of PPO, no. 9 (in OpenAI's code, not in its paper).

    Example:
        >>> values, old_values, returns = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[2.0]])
        >>> value_loss(values, old_values, returns, torch.ones(1, 1), clip=0.5)  # max(1, 1.5 ** 2) / 2
        tensor([1.1250])
        >>> value_loss(values, old_values, returns, torch.ones(1, 1), clip=None)
        tensor([0.5000])
    """
    check_axes("nt nt nt nt", values=values, old_values=old_values, returns=returns, mask=mask)
    values, old_values, returns = (zero_padding(tensor, mask) for tensor in (values, old_values, returns))
    errors = (values - returns).square()
    if clip is not None:
        if clip < 0:
            raise ValueError(f"clip must not be negative; None switches it off, got {clip}")
        clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
        errors = torch.where(errors >= clipped, errors, clipped)
    return aggregate(errors / 2, mask, reduction)


def kl_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    estimator: KLEstimator = "k3",
    reduction: Reduction = "mean",
) -> Tensor:
    """The KL penalty as a loss, see :func:`kl`.

    Args:
        logprobs: [n, t], log-probabilities of the sampled tokens under the policy, in nats.
        ref_logprobs: [n, t], the same under the reference policy.
        mask: [n, t], True on response tokens.
        estimator: ``"k2"`` or ``"k3"``; ``"k1"`` has a gradient of pure noise.
        reduction: ``"mean"`` or ``"sum"`` over the response tokens.

    Returns:
        [n], in nats.

    Raises:
        ValueError: if shapes disagree, or the estimator or the reduction is unknown.

    Source:
        DeepSeekMath, Shao et al. 2024 (arXiv 2402.03300), eq. 4.

    Example:
        >>> logprobs, ref_logprobs = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.5]]).log()
        >>> kl_loss(logprobs, ref_logprobs, torch.ones(1, 2))  # (0.1931 + 0.3069) / 2
        tensor([0.2500])
    """
    check_axes("nt nt nt", logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    tokens = kl(zero_padding(logprobs, mask), zero_padding(ref_logprobs, mask), estimator)
    return aggregate(tokens, mask, reduction)


def entropy_loss(entropy: Tensor, mask: Tensor, reduction: Reduction = "mean") -> Tensor:
    """The negative entropy of the policy: lowering it keeps the policy exploring.

    Args:
        entropy: [n, t], in nats, see :func:`~ippo.functional.logprobs.token_entropy`.
        mask: [n, t], True on response tokens.
        reduction: ``"mean"`` or ``"sum"`` over the response tokens.

    Returns:
        [n], in nats, never positive.

    Raises:
        ValueError: if shapes disagree or the reduction is unknown.

    Source:
        Schulman et al. 2017 (arXiv 1707.06347), eq. 9.

    Example:
        >>> entropy_loss(torch.tensor([[1.0, 2.0]]), torch.ones(1, 2))
        tensor([-1.5000])
    """
    check_axes("nt nt", entropy=entropy, mask=mask)
    return aggregate(-entropy, mask, reduction)


def sft_loss(logprobs: Tensor, mask: Tensor, reduction: Reduction = "mean") -> Tensor:
    """The negative log-likelihood of given answers: supervised fine-tuning, and I-PPO's validation loss.

    Args:
        logprobs: [n, t], log-probabilities of the answers' tokens, in nats.
        mask: [n, t], True on response tokens.
        reduction: ``"mean"`` or ``"sum"`` over the response tokens.

    Returns:
        [n], in nats a token (mean) or in nats (sum).

    Raises:
        ValueError: if shapes disagree or the reduction is unknown.

    Source:
        I-PPO (arXiv 2604.01597), the loss L_SFT of the validation gradient.

    Example:
        >>> sft_loss(torch.tensor([[0.5, 0.125]]).log(), torch.ones(1, 2))  # (1 + 3) / 2 times log 2
        tensor([1.3863])
    """
    check_axes("nt nt", logprobs=logprobs, mask=mask)
    return aggregate(-logprobs, mask, reduction)


def _clip_bounds(clip_low: float, clip_high: float) -> tuple[float, float]:
    """The range in which the probability ratio is free."""
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clips must not be negative, got clip_low={clip_low}, clip_high={clip_high}")
    return 1 - clip_low, 1 + clip_high
