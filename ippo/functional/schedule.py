"""How learning rates and factors of losses go, iteration by iteration."""

from __future__ import annotations

from typing import Literal


def rate_factor(iteration: int, of: int, warmup: int, schedule: Literal["constant", "linear"]) -> float:
    r"""What the learning rate is multiplied by in one iteration.

    .. math:: \min\left(\frac{i + 1}{w + 1},\ 1 - 0.9\, \frac{i}{n}\right)

    The first term rises to 1 after w iterations; the second, of ``"linear"`` alone, falls towards a tenth.

    Args:
        iteration: i, from 0.
        of: n, the iterations of the run; 0 or less where no end is known, and then nothing falls.
        warmup: w, iterations below the full rate.
        schedule: whether the rate falls.

    Returns:
        A factor in (0, 1].

    Example:
        >>> [rate_factor(iteration, of=4, warmup=1, schedule="linear") for iteration in range(4)]
        [0.5, 0.775, 0.55, 0.32499999999999996]
    """
    rising = (iteration + 1) / (warmup + 1)
    falling = 1.0 - 0.9 * iteration / of if schedule == "linear" and of > 0 else 1.0
    return min(rising, falling)


def falling_factor(iteration: int, of: int, schedule: Literal["constant", "linear"]) -> float:
    r"""What the factor of a loss is multiplied by in one iteration: 1, or for ``"linear"`` a fall towards nothing.

    .. math:: 1 - \frac{i}{n}

    Args:
        iteration: i, from 0.
        of: n, the iterations of the run; 0 or less where no end is known, and then nothing falls.
        schedule: whether it falls.

    Returns:
        A factor in (0, 1].

    Example:
        >>> [falling_factor(iteration, of=4, schedule="linear") for iteration in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    return 1.0 - iteration / of if schedule == "linear" and of > 0 else 1.0
