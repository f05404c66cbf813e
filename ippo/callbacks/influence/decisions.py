"""What becomes of a filter's selections beside their effect: audit files, and the decision to stop."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ippo.callbacks.influence.audit import Audit
from ippo.callbacks.influence.survival import SurvivalStop
from ippo.influence import Selection

OnEmpty = Literal["skip", "keep_all", "stop"]


class Decisions:
    """Writes selections down and ends the training when there is too little left of it.

    Args:
        name: of the filter.
        survival: when too few survive for too long.
        on_empty: ``"stop"`` stops as soon as nothing survives; what else it may be is the filter's affair.
        rows: what is judged, for messages.
    """

    def __init__(self, name: str, survival: SurvivalStop, on_empty: OnEmpty, rows: str) -> None:
        self.name, self.survival, self.on_empty, self.rows = name, survival, on_empty, rows
        self.audit: Audit | None = None  # known when training starts
        self.why_stopped: str | None = None

    def take_in(
        self, trainer: L.Trainer, number: int, batch: Any, selection: Selection, own: slice, counts: bool
    ) -> None:
        """Write down what was decided, and stop if it is time.

        Args:
            trainer: of the running fit.
            number: of the batch.
            batch: what was judged, on this rank.
            selection: on the rows of all ranks.
            own: where this rank's are among them.
            counts: whether there is anything to stop by; not in a dry run.
        """
        if self.audit is not None:
            self.audit.add(trainer.current_epoch, number, batch, selection.part(own))
        if not counts:
            return
        survival = selection.survival_with_gradient
        self._stop(trainer, self.survival.take_in(survival))
        if survival is not None and selection.survival == 0.0 and self.on_empty == "stop":
            self._stop(trainer, f"no {self.rows} survived")

    def end_epoch(self, trainer: L.Trainer) -> None:
        """Write the audit file, and stop if the epoch's batches say so."""
        self.flush()
        self._stop(trainer, self.survival.end_epoch())

    def flush(self) -> None:
        """Leave no decision unwritten."""
        if self.audit is not None:
            self.audit.flush()

    def _stop(self, trainer: L.Trainer, reason: str | None) -> None:
        if reason is not None:
            self.why_stopped = reason
            trainer.should_stop = True
            rank_zero_info(f"{self.name}: training stops, {reason}.")
