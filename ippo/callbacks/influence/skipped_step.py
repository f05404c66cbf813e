"""A training step that does not happen, while everything around it goes on."""

from __future__ import annotations

from typing import Any

import lightning as L

from ippo.callbacks.influence.batch_rows import Undo


def skip_step(module: L.LightningModule) -> Undo:
    """Let the module's next training step return nothing, as Lightning allows: no backward, no gradient.

    The loop goes on around it. Gradients that earlier batches have accumulated are still stepped on, and learning rate
    schedules move on as they would have. Returns what puts the module's own step back.
    """
    before = vars(module).get("training_step")  # a step may have been set on the instance, hiding the class's

    def undo() -> None:
        del module.training_step
        if before is not None:
            module.training_step = before  # type: ignore[method-assign]

    module.training_step = _nothing  # type: ignore[method-assign]
    return undo


def _nothing(batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
    """Takes whatever arguments Lightning may give a training step."""
