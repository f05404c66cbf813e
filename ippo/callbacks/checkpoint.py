"""A checkpoint after every iteration, whether or not it updated anything."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class IterationCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint, also after an iteration without a survivor.

    Lightning skips a step count that it has saved before, but counters and generators have moved on all the same.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_global_step_saved = -1
        super().on_train_epoch_end(trainer, pl_module)
