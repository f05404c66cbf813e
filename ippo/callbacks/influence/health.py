"""What a filter says of itself, once, when it looks as if it did not do what it is for."""

from __future__ import annotations

import statistics
from collections import deque

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ippo.functional import two_means

WINDOW = 100
"""Filtered batches after which the gold loss should be lower than at first."""

WHOLE = 20
"""Batches in a row that stay whole, after which it is time to ask why."""

FAR = 4.0
"""How far apart two groups of scores are, see :func:`ippo.functional.two_means`; a batch of one group seldom is."""


class Health:
    """Watches the batches of a filter for two silent faults: a training that no longer gets anywhere, and a sign that
    says nothing because all rows share most of their gradient.

    Args:
        name: of the filter.
        by_sign: whether its rule looks at the scores alone; one that compares with gold rows may keep all.
    """

    def __init__(self, name: str, by_sign: bool) -> None:
        self.name, self.by_sign = name, by_sign
        self._first: list[float] = []  # gold losses
        self._last: deque[float] = deque(maxlen=WINDOW // 10)
        self._seen = 0
        self._distances: deque[float] = deque(maxlen=WHOLE)
        self._told: set[str] = set()

    def take_in(self, scores: Tensor, survival: float, loss: float | None) -> None:
        """One filtered batch.

        Args:
            scores: [n] of its rows.
            survival: the share of them that stays.
            loss: of the gold rows.
        """
        if loss is not None and "loss" not in self._told:
            self._watch_loss(loss)
        if self.by_sign and "groups" not in self._told:
            self._watch_groups(scores, survival)

    def _watch_loss(self, loss: float) -> None:
        """At the end of each window, against the very first batches."""
        self._seen += 1
        self._last.append(loss)
        if self._seen == self._last.maxlen:
            self._first = list(self._last)
        if self._seen % WINDOW:
            return
        first, last = statistics.mean(self._first), statistics.mean(self._last)
        if last >= first:
            self._tell(
                "loss",
                f"the gold loss has not fallen in {self._seen} filtered batches: {first:.3g} at first, {last:.3g} now. "
                "See with dry_run=True whether it falls without the filter. If so, give more gold rows, take "
                "direction_every_n_batches=1, or let the first batches pass with warmup_batches.",
            )

    def _watch_groups(self, scores: Tensor, survival: float) -> None:
        """A few rows fall into groups by chance, so that it takes several batches."""
        if survival < 1:
            self._distances.clear()
            return
        self._distances.append(two_means(scores[scores.isfinite()])[1])
        if len(self._distances) == WHOLE and statistics.median(self._distances) > FAR:
            self._tell(
                "groups",
                f"all rows of the last {WHOLE} batches stay, though their scores fall into two groups far apart. Rows "
                "that share most of their gradient have one sign, right or wrong: if the lower group is wrong, use "
                "keep=LikeGold(), which compares with gold rows, or without these keep=AboveGap().",
            )

    def _tell(self, what: str, message: str) -> None:
        self._told.add(what)
        rank_zero_warn(f"{self.name}: {message}")
