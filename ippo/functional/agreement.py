"""Whether what the reward pays for is what a trusted direction asks for, and whether two sets of scores agree."""

from __future__ import annotations

import torch
from torch import Tensor

from ippo.functional.layout import check_axes


def agreement(scores: Tensor) -> Tensor:
    r"""How far a step on all episodes is a step on the gold solutions: 1 if every score is positive, -1 if none is.

    .. math:: \frac{\sum_i s_i}{\sum_i |s_i|}

    It has the sign of the cosine between the episodes' mean gradient and the gold direction, and needs no norm, which
    would take another pass.

    Args:
        scores: [n], in any unit; those that are not finite do not count.

    Returns:
        A scalar in [-1, 1]; 0 where nothing has a score.

    Raises:
        ValueError: if ``scores`` is not [n].

    Source:
        No paper.

    Example:
        >>> agreement(torch.tensor([3.0, -1.0, 0.0]))  # 2 / 4
        tensor(0.5000)
    """
    check_axes("n", scores=scores)
    counted = scores[scores.isfinite()]
    total = counted.abs().sum()
    return (counted.sum() / total if total > 0 else total).float()


def opposing_share(scores: Tensor, rewarded: Tensor) -> Tensor:
    """The share of the rewarded episodes whose score is negative: a step on them would raise the gold solutions' loss.

    Args:
        scores: [n], finite; in any unit. A score of exactly 0 has no gradient and does not count, on neither side.
        rewarded: [n] bool.

    Returns:
        A scalar in [0, 1]; NaN where no rewarded episode has a gradient.

    Raises:
        ValueError: if shapes disagree.

    Source:
        The sign is I-PPO's (arXiv 2604.01597, the filter step), here read and not acted upon.

    Example:
        >>> scores = torch.tensor([-0.5, 2.0, 1.0, 0.0, -3.0])
        >>> opposing_share(scores, torch.tensor([True, True, True, True, False]))  # one of the three that move
        tensor(0.3333)
    """
    check_axes("n n", scores=scores, rewarded=rewarded)
    counted = scores[rewarded.bool() & (scores != 0)]
    return (counted < 0).float().mean()


def rank_correlation(values: Tensor, others: Tensor, groups: Tensor | None = None) -> Tensor:
    r"""Spearman's rank correlation; equal values share the mean of their ranks.

    With groups, ranks are taken within each group and held against the group's mean rank, and one correlation is taken
    over all of them: what differs *between* prompts, as their difficulty does, plays no part.

    Args:
        values, others: [n], in any unit.
        groups: [n] integers, equal for the samples of one prompt; None takes all as one group.

    Returns:
        A scalar in [-1, 1]; NaN where one of the two never varies within a group.

    Raises:
        ValueError: if shapes disagree.

    Source:
        Spearman 1904, The proof and measurement of association between two things (American Journal of Psychology 15).

    Example:
        >>> rewards = torch.tensor([0.0, 1.0, 1.0, 0.0])
        >>> rank_correlation(rewards, torch.tensor([1.0, 3.0, 4.0, 2.0]))  # 4 / sqrt(4 * 5)
        tensor(0.8944)
        >>> rank_correlation(rewards, torch.tensor([5.0, 4.0, 9.0, 1.0]), torch.tensor([0, 0, 1, 1]))  # -1 and 1
        tensor(0.)
    """
    check_axes("n n", values=values, others=others)
    groups = torch.zeros_like(values, dtype=torch.long) if groups is None else groups
    check_axes("n n", values=values, groups=groups)
    first, second = (_centred_ranks(column, groups) for column in (values, others))
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return ((first * second).sum() / scale).float()  # of nothing that varies 0 / 0, which is NaN


def survival_by_reward(kept: Tensor, rewarded: Tensor) -> tuple[Tensor, Tensor]:
    """The share that a filter keeps among the rewarded episodes, and among the others.

    Args:
        kept: [n] bool, what stays, or would.
        rewarded: [n] bool.

    Returns:
        Two scalars in [0, 1], each NaN where there is no such episode.

    Raises:
        ValueError: if shapes disagree.

    Example:
        >>> survival_by_reward(torch.tensor([True, False, False, True]), torch.tensor([True, True, False, True]))
        (tensor(0.6667), tensor(0.))
    """
    check_axes("n n", kept=kept, rewarded=rewarded)
    kept, rewarded = kept.float(), rewarded.bool()
    return kept[rewarded].mean(), kept[~rewarded].mean()


def flipped(first: Tensor, second: Tensor) -> float:
    """The share of rows that one set of scores keeps and the other drops.

    Args:
        first, second: [n] scores.

    Example:
        >>> flipped(torch.tensor([1.0, -4.0, 2.0, 3.0]), torch.tensor([1.0, -3.0, -0.1, 2.0]))
        0.25
    """
    return float(((first > 0) != (second > 0)).float().mean()) if len(first) else 0.0


def _centred_ranks(values: Tensor, groups: Tensor) -> Tensor:
    """[n] float64 ranks within each group, less the group's mean rank; twice as large, which no correlation sees."""
    values, groups = values.detach().cpu().double(), groups.detach().cpu()
    ranks = torch.zeros_like(values)
    for label in groups.unique():
        members = (groups == label).nonzero().flatten()
        own = values[members]
        ordered = own.sort().values
        lower, upper = (torch.searchsorted(ordered, own, right=right) for right in (False, True))
        ranks[members] = (lower + upper - len(own)).double()  # 0 is the mean of a group, whatever its ties
    return ranks
