"""When too few episodes survive for too long, there is nothing left to learn: the intrinsic early stop of I-PPO."""

from __future__ import annotations

from ippo.errors import require


class SurvivalStop:
    """Counts how often in a row too few survived (arXiv 2604.01597, section 3).

    Args:
        minimum: too few is a share below this, in [0, 1]; 0 never stops.
        patience: so many times in a row are enough.

    Example:
        >>> stop = SurvivalStop(minimum=0.1, patience=2)
        >>> [stop.reached(share) for share in (0.05, 0.2, 0.05, 0.0)]
        [False, False, False, True]
    """

    def __init__(self, minimum: float, patience: int) -> None:
        require(0.0 <= minimum <= 1.0, "min_survival", minimum, "use a share between 0 (never stop) and 1")
        require(patience >= 1, "patience", patience, "use a whole number of at least 1")
        self.minimum, self.patience = minimum, patience
        self.below = 0

    def reached(self, survival: float) -> bool:
        """Take in one more share; whether it is time to stop."""
        self.below = self.below + 1 if survival < self.minimum else 0
        return self.below >= self.patience

    def reason(self, survival: float, rows: str, times: str) -> str | None:
        """Take in one more share; why it is time to stop, where it is.

        Args:
            survival: the share.
            rows: what it is a share of, in words.
            times: what shares are taken in by, in words.
        """
        if not self.reached(survival):
            return None
        return f"below {self.minimum:.0%} of the {rows} survived, {self.patience} {times} in a row"
