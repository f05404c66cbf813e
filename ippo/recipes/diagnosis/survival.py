"""Where the survival stop would have ended a run, against where the run was at its best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ippo.callbacks.survival import SurvivalStop


class Stop(NamedTuple):
    """What a stop would have meant.

    Args:
        iteration: after which training ends.
        after_peak: iterations since the peak of EM; negative before it.
        lost: EM at the peak minus EM at the stop.
        saved: share of the run's seconds.
    """

    iteration: int
    after_peak: int
    lost: float
    saved: float


def smooth(values: Sequence[float], width: int = 5) -> np.ndarray:
    """The mean of each value and up to ``width`` - 1 before it.

    Example:
        >>> smooth([1.0, 3.0, 5.0], width=2)
        array([1., 2., 4.])
    """
    return np.array([np.mean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)])


def stop(iterations: Sequence[Mapping[str, Any]], minimum: float, patience: int = 2) -> Stop | None:
    """Where a run would have stopped that did not; None if it would not have either.

    EM is the rollouts' true one, smoothed over five iterations.

    Args:
        iterations: of its summary.
        minimum, patience: as ``min_survival`` and ``patience`` of the filter.

    Example:
        >>> run = [
        ...     {"kept_fraction": kept, "em": em, "seconds": {"rollout": 1.0}}
        ...     for kept, em in [(0.5, 0.1), (0.2, 0.3), (0.2, 0.2), (0.2, 0.2)]
        ... ]
        >>> stop(run, minimum=0.3)
        Stop(iteration=2, after_peak=0, lost=0.0, saved=0.25)
    """
    survival = SurvivalStop(minimum, patience)
    fired = [survival.reached(one["kept_fraction"]) for one in iterations]
    if True not in fired:
        return None
    end = fired.index(True)
    em, seconds = smooth([one["em"] for one in iterations]), [sum(one["seconds"].values()) for one in iterations]
    peak = int(em.argmax())
    return Stop(end, end - peak, float(em[peak] - em[end]), sum(seconds[end + 1 :]) / sum(seconds))
