"""Which filter compares rows with gold rows, and how these come by their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ippo.callbacks.influence.held_direction import LookAtGold
from ippo.errors import require
from ippo.influence import (
    Direction,
    ExactScorer,
    KeepRule,
    LikeGold,
    Losses,
    PositiveScore,
    RandomProjectionScorer,
    Scorer,
    ValidationDirection,
)
from ippo.influence.keep_like_gold import look_at_gold


def default_keep(unit: str, direction: Any, losses: Losses | None, scorer: Scorer) -> KeepRule:
    """Of batches, :class:`LikeGold` where gold rows have the loss of the rows that are trained on; else the sign.

    Args:
        unit, losses, scorer: as of :class:`ippo.callbacks.InfluenceFilterCallback`.
        direction: bound to the training.
    """
    return LikeGold() if unit == "batch" and _why_not(direction, losses, scorer) is None else PositiveScore()


def gold_scorer(
    keep: KeepRule, direction: Direction | Mapping[str, Any], losses: Losses | None, scorer: Scorer
) -> LookAtGold | None:
    """How gold rows are scored for a rule that reads their scores; None for one that does not.

    Raises:
        UsageError: if it does, and they cannot be scored as the rows are.
    """
    if "gold_scores" not in keep.reads:
        return None
    why_not = _why_not(direction, losses, scorer)
    require(why_not is None, "keep", type(keep).__name__, f"it compares rows with gold rows: {why_not}")
    return lambda module, batches: look_at_gold(module, scorer, losses, batches)  # type: ignore[arg-type]


def _why_not(direction: Any, losses: Losses | None, scorer: Scorer) -> str | None:
    """What to write, where gold rows cannot be scored as the rows are."""
    if type(direction) is not ValidationDirection:
        return "pass direction=ValidationDirection(gold batches, losses), or keep=PositiveScore()"
    if losses is None or direction.loss is not losses:
        return "give ValidationDirection the same function as losses=, or keep=PositiveScore()"
    if not isinstance(scorer, ExactScorer | RandomProjectionScorer):
        return f"{type(scorer).__name__} cannot leave a row out: use ExactScorer, or keep=PositiveScore()"
    return None
