"""Is the gold set large enough for its gradient to be a direction rather than noise?"""

from __future__ import annotations

import math

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


def split_half(first: Tensor, second: Tensor, rows: int) -> Finding:
    """Two halves of the gold set judge the episodes alike.

    Args:
        first, second: [n] scores of the same episodes along the gradients of either half.
        rows: gold solutions in both halves together.
    """
    halves = correlation(first, second)
    whole, same = reliability(halves), 1 - flipped(first, second)
    found = f"halves of {rows} gold solutions agree on {same:.0%} of the signs (r = {halves:.2f}, whole {whole:.2f})"
    state = grade(1 - whole, warning=1 - ENOUGH, wrong=1 - TOO_LITTLE)
    more = needed(halves, rows)
    remedy = f"use about {more} gold solutions" if more else "more gold solutions, and look whether they are gold"
    return report("gold set", state, found, remedy)
