"""Sequential change detection: whether a share that is counted again and again has risen, and since when."""

from __future__ import annotations

import math


def with_odds(share: float, ratio: float) -> float:
    r"""The share whose odds are ``ratio`` times those of another.

    .. math:: \frac{r p}{1 + (r - 1) p}

    Args:
        share: p, in [0, 1].
        ratio: r, above 0.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: if an argument is out of range.

    Source:
        How the alternative of a binomial CUSUM is set: Reynolds and Stoumbos 1999, A CUSUM chart for monitoring a
        proportion when inspecting continuously (Journal of Quality Technology 31).

    Example:
        >>> with_odds(0.25, 3.0)  # odds of 1 to 3 become 3 to 3
        0.5
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    if not ratio > 0:
        raise ValueError(f"ratio must be above 0, got {ratio}")
    return ratio * share / (1 + (ratio - 1) * share)


def binomial_evidence(hits: int, trials: int, usual: float, changed: float) -> float:
    r"""The log-likelihood ratio of a count: by how much it speaks for one share against another.

    .. math:: h \log\frac{p_1}{p_0} + (m - h) \log\frac{1 - p_1}{1 - p_0}

    Args:
        hits: h, how many of the trials.
        trials: m.
        usual: p_0, the share that holds without a change, in (0, 1).
        changed: p_1, the share to be told from it, in (0, 1).

    Returns:
        Nats, above 0 where the count is likelier under ``changed``; 0 of no trial.

    Raises:
        ValueError: if an argument is out of range.

    Source:
        Neyman and Pearson 1933; as the step of a CUSUM for a proportion Reynolds and Stoumbos 1999.

    Example:
        >>> round(binomial_evidence(6, 8, usual=0.25, changed=0.5), 4)  # 6 log 2 + 2 log (2/3)
        3.348
    """
    if not 0 <= hits <= trials:
        raise ValueError(f"hits must be between 0 and {trials}, got {hits}")
    for name, share in (("usual", usual), ("changed", changed)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must be in (0, 1), got {share}")
    return hits * math.log(changed / usual) + (trials - hits) * math.log((1 - changed) / (1 - usual))


def cusum(previous: float, evidence: float) -> float:
    r"""One step of the one-sided cumulative sum, :math:`S_t = \max(0, S_{t-1} + z_t)`.

    It forgets what speaks against a change as soon as that outweighs the rest, so a change is seen however late it
    comes; the last step at which it was 0 is the likeliest one before the change.

    Args:
        previous: S of the step before; 0 at first.
        evidence: z, negative on the mean without a change, and positive after one.

    Returns:
        The sum, at least 0, in the unit of the evidence. Above a *decision interval* it says that there was a change.

    Source:
        Page 1954, Continuous inspection schemes (Biometrika 41), section 3.

    Example:
        >>> cusum(cusum(0.0, 1.5), 1.0), cusum(1.5, -2.0)
        (2.5, 0.0)
    """
    return max(0.0, previous + evidence)
