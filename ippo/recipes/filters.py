"""The filters that have a name on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ippo.callbacks import InfluenceFilterCallback
from ippo.influence import ExactScorer, PositiveScore, Proportional, Uniform

FilterName = Literal["last_block", "uniform", "paper", "tempered", "none"]

_NAMED: dict[str, Callable[[], InfluenceFilterCallback | None]] = {
    "paper": lambda: InfluenceFilterCallback(keep=PositiveScore(), weight=Proportional()),
    "last_block": lambda: InfluenceFilterCallback(ExactScorer(parameters=1), keep=PositiveScore(), weight=Uniform()),
    "uniform": lambda: InfluenceFilterCallback(keep=PositiveScore(), weight=Uniform()),
    "tempered": lambda: InfluenceFilterCallback(keep=PositiveScore(), weight=Proportional(min_effective=0.5)),
    "none": lambda: None,
}


def build_filter(choice: FilterName | InfluenceFilterCallback) -> InfluenceFilterCallback | None:
    """The callback behind a name, or the callback itself; None for plain PPO."""
    return _NAMED[choice]() if isinstance(choice, str) else choice
