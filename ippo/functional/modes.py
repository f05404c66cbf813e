"""Whether numbers fall into two groups."""

from __future__ import annotations

import torch
from torch import Tensor

from ippo.functional.layout import check_axes


def two_means(values: Tensor, least: float = 0.1) -> tuple[float, float]:
    """The cut that leaves the least variance within two groups, and how far apart these are.

    Args:
        values: [n], finite; in any unit.
        least: the share of the values that each group has, at least, so that no outlier makes one of its own; up to
            a half.

    Returns:
        The cut, midway between the groups, in the unit of the values; and the distance of their means over the root of
        their mean variance. Of many values it is 2.6 where they are normal and 3.5 where they are uniform, and more
        than 4 where one would draw a line between them. Both are NaN of fewer than two values.

    Raises:
        ValueError: if ``values`` is not [n].

    Source:
        The cut is that of Otsu 1979 (IEEE Transactions on Systems, Man, and Cybernetics 9), the distance Ashman's D
        (Ashman, Bird and Zepf 1994, arXiv astro-ph/9408030, equation 12) of the two groups.

    Example:
        >>> two_means(torch.tensor([9.0, -1.0, 11.0, 1.0]))  # means 0 and 10, variances 1 and 1
        (5.0, 10.0)
    """
    check_axes("n", values=values)
    ranked, n = values.double().sort().values, len(values)
    if n < 2:
        return float("nan"), float("nan")
    below = torch.arange(1, n, dtype=torch.double, device=values.device)
    possible = torch.minimum(below, n - below) >= min(least * n, n // 2)
    first, second = ranked.cumsum(0), ranked.square().cumsum(0)
    means = torch.stack([first[:-1] / below, (first[-1] - first[:-1]) / (n - below)])
    squares = torch.stack([second[:-1] / below, (second[-1] - second[:-1]) / (n - below)])
    variances = (squares - means.square()).clamp(min=0)
    within = (below * variances[0] + (n - below) * variances[1]).masked_fill(~possible, torch.inf)
    cut = int(within.argmin())
    distance = (means[1, cut] - means[0, cut]) / variances[:, cut].mean().sqrt()
    return float((ranked[cut] + ranked[cut + 1]) / 2), float(distance)
