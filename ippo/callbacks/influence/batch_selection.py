"""What a selection does to a batch before its step, and how it is undone after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import WarningCache
from torch import Tensor

from ippo.callbacks.influence.batch_rows import Undo, drop_rows, set_weight
from ippo.callbacks.influence.skipped_step import skip_step
from ippo.influence import Selection


class BatchSelection:
    """Takes the rows that a selection drops out of a batch in place, or weighs them, and makes the batch whole again.

    Args:
        weigh: set the entry ``weight`` and leave all rows in place.
        select: ``select(batch, kept)`` drops rows in place, for batches of a type of their own; then nothing is undone.
    """

    def __init__(self, weigh: bool, select: Callable[..., Any] | None) -> None:
        self.weigh, self.select = weigh, select
        self.undone: list[Undo] = []  # filters of one trainer share the list: whoever ends first undoes all, in order
        self._silent = False
        self._told = WarningCache()

    def make(self, module: L.LightningModule, batch: Any, selection: Selection, own: slice) -> None:
        """Let the module's next step see what is kept.

        Args:
            module: the module that trains.
            batch: this rank's rows.
            selection: on the rows of all ranks.
            own: where this rank's are among them.
        """
        kept = selection.kept[own]
        if selection.survival == 0.0:
            self._told.warn("Influence filter: no row of a batch survived; such a step is skipped.")
            self.undone.append(skip_step(module))
        elif self.weigh:
            set_weight(batch, selection.weights_over_all[own])
        elif not kept.any():  # rows of other ranks have survived, and this one must take part in their backward pass
            self._silent = True
        elif self.select is not None:
            self.select(batch, kept)
        elif not kept.all():
            self.undone.append(drop_rows(batch, kept))

    def silence(self, loss: Tensor) -> None:
        """On a rank without a survivor, let the loss add nothing to the gradient."""
        if self._silent:
            loss.register_hook(torch.zeros_like)

    def undo(self) -> None:
        """Make the batch whole, and give the module its step back."""
        self._silent = False
        while self.undone:
            self.undone.pop()()
