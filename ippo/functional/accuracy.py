"""Pure functions behind :mod:`ippo.metrics`: what several answers to one prompt are worth together."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def pass_at_k(right: Tensor, samples: int, k: int) -> Tensor:
    r"""The chance that at least one of k answers is right, without bias from ``samples`` >= k answers.

    .. math:: 1 - \binom{m - c}{k} \Big/ \binom{m}{k} = 1 - \prod_{i=0}^{k-1} \frac{m - c - i}{m - i}

    The product is the chance that k draws without replacement are all wrong, each factor that of one draw.
    Factors lie in [0, 1] (0 once the wrong answers run out), so nothing overflows as binomials do.

    Args:
        right: [n], the number c of right answers to each prompt.
        samples: the number m of answers to each prompt.
        k: the number of answers that may be tried.

    Returns:
        [n], shares in [0, 1].

    Raises:
        ValueError: if k does not lie between 1 and ``samples``.

    Source:
        Chen et al. 2021 (arXiv 2107.03374), eq. 1.

    Example:
        >>> pass_at_k(torch.tensor([0, 1, 3]), samples=4, k=2)  # 1 - 6/6, 1 - 3/6, 1 - 0/6
        tensor([0.0000, 0.5000, 1.0000])
    """
    if not 1 <= k <= samples:
        raise ValueError(
            f"k must lie between 1 and the number of answers a prompt, got k={k} with {samples} answers: "
            f"sample at least {k} answers a prompt or lower k"
        )
    draws = torch.arange(k, device=right.device)
    wrong_left = (samples - right.unsqueeze(-1) - draws).clamp(min=0)
    return 1 - (wrong_left / (samples - draws)).prod(dim=-1)


def majority_vote(answers: Sequence[str | None], equal: Callable[[str, str], bool] = operator.eq) -> int | None:
    """The place of the answer given most often, where it was first given; of several such answers the one seen first.

    Args:
        answers: the answers to one prompt; None stands for no answer and does not vote.
        equal: ``equal(answer, other)``, whether two answers are one, so that "36.0" can vote for "36".

    Returns:
        The winner's place among the answers, or None if nobody votes. Whoever knows which answers are right knows with
        it whether the vote is.

    Source:
        Self-consistency, Wang et al. 2022 (arXiv 2203.11171).

    Example:
        >>> majority_vote(["8", "36", "36.0", None, None, None])
        0
        >>> majority_vote(["8", "36", "36.0", None], equal=lambda a, b: float(a) == float(b))
        1
    """
    votes: dict[int, int] = {}
    for place, answer in enumerate(answers):
        if answer is not None:
            first = next((other for other in votes if equal(answer, str(answers[other]))), place)
            votes[first] = votes.get(first, 0) + 1
    return max(votes, key=votes.__getitem__, default=None)


def difference_error(first: float, last: float, count: int) -> float:
    r"""The standard error of the difference of two shares, each of ``count`` independent answers.

    .. math:: \sqrt{\frac{p (1 - p) + q (1 - q)}{n}}

    Args:
        first, last: the shares p and q, in [0, 1].
        count: the number n of answers behind each.

    Returns:
        In the unit of the shares.

    Raises:
        ValueError: if ``count`` is below 1.

    Source:
        The variance of a mean of n Bernoulli variables, for two independent ones.

    Example:
        >>> difference_error(0.5, 0.5, count=50)  # the root of (1/4 + 1/4) / 50
        0.1
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    return math.sqrt((first * (1 - first) + last * (1 - last)) / count)
