"""A method of a running module, replaced for the present batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L

from ippo.callbacks.influence.batch_changes import Undo


def override(module: L.LightningModule, name: str, method: Callable[..., Any]) -> Undo:
    """Let ``module.<name>`` be ``method``, on this instance alone. Returns what puts the module's own back."""
    before = vars(module).get(name)  # one may have been set on the instance, hiding the class's

    def undo() -> None:
        delattr(module, name)
        if before is not None:
            setattr(module, name, before)

    setattr(module, name, method)
    return undo


def skip_step(module: L.LightningModule) -> Undo:
    """Let the module's next training step return nothing, as Lightning allows: no backward, no gradient.

    The loop goes on around it. Gradients that earlier batches have accumulated are still stepped on, and learning rate
    schedules move on as they would have. Returns what puts the module's own step back.
    """
    return override(module, "training_step", _nothing)


def _nothing(batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
    """Takes whatever arguments Lightning may give a training step."""
