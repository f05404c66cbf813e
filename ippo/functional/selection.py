"""Which episodes of a buffer stay: a mask from scores, rewards and groups.

Nothing is drawn at random: of equal scores, and of equal rewards, the first counts as the highest.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from ippo.functional.layout import check_axes
from ippo.functional.modes import two_means


def keep_positive(scores: Tensor, min_fraction: float = 0.0, zero: bool = False) -> Tensor:
    """Keep the episodes with a positive score, and never fewer than a share of all.

    Args:
        scores: [n], finite; in any unit.
        min_fraction: the share in [0, 1], rounded up to whole episodes. Where fewer are positive, the highest of the
            other scores fill up.
        zero: a score of exactly 0 stays too.

    Returns:
        [n] bool, True for the episodes that stay.

    Raises:
        ValueError: if ``scores`` is not [n] or not finite, or if ``min_fraction`` is not in [0, 1].

    Source:
        I-PPO (arXiv 2604.01597), the filter step, with the defaults;
        DTV (arXiv 2609.35072) with ``min_fraction=0.25, zero=True``.

    Example:
        >>> scores = torch.tensor([-0.3, 0.0, 0.5, -0.1, -0.2])
        >>> keep_positive(scores)
        tensor([False, False,  True, False, False])
        >>> keep_positive(scores, zero=True)
        tensor([False,  True,  True, False, False])
        >>> keep_positive(scores, min_fraction=0.5)  # 2.5 of 5 are 3: one positive and the next two
        tensor([False,  True,  True,  True, False])
    """
    _check_scores(scores)
    if not 0 <= min_fraction <= 1:
        raise ValueError(f"min_fraction must be a share in [0, 1], got {min_fraction}")
    positive = scores >= 0 if zero else scores > 0
    return _highest(scores, positive.sum().clamp(min=math.ceil(_exact(min_fraction) * len(scores))))


def keep_but_worst_negatives(scores: Tensor, share: float = 1.0) -> Tensor:
    """Drop the lowest of the negative scores; keep all else.

    Args:
        scores: [n], finite; in any unit.
        share: the share in [0, 1] *of the negative scores* that goes, rounded down to whole episodes.

    Returns:
        [n] bool, True for the episodes that stay.

    Raises:
        ValueError: if ``scores`` is not [n] or not finite, or if ``share`` is not in [0, 1].

    Source:
        IIF (arXiv 2505.19281): shares of 0.06 to 0.5 in classic RL, 1 in RLHF.

    Example:
        >>> scores = torch.tensor([-0.3, 0.0, 0.5, -0.1, -0.2])
        >>> keep_but_worst_negatives(scores)
        tensor([False,  True,  True, False, False])
        >>> keep_but_worst_negatives(scores, share=0.5)  # 1.5 of the 3 negative ones are 1
        tensor([False,  True,  True,  True,  True])
    """
    _check_scores(scores)
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    dropped = math.floor(_exact(share) * int((scores < 0).sum()))
    return _highest(scores, len(scores) - dropped)


def keep_top(scores: Tensor, fraction: float = 0.5) -> Tensor:
    """Keep the highest scores, whatever their sign.

    Args:
        scores: [n], finite; in any unit.
        fraction: the share of the episodes that stays, in (0, 1], rounded up: of any episodes, one stays.

    Returns:
        [n] bool, True for the episodes that stay.

    Raises:
        ValueError: if ``scores`` is not [n] or not finite, or if ``fraction`` is not in (0, 1].

    Example:
        >>> keep_top(torch.tensor([-0.3, -0.1, -0.1, 0.5]), fraction=0.5)  # of the tie the first
        tensor([False,  True, False,  True])
    """
    _check_scores(scores)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be a share in (0, 1], got {fraction}")
    return _highest(scores, math.ceil(_exact(fraction) * len(scores)))


def keep_max_variance(rewards: Tensor, groups: Tensor, samples: int) -> Tensor:
    r"""In each group keep the rewards whose variance is the largest that so many of them can have.

    The variance is convex in each reward, so none that stays lies between two that go: the best choice is the k
    highest and the ``samples`` - k lowest for some k. Every k is tried. Of several best choices the one with the
    most high rewards wins.

    Args:
        rewards: [n], finite; in any unit.
        groups: [n] integers, equal for the answers to one prompt; in any order.
            A group must lie in this tensor as a whole.
        samples: how many of each group stay, at least 2. A group with no more than these stays whole.

    Returns:
        [n] bool, True for the episodes that stay.

    Raises:
        ValueError: if shapes disagree, if a reward is not finite, or if ``samples`` is below 2.

    Source:
        PODS (arXiv 2504.13818), max-variance down-sampling.

    Example:
        >>> rewards, groups = torch.tensor([0.0, 1.0, 4.0, 9.0, 10.0, 7.0]), torch.tensor([3, 3, 3, 3, 3, 8])
        >>> keep_max_variance(rewards, groups, samples=3)  # 0 1 10: 20.2; 0 9 10: 20.2 too, with more high rewards
        tensor([ True, False, False,  True,  True,  True])
    """
    check_axes("n n", rewards=rewards, groups=groups)
    _check_finite("rewards", rewards)
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}: one reward alone has no variance")
    values, labels = rewards.detach().cpu().double(), groups.cpu()  # many tiny groups: spare the device round trips
    kept = torch.zeros(len(values), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        kept[members[_widest(values[members], samples)]] = True
    return kept.to(rewards.device)


def keep_right_or_positive(scores: Tensor, rewards: Tensor, threshold: float = 0.5) -> Tensor:
    """Keep every rewarded answer, and of the others those with a positive score.

    Args:
        scores: [n], finite; in any unit.
        rewards: [n], in any unit.
        threshold: an answer is rewarded if its reward is above this, in units of reward.

    Returns:
        [n] bool, True for the episodes that stay.

    Raises:
        ValueError: if shapes disagree or a score is not finite.

    Source:
        No paper: it shows how much of a filter's effect comes from the rewarded answers that it drops.

    Example:
        >>> keep_right_or_positive(torch.tensor([-0.3, 0.2, -0.1, 0.0]), torch.tensor([1.0, 0.0, 0.5, 0.0]))
        tensor([ True,  True, False, False])
    """
    _check_scores(scores)
    check_axes("n n", scores=scores, rewards=rewards)
    return (rewards > threshold) | (scores > 0)


def keep_like_gold(scores: Tensor, gold_scores: Tensor, fdr: float = 0.2) -> Tensor:
    r"""Keep all but the rows that score lower than rows known to be right do, more often than chance explains.

    The conformal p-value of a row is the share, itself among them, of gold rows that score as low as it does:

    .. math:: p_i = \frac{1 + |\{j : g_j \le s_i\}|}{m + 1}

    The rows with the k lowest p-values go, where k is the largest number for which the k-th of them is at most
    ``fdr`` k / n. Of the rows that go, at most this share is right, on average; where all rows are like the gold ones,
    hardly any goes.

    Args:
        scores: [n], finite; in any unit.
        gold_scores: [m], finite; in the same unit, none of a row that had a part in its own direction.
        fdr: the false discovery rate, in [0, 1). Fewer than 1 / fdr - 1 gold rows tell nothing: all stay.

    Returns:
        [n] bool, True for the rows that stay.

    Raises:
        ValueError: if scores are not [n] and [m] or not finite, or if ``fdr`` is not in [0, 1).

    Source:
        Benjamini and Hochberg 1995, section 3.1, on the p-values of Bates et al. 2023, Testing for outliers with
        conformal p-values (arXiv 2104.08279), equation 1 with the score's sign turned; their Theorem 2 allows it.

    Example:
        >>> gold = torch.tensor([3.0, 1.0, 2.0, 4.0])  # p-values of 0.5, 0.6, 1 and 9: 1/5, 1/5, 2/5 and 5/5
        >>> scores = torch.tensor([0.5, 0.6, 1.0, 9.0])
        >>> keep_like_gold(scores, gold, fdr=0.4)  # 1/5 <= 0.4 * 2/4, but 2/5 > 0.4 * 3/4
        tensor([False, False,  True,  True])
        >>> keep_like_gold(scores, gold, fdr=0.3)  # 1/5 > 0.3 * 2/4: two such rows of four may be chance
        tensor([True, True, True, True])
    """
    _check_scores(scores)
    check_axes("m", gold_scores=gold_scores)
    _check_finite("gold_scores", gold_scores)
    if not 0 <= fdr < 1:
        raise ValueError(f"fdr must be a share in [0, 1), got {fdr}")
    n, m = len(scores), len(gold_scores)
    as_low = torch.searchsorted(gold_scores.to(scores).sort().values, scores, right=True)  # how many gold rows are
    ranked = as_low.sort().values + 1
    passed = (ranked <= _step_up_bounds(fdr, m, n).to(scores.device)).nonzero()
    if not len(passed):
        return torch.ones_like(scores, dtype=torch.bool)
    return as_low + 1 > ranked[passed[-1, 0]]


def keep_above_gap(scores: Tensor, distance: float = 4.0) -> Tensor:
    """Keep the higher of two groups of scores where they lie far apart, and everything where there is one group.

    No more than half of the episodes go: where the higher group is the smaller one, it is the exception.

    Args:
        scores: [n], finite; in any unit, with any part that all of them share.
        distance: how far apart two groups are, in the unit of :func:`two_means`, positive.

    Returns:
        [n] bool, True for the episodes that stay.

    Raises:
        ValueError: if ``scores`` is not [n] or not finite, or if ``distance`` is not positive.

    Source:
        No paper: Otsu's cut, taken where Ashman's D says that there are two groups; see :func:`two_means`.

    Example:
        >>> keep_above_gap(torch.tensor([9.0, 11.0, 1.0, 10.0]))
        tensor([ True,  True, False,  True])
        >>> keep_above_gap(torch.tensor([9.0, 11.0, 8.0, 10.0]), distance=9)
        tensor([True, True, True, True])
    """
    _check_scores(scores)
    if not distance > 0:
        raise ValueError(f"distance must be positive, got {distance}")
    cut, apart = two_means(scores)
    above = scores > cut
    if not apart > distance or 2 * int(above.sum()) < len(scores):
        return torch.ones_like(above)
    return above


@lru_cache(64)  # of batches of one size always the same
def _step_up_bounds(fdr: float, m: int, n: int) -> Tensor:
    """[n] the whole numbers at most fdr k (m + 1) / n, exactly."""
    share = _exact(fdr) * (m + 1)
    return torch.tensor([share.numerator * k // (share.denominator * n) for k in range(1, n + 1)], dtype=torch.long)


def _highest(scores: Tensor, count: Tensor | int) -> Tensor:
    """[n] bool, True for the ``count`` highest scores; of equal ones the first."""
    return scores.argsort(descending=True, stable=True).argsort() < count


def _widest(rewards: Tensor, samples: int) -> Tensor:
    """Where, in one group, the rewards of the largest variance are."""
    order = rewards.argsort(descending=True, stable=True)
    between = len(order) - samples  # this many go, next to each other in the order
    if between <= 0:
        return order
    ranked = rewards[order]
    # from 0 to 1, so that one tolerance fits every unit, and equal rewards are exactly 0
    ranked = (ranked - ranked[-1]) / (ranked[0] - ranked[-1]).clamp(min=torch.finfo(ranked.dtype).tiny)

    def sums(values: Tensor) -> Tensor:
        """Of the k highest and the ``samples`` - k lowest, for k = 0 to ``samples``."""
        first = torch.cat([values.new_zeros(1), values.cumsum(0)])
        return first[: samples + 1] + (first[-1] - first[between:])

    variances = sums(ranked.square()) / samples - (sums(ranked) / samples).square()
    highest = int((variances >= variances.max() - 1e-12).nonzero().max())  # ties up to rounding
    return torch.cat([order[:highest], order[highest + between :]])


def _exact(share: float) -> Fraction:
    """The share as it was written: in floating point 0.07 of 100 is more than 7, which rounding up makes 8."""
    return Fraction(str(share))


def _check_scores(scores: Tensor) -> None:
    check_axes("n", scores=scores)
    _check_finite("scores", scores)


def _check_finite(name: str, values: Tensor) -> None:
    finite = values.isfinite()
    if not finite.all():
        raise ValueError(f"{name} must be finite, got {values[~finite][0].item()}: drop such episodes first")
