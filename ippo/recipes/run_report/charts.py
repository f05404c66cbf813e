"""Curves as drawings: every number that the template writes into an SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from ippo.recipes.run_report.record import Curve, Record

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT = 40, WIDTH - 8
_TOP, _BOTTOM = 8, HEIGHT - 22


@dataclass(frozen=True)
class Line:
    """A curve of a chart: its ``label``, SVG ``path``, first and last value, and where it ends."""

    label: str
    path: str
    first: str
    last: str
    end: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """One drawing.

    Args:
        title, good: what it shows, and what one would like to see.
        lines: the curves.
        baseline: height of a dashed line, None without one.
        band: upper and lower edge of what is usual, None without one.
        xs, ys: places and texts of the ticks.
    """

    title: str
    good: str
    lines: list[Line]
    baseline: float | None
    band: tuple[float, float] | None
    xs: list[tuple[float, str]]
    ys: list[tuple[float, str]]


_EM = "Both should rise. If the reward rises alone, it is being gamed."
_KEPT = "0.4 to 0.8 is usual. Near 1 the filter has nothing to do; near 0 the gold solutions do not fit the task."
_OPPOSING = "Level or falling. A rise: rewards are earned by what the gold solutions do not do."


def charts(run: Record) -> list[Chart]:
    """The curves that say whether the run went well; those that it does not have are left out."""
    of = run.first_of
    hacked = of("accuracy/hacked")
    opposing = {"opposing": of("hacking/opposing"), "usual": of("hacking/usual")}
    unfaithful = {
        "unfaithful, of the right": of("accuracy/false_positive"),
        "hacked, of all": hacked if any(value for _, value in hacked) else [],  # most verifiers have no known hole
    }
    drawn = [
        chart("Validation", _EM, {"EM": of("val/em"), "reward": of("val/reward")}, "first"),
        chart("Rollouts", _EM, {"EM": of("accuracy/em"), "reward": of("reward/mean")}, "first"),
        chart("Share that the filter keeps", _KEPT, {"kept": of("*/kept_fraction")}, band=(0.4, 0.8)),
        chart("Loss of the gold solutions", "It should fall.", {"loss": of("*/gold_loss")}, "first"),
        chart("Divergence, nats a token", "Small and steady.", {"KL": of("ppo/kl")}, 0.0),
        chart("Rewarded, but opposing the gold set", _OPPOSING, opposing),
        chart("Unfaithful or gamed rollouts", "Both should fall.", unfaithful, "first"),
    ]
    return [one for one in drawn if one is not None]


def chart(
    title: str,
    good: str,
    curves: dict[str, Curve],
    baseline: float | str | None = None,
    band: tuple[float, float] | None = None,
) -> Chart | None:
    """Draw curves; None where the first has fewer than two points.

    Args:
        title, good: see :class:`Chart`.
        curves: by their label; empty ones are left out.
        baseline: a value, or ``"first"`` for that of the first curve's first point.
        band: what is usual, drawn as far as it is in the picture.

    Example:
        >>> found = chart("Loss", "It should fall.", {"loss": [(0, 2.0), (4, 1.0)]}, "first")
        >>> found.lines[0].path, found.baseline == found.lines[0].end[1]
        ('M40.0,8.0 L352.0,168.0', False)
        >>> chart("Loss", "", {"loss": [(0, 2.0)]}) is None
        True
    """
    known = {label: clean for label, curve in curves.items() if (clean := [p for p in curve if math.isfinite(p[1])])}
    main = next(iter(curves))
    if len(known.get(main, [])) < 2:
        return None
    level = known[main][0][1] if baseline == "first" else baseline
    values = [value for curve in known.values() for _, value in curve] + ([] if level is None else [float(level)])
    xs = _ticks([step for curve in known.values() for step, _ in curve], whole=True)
    ys = _ticks(values)
    across = _scale(*_range([step for curve in known.values() for step, _ in curve]), LEFT, RIGHT)
    up = _scale(ys[0], ys[-1], _BOTTOM, _TOP)
    inside = None if band is None else (up(min(band[1], ys[-1])), up(max(band[0], ys[0])))
    return Chart(
        title,
        good,
        [_line(label, [(across(step), up(value)) for step, value in curve], curve) for label, curve in known.items()],
        None if level is None else up(float(level)),
        inside if inside is not None and inside[0] < inside[1] else None,
        [(across(tick), f"{tick:g}") for tick in xs if LEFT <= across(tick) <= RIGHT],
        [(up(tick), f"{tick:.3g}") for tick in ys],
    )


def _line(label: str, points: Sequence[tuple[float, float]], curve: Curve) -> Line:
    path = "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Line(label, path, f"{curve[0][1]:.3g}", f"{curve[-1][1]:.3g}", points[-1])


def _ticks(values: Sequence[float], whole: bool = False) -> list[float]:
    return [float(tick) for tick in MaxNLocator(nbins=4, integer=whole).tick_values(*_range(values))]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)
