"""Numbers of a comparison: figures of a run, runs cut to one budget, and paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from ippo.experiments.comparison.cells import Summary

Figure = Callable[[Summary], float]

FIGURES: dict[str, Figure] = {
    "EM": lambda run: run["trained"]["em"],
    "greedy EM": lambda run: run["trained"]["em_greedy"],
    "MV": lambda run: run["trained"]["mv"],
    "Pass": lambda run: run["trained"]["pass_at_k"],
    "unfaithful": lambda run: run["trained"]["false_positive"] or 0.0,
    "hacked": lambda run: run["trained"].get("hacked") or 0.0,
    "reward": lambda run: run["trained"].get("reward", float("nan")),
    "iterations": lambda run: len(run["iterations"]),
    "update tokens": lambda run: sum(one["update_tokens"] for one in run["iterations"]),
    "rollout s": lambda run: _seconds(run, "rollout"),
    "scoring s": lambda run: _seconds(run, "scoring"),
    "update s": lambda run: _seconds(run, "update"),
    "kept": lambda run: _mean(run, "kept_fraction"),
    "effective sample": lambda run: _mean(run, "effective_sample_size"),
}
QUALITY = ("EM", "greedy EM", "MV", "Pass", "unfaithful", "hacked")
"""The figures of the test split, which are compared in pairs."""
TESTED = (*QUALITY, "reward")
"""And what the training verifier gives to the same answers, to be held against the EM; NaN where it was not asked."""


def best(rates: Mapping[float, float]) -> float:
    """Of learning rates, each with its mean EM, the one to take; of equals the first.

    Example:
        >>> best({2e-4: 0.31, 4e-4: 0.35})
        0.0004
    """
    return max(rates, key=rates.__getitem__)


def interval(differences: Sequence[float], draws: int = 10_000) -> tuple[float, float, float]:
    r"""Mean of paired differences and its bootstrap 95 % interval, which resamples the pairs.

    Percentiles of the resampled means, taken further out than 2.5 and 97.5 %: of few pairs those miss the truth too
    often (five normal ones about one time in six), for a bootstrap knows neither Student's t nor a variance's n - 1.

    .. math:: \Phi\left(-\sqrt{n / (n - 1)}\; t_{0.975,\, n - 1}\right) \text{ and 1 minus that}

    Fewer than five have no more than their range to resample, which is less than 95 %: theirs is Student's interval.

    Args:
        differences: [n], one a seed.
        draws: resampled means.

    Returns:
        Mean and both ends, the ends NaN where there is but one difference.

    Source:
        Hesterberg 2015, What Teachers Should Know About the Bootstrap (arXiv 1411.5279), the expanded percentile
        interval.

    Example:
        >>> interval([0.5, 0.5, 0.5])
        (0.5, 0.5, 0.5)
        >>> [round(each, 2) for each in interval([0.0, 1.0])]  # 0.5 and 12.7 times 0.5: two seeds say little
        [0.5, -5.85, 6.85]
        >>> interval([0.5])
        (0.5, nan, nan)
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n == 1:
        return float(values[0]), float("nan"), float("nan")
    if n < 5:
        reach = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
        return float(values.mean()), float(values.mean()) - reach, float(values.mean()) + reach
    tail = float(stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)))
    resampled = stats.bootstrap(
        (values,), np.mean, n_resamples=draws, confidence_level=1 - 2 * tail, method="percentile", rng=0
    ).confidence_interval
    return float(values.mean()), float(resampled.low), float(resampled.high)


def shown(mean: float) -> str:
    """A figure in a table: shares with three digits, counts and seconds without.

    Example:
        >>> shown(0.5918), shown(294558.2), shown(float("nan"))
        ('0.592', '294,558', '–')
    """
    if np.isnan(mean):
        return "–"
    return f"{mean:.3f}" if mean < 2 else f"{mean:,.0f}"


def signed(mean: float, low: float, high: float) -> str:
    """A difference in a table.

    Example:
        >>> signed(0.0512, -0.01, 0.1)
        '+0.051 [-0.010, +0.100]'
        >>> signed(*interval([0.25]))
        '+0.250'
    """
    return f"{mean:+.3f}" if np.isnan(low) else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def cost(iteration: Summary, of: str) -> float:
    """What an iteration takes: ``"tokens"`` of the update, or ``"seconds"`` of rollout, scoring and update together."""
    return float(iteration["update_tokens"] if of == "tokens" else sum(iteration["seconds"].values()))


def within(run: Summary, budget: float, of: str, last: int = 5) -> float:
    """EM of the rollouts in the last iterations that a budget pays for.

    The policy that rolls out has been paid for by the iterations before it. Rollouts are of training problems, each
    rolled out at most once; their EM is the true one, whatever the verifier said.

    Args:
        run: its summary.
        budget: tokens or seconds.
        of: see :func:`cost`.
        last: iterations that are averaged.

    Example:
        >>> run = {"iterations": [{"update_tokens": 10, "em": em} for em in (0.1, 0.2, 0.3, 0.4)]}
        >>> within(run, budget=20, of="tokens", last=1)  # two updates, and the rollout after them
        0.3
    """
    iterations = run["iterations"]
    before = np.cumsum([0.0, *(cost(one, of) for one in iterations)])[: len(iterations)]
    paid = [one["em"] for one, spent in zip(iterations, before, strict=True) if spent <= budget]
    return float(np.mean(paid[-last:])) if paid else float("nan")


def common_budget(runs: Sequence[Summary], of: str) -> float:
    """What the cheapest of the runs cost as a whole, so that all can be cut to it."""
    return min(sum(cost(one, of) for one in run["iterations"]) for run in runs)


def _seconds(run: Summary, phase: str) -> float:
    return sum(one["seconds"][phase] for one in run["iterations"])


def _mean(run: Summary, key: str) -> float:
    return float(np.mean([one[key] for one in run["iterations"]])) if run["iterations"] else 1.0
