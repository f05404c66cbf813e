"""Where a stop would have ended a run, against where the run was at its best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ippo.callbacks.influence.survival import SurvivalStop


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


def too_few_survive(iterations: Sequence[Mapping[str, Any]], minimum: float, patience: int = 2) -> int | None:
    """The iteration after which the filter's own stop ends a run, or None.

    Args:
        iterations: of a summary.
        minimum, patience: as ``min_survival`` and ``patience`` of the filter.
    """
    survival = SurvivalStop(minimum, patience)
    reached = [survival.reached(one["kept_fraction"]) for one in iterations]
    return reached.index(True) if True in reached else None


def no_longer_falls(iterations: Sequence[Mapping[str, Any]], patience: int) -> int | None:
    """The iteration after which Lightning's ``EarlyStopping`` on the gold loss ends a run, or None.

    Args:
        iterations: of a summary.
        patience: so many iterations in a row without a new minimum are enough.

    Example:
        >>> run = [{"gold_loss": loss} for loss in (0.5, 0.3, 0.4, 0.3, 0.2)]
        >>> no_longer_falls(run, patience=2), no_longer_falls(run, patience=3)
        (3, None)
    """
    best, waited = float("inf"), 0
    for place, one in enumerate(iterations):
        loss = one.get("gold_loss")
        if loss is None:
            return None
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited >= patience:
            return place
    return None


def stop(iterations: Sequence[Mapping[str, Any]], end: int) -> Stop:
    """What it would have meant to end a run that went on.

    EM is the rollouts' true one, smoothed over five iterations.

    Args:
        iterations: of its summary.
        end: the iteration after which it ends.

    Example:
        >>> run = [{"em": em, "seconds": {"rollout": 1.0}} for em in (0.1, 0.3, 0.2, 0.2)]
        >>> stop(run, end=2)
        Stop(iteration=2, after_peak=0, lost=0.0, saved=0.25)
    """
    em, seconds = smooth([one["em"] for one in iterations]), [sum(one["seconds"].values()) for one in iterations]
    peak = int(em.argmax())
    return Stop(end, end - peak, float(em[peak] - em[end]), sum(seconds[end + 1 :]) / sum(seconds))


def course(iterations: Sequence[Mapping[str, Any]]) -> tuple[int, int, float]:
    """Does the gold loss say how far a run is?

    Args:
        iterations: of its summary.

    Returns:
        The iteration of the peak of EM, smoothed over five; that of the lowest gold loss; and the correlation of
        EM and gold loss over iterations.

    Example:
        >>> course([{"em": em, "gold_loss": 1 - em} for em in (0.1, 0.3, 0.4)])
        (2, 2, -1.0)
    """
    em, loss = (np.array([one[name] for one in iterations]) for name in ("em", "gold_loss"))
    correlation = float(np.corrcoef(em, loss)[0, 1].round(6)) if len(em) > 1 and em.std() and loss.std() else math.nan
    return int(smooth(em.tolist()).argmax()), int(loss.argmin()), correlation
