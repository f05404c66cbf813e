"""When too few episodes survive for too long, there is nothing left to learn: the intrinsic early stop of I-PPO."""

from __future__ import annotations

from ippo.errors import require


class SurvivalStop:
    """Counts how often in a row too few survived (arXiv 2604.01597, section 3).

    Only episodes with a gradient are survivors or not: where all rewards are equal there is nothing to learn from, and
    nothing to stop for.

    Args:
        minimum: too few is a share below this, in [0, 1]; 0 never stops.
        patience: so many times in a row are enough.
        by_epoch: of batches, each too few rows to stop by, the epoch's mean counts; of rollouts, each one.

    Example:
        >>> stop = SurvivalStop(minimum=0.1, patience=2)
        >>> [stop.reached(share) for share in (0.05, 0.2, 0.05, 0.0)]
        [False, False, False, True]
        >>> SurvivalStop(minimum=0.1, patience=1).take_in(0.05)
        'below 10% of the episodes survived, 1 iterations in a row'
    """

    def __init__(self, minimum: float, patience: int, by_epoch: bool = False) -> None:
        require(0.0 <= minimum <= 1.0, "min_survival", minimum, "use a share between 0 (never stop) and 1")
        require(patience >= 1, "patience", patience, "use a whole number of at least 1")
        self.minimum, self.patience, self.by_epoch = minimum, patience, by_epoch
        self.below = 0
        self._sum, self._count = 0.0, 0  # of the epoch's batches so far

    def take_in(self, survival: float | None) -> str | None:
        """The share of a rollout or of a batch, None where it had no gradient to judge; why it is time to stop, where
        it is."""
        if survival is None:
            return None
        if self.by_epoch:
            self._sum, self._count = self._sum + survival, self._count + 1
            return None
        return self._reason(survival)

    def end_epoch(self) -> str | None:
        """Why it is time to stop, where the epoch's batches say so."""
        total, count, self._sum, self._count = self._sum, self._count, 0.0, 0
        return self._reason(total / count) if count else None

    def state_dict(self) -> dict[str, float]:
        """What must survive a restart, also one in the middle of an epoch."""
        return {"below": self.below, "sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.below, self._sum, self._count = int(state["below"]), state["sum"], int(state["count"])

    def reached(self, survival: float) -> bool:
        """Take in one more share that counts; whether it is time to stop."""
        self.below = self.below + 1 if survival < self.minimum else 0
        return self.below >= self.patience

    def _reason(self, survival: float) -> str | None:
        rows, times = ("rows", "epochs") if self.by_epoch else ("episodes", "iterations")
        too_few = f"below {self.minimum:.0%} of the {rows} survived, {self.patience} {times} in a row"
        return too_few if self.reached(survival) else None
