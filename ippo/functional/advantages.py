"""From scores to advantages: rewards a token, GAE, group baselines and whitening.

Nothing here is meant to be differentiated: an advantage is a constant of the policy loss. Half precision goes in and
float32 comes out, as means and recursions lose in it what they compare.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ippo.functional.divergence import KLEstimator, kl
from ippo.functional.layout import at_least_float32, check_axes, response_lengths, zero_padding


def token_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    kl_coef: float,
    estimator: KLEstimator = "k1",
) -> Tensor:
    r"""Spread an episode's score over its tokens: the KL penalty on every token, the score on the last one.

    .. math:: r_t = -\beta \, \mathrm{KL}_t + R \cdot [t \text{ is the last response token}]

    The last token is part of the response (its EOS, if it has one). An empty response gets no reward at all.

    Args:
        scores: [n], the outcome reward R of each episode.
        logprobs: [n, t], log-probabilities of the sampled tokens under the policy, in nats.
        ref_logprobs: [n, t], the same under the reference policy; not read if ``kl_coef`` is 0.
        mask: [n, t], True on response tokens.
        kl_coef: the penalty's coefficient beta, in units of reward a nat.
        estimator: how a token's KL is estimated, see :func:`~ippo.functional.divergence.kl`.

    Returns:
        [n, t], zero under the padding. With ``"k1"`` a row sums to R - beta * log(pi(y|x) / pi_ref(y|x)).

    Raises:
        ValueError: if shapes disagree, a response is not padded on the right alone, or the estimator is unknown.

    Source:
        Ziegler et al. 2019 (arXiv 1909.08593), eq. 2, shared out over tokens as in Ouyang et al. 2022
        (arXiv 2203.02155).

    Example:
        >>> scores, mask = torch.tensor([1.0]), torch.tensor([[1, 1, 0]])
        >>> logprobs, ref_logprobs = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[-2.0, -1.5, -9.0]])
        >>> token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=0.5)  # 0 - .5 * 1, 1 - .5 * -.5
        tensor([[-0.5000,  1.2500,  0.0000]])
    """
    check_axes("n nt nt nt", scores=scores, logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    scores, logprobs, ref_logprobs = map(at_least_float32, (scores, logprobs, ref_logprobs))
    is_last = torch.arange(mask.shape[1], device=mask.device) == response_lengths(mask).unsqueeze(1) - 1
    rewards = torch.where(is_last, scores.unsqueeze(1), 0.0)
    if kl_coef == 0:
        return rewards
    return rewards - kl_coef * kl(zero_padding(logprobs, mask), zero_padding(ref_logprobs, mask), estimator)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation over the response tokens, and the value targets that go with it.

    .. math::
        \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad
        \hat A_t = \delta_t + \gamma \lambda \hat A_{t+1}, \qquad
        \hat R_t = \hat A_t + V_t

    The last response token is terminal: nothing is bootstrapped beyond it.

    Args:
        rewards: [n, t], the reward of each token, see :func:`token_rewards`.
        values: [n, t], the critic's value of the state in which the token was chosen, in units of reward.
        mask: [n, t], True on response tokens.
        gamma: discount a token.
        lam: 0 trusts the critic (one-step TD error), 1 trusts the rewards (return minus value).

    Returns:
        advantages [n, t] and returns [n, t], both zero under the padding.

    Raises:
        ValueError: if shapes disagree, or a response is not padded on the right alone.

    Source:
        Schulman et al. 2016 (arXiv 1506.02438), eq. 16.

    Example:
        >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0, 0.0]]), torch.tensor([[0.25, 0.50, 0.75, 9.0]])
        >>> advantages, returns = gae(rewards, values, mask=torch.tensor([[1, 1, 1, 0]]), lam=0.5)
        >>> advantages  # every delta is .25: .25 + .5 * .375, .25 + .5 * .25, .25
        tensor([[0.4375, 0.3750, 0.2500, 0.0000]])
        >>> returns
        tensor([[0.6875, 0.8750, 1.0000, 0.0000]])
    """
    check_axes("nt nt nt", rewards=rewards, values=values, mask=mask)
    response_lengths(mask)
    rewards, values = (zero_padding(at_least_float32(given), mask) for given in (rewards, values))
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = rewards + gamma * next_values - values

    # The recursion starts in the padding, where all is zero, so the last response token inherits nothing.
    advantages = torch.zeros_like(deltas)
    advantage = deltas.new_zeros(len(deltas))
    for token in reversed(range(deltas.shape[1])):
        advantage = deltas[:, token] + gamma * lam * advantage
        advantages[:, token] = advantage
    return advantages, advantages + values


def group_relative(rewards: Tensor, groups: Tensor, scale_by_std: bool = True, tolerance: float = 1e-6) -> Tensor:
    r"""GRPO's advantage: the reward against its group's mean, in units of the group's standard deviation.

    .. math:: \hat A_i = \frac{r_i - \mathrm{mean}(r)}{\mathrm{std}(r)}

    The paper leaves open which standard deviation it means; this is the sample one (n - 1), as in TRL.
    A group whose rewards differ only by rounding has nothing to compare: its advantages are 0, and so is
    the advantage of an episode alone in its group.

    Args:
        rewards: [n].
        groups: [n], an integer for each episode, equal for the answers to one prompt; in any order.
            A group must lie in this tensor as a whole.
        scale_by_std: False leaves the advantage in units of reward (Dr. GRPO).
        tolerance: a standard deviation up to this share of the group's mean absolute reward is rounding.

    Returns:
        [n], float32 (float64 for float64 rewards).

    Raises:
        ValueError: if shapes disagree.

    Source:
        DeepSeekMath, Shao et al. 2024 (arXiv 2402.03300), section 4.1.2;
        without the scale: Liu et al. 2025 (arXiv 2503.20783).

    Example:
        >>> rewards, groups = torch.tensor([1.0, 0.5, 3.0, 0.5]), torch.tensor([7, 4, 7, 4])
        >>> group_relative(rewards, groups)  # group 7: mean 2, std sqrt(1 + 1) = 1.4142
        tensor([-0.7071,  0.0000,  0.7071,  0.0000])
    """
    check_axes("n n", rewards=rewards, groups=groups)
    rewards = at_least_float32(rewards)
    means, sizes = _group_means(rewards, groups)
    centred = rewards - means
    squares, _ = _group_means(centred.square(), groups)
    magnitudes, _ = _group_means(rewards.abs(), groups)
    std = (squares * sizes / (sizes - 1).clamp(min=1)).sqrt()
    is_flat = std <= tolerance * magnitudes
    advantages = centred / std if scale_by_std else centred
    return advantages.masked_fill(is_flat, 0.0)


def rloo(rewards: Tensor, groups: Tensor) -> Tensor:
    r"""REINFORCE leave-one-out: the reward against the mean reward of the *other* answers to the prompt.

    .. math:: \hat A_i = r_i - \frac{1}{k - 1} \sum_{j \ne i} r_j = \frac{k}{k - 1} (r_i - \mathrm{mean}(r))

    Args:
        rewards: [n].
        groups: [n], an integer for each episode, equal for the answers to one prompt; in any order.
            A group must lie in this tensor as a whole.

    Returns:
        [n], float32 (float64 for float64 rewards), in units of reward; 0 for an episode alone in its group, which has
        no others to compare with.

    Raises:
        ValueError: if shapes disagree.

    Source:
        Kool et al. 2019 (Buy 4 REINFORCE samples, get a baseline for free); Ahmadian et al. 2024
        (arXiv 2402.14740).

    Example:
        >>> rewards, groups = torch.tensor([1.0, 0.0, 0.0, 5.0]), torch.tensor([0, 0, 0, 1])
        >>> rloo(rewards, groups)  # 1 - 0, 0 - 1/2, 0 - 1/2; the last is alone
        tensor([ 1.0000, -0.5000, -0.5000,  0.0000])
    """
    check_axes("n n", rewards=rewards, groups=groups)
    rewards = at_least_float32(rewards)
    means, sizes = _group_means(rewards, groups)
    return (rewards - means) * sizes / (sizes - 1).clamp(min=1)


def whiten(
    values: Tensor,
    mask: Tensor,
    shift_mean: bool = True,
    total: Callable[[Tensor], Tensor] = lambda local: local,
    eps: float = 1e-8,
) -> Tensor:
    """Scale the values of all response tokens to variance one and, with ``shift_mean``, to mean zero.

    Mean and (population) variance are those of the tokens of all ranks together, so the result does not
    depend on how episodes are spread over ranks. Squares are summed about the mean, in a second pass.

    Args:
        values: [n, t], usually advantages.
        mask: [n, t], True on the tokens that count, wherever they are.
        shift_mean: False scales about the mean and leaves the mean where it is.
        total: sums a tensor over all ranks; the default is right for one process. As it needs every
            rank, each must call ``whiten``, even one that holds no episode.
        eps: added to the variance, in squared units of ``values``.

    Returns:
        [n, t], zero under the padding. Equal values give zeros (with ``shift_mean``).

    Raises:
        ValueError: if shapes disagree.

    Source:
        Huang et al. 2024 (arXiv 2403.17031), on whitening; Chan, Golub and LeVeque 1983, on the two passes.

    Example:
        >>> values, mask = torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[1, 1], [1, 0]])
        >>> whiten(values, mask)  # mean 3, variance (4 + 0 + 4) / 3, standard deviation 1.6330
        tensor([[-1.2247,  0.0000],
                [ 1.2247,  0.0000]])
    """
    check_axes("nt nt", values=values, mask=mask)
    values = at_least_float32(values)
    count = total(mask.bool().sum()).clamp(min=1)
    mean = total(zero_padding(values, mask).sum()) / count
    # The mean of what remains is rounding error; left in, it would turn equal values into noise of size one.
    mean = mean + total(zero_padding(values - mean, mask).sum()) / count
    centred = zero_padding(values - mean, mask)
    variance = total(centred.square().sum()) / count
    whitened = centred * torch.rsqrt(variance + eps)
    return whitened if shift_mean else zero_padding(whitened + mean, mask)


def _group_means(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """For each episode the mean of ``values`` over its group and the size of its group, both [n]."""
    _, index, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(sizes)).index_add(0, index, values)
    return (sums / sizes)[index], sizes[index]
