"""What becomes of a filter's selections beside their effect: audit files, and the decision to stop."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from ippo.callbacks.influence.audit import Audit
from ippo.callbacks.influence.options import FilterOptions
from ippo.callbacks.influence.survival import SurvivalStop
from ippo.influence import Selection


class Decisions:
    """Writes selections down and ends the training when there is too little left of it.

    Args:
        options: the filter's; ``on_empty`` and ``dry_run`` count.
        survival: when too few survive for too long.
        rows: what is judged, for messages.
    """

    def __init__(self, options: FilterOptions, survival: SurvivalStop, rows: str) -> None:
        self.options, self.survival, self.rows = options, survival, rows
        self.audit: Audit | None = None
        self.why_stopped: str | None = None

    def begin(self, audit: Audit | None) -> None:
        """Training starts; ``audit`` takes in all that is decided."""
        self.audit, self.why_stopped = audit, None

    def take_in(self, trainer: L.Trainer, number: int, batch: Any, selection: Selection, own: slice) -> bool:
        """Write down what was decided, and stop if it is time; whether it takes effect, as nothing does in a dry run.

        Args:
            trainer: of the running fit.
            number: of the batch.
            batch: what was judged, on this rank.
            selection: on the rows of all ranks.
            own: where this rank's are among them.
        """
        if self.audit is not None:
            self.audit.add(trainer.current_epoch, number, batch, selection.part(own))
        if self.options.dry_run:
            return False
        survival = selection.survival_with_gradient
        self._stop(trainer, self.survival.take_in(survival))
        if survival is not None and selection.survival == 0.0 and self.options.on_empty == "stop":
            self._stop(trainer, f"no {self.rows} survived")
        return not (selection.survival == 0.0 and self.options.on_empty == "keep_all")

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
            rank_zero_warn(f"{self.options.name}: training stops, {reason}.")
