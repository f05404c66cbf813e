"""Is the gold set large enough for its gradient to be a direction rather than noise?"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from ippo.doctor.finding import Finding, grade, report
from ippo.doctor.scores import flipped

ENOUGH, TOO_LITTLE = 0.8, 0.5  # of reliability; psychometrics asks 0.8 of a scale that single people are judged by


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's r; 0 where one side does not vary.

    Example:
        >>> correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
        1.0
    """
    pair = torch.stack([first, second]).double()
    pair = pair - pair.mean(1, keepdim=True)
    scale = float(pair.square().sum(1).prod().sqrt())
    return round(float(pair.prod(0).sum()) / scale, 12) if scale > 0 else 0.0


def reliability(halves: float, factor: float = 2.0) -> float:
    """What a test ``factor`` times as long would correlate with its like (Spearman 1910, Brown 1910).

    Args:
        halves: correlation of the two halves; a negative one counts as 0.
        factor: length against that of a half; 2 for the whole.

    Example:
        >>> reliability(0.5), reliability(-0.2)  # 2 * 0.5 / (1 + 0.5)
        (0.6666666666666666, 0.0)
    """
    r = max(0.0, halves)
    return factor * r / (1 + (factor - 1) * r)


def needed(halves: float, rows: int, goal: float = ENOUGH) -> int | None:
    """Gold solutions that would reach ``goal``, by the same formula; None where the halves share nothing.

    Example:
        >>> needed(0.5, rows=10)  # a half has 5 rows; 4 times as many reach 4 * 0.5 / (1 + 3 * 0.5) = 0.8
        20
    """
    if halves <= 0:
        return None
    factor = goal * (1 - halves) / (halves * (1 - goal))
    return math.ceil(round(factor * rows / 2, 6))


def split_half(scores: Tensor, sizes: Tensor) -> tuple[float, float]:
    """How well two halves of the gold set agree on the episodes, averaged over all ways to halve it.

    A gradient is a sum over gold solutions, and a score is linear in it: scores along the gradients of a few parts give
    those along every half that is made of them.

    Args:
        scores: [parts, n] scores of the same episodes along the mean gradient of each part of the gold set.
        sizes: [parts] gold solutions in each.

    Returns:
        Mean correlation, and mean share of episodes whose signs agree.

    Example:
        >>> scores = torch.tensor([[3.0, -1.0], [1.0, -2.0], [1.0, -1.0], [-2.0, 1.0]])
        >>> split_half(scores, torch.ones(4))  # (4, -3) | (-1, 0) oppose, (4, -2) | (-1, -1), (1, 0) | (2, -3) agree
        (0.0, 0.6666666666666666)
    """
    weighted, parts = scores * sizes.unsqueeze(1), range(len(scores))
    chosen = [half for half in combinations(parts, len(scores) // 2) if len(scores) % 2 or 0 in half]
    halves = [(list(half), [part for part in parts if part not in half]) for half in chosen]
    pairs = [(weighted[one].sum(0), weighted[other].sum(0)) for one, other in halves]
    correlations = [correlation(*pair) for pair in pairs]
    agreements = [1 - flipped(*pair) for pair in pairs]
    return sum(correlations) / len(pairs), sum(agreements) / len(pairs)


def gold_set(halves: float, agreement: float, rows: int) -> Finding:
    """Two halves of the gold set judge the episodes alike.

    Args:
        halves, agreement: see :func:`split_half`.
        rows: gold solutions in both halves together.
    """
    whole = reliability(halves)
    found = f"halves of {rows} agree on {agreement:.0%} of signs, r = {halves:.2f}; whole set {whole:.2f}"
    state = grade(1 - whole, warning=1 - ENOUGH, wrong=1 - TOO_LITTLE)
    more = needed(halves, rows)
    remedy = f"use about {more} gold solutions" if more else "more gold solutions, and check that they are gold"
    return report("gold set", state, found, remedy)
