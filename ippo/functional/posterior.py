"""How likely a reward is right, from what scores say: a mixture whose parts rewarded and unrewarded episodes share.

A score grows with the advantage, and turns with its sign. Over the reward's distance from the mean it becomes the
*alignment* of a response with the gold direction, whatever it was paid: right responses have one distribution of it,
wrong ones another.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ippo.functional.layout import check_axes

_SURE = 1e-6  # no estimate is surer than this


class Part(NamedTuple):
    """A Laplace distribution: heavy tails, as dot products of gradients have them.

    Args:
        location: its median.
        scale: its mean distance from there.
    """

    location: float
    scale: float

    @property
    def agreeing(self) -> float:
        """The share of it above 0: of responses that agree with the gold direction.

        Example:
            >>> round(Part(0.0, 2.0).agreeing, 3), round(Part(2.0, 2.0).agreeing, 3)  # 1 - exp(-1) / 2
            (0.5, 0.816)
        """
        beyond = math.exp(-abs(self.location) / self.scale) / 2
        return 1 - beyond if self.location >= 0 else beyond


class RewardErrors(NamedTuple):
    """What a verifier does, and how its right and wrong responses align with the gold direction.

    Args:
        rewarded: e1, the share of wrong responses among the rewarded.
        unrewarded: e0, the share of right responses among the unrewarded.
        right, wrong: alignments of each, in the unit of the scores.
    """

    rewarded: float
    unrewarded: float
    right: Part
    wrong: Part


def alignments(scores: Tensor, rewarded: Tensor) -> Tensor:
    r"""Scores in the unit of the reward: what a response would score at an advantage of 1.

    .. math:: a_i = \frac{s_i}{r_i - \bar r}

    Args:
        scores: [n], finite; in any unit.
        rewarded: [n] bool, r.

    Returns:
        [n] float64, on the CPU.

    Raises:
        ValueError: if shapes disagree, a score is not finite, or all are rewarded, or none.

    Source:
        No paper. Whitened advantages of rewards 0 and 1 are about (r - mean r) over their deviation.

    Example:
        >>> alignments(torch.tensor([3.0, -1.0, 2.0, 1.0]), torch.tensor([True, False, False, False]))  # over 3/4, -1/4
        tensor([ 4.,  4., -8., -4.], dtype=torch.float64)
    """
    check_axes("n n", scores=scores, rewarded=rewarded)
    scores, paid = scores.detach().cpu().double(), rewarded.detach().cpu().double()
    if not scores.isfinite().all():
        raise ValueError("scores must be finite: drop the others first")
    if not 0 < paid.sum() < len(paid):
        raise ValueError("rewarded must hold both, rewarded and unrewarded episodes")
    return scores / (paid - paid.mean())


def estimate_reward_errors(aligned: Tensor, rewarded: Tensor, steps: int = 200) -> RewardErrors:
    r"""Fit the mixture by expectation maximisation.

    .. math:: f_1 = (1 - e_1)\, R + e_1 W, \qquad f_0 = (1 - e_0)\, W + e_0 R

    f1 and f0 are the densities of the alignments of rewarded and unrewarded episodes; the parts R and W are shared. It
    begins at e1 = e0 = 0.2.

    Args:
        aligned: [n] :func:`alignments`; those of exactly 0 have no gradient and do not count.
        rewarded: [n] bool.
        steps: of expectation maximisation, each of which makes the alignments likelier.

    Raises:
        ValueError: if shapes disagree, or fewer than two alignments of either class are not 0.

    Source:
        Dempster, Laird and Rubin 1977, Maximum likelihood from incomplete data via the EM algorithm. Two classes that
        contaminate each other: Scott, Blanchard and Handy 2013 (COLT), equations 1 and 2.

    Example:
        >>> right, wrong = torch.tensor([3.0, 4.0, 5.0]).repeat(8), torch.tensor([-5.0, -4.0, -3.0]).repeat(8)
        >>> rewarded = (torch.arange(48) % 4 < 3) ^ (torch.arange(48) >= 24)  # 18 of the 24 right ones, 6 of the wrong
        >>> found = estimate_reward_errors(torch.cat([right, wrong]), rewarded)
        >>> round(found.rewarded, 2), round(found.unrewarded, 2), found.right.location, found.wrong.location
        (0.25, 0.25, 4.0, -4.0)
    """
    check_axes("n n", aligned=aligned, rewarded=rewarded)
    aligned, rewarded = aligned.detach().cpu().double(), rewarded.detach().cpu().bool()
    moving = aligned != 0
    aligned, rewarded = aligned[moving], rewarded[moving]
    if min(int(rewarded.sum()), int((~rewarded).sum())) < 2:
        raise ValueError("rewarded must hold two rewarded and two unrewarded episodes with a score other than 0")
    smallest = 1e-3 * float(aligned.abs().median())
    order = aligned.argsort()
    right = torch.where(rewarded, 0.8, 0.2).double()
    for _ in range(steps):
        found = RewardErrors(
            _inside(float((1 - right)[rewarded].mean())),
            _inside(float(right[~rewarded].mean())),
            _fitted(aligned, right, order, smallest),
            _fitted(aligned, 1 - right, order, smallest),
        )
        before, right = right, _responses(aligned, rewarded, found)
        if float((right - before).abs().max()) < 1e-6:
            break
    return found


def reward_posterior(
    aligned: Tensor,
    rewarded: Tensor,
    errors: RewardErrors,
    prior: Tensor | None = None,
    rising: bool = True,
    doubt: float = 0.2,
) -> Tensor:
    r"""The probability that each reward is right: that a rewarded response is, and that an unrewarded one is not.

    .. math:: P(\text{right} \mid a) = \frac{\pi \ell(a)}{\pi \ell(a) + 1 - \pi}, \qquad
        \ell = \frac{(1 - d) R + d W}{(1 - d) W + d R}

    Args:
        aligned: [n] :func:`alignments`.
        rewarded: [n] bool.
        errors: of :func:`estimate_reward_errors`.
        prior: [n] the probability, before the alignment is seen, that a *response* is right; None takes 1 - e1 for the
            rewarded and e0 for the unrewarded.
        rising: never fall with the alignment, though of two parts of unlike scale the wider has both far ends: where
            the right part is the narrower one, beyond its median the probability stays, else below the wrong part's.
        doubt: d, from 0 to below 1/2: each part may be the other, so that the ratio is never above (1 - d) / d. Two
            distributions are a coarse picture of what is right and wrong, and far out they say more than is so.

    Returns:
        [n] float64, on the CPU.

    Raises:
        ValueError: if shapes disagree, or ``doubt`` is out of range.

    Source:
        Bayes' rule, with the ratio bounded as in Huber 1965, A robust version of the probability ratio test (Annals of
        Mathematical Statistics 36).

    Example:
        >>> errors = RewardErrors(0.2, 0.1, Part(1.0, 1.0), Part(-1.0, 1.0))
        >>> reward_posterior(torch.tensor([0.0, 0.0]), torch.tensor([True, False]), errors)  # the scores say nothing
        tensor([0.8000, 0.9000], dtype=torch.float64)
        >>> reward_posterior(torch.tensor([1.0]), torch.tensor([True]), errors, doubt=0.0)  # 0.8 / (0.8 + 0.2 exp(-2))
        tensor([0.9673], dtype=torch.float64)
    """
    check_axes("n n", aligned=aligned, rewarded=rewarded)
    if not 0 <= doubt < 0.5:
        raise ValueError(f"doubt must be from 0 to below 1/2, got {doubt}")
    aligned, rewarded = aligned.detach().cpu().double(), rewarded.detach().cpu().bool()
    if prior is None:
        prior = _prior(rewarded, errors)
    check_axes("n n", aligned=aligned, prior=prior)
    if rising and errors.right.scale <= errors.wrong.scale:
        aligned = aligned.clamp(max=errors.right.location)
    elif rising:
        aligned = aligned.clamp(min=errors.wrong.location)
    parts = torch.stack([_log_density(aligned, errors.right), _log_density(aligned, errors.wrong)])
    doubts = torch.tensor([1 - doubt, doubt]).double().log()[:, None]
    ratio = (parts + doubts).logsumexp(0) - (parts + doubts.flip(0)).logsumexp(0)
    right = torch.sigmoid(prior.detach().cpu().double().logit() + ratio)
    return torch.where(rewarded, right, 1 - right)


def prompt_priors(rewarded: Tensor, groups: Tensor, errors: RewardErrors, strength: float) -> Tensor:
    r"""The probability that a response is right, from what its prompt's samples were paid.

    A prompt's share of right answers is read off its mean reward, which is smoothed towards the mean of all; the
    verifier passes wrong and misses right ones at one rate everywhere:

    .. math:: m_g = \frac{k_g + c\, m}{n_g + c}, \qquad \pi_g = \frac{m_g - p}{1 - p - q}

    with p the share of wrong answers that pass, q that of right ones that are missed, both from e1, e0 and m.

    Args:
        rewarded: [n] bool.
        groups: [n] integers, equal for the samples of one prompt.
        errors: of :func:`estimate_reward_errors`.
        strength: c, so many episodes is the mean of all worth, above 0. Of a verifier that errs on whole prompts a
            prompt's mean says less: take more.

    Returns:
        [n] float64, on the CPU, in (0, 1). A verifier that tells nothing (p + q >= 1) leaves e1 and e0 alone.

    Raises:
        ValueError: if shapes disagree, or ``strength`` is not above 0.

    Source:
        p and q by Bayes' rule; pi by the estimator of Rogan and Gladen 1978 (American Journal of Epidemiology 107).

    Example:
        >>> errors = RewardErrors(0.2, 0.2, Part(1.0, 1.0), Part(-1.0, 1.0))  # half are paid: p = q = 0.2
        >>> rewarded, groups = torch.tensor([True] * 4 + [False] * 4), torch.tensor([0] * 4 + [1] * 4)
        >>> prompt_priors(rewarded, groups, errors, strength=4.0)[[0, 4]]  # m = 3/4 and 1/4, pi = 11/12 and 1/12
        tensor([0.9778, 0.0222], dtype=torch.float64)
    """
    check_axes("n n", rewarded=rewarded, groups=groups)
    if not strength > 0:
        raise ValueError(f"strength must be above 0, got {strength}")
    rewarded, groups = rewarded.detach().cpu().bool(), groups.detach().cpu()
    paid = rewarded.double()
    mean = float(paid.mean())
    right = mean * (1 - errors.rewarded) + (1 - mean) * errors.unrewarded
    passed = mean * errors.rewarded / max(1 - right, _SURE)
    missed = (1 - mean) * errors.unrewarded / max(right, _SURE)
    if passed + missed >= 1:
        return _prior(rewarded, errors)
    _, place = groups.unique(return_inverse=True)
    count, sums = place.bincount().double(), place.bincount(paid)
    share = ((sums + strength * mean) / (count + strength) - passed) / (1 - passed - missed)
    share = share.clamp(_SURE, 1 - _SURE)[place]
    right_and = torch.where(rewarded, share * (1 - missed), share * missed)
    wrong_and = torch.where(rewarded, (1 - share) * passed, (1 - share) * (1 - passed))
    return (right_and / (right_and + wrong_and)).clamp(_SURE, 1 - _SURE)


def _inside(share: float) -> float:
    return min(max(share, _SURE), 1 - _SURE)


def _prior(rewarded: Tensor, errors: RewardErrors) -> Tensor:
    return torch.where(rewarded, 1 - errors.rewarded, errors.unrewarded).double()


def _responses(aligned: Tensor, rewarded: Tensor, errors: RewardErrors) -> Tensor:
    """[n] the probability that each response is right, by the mixture as it is."""
    ratio = _log_density(aligned, errors.right) - _log_density(aligned, errors.wrong)
    return torch.sigmoid(_prior(rewarded, errors).logit() + ratio)


def _log_density(values: Tensor, part: Part) -> Tensor:
    return -(values - part.location).abs() / part.scale - torch.tensor(2 * part.scale).double().log()


def _fitted(values: Tensor, weights: Tensor, order: Tensor, smallest: float) -> Part:
    """The likeliest Laplace distribution of weighted values: their median, and the mean distance from it.

    Args:
        values, weights: [n].
        order: [n] that sorts the values.
        smallest: scale, so that no part shrinks to a point.
    """
    sums = weights[order].cumsum(0)
    location = values[order[torch.searchsorted(sums, sums[-1] / 2).clamp(max=len(order) - 1)]]
    scale = (weights * (values - location).abs()).sum() / sums[-1].clamp(min=_SURE)
    return Part(float(location), max(float(scale), smallest))
