"""Scores taken in bfloat16, for as long as that changes next to no sign."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ippo.functional.agreement import flipped

FLIPS = 0.01
"""The share of rows whose sign may differ."""
CHECKED_EVERY = 16
"""Of so many calls the first is scored in float32 as well."""


class HalfPrecision:
    """Decides whether hooks may run in bfloat16, by what that changes; again and again, since a policy that learns has
    other scores. Each rank decides for its own rows.

    Attributes:
        calls: so far.
        refused: whether too many signs differed; then all is float32.
    """

    def __init__(self) -> None:
        self.calls, self.refused = 0, False

    def scores(self, device_type: str, by_hooks: Callable[[], bool], score: Callable[[], list[Tensor]]) -> list[Tensor]:
        """[n] scores for each batch: in bfloat16 with sums in float32, or in float32 where it was checked or refused.

        Args:
            device_type: of what is scored.
            by_hooks: whether the scores that were just taken are of hooks; of other ways bfloat16 leaves noise.
            score: takes all of them, in the precision that it finds itself in.
        """
        if self.refused:
            return score()
        checked = self.calls % CHECKED_EVERY == 0
        self.calls += 1
        precise = score() if checked else None  # first, so that what is tried once is tried exactly
        if by_hooks():
            with torch.autocast(device_type, torch.bfloat16, cache_enabled=False):
                rounded = score()
        if not by_hooks():  # from now on, or all along
            self.refused = True
            return score() if precise is None else precise
        if precise is None:
            return rounded
        if precise:
            self._look_at(torch.cat(precise), torch.cat(rounded))
        return precise

    def _look_at(self, precise: Tensor, rounded: Tensor) -> None:
        flips = flipped(precise, rounded)
        self.refused = flips > FLIPS
        if self.refused:
            told = f"bfloat16 changes {flips:.0%} of {len(precise)} signs"
            warnings.warn(f"ExactScorer: {told}, so that scores are taken in float32 from now on.", stacklevel=2)
